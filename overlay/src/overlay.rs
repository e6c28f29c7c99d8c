//! The shell: dumps the kernel, asks `desired` and `diff`, applies, and looks again until nothing is left to do.
//!
//! Tasks: one that follows the node's links, addresses and routes for [`Overlay::changed`]; it ends with the last
//! clone. Every sandbox is visited on a thread of its own, a bounded number at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    iter,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures_util::{StreamExt, stream};
use tokio::{
    sync::{Mutex, watch},
    task::JoinHandle,
};
use tracing::{debug, warn};
use weft_model::{NodePlan, TaskId};

use crate::{
    desired::{self, Desired, NodeSettings, Underlay},
    diff::{self, Op, Ops, TaskOps},
    endpoint::{self, Endpoint},
    facts::{self, NodeFacts},
    found::Found,
    kernel::{self, KernelError, netlink::Netlink, watch::Watch},
    name, netns,
};

/// Sandboxes visited at a time: each costs a thread.
const VISITS_AT_ONCE: usize = 8;
/// Rounds of looking and applying. The first does the work; the second mends what the first took along (routes go with
/// the address they need) and the third finds nothing to do. More would mean that somebody works against us.
const MAX_ROUNDS: usize = 4;
/// Any will do.
const PROBE_MTU: u32 = 1280;

/// Why the links are not as they shall be.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("cannot read the cookie of a network namespace (weft needs Linux 5.14 or later)")]
    Cookie(#[source] std::io::Error),
    #[error(
        "links do not stay as weft sets them (left to do: {0}): something else on this node sets them too, such as systemd-networkd, a firewall or a tuning service; stop it from managing weft-tun, wv* and lo"
    )]
    Unsettled(String),
    #[error("cannot remove all links of weft: {}", join(&.0.iter().map(chain).collect::<Vec<_>>()))]
    Teardown(Vec<KernelError>),
}

