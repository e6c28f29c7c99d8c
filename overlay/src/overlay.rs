//! [`Overlay`], the handle that the agent holds. The counterpart of `weft_mesh::Mesh`.
//!
//! It lets one operation at a time change links, and remembers the endpoints of the last reconcile.
//! It decides nothing: `reconcile` does the work.
//!
//! Tasks: one that follows the changes of the node's links, addresses and routes for
//! [`Overlay::changed`]. It ends when the last clone of the handle is dropped.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
};
use tracing::warn;
use weft_model::{NodePlan, TaskId, error_chain};

use crate::{
    desired::settings_without_weft,
    endpoint::{self, Endpoint},
    error::Error,
    facts::{self, NodeFacts},
    kernel::{self, netlink::Netlink, netns, watch::Watch},
    name,
    reconcile::{self, Faults, Pass},
};

/// MTU of the links that [`Overlay::check`] creates, in octets. Any valid value works.
const PROBE_MTU: u32 = 1280;

/// UDP port of the tunnel that [`Overlay::check`] creates: discard (RFC 863). The tunnel is never
/// up, so it does not open the port. It must be another port than that of other VXLAN devices.
const PROBE_PORT: u16 = 9;

/// The links after a reconcile.
#[derive(Debug)]
pub struct OverlayState {
    pub tunnel_ifindex: u32,
    /// MTU of the tasks' links, in octets: what fits through a tunnel to any peer.
    pub mtu: u32,
    /// Every link of every task, sorted by task id and then in the order of the task's links.
    pub endpoints: Vec<Endpoint>,
    pub facts: NodeFacts,
    /// The tasks whose links could not be read or configured. Such a task keeps only the endpoints
    /// that were configured before and whose links have not changed.
    pub faults: BTreeMap<TaskId, Error>,
}

/// The links of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Overlay(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The endpoints of the last reconcile. Every operation that changes links holds this lock.
    endpoints: Mutex<Vec<Endpoint>>,
    changed: watch::Receiver<u64>,
    follower: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Overlay {
    /// Starts to follow the links of the network namespace that the process is in. Changes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Watch`] if the kernel does not let the process subscribe to changes.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let watch = Watch::open()?;
        let (sender, changed) = watch::channel(0);
        let follower = tokio::spawn(follow(watch, sender));
        Ok(Self(Arc::new(Inner { endpoints: Mutex::default(), changed, follower })))
    }

    /// Checks that the kernel and the process's privileges suffice: creates a link of each kind and
    /// deletes it again.
    ///
    /// # Errors
    ///
    /// The first operation that the kernel refuses, with a hint for the operator.
    pub async fn check(&self) -> Result<(), Error> {
        let _one_at_a_time = self.0.endpoints.lock().await;
        let netlink = open_netlink()?;
        kernel::read_netns(&netlink).await?;
        netlink.delete_link(name::PROBE).await?;
        // The tunnel of an earlier daemon proves that the kernel can create one, and holds the UDP
        // port that a second one would need.
        if !netlink.has_link(name::TUNNEL).await? {
            netlink.create_tunnel(name::PROBE, PROBE_PORT, PROBE_MTU).await?;
            netlink.delete_link(name::PROBE).await?;
        }
        netlink
            .create_veth(name::PROBE, &format!("{}-peer", name::PROBE), Path::new(netns::CURRENT), PROBE_MTU)
            .await?;
        netlink.delete_link(name::PROBE).await
    }

    /// The value changes when the node's links, addresses or routes may have changed, no matter
    /// which program changed them. Then the agent must reconcile.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.clone()
    }

    /// Configures the links for the tasks of `plan` that have a sandbox (the path of a network
    /// namespace). Idempotent: it creates, repairs, adopts and removes by comparing the whole plan
    /// with the whole state of the kernel.
    ///
    /// A task whose links cannot be configured is a fault in the result, and does not delay the
    /// other tasks.
    ///
    /// # Errors
    ///
    /// The node's own namespace could not be read or configured.
    pub async fn reconcile(
        &self,
        plan: &NodePlan,
        sandboxes: &BTreeMap<TaskId, PathBuf>,
    ) -> Result<OverlayState, Error> {
        let mut endpoints = self.0.endpoints.lock().await;
        let (pass, faults) = reconcile::reconcile(&open_netlink()?, plan, sandboxes).await?;
        let state = state(&pass, faults, &endpoints)?;
        endpoints.clone_from(&state.endpoints);
        Ok(state)
    }

    /// Removes every link of weft and restores the sysctls of the node.
    ///
    /// # Errors
    ///
    /// [`Error::Teardown`] with every operation that failed. All other operations were done.
    pub async fn teardown(&self) -> Result<(), Error> {
        let mut endpoints = self.0.endpoints.lock().await;
        endpoints.clear();
        let netlink = open_netlink()?;
        let mut errors = Vec::new();
        let links = netlink.links().await?;
        for name in links.keys().filter(|name| name::is_weft_link(name)) {
            errors.extend(netlink.delete_link(name).await.err());
        }
        for (key, value) in settings_without_weft(&reconcile::read_settings()) {
            errors.extend(kernel::sysctl::write(key, &value).err());
        }
        if errors.is_empty() { Ok(()) } else { Err(Error::Teardown(errors)) }
    }
}

fn state(pass: &Pass, faults: Faults, previous: &[Endpoint]) -> Result<OverlayState, Error> {
    let node = &pass.actual.node;
    let tunnel = node.links.get(name::TUNNEL);
    let tunnel = tunnel.ok_or_else(|| Error::unsettled([format!("create the tunnel {}", name::TUNNEL)]))?;
    let configured = pass.actual.tasks.iter().filter(|(task, _)| !faults.contains_key(*task));
    let cookies = configured.map(|(task, netns)| (task, netns.cookie)).collect();
    let endpoints = endpoint::endpoints(&pass.desired, node, &cookies, previous);
    let facts = facts::facts(node);
    Ok(OverlayState { tunnel_ifindex: tunnel.index, mtu: pass.desired.mtu, endpoints, facts, faults })
}

fn open_netlink() -> Result<Netlink, Error> {
    Netlink::open().map_err(|source| Error::Open { namespace: "the node's namespace".to_owned(), source })
}

async fn follow(mut watch: Watch, changed: watch::Sender<u64>) {
    loop {
        match watch.changed().await {
            Ok(()) => changed.send_modify(|count| *count += 1),
            Err(error) => {
                warn!(
                    error = error_chain(&error),
                    "cannot follow link changes: from now on only the full resync repairs them"
                );
                return;
            }
        }
    }
}
