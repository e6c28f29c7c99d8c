//! The links that shall be: a function of the node's plan and of the sandboxes that exist. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use ipnetwork::IpNetwork;
use weft_model::{DualAddr, EGRESS_PORTS, Mac, NetworkId, NodePlan, TaskId, Vni, plan::AttachmentPlan};

use crate::name;

/// What VXLAN puts around a packet, its inner Ethernet header included: IPv4 20, UDP 8, VXLAN 8, Ethernet 14 octets.
const OVERHEAD_V4: u32 = 50;
/// The same with the 40 octets of an IPv6 header.
const OVERHEAD_V6: u32 = 70;
/// IPv6 needs links of at least 1280 octets (RFC 8200, section 5), and the device takes no more than 65,535. Where the
/// underlay is smaller, it has to fragment.
const LINK_MTU: RangeInclusive<u32> = 1280..=65_535;
/// Where nothing is known of the underlay: Ethernet's.
const DEFAULT_UNDERLAY_MTU: u32 = 1500;
/// Of the tunnel device: never what limits a packet. The mesh looks to the lengths, and clients of published ports send
/// what fits their own links.
const TUNNEL_MTU: u32 = 65_000;

/// What shall be in one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// By name.
    pub(crate) links: BTreeMap<String, WantedLink>,
    /// All of them, where it is ours to say.
    pub(crate) default_routes: Option<BTreeSet<DefaultRoute>>,
    /// By their path below `/proc/sys`.
    pub(crate) sysctls: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantedLink {
    pub(crate) kind: WantedKind,
    pub(crate) mtu: Option<u32>,
    pub(crate) mac: Option<Mac>,
    pub(crate) alias: Option<String>,
    /// All the global ones, where it is ours to say.
    pub(crate) addresses: Option<BTreeSet<IpNetwork>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WantedKind {
    /// Is there with the namespace.
    Loopback,
    Tunnel,
    /// Made with its peer `inside`, in the task's namespace.
    HostSide {
        inside: String,
        sandbox: PathBuf,
    },
    /// Made with its peer.
    TaskSide,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DefaultRoute {
    pub(crate) via: IpAddr,
    pub(crate) link: String,
}

/// What shall be on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Desired {
    /// Of the tasks' links.
    pub(crate) mtu: u32,
    /// The tunnel and the node's own settings.
    pub(crate) node: Wanted,
    pub(crate) tasks: BTreeMap<TaskId, WantedTask>,
}

/// What shall be for one task: both sides of its links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct WantedTask {
    /// In the node's namespace.
    pub(crate) host: Wanted,
    /// In the task's.
    pub(crate) inside: Wanted,
    /// In the order of the links inside.
    pub(crate) attachments: Vec<WantedAttachment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WantedAttachment {
    pub(crate) host: String,
    pub(crate) network: NetworkId,
    pub(crate) vni: Vni,
    pub(crate) mac: Mac,
    pub(crate) addr: DualAddr,
}

/// The MTU of the node's own routes to its peers: the smallest of each family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Underlay {
    pub(crate) v4: Option<u32>,
    pub(crate) v6: Option<u32>,
}

impl Underlay {
    pub(crate) fn add(&mut self, peer: IpAddr, mtu: u32) {
        let known = if peer.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        *known = Some(known.map_or(mtu, |known| known.min(mtu)));
    }

    /// What fits through a tunnel to any peer.
    fn link_mtu(self) -> u32 {
        let v4 = self.v4.map(|mtu| mtu.saturating_sub(OVERHEAD_V4));
        let v6 = self.v6.map(|mtu| mtu.saturating_sub(OVERHEAD_V6));
        let smallest = v4.into_iter().chain(v6).min().unwrap_or(DEFAULT_UNDERLAY_MTU - OVERHEAD_V6);
        smallest.clamp(*LINK_MTU.start(), *LINK_MTU.end())
    }
}

/// The node's settings that decide what else has to be set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeSettings {
    /// `net.ipv4.ip_local_port_range`.
    pub(crate) local_ports: String,
    /// `net.ipv4.ip_local_reserved_ports`.
    pub(crate) reserved_ports: String,
    /// `net.ipv4.conf.default.rp_filter`: lo's own, before weft.
    pub(crate) default_rp_filter: String,
}

pub(crate) const LOCAL_PORTS: &str = "net/ipv4/ip_local_port_range";
pub(crate) const RESERVED_PORTS: &str = "net/ipv4/ip_local_reserved_ports";
pub(crate) const DEFAULT_RP_FILTER: &str = "net/ipv4/conf/default/rp_filter";
const LOOPBACK_ACCEPT_LOCAL: &str = "net/ipv4/conf/lo/accept_local";
const LOOPBACK_RP_FILTER: &str = "net/ipv4/conf/lo/rp_filter";