fn join(items: &[impl ToString]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// An error with its causes, which are no part of its own text.
fn chain<E: Error>(error: &E) -> String {
    iter::successors(Some(error as &dyn Error), |&error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}

fn unsettled(left: &[Op]) -> OverlayError {
    OverlayError::Unsettled(join(left))
}

/// What the links are now.
#[derive(Debug)]
pub struct OverlayState {
    pub tunnel_ifindex: u32,
    /// Of every task's links: what fits through a tunnel to any peer.
    pub mtu: u32,
    /// Every link of a task, its tasks in the order of their ids, its links in their own.
    pub endpoints: Vec<Endpoint>,
    pub facts: NodeFacts,
    /// The tasks whose links are not as they shall be: their sandbox is gone or does not obey. Of their endpoints only
    /// those are left that were in order before and whose links are still the same.
    pub faults: BTreeMap<TaskId, OverlayError>,
}

/// The links of this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Overlay(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What the last reconcile left. Whoever changes something holds it: one change at a time.
    endpoints: Mutex<Vec<Endpoint>>,
    changed: watch::Receiver<u64>,
    follower: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// A dump of one sandbox.
struct Sandbox {
    found: Found,
    cookie: u64,
}

impl Overlay {
    /// Begins to follow the node's links. Acts on the network namespace that the process is in, and changes nothing yet.
    pub fn open() -> Result<Self, OverlayError> {
        let watch = Watch::open()?;
        let (sender, changed) = watch::channel(0);
        let follower = tokio::spawn(follow(watch, sender));
        Ok(Self(Arc::new(Inner { endpoints: Mutex::default(), changed, follower })))
    }

    /// Whether the kernel and our privileges suffice: makes each kind of link once, and removes it.
    pub async fn check(&self) -> Result<(), OverlayError> {
        let _turn = self.0.endpoints.lock().await;
        let netlink = open_netlink()?;
        own_cookie()?;
        netlink.delete_link(name::PROBE).await?;
        // An earlier daemon's tunnel proves as much, and allows no second one on its port.
        if !netlink.has_link(name::TUNNEL).await? {
            netlink.create_tunnel(name::PROBE, PROBE_MTU).await?;
            netlink.delete_link(name::PROBE).await?;
        }
        netlink
            .create_veth(name::PROBE, &format!("{}-peer", name::PROBE), Path::new(netns::CURRENT), PROBE_MTU)
            .await?;
        Ok(netlink.delete_link(name::PROBE).await?)
    }

    /// Rings when the node's links, addresses or routes may have changed, by whomever: reconcile again then.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.changed.clone()
    }

    /// Makes the links of `plan` true, for those of its tasks that have a sandbox (the path of a network namespace).
    /// Idempotent; repairs, adopts and sweeps alike. A task that cannot be served is a fault in the result and keeps
    /// nobody else waiting; an error means that the node itself is not as it shall be.
    pub async fn reconcile(
        &self,
        plan: &NodePlan,
        sandboxes: &BTreeMap<TaskId, PathBuf>,
    ) -> Result<OverlayState, OverlayError> {
        let mut endpoints = self.0.endpoints.lock().await;
        let mut faults = BTreeMap::new();
        let round = settle(plan, sandboxes, &mut faults).await?;
        let state = round.state(faults, &endpoints)?;
        endpoints.clone_from(&state.endpoints);
        Ok(state)
    }

    /// Removes every link that weft made, and takes its settings of the node back. Goes on past errors and reports them
    /// all.
    pub async fn teardown(&self) -> Result<(), OverlayError> {
        let mut endpoints = self.0.endpoints.lock().await;
        endpoints.clear();
        let netlink = open_netlink()?;
        let mut errors = Vec::new();
        let links = netlink.links().await?;
        for name in links.keys().filter(|name| name::is_ours(name)) {
            errors.extend(netlink.delete_link(name).await.err());
        }
        for (key, value) in desired::settings_without_weft(&settings()) {
            errors.extend(kernel::sysctl::write(key, &value).err());
        }
        if errors.is_empty() { Ok(()) } else { Err(OverlayError::Teardown(errors)) }
    }
}

/// Looks and applies until nothing is left to do, or the rounds are used up. Returns the last look.
async fn settle(
    plan: &NodePlan,
    sandboxes: &BTreeMap<TaskId, PathBuf>,
    faults: &mut BTreeMap<TaskId, OverlayError>,
) -> Result<Round, OverlayError> {
    let netlink = open_netlink()?;
    for _ in 1..MAX_ROUNDS {
        let round = Round::look(&netlink, plan, sandboxes, faults).await?;
        if round.ops.is_empty() {
            return Ok(round);
        }
        round.apply(&netlink, sandboxes, faults).await?;
    }
    let round = Round::look(&netlink, plan, sandboxes, faults).await?;
    if !round.ops.node.is_empty() {
        return Err(unsettled(&round.ops.node));
    }
    for (task, ops) in &round.ops.tasks {
        let left = if ops.host.is_empty() { &ops.inside } else { &ops.host };
        faults.entry(task.clone()).or_insert_with(|| unsettled(left));
    }
    Ok(round)
}

/// One look at the kernel, and what it calls for.
struct Round {
    desired: Desired,
    node: Found,
    cookie: u64,
    sandboxes: BTreeMap<TaskId, Sandbox>,
    ops: Ops,
}

impl Round {
    async fn look(
        netlink: &Netlink,
        plan: &NodePlan,
        paths: &BTreeMap<TaskId, PathBuf>,
        faults: &mut BTreeMap<TaskId, OverlayError>,
    ) -> Result<Self, OverlayError> {
        let cookie = own_cookie()?;
        let mut node = kernel::dump(netlink, iter::empty()).await?;
        let underlay = underlay(netlink, plan, &node).await?;
        let desired = desired::desired(plan, paths, underlay, &settings());
        let keys = desired.tasks.values().flat_map(|task| task.host.sysctls.keys()).chain(desired.node.sysctls.keys());
        node.sysctls = keys.filter_map(|key| Some((key.clone(), kernel::sysctl::read(key)?))).collect();
        let sandboxes = visit_all(&desired, paths, faults).await;
        let found = sandboxes.iter().map(|(task, sandbox)| (task.clone(), sandbox.found.clone())).collect();
        let mut ops = diff::diff(&desired, &node, &found);
        ops.tasks.retain(|task, _| !faults.contains_key(task));
        Ok(Self { desired, node, cookie, sandboxes, ops })
    }

    async fn apply(
        &self,
        netlink: &Netlink,
        paths: &BTreeMap<TaskId, PathBuf>,
        faults: &mut BTreeMap<TaskId, OverlayError>,
    ) -> Result<(), OverlayError> {
        apply_all(netlink, &self.ops.node).await?;
        let failed: Vec<_> = stream::iter(&self.ops.tasks)
            .filter_map(async |(task, ops)| Some((task, ops, paths.get(task)?)))
            .map(|(task, ops, path)| async move {
                apply_task(netlink, ops, path.clone()).await.err().map(|error| (task.clone(), error))
            })
            .buffer_unordered(VISITS_AT_ONCE)
            .collect()
            .await;
        for (task, error) in failed.into_iter().flatten() {
            let error = OverlayError::from(error);
            warn!(%task, error = chain(&error), "cannot link task");
            faults.insert(task, error);
        }
        Ok(())
    }

    fn state(self, faults: BTreeMap<TaskId, OverlayError>, before: &[Endpoint]) -> Result<OverlayState, OverlayError> {
        let tunnel = self.node.links.get(name::TUNNEL);
        let tunnel_ifindex = tunnel.ok_or_else(|| OverlayError::Unsettled(format!("{} is gone", name::TUNNEL)))?.index;
        let in_order = self.sandboxes.iter().filter(|(task, _)| !faults.contains_key(*task));
        let cookies = in_order.map(|(task, sandbox)| (task, sandbox.cookie)).collect();
        let endpoints = endpoint::endpoints(&self.desired, &self.node, &cookies, before);
        let facts = facts::facts(&self.node, self.cookie);
        Ok(OverlayState { tunnel_ifindex, mtu: self.desired.mtu, endpoints, facts, faults })
    }
}

/// Dumps the sandbox of each task; one that cannot be read is a fault of its task.
async fn visit_all(
    desired: &Desired,
    paths: &BTreeMap<TaskId, PathBuf>,
    faults: &mut BTreeMap<TaskId, OverlayError>,
) -> BTreeMap<TaskId, Sandbox> {
    let skip: BTreeSet<TaskId> = faults.keys().cloned().collect();
    let visits: Vec<_> = stream::iter(&desired.tasks)
        .filter_map(async |(task, wanted)| Some((task, wanted, paths.get(task)?)))
        .filter(|(task, ..)| std::future::ready(!skip.contains(*task)))
        .map(|(task, wanted, path)| {
            let keys: Vec<String> = wanted.inside.sysctls.keys().cloned().collect();
            let visit = kernel::visit(path.clone(), async move |netlink| {
                let found = kernel::dump(&netlink, keys.iter()).await?;
                Ok((found, netns::netns_cookie()))
            });
            async move { (task.clone(), visit.await) }
        })
        .buffer_unordered(VISITS_AT_ONCE)
        .collect()
        .await;
    let mut sandboxes = BTreeMap::new();
    for (task, visited) in visits {
        match visited.map_err(OverlayError::from) {
            Ok((found, Ok(cookie))) => {
                sandboxes.insert(task, Sandbox { found, cookie });
            }
            Ok((_, Err(error))) => {
                faults.insert(task, OverlayError::Cookie(error));
            }
            Err(error) => {
                warn!(%task, error = chain(&error), "cannot look into the sandbox of task");
                faults.insert(task, error);
            }
        }
    }
    sandboxes
}

async fn apply_task(netlink: &Netlink, ops: &TaskOps, sandbox: PathBuf) -> Result<(), KernelError> {
    apply_all(netlink, &ops.host).await?;
    if ops.inside.is_empty() {
        return Ok(());
    }
    let inside = ops.inside.clone();
    kernel::visit(sandbox, async move |netlink| apply_all(&netlink, &inside).await).await
}

async fn apply_all(netlink: &Netlink, ops: &[Op]) -> Result<(), KernelError> {
    for op in ops {
        debug!(%op, "link");
        kernel::apply(netlink, op).await?;
    }
    Ok(())
}

/// The MTU towards the peers, or without any towards this node's own address.
async fn underlay(netlink: &Netlink, plan: &NodePlan, node: &Found) -> Result<Underlay, OverlayError> {
    let mut underlay = Underlay::default();
    for peer in &plan.peers {
        if let Some(mtu) = netlink.path_mtu(peer.addr, &node.links).await? {
            underlay.add(peer.addr, mtu);
        }
    }
    if underlay == Underlay::default() {
        let own = node.links.values().find(|link| link.addresses.iter().any(|address| address.ip() == plan.addr));
        own.into_iter().for_each(|link| underlay.add(plan.addr, link.mtu));
    }
    Ok(underlay)
}

fn settings() -> NodeSettings {
    let read = |key| kernel::sysctl::read(key).unwrap_or_default();
    NodeSettings {
        local_ports: read(desired::LOCAL_PORTS),
        reserved_ports: read(desired::RESERVED_PORTS),
        default_rp_filter: read(desired::DEFAULT_RP_FILTER),
    }
}

fn open_netlink() -> Result<Netlink, OverlayError> {
    let open = |source| KernelError::Open { namespace: "the node's namespace".to_owned(), source };
    Ok(Netlink::open().map_err(open)?)
}

fn own_cookie() -> Result<u64, OverlayError> {
    netns::netns_cookie().map_err(OverlayError::Cookie)
}

async fn follow(mut watch: Watch, changed: watch::Sender<u64>) {
    loop {
        match watch.changed().await {
            Ok(()) => changed.send_modify(|count| *count += 1),
            Err(error) => {
                // The full sync still repairs what changes from now on, only later.
                warn!(error = chain(&error), "no notices of link changes any more");
                return;
            }
        }
    }
}
