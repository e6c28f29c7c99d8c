//! Reads the kernel's state, compares it with the plan, and applies the difference, until nothing
//! is left to do.
//!
//! `overlay` calls [`reconcile`], one call at a time. If an operation fails for one task, the
//! failure is recorded as a fault of that task, and the other tasks are still configured. This
//! module does not decide what is desired or different: `desired` and `diff` do.
//!
//! Each sandbox is read and changed on its own thread. The number of these threads is bounded.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{StreamExt, stream};
use tracing::{debug, warn};
use weft_model::{NodePlan, TaskId, error_chain, wireguard::EncryptionSupport};

use crate::{
    actual::{Actual, ActualNetns, ActualWireGuard},
    desired::{self, Desired, NodeSettings, Underlay, desired},
    diff::{Op, Ops, TaskOps, WireGuardOp, diff},
    error::Error,
    kernel::{self, netlink::Netlink, wireguard::WireGuard},
    name,
    sandbox::Sandbox,
    wireguard::OwnKey,
};

/// Sandboxes that are read or changed at the same time. Each of them needs a thread.
const MAX_CONCURRENT_SANDBOXES: usize = 8;
/// Passes of one reconcile. The first pass does the work. The second pass repairs the side effects
/// of the first one: for example, the kernel removes routes together with an address. The third
/// pass finds nothing to do. The last pass only reads. If it still finds something to change,
/// another program reverts weft's changes.
const MAX_PASSES: usize = 4;

/// What a reconcile works on besides the plan.
pub(crate) struct Context<'a> {
    pub(crate) netlink: &'a Netlink,
    pub(crate) sandboxes: &'a BTreeMap<TaskId, Sandbox>,
    /// The WireGuard keys of this node that must have a link.
    pub(crate) keys: &'a [OwnKey],
    pub(crate) support: &'a EncryptionSupport,
    pub(crate) wireguard: &'a Arc<Mutex<WireGuard>>,
}

/// What could not be configured, and why.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The tasks whose links could not be read or configured.
    pub(crate) tasks: BTreeMap<TaskId, Error>,
    /// Why not all WireGuard links have their configuration.
    pub(crate) encryption: Option<Error>,
}

/// The last state that was read from the kernel, and the desired state at that time.
#[derive(Debug)]
pub(crate) struct Pass {
    pub(crate) desired: Desired,
    pub(crate) actual: Actual,
    ops: Ops,
}

/// Configures the links of `plan` for the tasks that have a sandbox. Returns the last pass, and
/// what could not be configured.
///
/// # Errors
///
/// The node's own namespace could not be read or configured.
pub(crate) async fn reconcile(context: &Context<'_>, plan: &NodePlan) -> Result<(Pass, Faults), Error> {
    let mut faults = Faults::default();
    for _ in 1..MAX_PASSES {
        let pass = Pass::read(context, plan, &mut faults).await?;
        if pass.ops.is_empty() {
            return Ok((pass, faults));
        }
        pass.apply(context, &mut faults).await?;
    }
    let pass = Pass::read(context, plan, &mut faults).await?;
    if !pass.ops.node.is_empty() {
        return Err(Error::unsettled(&pass.ops.node));
    }
    if !pass.ops.wireguard.is_empty() {
        faults.encryption = Some(Error::unsettled(&pass.ops.wireguard));
    }
    for (task, ops) in &pass.ops.tasks {
        let left = if ops.host.is_empty() { &ops.sandbox } else { &ops.host };
        faults.tasks.entry(task.clone()).or_insert_with(|| Error::unsettled(left));
    }
    Ok((pass, faults))
}

impl Pass {
    /// Reads the actual state and compares it with the desired one. Tasks with a fault are left
    /// out.
    async fn read(context: &Context<'_>, plan: &NodePlan, faults: &mut Faults) -> Result<Self, Error> {
        let Context { netlink, sandboxes, keys, .. } = *context;
        let mut node = kernel::read_netns(netlink).await?;
        let underlay = read_underlay(netlink, plan, &node).await?;
        let mut desired = desired(plan, sandboxes, keys, underlay, &read_settings());
        let task_keys = desired.tasks.values().flat_map(|task| task.host.sysctls.keys());
        node.sysctls = kernel::sysctl::read_all(task_keys.chain(desired.node.sysctls.keys()));
        let tasks = read_sandboxes(&mut desired, &node, sandboxes, faults).await;
        let wireguard = read_wireguard(context, &node, faults).await?;
        let actual = Actual { node, wireguard, tasks };
        let mut ops = diff(&desired, &actual);
        ops.tasks.retain(|task, _| !faults.tasks.contains_key(task));
        if faults.encryption.is_some() {
            ops.wireguard.clear();
        }
        Ok(Self { desired, actual, ops })
    }

