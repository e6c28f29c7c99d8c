//! `ops = diff(desired, actual)`: what has to be created, changed and removed. Pure.
//!
//! `reconcile` calls [`diff`] after each read of the kernel's state. The result covers the union of
//! both sides, so start-up, change, repair and removal are one code path.
//!
//! One pass is not always enough. For example, the kernel removes a link's routes together with the
//! link. Therefore `reconcile` reads and compares again until nothing is left to do.

mod wireguard;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::PathBuf,
};

use ipnetwork::IpNetwork;
use weft_model::{Mac, TaskId};
pub use wireguard::WireGuardOp;

use crate::{
    actual::{Actual, ActualKeyRoute, ActualLink, ActualLinkKind, ActualNetns, ActualRoute, VxlanSettings},
    desired::{Desired, DesiredLink, DesiredLinkKind, DesiredNetns, DesiredTask, GatewayRoute, KeyRoute, KeyRouteKind},
    name,
};

/// One step in one network namespace. Links are named and not numbered, because a link that an
/// earlier step creates has no index yet. MTUs are in octets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    DeleteLink {
        name: String,
    },
    CreateTunnel {
        name: String,
        port: u16,
        mtu: u32,
    },
    /// Creates `host` in the node's namespace and its peer in the task's namespace, or in the
    /// node's if `sandbox` is `None`.
    CreateVeth {
        host: String,
        peer: String,
        sandbox: Option<PathBuf>,
        mtu: u32,
    },
    SetSysctl {
        key: String,
        value: String,
    },
    SetLink {
        name: String,
        change: LinkChange,
    },
    RemoveAddress {
        link: String,
        address: IpNetwork,
    },
    AddAddress {
        link: String,
        address: IpNetwork,
    },
    RemoveRoute(ActualRoute),
    AddRoute(GatewayRoute),
    RemoveKeyRoute(ActualKeyRoute),
    AddKeyRoute(KeyRoute),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteLink { name } => write!(f, "delete link {name}"),
            Self::CreateTunnel { name, port, mtu } => write!(f, "create tunnel {name} port {port} mtu {mtu}"),
            Self::CreateVeth { host, peer, sandbox, mtu } => {
                let place = sandbox.as_ref().map_or("the node's namespace".into(), |path| path.to_string_lossy());
                write!(f, "create link {host} mtu {mtu} with peer {peer} in {place}")
            }
            Self::SetSysctl { key, value } => write!(f, "set {key} to {value}"),
            Self::SetLink { name, change } => write!(f, "change link {name}: {change:?}"),
            Self::RemoveAddress { link, address } => write!(f, "remove address {address} from {link}"),
            Self::AddAddress { link, address } => write!(f, "add address {address} to {link}"),
            Self::RemoveRoute(route) => write!(f, "remove route to {} via {:?}", route.destination, route.via),
            Self::AddRoute(route) => {
                write!(f, "add route to {} via {} on {}", route.destination, route.via, route.link)
            }
            Self::RemoveKeyRoute(route) => write!(f, "remove route to {} of link {:?}", route.destination, route.link),
            Self::AddKeyRoute(KeyRoute { destination, kind }) => match kind {
                KeyRouteKind::From { source, link } => write!(f, "add route to {destination} from {source} on {link}"),
                KeyRouteKind::Unreachable => write!(f, "add unreachable route to {destination}"),
            },
        }
    }
}

/// The changes of one link. The kernel applies them together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkChange {
    pub mac: Option<Mac>,
    pub mtu: Option<u32>,
    pub alias: Option<String>,
    /// Whether the link must be set up.
    pub up: bool,
}

/// All steps: first the WireGuard links, then the steps for the node, then those for each task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ops {
    /// In the node's namespace, in this order.
    pub wireguard: Vec<WireGuardOp>,
    /// In the node's namespace, in this order.
    pub node: Vec<Op>,
    /// Only tasks with at least one step.
    pub tasks: BTreeMap<TaskId, TaskOps>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskOps {
    /// In the node's namespace. These come first.
    pub host: Vec<Op>,
    /// In the task's namespace.
    pub sandbox: Vec<Op>,
}

impl Ops {
    pub fn is_empty(&self) -> bool {
        self.wireguard.is_empty() && self.node.is_empty() && self.tasks.is_empty()
    }
}

