//! Desired and found → operations. Pure, and over the union of both: what is missing, what is wrong, what is left over.
//!
//! One pass need not be enough (a link that goes takes its routes along): the shell dumps and compares again until
//! nothing is left to do.

use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf};

use ipnetwork::IpNetwork;
use weft_model::{Mac, TUNNEL_PORT, TaskId};

use crate::{
    desired::{DefaultRoute, Desired, Wanted, WantedKind, WantedLink, WantedTask},
    found::{Found, FoundKind, FoundLink, VxlanSettings},
    name,
};

/// One step in one network namespace. Links go by name: an index may not exist yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    DeleteLink {
        name: String,
    },
    CreateTunnel {
        name: String,
        mtu: u32,
    },
    /// In the node's namespace, with its peer `inside` in the task's.
    CreateVeth {
        host: String,
        inside: String,
        sandbox: PathBuf,
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
    RemoveDefaultRoute {
        via: Option<IpAddr>,
        v6: bool,
        link: Option<u32>,
        metric: u32,
    },
    AddDefaultRoute(DefaultRoute),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteLink { name } => write!(f, "delete link {name}"),
            Self::CreateTunnel { name, mtu } => write!(f, "create tunnel {name} mtu {mtu}"),
            Self::CreateVeth { host, inside, sandbox, mtu } => {
                write!(f, "create link {host} mtu {mtu} with peer {inside} in {}", sandbox.display())
            }
            Self::SetSysctl { key, value } => write!(f, "set {key} to {value}"),
            Self::SetLink { name, change } => write!(f, "change link {name}: {change:?}"),
            Self::RemoveAddress { link, address } => write!(f, "remove address {address} of {link}"),
            Self::AddAddress { link, address } => write!(f, "add address {address} to {link}"),
            Self::RemoveDefaultRoute { via, v6, .. } => {
                write!(f, "remove IPv{} default route via {via:?}", if *v6 { 6 } else { 4 })
            }
            Self::AddDefaultRoute(route) => write!(f, "add default route via {} on {}", route.via, route.link),
        }
    }
}

/// What changes of a link; all at once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LinkChange {
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: Option<u32>,
    pub(crate) alias: Option<String>,
    pub(crate) up: bool,
}

/// Everything to do, in order: the node's own, then task by task.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ops {
    pub(crate) node: Vec<Op>,
    /// Those with something to do.
    pub(crate) tasks: BTreeMap<TaskId, TaskOps>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TaskOps {
    /// In the node's namespace, first.
    pub(crate) host: Vec<Op>,
    /// In the task's.
    pub(crate) inside: Vec<Op>,
}

impl Ops {
    pub(crate) fn is_empty(&self) -> bool {
        self.node.is_empty() && self.tasks.is_empty()
    }
}

/// What has to be done on a node that holds `node`, and `inside` each sandbox. A task whose sandbox could not be read
/// is left as it is.
pub(crate) fn diff(desired: &Desired, node: &Found, inside: &BTreeMap<TaskId, Found>) -> Ops {
    let mut ops = Ops { node: leftovers(desired, node), tasks: BTreeMap::new() };
    compare(&desired.node, node, None, &mut ops.node);
    for (task, wanted) in &desired.tasks {
        let Some(inside) = inside.get(task) else { continue };
        let ops_of_task = diff_task(wanted, node, inside);
        if ops_of_task != TaskOps::default() {
            ops.tasks.insert(task.clone(), ops_of_task);
        }
    }
    ops
}

/// Removal of weft's links that belong to no task any more.
fn leftovers(desired: &Desired, node: &Found) -> Vec<Op> {
    let is_wanted = |name: &str| desired.tasks.values().any(|task| task.host.links.contains_key(name));
    node.links
        .iter()
        .filter(|(name, link)| name::is_host_side(name) && is_veth(link) && !is_wanted(name))
        .map(|(name, _)| Op::DeleteLink { name: name.clone() })
        .collect()
}

fn diff_task(wanted: &WantedTask, node: &Found, inside: &Found) -> TaskOps {
    let mut ops = TaskOps::default();
    compare(&wanted.host, node, Some(inside), &mut ops.host);
    // A pair that is made anew takes the old one's inside along.
    let mut inside = inside.clone();
    for op in &ops.host {
        if let Op::CreateVeth { inside: link, mtu, .. } = op {
            inside.links.insert(link.clone(), FoundLink { mtu: *mtu, ..FoundLink::default() });
            inside.sysctls.retain(|key, _| !key.split('/').any(|part| part == link));
        }
    }
    compare(&wanted.inside, &inside, None, &mut ops.inside);
    ops
}