    async fn apply(&self, context: &Context<'_>, faults: &mut Faults) -> Result<(), Error> {
        let Context { netlink, sandboxes, .. } = *context;
        for op in &self.ops.wireguard {
            debug!(%op, "applying WireGuard operation");
            if let Err(error) = apply_wireguard(context, op).await {
                warn!(error = error_chain(&error), "cannot configure WireGuard link");
                faults.encryption = Some(error);
                break;
            }
        }
        apply_all(netlink, &self.ops.node).await?;
        self.log_reduced_mtus();
        let failed: Vec<_> = stream::iter(&self.ops.tasks)
            .filter_map(async |(task, ops)| Some((task, ops, sandboxes.get(task)?)))
            .map(|(task, ops, sandbox)| async move {
                apply_task(netlink, ops, sandbox.netns()).await.err().map(|error| (task.clone(), error))
            })
            .buffer_unordered(MAX_CONCURRENT_SANDBOXES)
            .collect()
            .await;
        for (task, error) in failed.into_iter().flatten() {
            warn!(%task, error = error_chain(&error), "cannot configure task links");
            faults.tasks.insert(task, error);
        }
        Ok(())
    }

    /// Logs the links that get a smaller MTU than the user has chosen for their network.
    fn log_reduced_mtus(&self) {
        for (task, desired) in self.ops.tasks.keys().filter_map(|task| Some((task, self.desired.tasks.get(task)?))) {
            for attachment in &desired.attachments {
                let mtu = desired.host.links.get(&attachment.host).and_then(|link| link.mtu);
                if let Some(wanted) = attachment.wanted_mtu.filter(|wanted| mtu.is_some_and(|mtu| *wanted > mtu)) {
                    let network = &attachment.network;
                    warn!(%task, %network, wanted, mtu, "MTU of the network does not fit through the tunnel");
                }
            }
        }
    }
}

/// Reads the namespace of each task that has no fault yet, and adopts the names of its links in
/// `desired`. A namespace that cannot be read is a fault of its task. One that does not exist yet
/// is empty.
async fn read_sandboxes(
    desired: &mut Desired,
    node: &ActualNetns,
    sandboxes: &BTreeMap<TaskId, Sandbox>,
    faults: &mut Faults,
) -> BTreeMap<TaskId, ActualNetns> {
    let skipped: BTreeSet<TaskId> = faults.tasks.keys().cloned().collect();
    let hosts = Arc::new(ActualNetns { links: node.links.clone(), ..ActualNetns::default() });
    let results: Vec<_> = stream::iter(&desired.tasks)
        .filter_map(async |(task, desired)| Some((task, desired, sandboxes.get(task)?)))
        .filter(|(task, ..)| std::future::ready(!skipped.contains(*task)))
        .map(|(task, desired, sandbox)| {
            let (mut desired, hosts) = (desired.clone(), Arc::clone(&hosts));
            let path = sandbox.netns().map(Path::to_owned);
            async move {
                let Some(path) = path else { return (task.clone(), Ok((desired, ActualNetns::default()))) };
                let read = kernel::run_in_netns(path, async move |netlink| {
                    let mut netns = kernel::read_netns(&netlink).await?;
                    desired.follow_names(&hosts, &netns);
                    netns.sysctls = kernel::sysctl::read_all(desired.sandbox.sysctls.keys());
                    Ok((desired, netns))
                });
                (task.clone(), read.await)
            }
        })
        .buffer_unordered(MAX_CONCURRENT_SANDBOXES)
        .collect()
        .await;
    let mut tasks = BTreeMap::new();
    for (task, result) in results {
        match result {
            Ok((renamed, netns)) => {
                desired.tasks.insert(task.clone(), renamed);
                tasks.insert(task, netns);
            }
            Err(error) => {
                if error.is_of_ended_task() {
                    debug!(%task, error = error_chain(&error), "the task has ended");
                } else {
                    warn!(%task, error = error_chain(&error), "cannot read task sandbox");
                }
                faults.tasks.insert(task, error);
            }
        }
    }
    tasks
}

