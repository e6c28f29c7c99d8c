//! [`Overlay`], the handle that the agent holds. The counterpart of `weft_mesh::Mesh`.
//!
//! It lets one operation at a time change links, and remembers the endpoints of the last reconcile.
//! It decides nothing: `reconcile` does the work.
//!
//! Tasks: one that follows the changes of the node's links, addresses and routes for
//! [`Overlay::changed`]. It ends when the last clone of the handle is dropped.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, PoisonError},
};

use tokio::{
    sync::{Mutex, OnceCell, watch},
    task::JoinHandle,
};
use tracing::warn;
use weft_model::{NodePlan, TaskId, error_chain, wireguard::EncryptionSupport};

use crate::{
    desired::{Desired, settings_without_weft},
    endpoint::{self, Endpoint},
    error::Error,
    facts::{self, NodeFacts},
    kernel::{self, netlink::Netlink, netns, watch::Watch, wireguard::WireGuard},
    name,
    reconcile::{self, Context, Faults, Pass},
    sandbox::Sandbox,
    wireguard::{EncryptionMode, KeyLink, OwnKey},
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
    /// MTU of the tasks' links on encrypted networks, in octets.
    pub encrypted_mtu: u32,
    pub encryption: EncryptionSupport,
    /// The WireGuard keys of this node that have a link with all peers, in the order in which they
    /// were given.
    pub key_links: Vec<KeyLink>,
    /// Every link of every task, sorted by task id and then in the order of the task's links.
    pub endpoints: Vec<Endpoint>,
    pub facts: NodeFacts,
    /// The tasks whose links could not be read or configured. Such a task keeps only the endpoints
    /// that were configured before and whose links have not changed.
    pub faults: BTreeMap<TaskId, Error>,
    /// Why the WireGuard links do not have the configuration of the plan. Packets of encrypted
    /// networks are dropped where it is missing. The plan is not in effect.
    pub encryption_fault: Option<Error>,
}

/// The links of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Overlay(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    mode: EncryptionMode,
    support: OnceCell<EncryptionSupport>,
    wireguard: Arc<std::sync::Mutex<WireGuard>>,
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
    /// `mode` says which implementation of WireGuard encrypts.
    ///
    /// # Errors
    ///
    /// [`Error::Watch`] if the kernel does not let the process subscribe to changes.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn open(mode: EncryptionMode) -> Result<Self, Error> {
        let watch = Watch::open()?;
        let (sender, changed) = watch::channel(0);
        let follower = tokio::spawn(follow(watch, sender));
        let (support, wireguard) = (OnceCell::new(), Arc::default());
        Ok(Self(Arc::new(Inner { mode, support, wireguard, endpoints: Mutex::default(), changed, follower })))
    }

    /// Whether this node can encrypt, and with which implementation of WireGuard. The first call
    /// finds it out; later calls return the same.
    ///
    /// # Errors
    ///
    /// [`Error::Open`] if the kernel gives no netlink socket.
    pub async fn encryption_support(&self) -> Result<EncryptionSupport, Error> {
        let probe = async || Ok(kernel::wireguard::probe(&open_netlink()?, self.0.mode).await);
        self.0.support.get_or_try_init(probe).await.cloned()
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

    /// Configures the links for the tasks of `plan` that have a sandbox, and a WireGuard link for
    /// each of `keys` if the plan has a part for encryption. Idempotent: it creates, repairs,
    /// adopts and removes by comparing the whole plan with the whole state of the kernel.
    ///
    /// A task whose links cannot be configured is a fault in the result, and does not delay the
    /// other tasks. So is a WireGuard link.
    ///
    /// # Errors
    ///
    /// The node's own namespace could not be read or configured.
    pub async fn reconcile(
        &self,
        plan: &NodePlan,
        sandboxes: &BTreeMap<TaskId, Sandbox>,
        keys: &[OwnKey],
    ) -> Result<OverlayState, Error> {
        let mut endpoints = self.0.endpoints.lock().await;
        let (netlink, support) = (&open_netlink()?, &self.encryption_support().await?);
        let context = Context { netlink, sandboxes, keys, support, wireguard: &self.0.wireguard };
        let (pass, faults) = reconcile::reconcile(&context, plan).await?;
        let state = state(&pass, faults, &context, &endpoints)?;
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
        let wireguard = Arc::clone(&self.0.wireguard);
        // Ending a device waits for its threads.
        kernel::run_blocking(move || *wireguard.lock().unwrap_or_else(PoisonError::into_inner) = WireGuard::default())
            .await?;
        for route in netlink.routes().await?.1 {
            errors.extend(netlink.remove_key_route(&route).await.err());
        }
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

fn state(pass: &Pass, faults: Faults, context: &Context<'_>, previous: &[Endpoint]) -> Result<OverlayState, Error> {
    let node = &pass.actual.node;
    let tunnel = node.links.get(name::TUNNEL);
    let tunnel = tunnel.ok_or_else(|| Error::unsettled([format!("create the tunnel {}", name::TUNNEL)]))?;
    let configured = pass.actual.tasks.iter().filter(|(task, _)| !faults.tasks.contains_key(*task));
    let has_netns = |task| context.sandboxes.get(task).is_some_and(|sandbox| sandbox.netns().is_some());
    let cookies = configured.map(|(task, netns)| (task, has_netns(task).then_some(netns.cookie))).collect();
    let endpoints = endpoint::endpoints(&pass.desired, node, &cookies, previous);
    let facts = facts::facts(node);
    let Desired { mtu, encrypted_mtu, .. } = pass.desired;
    Ok(OverlayState {
        tunnel_ifindex: tunnel.index,
        mtu,
        encrypted_mtu,
        encryption: context.support.clone(),
        key_links: context.keys.iter().filter_map(|key| key_link(pass, key)).collect(),
        endpoints,
        facts,
        faults: faults.tasks,
        encryption_fault: faults.encryption,
    })
}

/// The link of a key. `None` if the key has none, or if its address or its peers are not complete.
fn key_link(pass: &Pass, key: &OwnKey) -> Option<KeyLink> {
    let name = name::wireguard(key.port);
    let (desired, desired_link) = (pass.desired.wireguard.get(name)?, pass.desired.node.links.get(name)?);
    let (actual, link) = (pass.actual.wireguard.get(name)?, pass.actual.node.links.get(name)?);
    let is_complete = actual.public_key == key.public_key
        && actual.port == key.port
        && desired.peers.keys().eq(actual.peers.keys())
        && desired_link.addresses.as_ref() == Some(&link.addresses)
        && link.up;
    is_complete.then_some(KeyLink { key: key.node_key(), ifindex: link.index })
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