/// Computes the steps that turn `actual` into `desired`. A task that is missing in `actual` gets no
/// step, because its sandbox could not be read.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use weft_model::{NodeId, NodePlan};
/// use weft_overlay::{
///     actual::Actual,
///     desired::{NodeSettings, Underlay, desired},
///     diff::{Op, diff},
/// };
///
/// let plan = NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into());
/// let (underlay, settings) = (Underlay::default(), NodeSettings::default());
/// let desired = desired(&plan, &BTreeMap::new(), &[], underlay, &settings);
///
/// let ops = diff(&desired, &Actual::default());
/// assert!(matches!(&ops.node[0], Op::CreateTunnel { name, .. } if name == "weft-tun"));
/// assert!(ops.tasks.is_empty());
/// ```
pub fn diff(desired: &Desired, actual: &Actual) -> Ops {
    let wireguard = wireguard::diff(desired, actual);
    let mut ops = Ops { wireguard, node: delete_orphans(desired, &actual.node), tasks: BTreeMap::new() };
    diff_netns(&desired.node, &actual.node, None, &mut ops.node);
    for (task, desired) in &desired.tasks {
        let Some(sandbox) = actual.tasks.get(task) else { continue };
        let task_ops = diff_task(desired, &actual.node, sandbox);
        if task_ops != TaskOps::default() {
            ops.tasks.insert(task.clone(), task_ops);
        }
    }
    ops
}

/// Deletes the host sides that belong to no desired task.
fn delete_orphans(desired: &Desired, node: &ActualNetns) -> Vec<Op> {
    let is_desired = |name: &str| desired.tasks.values().any(|task| task.host.links.contains_key(name));
    node.links
        .iter()
        .filter(|(name, link)| name::is_host_side(name) && is_veth(link) && !is_desired(name))
        .map(|(name, _)| Op::DeleteLink { name: name.clone() })
        .collect()
}

fn diff_task(desired: &DesiredTask, node: &ActualNetns, sandbox: &ActualNetns) -> TaskOps {
    let mut ops = TaskOps::default();
    diff_netns(&desired.host, node, Some(sandbox), &mut ops.host);
    // A new pair replaces the link in the sandbox too, so its settings are the kernel's defaults.
    let mut sandbox = sandbox.clone();
    for op in &ops.host {
        if let Op::CreateVeth { peer, mtu, .. } = op {
            sandbox.links.insert(peer.clone(), ActualLink { mtu: *mtu, ..ActualLink::default() });
            sandbox.sysctls.retain(|key, _| !key.split('/').any(|part| part == peer));
        }
    }
    diff_netns(&desired.sandbox, &sandbox, None, &mut ops.sandbox);
    ops
}

/// Compares one namespace. `peers` is the namespace in which the host sides have their peers.
fn diff_netns(desired: &DesiredNetns, actual: &ActualNetns, peers: Option<&ActualNetns>, ops: &mut Vec<Op>) {
    let mut created = BTreeMap::new();
    for (name, link) in &desired.links {
        if let Some(link) = create_link(name, link, actual, peers, ops) {
            created.insert(name, link);
        }
    }
    // The first pass creates WireGuard links, the next one configures them.
    let is_missing =
        |name: &String, link: &DesiredLink| link.kind == DesiredLinkKind::WireGuard && !actual.links.contains_key(name);
    let missing: BTreeSet<&str> =
        desired.links.iter().filter(|(name, link)| is_missing(name, link)).map(|(name, _)| name.as_str()).collect();
    for (key, value) in &desired.sysctls {
        if key.split('/').any(|part| missing.contains(part)) {
            continue;
        }
        let is_of_created_link = key.split('/').any(|part| created.keys().any(|name| *name == part));
        if is_of_created_link || !actual.sysctls.get(key).is_some_and(|actual| is_same_value(actual, value)) {
            ops.push(Op::SetSysctl { key: key.clone(), value: value.clone() });
        }
    }
    for (name, link) in &desired.links {
        if let Some(actual) = created.get(name).or_else(|| actual.links.get(name)) {
            change_link(name, link, actual, ops);
        }
    }
    change_routes(desired, actual, ops);
    change_key_routes(desired, actual, &missing, ops);
}

