//! What one task must have: its links, and the addresses, routes and sysctls in its namespace.
//!
//! [`super::desired`] calls [`desired`]. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use weft_model::{
    NetworkId,
    plan::{AttachmentPlan, LocalPlan},
};

use super::{DesiredAttachment, DesiredLink, DesiredLinkKind, DesiredNetns, DesiredTask, GatewayRoute};
use crate::{actual::ActualNetns, name, sandbox::Sandbox};

/// Computes what a task must have. As long as the engine has not put the task sides into the
/// namespace, nothing of them is desired there.
///
/// A container that is no task can also be on networks of its engine. So its engine has the routes
/// of the namespace, and links that are made while it runs have names that the engine never
/// chooses.
pub(super) fn desired(local: &LocalPlan<'_>, sandbox: &Sandbox, mtu_of: &impl Fn(&NetworkId) -> u32) -> DesiredTask {
    let (task, is_task) = (local.id, local.task.is_some());
    let mut desired = DesiredTask::default();
    let mut routes = BTreeSet::new();
    for &(number, attachment) in &local.links {
        let index = number as usize;
        // A larger MTU than the path's would make packets that do not fit through the tunnel.
        let path = mtu_of(&attachment.network);
        let mtu = attachment.mtu.map_or(path, |wanted| wanted.min(path));
        let (host, peer) = (name::host_side(task, index), name::new_task_side(index, is_task));
        let kind = match sandbox {
            Sandbox::Netns(path) => DesiredLinkKind::HostSide { peer: peer.clone(), sandbox: path.clone() },
            Sandbox::HandOver { told, .. } => {
                DesiredLinkKind::HandedOver { peer: name::handed_over(task, index), told: *told }
            }
        };
        desired.host.links.insert(
            host.clone(),
            DesiredLink {
                kind,
                mtu: Some(mtu),
                mac: None,
                alias: Some(name::alias(task, &attachment.network)),
                addresses: None,
            },
        );
        desired.host.set_sysctl(&format!("net/ipv6/conf/{host}/disable_ipv6"), "1");
        if matches!(sandbox, Sandbox::Netns(_)) {
            desired.sandbox.links.insert(peer.clone(), task_side_link(attachment, mtu));
            routes.extend(routes_of_link(attachment, &peer, index == 0));
            set_task_side_sysctls(&mut desired.sandbox, &peer);
        }
        desired.attachments.push(DesiredAttachment {
            host,
            network: attachment.network.clone(),
            vni: attachment.vni,
            wanted_mtu: attachment.mtu,
            mac: attachment.mac,
            addr: attachment.addr,
        });
    }
    if sandbox.netns().is_none() {
        return desired;
    }
    desired.sandbox.links.insert(
        "lo".to_owned(),
        DesiredLink { kind: DesiredLinkKind::Loopback, mtu: None, mac: None, alias: None, addresses: None },
    );
    desired.sandbox.routes = (is_task && matches!(sandbox, Sandbox::Netns(_))).then_some(routes);
    desired.sandbox.set_sysctl("net/ipv4/conf/all/rp_filter", "0");
    desired.sandbox.set_sysctl("net/ipv6/conf/lo/disable_ipv6", "0");
    if is_task {
        // The same as in other container runtimes: any user may ping and may bind ports below 1024.
        desired.sandbox.set_sysctl("net/ipv4/ping_group_range", "0 2147483647");
        desired.sandbox.set_sysctl("net/ipv4/ip_unprivileged_port_start", "0");
    }
    desired
}

fn task_side_link(attachment: &AttachmentPlan, mtu: u32) -> DesiredLink {
    let with_prefix = |ip| IpNetwork::new(ip, attachment.subnets.containing(ip)?.0.prefix()).ok();
    DesiredLink {
        kind: DesiredLinkKind::TaskSide,
        mtu: Some(mtu),
        mac: Some(attachment.mac),
        alias: None,
        addresses: Some(attachment.addr.ips().filter_map(with_prefix).collect()),
    }
}