/// Reads the WireGuard links. A link that cannot be read is a fault of the encryption only.
async fn read_wireguard(
    context: &Context<'_>,
    node: &ActualNetns,
    faults: &mut Faults,
) -> Result<BTreeMap<String, ActualWireGuard>, Error> {
    if !node.links.keys().any(|name| name::is_wireguard(name)) {
        return Ok(BTreeMap::new());
    }
    let (support, links) = (context.support.clone(), node.links.clone());
    let read = with_wireguard(context, move |wireguard| wireguard.read(&support, &links)).await?;
    Ok(read.unwrap_or_else(|error| {
        warn!(error = error_chain(&error), "cannot read WireGuard links");
        faults.encryption = Some(error);
        BTreeMap::new()
    }))
}

async fn apply_wireguard(context: &Context<'_>, op: &WireGuardOp) -> Result<(), Error> {
    let (support, op) = (context.support.clone(), op.clone());
    match &op {
        WireGuardOp::Delete { name } => {
            let name = name.clone();
            with_wireguard(context, move |wireguard| wireguard.forget(&name)).await?;
            context.netlink.delete_link(op.name()).await
        }
        WireGuardOp::Create { name, .. } => {
            if support == EncryptionSupport::Kernel {
                context.netlink.create_wireguard(name).await?;
            }
            with_wireguard(context, move |wireguard| wireguard.create(&support, &op)).await?
        }
        WireGuardOp::SetPeers { .. } => with_wireguard(context, move |wireguard| wireguard.set_peers(&op)).await?,
    }
}

/// Runs `work`, which blocks, on a thread that may block.
async fn with_wireguard<T: Send + 'static>(
    context: &Context<'_>,
    work: impl FnOnce(&mut WireGuard) -> T + Send + 'static,
) -> Result<T, Error> {
    let wireguard = Arc::clone(context.wireguard);
    // After a panic in an earlier call the daemon ends, so what the lock protects is not used
    // again.
    kernel::run_blocking(move || work(&mut wireguard.lock().unwrap_or_else(PoisonError::into_inner))).await
}

async fn apply_task(netlink: &Netlink, ops: &TaskOps, netns: Option<&Path>) -> Result<(), Error> {
    apply_all(netlink, &ops.host).await?;
    let Some(netns) = netns.filter(|_| !ops.sandbox.is_empty()) else { return Ok(()) };
    let ops = ops.sandbox.clone();
    kernel::run_in_netns(netns.to_owned(), async move |netlink| apply_all(&netlink, &ops).await).await
}

async fn apply_all(netlink: &Netlink, ops: &[Op]) -> Result<(), Error> {
    for op in ops {
        debug!(%op, "applying link operation");
        kernel::apply(netlink, op).await?;
    }
    Ok(())
}

/// Reads the MTU of the routes to the peers. Without any peer, the MTU of the link that has the
/// node's own address.
async fn read_underlay(netlink: &Netlink, plan: &NodePlan, node: &ActualNetns) -> Result<Underlay, Error> {
    let mut underlay = Underlay::default();
    for peer in &plan.peers {
        if let Some(mtu) = netlink.path_mtu(peer.addr, &node.links).await? {
            underlay.add_path(peer.addr, mtu);
        }
    }
    if underlay == Underlay::default() {
        let own = node.links.values().find(|link| link.addresses.iter().any(|address| address.ip() == plan.addr));
        own.into_iter().for_each(|link| underlay.add_path(plan.addr, link.mtu));
    }
    Ok(underlay)
}

pub(crate) fn read_settings() -> NodeSettings {
    let read = |key| kernel::sysctl::read(key).unwrap_or_default();
    NodeSettings {
        local_ports: read(desired::LOCAL_PORTS),
        reserved_ports: read(desired::RESERVED_PORTS),
        default_rp_filter: read(desired::DEFAULT_RP_FILTER),
    }
}
