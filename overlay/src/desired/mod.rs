//! What this node must have: the links, addresses, routes and sysctls for its plan, and for the
//! sandboxes that exist. The counterpart of [`crate::actual`].
//!
//! `reconcile` calls [`desired`] and passes the result to [`crate::diff`]. Pure: what depends on
//! the machine comes in as [`Underlay`] and [`NodeSettings`].

mod mtu;
mod settings;
mod task;
mod wireguard;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use ipnetwork::IpNetwork;
pub use mtu::Underlay;
pub use settings::NodeSettings;
pub(crate) use settings::{DEFAULT_RP_FILTER, LOCAL_PORTS, RESERVED_PORTS, settings_without_weft};
use weft_model::{DualAddr, Mac, NetworkId, NodePlan, TaskId, Vni};
pub use wireguard::{DesiredPeer, DesiredWireGuard, KeyRoute, KeyRouteKind};

use crate::{name, sandbox::Sandbox, wireguard::OwnKey};

/// MTU of the tunnel device, in octets. It is so large that it never limits a packet: the mesh
/// checks lengths itself, and clients of published ports send what fits their own links.
const TUNNEL_MTU: u32 = 65_000;

/// What this node must have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// MTU of the tasks' links, in octets.
    pub mtu: u32,
    /// MTU of the tasks' links on encrypted networks, in octets.
    pub encrypted_mtu: u32,
    /// The tunnel device, the WireGuard links and the node's own sysctls.
    pub node: DesiredNetns,
    /// The WireGuard part of the links of that kind, by name.
    pub wireguard: BTreeMap<String, DesiredWireGuard>,
    pub tasks: BTreeMap<TaskId, DesiredTask>,
}

/// What one network namespace must have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredNetns {
    /// By name.
    pub links: BTreeMap<String, DesiredLink>,
    /// All routes through a gateway. `None` if weft does not manage the routes of this namespace.
    pub routes: Option<BTreeSet<GatewayRoute>>,
    /// All routes of the addresses of WireGuard keys. `None` if they are not desired here: the
    /// links of tasks in the node's namespace are compared with it too.
    pub key_routes: Option<BTreeSet<KeyRoute>>,
    /// By their path below `/proc/sys`.
    pub sysctls: BTreeMap<String, String>,
}

/// A link that must exist and be up. A field that is `None` is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredLink {
    pub kind: DesiredLinkKind,
    /// In octets.
    pub mtu: Option<u32>,
    pub mac: Option<Mac>,
    pub alias: Option<String>,
    /// All addresses of global scope.
    pub addresses: Option<BTreeSet<IpNetwork>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DesiredLinkKind {
    /// The kernel makes it with the namespace.
    Loopback,
    Tunnel {
        /// UDP port at both ends.
        port: u16,
    },
    /// Created and configured by [`crate::diff::WireGuardOp`].
    WireGuard,
    /// The end of a veth pair in the node's namespace. Created together with `peer` in `sandbox`.
    HostSide { peer: String, sandbox: PathBuf },
    /// Like a host side. Created together with `peer` in the node's namespace, from where the
    /// engine moves `peer`, once it has been told.
    HandedOver { peer: String, told: bool },
    /// The end of a veth pair in the task's namespace. Created together with its host side.
    TaskSide,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct GatewayRoute {
    /// 0.0.0.0/0 or ::/0 for a default route.
    pub destination: IpNetwork,
    pub via: IpAddr,
    /// The name of the link.
    pub link: String,
}

/// What one task must have: both ends of its links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredTask {
    /// In the node's namespace.
    pub host: DesiredNetns,
    /// In the task's namespace.
    pub sandbox: DesiredNetns,
    /// In the order of the task's links: the first one is `eth0`.
    pub attachments: Vec<DesiredAttachment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredAttachment {
    /// The name of the host side.
    pub host: String,
    pub network: NetworkId,
    pub vni: Vni,
    /// The MTU that the user has chosen for the network, in octets. The links have a smaller one if
    /// this does not fit through the tunnel.
    pub wanted_mtu: Option<u32>,
    pub mac: Mac,
    pub addr: DualAddr,
}

const LOOPBACK_ACCEPT_LOCAL: &str = "net/ipv4/conf/lo/accept_local";
const LOOPBACK_RP_FILTER: &str = "net/ipv4/conf/lo/rp_filter";

/// Computes what the node of `plan` must have. `sandboxes` says where the task sides go, `keys` are
/// the WireGuard keys of this node that must have a link. A task without a sandbox gets no links
/// yet. The links of a sandbox whose task is not in the plan are not desired any more.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use weft_model::{NodeId, NodePlan};
/// use weft_overlay::desired::{NodeSettings, Underlay, desired};
///
/// let plan = NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into());
/// let mut underlay = Underlay::default();
/// underlay.add_path([192, 0, 2, 2].into(), 1500);
///
/// let desired = desired(&plan, &BTreeMap::new(), &[], underlay, &NodeSettings::default());
/// assert_eq!(desired.mtu, 1450, "VXLAN over IPv4 adds 50 octets");
/// assert!(desired.node.links.contains_key("weft-tun"));
/// assert!(desired.tasks.is_empty());
/// ```
pub fn desired(
    plan: &NodePlan,
    sandboxes: &BTreeMap<TaskId, Sandbox>,
    keys: &[OwnKey],
    underlay: Underlay,
    settings: &NodeSettings,
) -> Desired {
    let (mtu, encrypted_mtu) = (underlay.link_mtu(), underlay.encrypted_link_mtu());
    let mtu_of = |network: &NetworkId| {
        if wireguard::is_encrypted(&plan.networks, network) { encrypted_mtu } else { mtu }
    };
    let tasks = plan
        .local()
        .filter_map(|local| Some((sandboxes.get(local.id)?, local)))
        .map(|(sandbox, local)| (local.id.clone(), task::desired(&local, sandbox, &mtu_of)))
        .collect();
    let wireguard = wireguard::links(plan, keys, underlay);
    let mut node = desired_node(settings, plan.tunnel_port);
    wireguard::add_links(plan, &wireguard, &mut node);
    Desired { mtu, encrypted_mtu, node, wireguard, tasks }
}

fn desired_node(settings: &NodeSettings, port: u16) -> DesiredNetns {
    let mut node = DesiredNetns::default();
    node.links.insert(
        name::TUNNEL.to_owned(),
        DesiredLink {
            kind: DesiredLinkKind::Tunnel { port },
            mtu: Some(TUNNEL_MTU),
            mac: None,
            alias: None,
            addresses: None,
        },
    );
    // The mesh delivers replies for the node's own sockets at lo. Their source is one of the node's
    // own addresses, which the kernel drops by default.
    node.set_sysctl(LOOPBACK_ACCEPT_LOCAL, "1");
    node.set_sysctl(LOOPBACK_RP_FILTER, "2");
    // The mesh handles every packet on the tunnel. The IPv6 stack must not send any there.
    node.set_sysctl(&format!("net/ipv6/conf/{}/disable_ipv6", name::TUNNEL), "1");
    if let Some(reserved) = settings.reserved_ports_with_egress() {
        node.set_sysctl(RESERVED_PORTS, &reserved);
    }
    node
}

impl DesiredNetns {
    fn set_sysctl(&mut self, key: &str, value: &str) {
        self.sysctls.insert(key.to_owned(), value.to_owned());
    }
}