/// The links for `plan`, with a sandbox for each of `sandboxes`. A task without sandbox has no links yet; a sandbox
/// whose task is not in the plan has none any more.
pub(crate) fn desired(
    plan: &NodePlan,
    sandboxes: &BTreeMap<TaskId, PathBuf>,
    underlay: Underlay,
    settings: &NodeSettings,
) -> Desired {
    let mtu = underlay.link_mtu();
    let tasks = plan
        .tasks
        .iter()
        .filter_map(|task| Some((task, sandboxes.get(&task.id)?)))
        .map(|(task, sandbox)| (task.id.clone(), wanted_task(&task.id, &task.attachments, sandbox, mtu)))
        .collect();
    Desired { mtu, node: wanted_node(settings), tasks }
}

fn wanted_node(settings: &NodeSettings) -> Wanted {
    let mut wanted = Wanted::default();
    wanted.links.insert(
        name::TUNNEL.to_owned(),
        WantedLink { kind: WantedKind::Tunnel, mtu: Some(TUNNEL_MTU), mac: None, alias: None, addresses: None },
    );
    // The mesh hands replies to the node's own sockets in at lo, from one of the node's own addresses.
    wanted.set(LOOPBACK_ACCEPT_LOCAL, "1");
    wanted.set(LOOPBACK_RP_FILTER, "2");
    // The stack has no business on the tunnel: every packet on it is the mesh's.
    wanted.set(&format!("net/ipv6/conf/{}/disable_ipv6", name::TUNNEL), "1");
    if let Some(reserved) = with_egress_ports(settings) {
        wanted.set(RESERVED_PORTS, &reserved);
    }
    wanted
}

fn wanted_task(task: &TaskId, attachments: &[AttachmentPlan], sandbox: &Path, mtu: u32) -> WantedTask {
    let mut wanted = WantedTask::default();
    let mut default_routes = BTreeSet::new();
    for (index, attachment) in attachments.iter().enumerate() {
        let (host, inside) = (name::host_side(task, index), name::task_side(index));
        wanted.host.links.insert(
            host.clone(),
            WantedLink {
                kind: WantedKind::HostSide { inside: inside.clone(), sandbox: sandbox.to_owned() },
                mtu: Some(mtu),
                mac: None,
                alias: Some(name::alias(task, &attachment.network)),
                addresses: None,
            },
        );
        wanted.host.set(&format!("net/ipv6/conf/{host}/disable_ipv6"), "1");
        wanted.inside.links.insert(inside.clone(), task_link(attachment, mtu));
        if index == 0 {
            // Replies to clients of published ports go to arbitrary addresses, so a network without egress has one too.
            default_routes.insert(DefaultRoute { via: attachment.subnets.v4_gateway.into(), link: inside.clone() });
            default_routes.insert(DefaultRoute { via: attachment.subnets.v6_gateway.into(), link: inside.clone() });
        }
        set_task_link(&mut wanted.inside, &inside);
        wanted.attachments.push(WantedAttachment {
            host,
            network: attachment.network.clone(),
            vni: attachment.vni,
            mac: attachment.mac,
            addr: attachment.addr,
        });
    }
    wanted.inside.links.insert(
        "lo".to_owned(),
        WantedLink { kind: WantedKind::Loopback, mtu: None, mac: None, alias: None, addresses: None },
    );
    wanted.inside.default_routes = Some(default_routes);
    wanted.inside.set("net/ipv4/conf/all/rp_filter", "0");
    wanted.inside.set("net/ipv6/conf/lo/disable_ipv6", "0");
    // As containers have them everywhere: ping without privileges, and ports below 1024 for any user.
    wanted.inside.set("net/ipv4/ping_group_range", "0 2147483647");
    wanted.inside.set("net/ipv4/ip_unprivileged_port_start", "0");
    wanted
}

fn task_link(attachment: &AttachmentPlan, mtu: u32) -> WantedLink {
    let DualAddr { v4, v6 } = attachment.addr;
    let addresses = [
        IpNetwork::new(v4.into(), attachment.subnets.v4.prefix()),
        IpNetwork::new(v6.into(), attachment.subnets.v6.prefix()),
    ];
    WantedLink {
        kind: WantedKind::TaskSide,
        mtu: Some(mtu),
        mac: Some(attachment.mac),
        alias: None,
        addresses: Some(addresses.into_iter().flatten().collect()),
    }
}

/// The network is static, its neighbours are all the router: nothing is learnt, probed or advertised.
fn set_task_link(inside: &mut Wanted, link: &str) {
    inside.set(&format!("net/ipv4/conf/{link}/rp_filter"), "0");
    for (key, value) in [("disable_ipv6", "0"), ("accept_ra", "0"), ("accept_dad", "0"), ("addr_gen_mode", "1")] {
        inside.set(&format!("net/ipv6/conf/{link}/{key}"), value);
    }
}