/// Creates the link if it is missing or of the wrong kind, after deleting the link that has its
/// name. Returns the link as it will be after its creation. Returns `None` if nothing has to be
/// created.
fn create_link(
    name: &str,
    desired: &DesiredLink,
    netns: &ActualNetns,
    peers: Option<&ActualNetns>,
    ops: &mut Vec<Op>,
) -> Option<ActualLink> {
    let actual = netns.links.get(name);
    let mtu = desired.mtu.unwrap_or_default();
    let op = match &desired.kind {
        DesiredLinkKind::Loopback | DesiredLinkKind::TaskSide | DesiredLinkKind::WireGuard => return None,
        DesiredLinkKind::Tunnel { port } if actual.is_some_and(|link| is_tunnel(link, *port)) => return None,
        DesiredLinkKind::Tunnel { port } => Op::CreateTunnel { name: name.to_owned(), port: *port, mtu },
        DesiredLinkKind::HostSide { peer, sandbox } => {
            let actual_peer = peers.and_then(|peers| peers.links.get(peer));
            if actual.is_some_and(|actual| actual_peer.is_some_and(|peer| actual.is_paired_with(peer))) {
                return None;
            }
            Op::CreateVeth { host: name.to_owned(), peer: peer.clone(), sandbox: Some(sandbox.clone()), mtu }
        }
        // The engine may have moved the peer already.
        DesiredLinkKind::HandedOver { told: true, .. } if actual.is_some_and(is_veth) => return None,
        DesiredLinkKind::HandedOver { peer, .. } => {
            let waiting = netns.links.get(peer);
            if actual.is_some_and(|actual| waiting.is_some_and(|peer| actual.is_paired_with(peer))) {
                return None;
            }
            Op::CreateVeth { host: name.to_owned(), peer: peer.clone(), sandbox: None, mtu }
        }
    };
    if actual.is_some() {
        ops.push(Op::DeleteLink { name: name.to_owned() });
    }
    ops.push(op);
    Some(ActualLink { mtu, ..ActualLink::default() })
}

fn change_link(name: &str, desired: &DesiredLink, actual: &ActualLink, ops: &mut Vec<Op>) {
    let change = LinkChange {
        mac: desired.mac.filter(|mac| actual.mac != Some(*mac)),
        mtu: desired.mtu.filter(|mtu| actual.mtu != *mtu),
        alias: desired.alias.clone().filter(|alias| actual.alias.as_ref() != Some(alias)),
        up: !actual.up,
    };
    if change != LinkChange::default() {
        ops.push(Op::SetLink { name: name.to_owned(), change });
    }
    let Some(addresses) = &desired.addresses else { return };
    for address in actual.addresses.difference(addresses) {
        ops.push(Op::RemoveAddress { link: name.to_owned(), address: *address });
    }
    for address in addresses.difference(&actual.addresses) {
        ops.push(Op::AddAddress { link: name.to_owned(), address: *address });
    }
}

fn change_routes(desired: &DesiredNetns, actual: &ActualNetns, ops: &mut Vec<Op>) {
    let Some(routes) = &desired.routes else { return };
    let mut missing = routes.clone();
    for route in actual.routes.iter().filter(|route| route.via.is_some() || route.destination.prefix() == 0) {
        let link = route.link.and_then(|index| actual.link_by_index(index)).map(|(name, _)| name.to_owned());
        let existing = route.via.zip(link);
        let existing = existing.map(|(via, link)| GatewayRoute { destination: route.destination, via, link });
        if let Some(existing) = existing.filter(|existing| routes.contains(existing)) {
            missing.remove(&existing);
        } else {
            ops.push(Op::RemoveRoute(route.clone()));
        }
    }
    ops.extend(missing.into_iter().map(Op::AddRoute));
}

/// The routes of links that are `missing` are left out.
fn change_key_routes(desired: &DesiredNetns, actual: &ActualNetns, missing: &BTreeSet<&str>, ops: &mut Vec<Op>) {
    let Some(mut routes) = desired.key_routes.clone() else { return };
    routes.retain(|route| !matches!(&route.kind, KeyRouteKind::From { link, .. } if missing.contains(link.as_str())));
    for route in &actual.key_routes {
        if !known_key_route(route, actual).is_some_and(|known| routes.remove(&known)) {
            ops.push(Op::RemoveKeyRoute(route.clone()));
        }
    }
    ops.extend(routes.into_iter().map(Op::AddKeyRoute));
}

/// The route in the form of a desired one. `None` if no desired route has its form.
fn known_key_route(route: &ActualKeyRoute, netns: &ActualNetns) -> Option<KeyRoute> {
    let kind = match (route.source, route.link) {
        (None, None) => KeyRouteKind::Unreachable,
        (Some(source), Some(link)) if source.prefix() == 128 => {
            KeyRouteKind::From { source: source.ip(), link: netns.link_by_index(link)?.0.to_owned() }
        }
        _ => return None,
    };
    Some(KeyRoute { destination: route.destination, kind })
}

fn is_veth(link: &ActualLink) -> bool {
    matches!(link.kind, ActualLinkKind::Veth { .. })
}

fn is_tunnel(link: &ActualLink, port: u16) -> bool {
    link.kind == ActualLinkKind::Vxlan(VxlanSettings { collect_metadata: true, learning: false, port })
}

/// The kernel separates the numbers of a sysctl by tabs, weft by spaces.
fn is_same_value(actual: &str, desired: &str) -> bool {
    actual.split_whitespace().eq(desired.split_whitespace())
}

#[cfg(test)]
mod tests;