/// Compares one namespace; `peers` is the one that host sides lead to.
fn compare(wanted: &Wanted, found: &Found, peers: Option<&Found>, ops: &mut Vec<Op>) {
    let mut fresh = BTreeMap::new();
    for (name, link) in &wanted.links {
        if let Some(made) = create(name, link, found, peers, ops) {
            fresh.insert(name, made);
        }
    }
    for (key, value) in &wanted.sysctls {
        let is_of_fresh_link = key.split('/').any(|part| fresh.keys().any(|name| *name == part));
        if is_of_fresh_link || !found.sysctls.get(key).is_some_and(|held| same_setting(held, value)) {
            ops.push(Op::SetSysctl { key: key.clone(), value: value.clone() });
        }
    }
    for (name, link) in &wanted.links {
        if let Some(held) = fresh.get(name).or_else(|| found.links.get(name)) {
            set_link(name, link, held, ops);
        }
    }
    set_default_routes(wanted, found, ops);
}

/// Makes the link where it is missing or unfit, after removing what has its name. Returns what will be there then;
/// `None` where nothing has to be made.
fn create(
    name: &str,
    wanted: &WantedLink,
    found: &Found,
    peers: Option<&Found>,
    ops: &mut Vec<Op>,
) -> Option<FoundLink> {
    let held = found.links.get(name);
    let mtu = wanted.mtu.unwrap_or_default();
    let op = match &wanted.kind {
        WantedKind::Loopback | WantedKind::TaskSide => return None,
        WantedKind::Tunnel if held.is_some_and(is_tunnel) => return None,
        WantedKind::Tunnel => Op::CreateTunnel { name: name.to_owned(), mtu },
        WantedKind::HostSide { inside, sandbox } => {
            let peer = peers.and_then(|peers| peers.links.get(inside));
            if held.is_some_and(|held| peer.is_some_and(|peer| are_paired(held, peer))) {
                return None;
            }
            Op::CreateVeth { host: name.to_owned(), inside: inside.clone(), sandbox: sandbox.clone(), mtu }
        }
    };
    if held.is_some() {
        ops.push(Op::DeleteLink { name: name.to_owned() });
    }
    ops.push(op);
    Some(FoundLink { mtu, ..FoundLink::default() })
}

fn set_link(name: &str, wanted: &WantedLink, held: &FoundLink, ops: &mut Vec<Op>) {
    let change = LinkChange {
        mac: wanted.mac.filter(|mac| held.mac != Some(*mac)),
        mtu: wanted.mtu.filter(|mtu| held.mtu != *mtu),
        alias: wanted.alias.clone().filter(|alias| held.alias.as_ref() != Some(alias)),
        up: !held.up,
    };
    if change != LinkChange::default() {
        ops.push(Op::SetLink { name: name.to_owned(), change });
    }
    let Some(addresses) = &wanted.addresses else { return };
    for address in held.addresses.difference(addresses) {
        ops.push(Op::RemoveAddress { link: name.to_owned(), address: *address });
    }
    for address in addresses.difference(&held.addresses) {
        ops.push(Op::AddAddress { link: name.to_owned(), address: *address });
    }
}

fn set_default_routes(wanted: &Wanted, found: &Found, ops: &mut Vec<Op>) {
    let Some(routes) = &wanted.default_routes else { return };
    let mut missing = routes.clone();
    for route in found.routes.iter().filter(|route| route.destination.prefix() == 0) {
        let link = route.link.and_then(|index| found.link_at(index)).map(|(name, _)| name.to_owned());
        let held = route.via.zip(link).map(|(via, link)| DefaultRoute { via, link });
        if held.as_ref().is_some_and(|held| routes.contains(held)) {
            held.map(|held| missing.remove(&held));
        } else {
            let v6 = route.destination.is_ipv6();
            ops.push(Op::RemoveDefaultRoute { via: route.via, v6, link: route.link, metric: route.metric });
        }
    }
    ops.extend(missing.into_iter().map(Op::AddDefaultRoute));
}

fn is_veth(link: &FoundLink) -> bool {
    matches!(link.kind, FoundKind::Veth { .. })
}

fn is_tunnel(link: &FoundLink) -> bool {
    link.kind == FoundKind::Vxlan(VxlanSettings { collect_metadata: true, learning: false, port: TUNNEL_PORT })
}

/// Each names the other's index.
fn are_paired(host: &FoundLink, inside: &FoundLink) -> bool {
    let leads_to = |from: &FoundLink, to: &FoundLink| from.kind == FoundKind::Veth { peer: Some(to.index) };
    leads_to(host, inside) && leads_to(inside, host)
}

/// The kernel separates numbers by tabs.
fn same_setting(held: &str, wanted: &str) -> bool {
    held.split_whitespace().eq(wanted.split_whitespace())
}

#[cfg(test)]
mod tests;