impl Wanted {
    fn set(&mut self, key: &str, value: &str) {
        self.sysctls.insert(key.to_owned(), value.to_owned());
    }
}

/// The node's reserved ports with those of egress translation among them, for the node's own sockets must not draw them
/// at random; `None` where its sockets draw from lower ones anyway, or the
/// mesh's are reserved already.
fn with_egress_ports(settings: &NodeSettings) -> Option<String> {
    let last = settings.local_ports.split_whitespace().nth(1)?.parse::<u16>().ok()?;
    let ours = egress_ports();
    let reserved = settings.reserved_ports.trim();
    if last < *EGRESS_PORTS.start() || reserves(reserved, &EGRESS_PORTS) {
        return None;
    }
    Some(if reserved.is_empty() { ours } else { format!("{reserved},{ours}") })
}

fn egress_ports() -> String {
    format!("{}-{}", EGRESS_PORTS.start(), EGRESS_PORTS.end())
}

/// What the node's own settings return to when weft goes: the kernel's defaults, and no port reserved for the mesh.
pub(crate) fn settings_without_weft(settings: &NodeSettings) -> Vec<(&'static str, String)> {
    let ours = egress_ports();
    let others: Vec<&str> = settings.reserved_ports.trim().split(',').filter(|range| *range != ours).collect();
    vec![
        (LOOPBACK_ACCEPT_LOCAL, "0".to_owned()),
        (LOOPBACK_RP_FILTER, settings.default_rp_filter.clone()),
        (RESERVED_PORTS, others.join(",")),
    ]
}

/// Whether one range of the list covers `ports`.
fn reserves(list: &str, ports: &RangeInclusive<u16>) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        matches!((first.trim().parse::<u16>(), last.trim().parse::<u16>()),
            (Ok(first), Ok(last)) if first <= *ports.start() && last >= *ports.end())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_mtu(v4: Option<u32>, v6: Option<u32>, want: u32) {
        assert_eq!(Underlay { v4, v6 }.link_mtu(), want, "{v4:?} {v6:?}");
    }

    #[test]
    fn the_smallest_path_less_its_overhead_is_the_mtu() {
        check_mtu(None, None, 1430);
        check_mtu(Some(1500), None, 1450);
        check_mtu(None, Some(1500), 1430);
        check_mtu(Some(1500), Some(9000), 1450);
        check_mtu(Some(9000), Some(9000), 8930);
        check_mtu(Some(1300), None, 1280);
        check_mtu(Some(0), Some(0), 1280);
        check_mtu(Some(u32::MAX), None, 65_535);
    }

    #[test]
    fn the_smallest_path_of_each_family_counts() {
        let mut underlay = Underlay::default();
        for (peer, mtu) in [("192.0.2.2", 9000), ("192.0.2.3", 1400), ("2001:db8::2", 1500), ("192.0.2.4", 1500)] {
            underlay.add(peer.parse().expect("an address"), mtu);
        }
        assert_eq!(underlay, Underlay { v4: Some(1400), v6: Some(1500) });
    }

    fn check_ports(local: &str, reserved: &str, want: Option<&str>) {
        let settings = NodeSettings {
            local_ports: local.to_owned(),
            reserved_ports: reserved.to_owned(),
            ..NodeSettings::default()
        };
        assert_eq!(with_egress_ports(&settings).as_deref(), want, "{local:?} {reserved:?}");
    }

    #[test]
    fn egress_ports_are_reserved_only_where_sockets_could_draw_them() {
        check_ports("32768\t60999", "", None);
        check_ports("1024\t65535", "", Some("61000-65535"));
        check_ports("1024\t61000", "8080,9000-9010", Some("8080,9000-9010,61000-65535"));
        check_ports("1024\t65535", "61000-65535", None);
        check_ports("1024\t65535", "8080,60000-65535", None);
        check_ports("1024\t65535", "62000-65535", Some("62000-65535,61000-65535"));
        check_ports("", "", None);
    }

    #[test]
    fn settings_go_back_to_what_they_were() {
        let settings = NodeSettings {
            local_ports: "1024\t65535".to_owned(),
            reserved_ports: "8080,61000-65535".to_owned(),
            default_rp_filter: "1".to_owned(),
        };
        let undone = settings_without_weft(&settings);
        assert!(undone.contains(&(RESERVED_PORTS, "8080".to_owned())), "{undone:?}");
        assert!(undone.contains(&(LOOPBACK_RP_FILTER, "1".to_owned())), "{undone:?}");
    }
}
