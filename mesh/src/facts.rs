//! What only this machine knows: which kernel objects stand for what the plan names.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use weft_model::{NetworkId, TaskId};

/// The node as it is now. Whoever makes the links fills this in; links that are not up yet are simply missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalFacts {
    /// Cookie (`SO_NETNS_COOKIE`) of the network namespace that the node lives in.
    pub netns_cookie: u64,
    /// The collect_md VXLAN device.
    pub tunnel_ifindex: u32,
    /// MTU of the tasks' links: the largest IP packet that the tunnel carries whole.
    pub task_mtu: u32,
    /// Every Ethernet link with a global address but weft's own. Not those without Ethernet (WireGuard, tun, ppp): the
    /// programs read frames.
    pub uplinks: Vec<Uplink>,
    /// Every address that the node answers others on: those of the uplinks, of all other links, and of lo.
    pub addresses: Vec<IpAddr>,
    /// The main routing table: where packets of tasks to the outside leave, and with which address. The node's own
    /// addresses need not be in it. One that leads out of a link which is no uplink leads nowhere for tasks: no program
    /// could hand them the answers.
    pub routes: Vec<HostRoute>,
    /// The veths of this node's tasks.
    pub endpoints: Vec<LocalEndpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub ifindex: u32,
    /// Its global addresses, of both families.
    pub addresses: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// 0.0.0.0/0 or ::/0 for a default route.
    pub destination: IpNetwork,
    pub ifindex: u32,
    /// An address of that link, of the same family.
    pub source: IpAddr,
}

/// One interface of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalEndpoint {
    pub task: TaskId,
    pub network: NetworkId,
    /// Of the veth's host side, in the node's namespace.
    pub ifindex: u32,
    /// Cookie of the task's network namespace.
    pub netns_cookie: u64,
}