/// The routes through the gateways of the link. Every link leads to all subnets of its network. The
/// first link also has the default routes; a task on an internal network has them too: it replies
/// to clients of published ports, whose addresses can be any.
fn routes_of_link(attachment: &AttachmentPlan, link: &str, is_first: bool) -> Vec<GatewayRoute> {
    let mut routes = Vec::new();
    for ip in attachment.addr.ips() {
        let Some((own, via)) = attachment.subnets.containing(ip) else { continue };
        let mut destinations: Vec<_> = attachment
            .subnets
            .iter()
            .map(|(range, _)| range)
            .filter(|range| *range != own && range.is_ipv4() == own.is_ipv4())
            .collect();
        if is_first {
            let any = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            destinations.extend(IpNetwork::new(any, 0).ok());
        }
        routes.extend(destinations.into_iter().map(|destination| GatewayRoute {
            destination,
            via,
            link: link.to_owned(),
        }));
    }
    routes
}

/// All addresses of the link are static, and its only neighbour is the mesh's router. So the kernel
/// must not accept router advertisements, probe for duplicate addresses, or generate addresses for
/// the link.
///
/// A program of the mesh answers the questions for neighbours' MAC addresses. One that was asked
/// before this program is attached is lost, and the kernel would ask again only after a second. So
/// it asks every 20 ms, as long as by default (3 s). The unit of the kernel's clock is a divisor of
/// 20 ms for each of its usual frequencies, so it does not round the value.
fn set_task_side_sysctls(sandbox: &mut DesiredNetns, link: &str) {
    sandbox.set_sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0");
    for (key, value) in [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0"), ("addr_gen_mode", "1")] {
        sandbox.set_sysctl(&format!("net/ipv6/conf/{link}/{key}"), value);
    }
    for family in ["ipv4", "ipv6"] {
        for (key, value) in [("retrans_time_ms", "20"), ("mcast_solicit", "150")] {
            sandbox.set_sysctl(&format!("net/{family}/neigh/{link}/{key}"), value);
        }
    }
}

impl DesiredTask {
    /// Replaces the names of the task sides by those that the links have in `sandbox`: an engine
    /// chooses the names of the links that it puts into a namespace. `node` is the node's
    /// namespace. A task side that does not exist keeps its name, or gets the next free one.
    pub(crate) fn follow_names(&mut self, node: &ActualNetns, sandbox: &ActualNetns) {
        let mut names = BTreeMap::new();
        for (host, link) in &self.host.links {
            let DesiredLinkKind::HostSide { peer, .. } = &link.kind else { continue };
            let actual = node.links.get(host);
            let is_peer = |other| actual.is_some_and(|actual| actual.is_paired_with(other));
            names.insert(peer.clone(), sandbox.links.iter().find(|(_, other)| is_peer(other)).map(|(name, _)| name));
        }
        if names.iter().all(|(peer, actual)| actual.is_none_or(|actual| actual == peer)) {
            return;
        }
        let mut used: BTreeSet<String> = names.values().flatten().map(|name| (*name).clone()).collect();
        let names: BTreeMap<String, String> = names
            .into_iter()
            .map(|(peer, actual)| {
                let name = actual.cloned().unwrap_or_else(|| {
                    let free = std::iter::once(peer.clone()).chain((0..).map(name::task_side));
                    free.into_iter().find(|name| !used.contains(name)).expect("there are more names than links")
                });
                used.insert(name.clone());
                (peer, name)
            })
            .collect();
        self.rename(&names);
    }

    fn rename(&mut self, names: &BTreeMap<String, String>) {
        let renamed = |name: &str| names.get(name).map_or(name, String::as_str).to_owned();
        for link in self.host.links.values_mut() {
            if let DesiredLinkKind::HostSide { peer, .. } = &mut link.kind {
                *peer = renamed(peer);
            }
        }
        let DesiredNetns { links, routes, sysctls, .. } = &mut self.sandbox;
        *links = std::mem::take(links).into_iter().map(|(name, link)| (renamed(&name), link)).collect();
        if let Some(routes) = routes {
            *routes = std::mem::take(routes)
                .into_iter()
                .map(|route| GatewayRoute { link: renamed(&route.link), ..route })
                .collect();
        }
        let rename_key = |key: String| key.split('/').map(renamed).collect::<Vec<_>>().join("/");
        *sysctls = std::mem::take(sysctls).into_iter().map(|(key, value)| (rename_key(key), value)).collect();
    }
}
