//! Where packets can go: published ports, services and their backends, tasks, routes. Only user
//! space writes these; `weft-mesh` computes them from the node's plan.

use crate::{Addr, MAX_WIREGUARD_LINKS};

/// Key of `PORTS`: a published port. The address is unspecified if the port is published on every
/// address of the node.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// Always [`crate::HOST_NET`].
    pub net: u32,
    pub port_be: u16,
    /// IP protocol number.
    pub proto: u8,
    pub _pad: u8,
    pub addr: Addr,
}

/// Value of `PORTS`: the service behind a published port.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortTarget {
    /// Id of the service.
    pub service: u32,
    /// The port that the tasks listen on.
    pub port_be: u16,
    pub _pad: u16,
}

/// Value of `SERVICES`, by service id.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Service {
    /// Number of slots. The slots 0 to `slots` - 1 have the backends that take new flows.
    pub slots: u32,
}

/// Key of `SLOTS`: a slot of a service. The value is the id of the backend in it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotKey {
    /// Id of the service.
    pub service: u32,
    /// Number of the slot, from zero.
    pub slot: u32,
}

/// Value of `BACKENDS`, by backend id: a task that packets to a service can be sent to. Ids are
/// never used again, so an id that is not in the map is that of a dead backend.
///
/// ```
/// use weft_ebpf_common::{Backend, backend_flags};
///
/// let backend = Backend { ifindex: 21, ..Backend::default() };
/// assert!(backend.takes_new());
///
/// // During an update, the old task keeps its flows until it is stopped.
/// let draining = Backend { flags: backend_flags::DRAINING, ..backend };
/// assert!(!draining.takes_new());
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backend {
    /// VNI of the network that the addresses are in.
    pub net: u32,
    /// Id of the service.
    pub service: u32,
    /// Index of the host side of the task's veth. Zero if the task is on another node.
    pub ifindex: u32,
    /// MAC address of the task's side of the veth.
    pub mac: [u8; 6],
    /// Bits of [`backend_flags`].
    pub flags: u8,
    pub _pad: u8,
    /// Unspecified on a network without IPv4.
    pub v4: Addr,
    pub v6: Addr,
    /// Address of the task's node, as an endpoint of the tunnel. Unspecified if the task is on this
    /// node.
    pub node: Addr,
}

impl Backend {
    /// Whether new flows may be sent to this backend.
    #[inline(always)]
    pub const fn takes_new(&self) -> bool {
        self.flags & backend_flags::DRAINING == 0
    }

    /// Whether packets between nodes to and from this backend must be encrypted.
    #[inline(always)]
    pub const fn is_encrypted(&self) -> bool {
        self.flags & backend_flags::ENCRYPTED != 0
    }
}

/// Bits of [`Backend::flags`].
pub mod backend_flags {
    /// The backend keeps its flows and takes no new ones.
    pub const DRAINING: u8 = 1;
    /// The network of the backend is encrypted.
    pub const ENCRYPTED: u8 = 2;
}

/// Value of `ENDPOINTS`, by the index of the host side of a task's veth: the addresses of the task
/// on this network, and what it may send.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// VNI of the network.
    pub net: u32,
    /// Key of the endpoint of the task's first interface, or of this one if it is the first. A task
    /// with several interfaces may send replies with the address of the first one over another, as
    /// its routes say.
    pub primary: u32,
    /// Bits of [`endpoint_flags`].
    pub flags: u16,
    /// MAC address of the task's side of the veth.
    pub mac: [u8; 6],
    /// Unspecified on a network without IPv4.
    pub v4: Addr,
    pub v6: Addr,
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// The network is internal: its tasks cannot send to the outside.
    pub const INTERNAL: u16 = 1;
    /// Tasks of the network cannot reach each other.
    pub const ISOLATED: u16 = 2;
}

/// Value of `FORWARD`, by network and address: where the task with this address is.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forward {
    /// Address of the task's node. Unspecified if the task is on this node.
    pub node: Addr,
    /// Index of the host side of the task's veth. Zero if the task is on another node.
    pub ifindex: u32,
    /// MAC address of the task's side of the veth.
    pub mac: [u8; 6],
    /// Bits of [`forward_flags`].
    pub flags: u16,
}

impl Forward {
    /// Whether packets between nodes to and from this task must be encrypted.
    #[inline(always)]
    pub const fn is_encrypted(&self) -> bool {
        self.flags & forward_flags::ENCRYPTED != 0
    }
}

/// Bits of [`Forward::flags`].
pub mod forward_flags {
    /// The network is encrypted.
    pub const ENCRYPTED: u16 = 1;
}

/// Value of `NODES`, by the source address of tunnel packets: another node of the cluster. A node
/// has one entry for its address, and one for the address of each of its live WireGuard keys.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Node {
    /// The address of the node. Flows and [`Forward`] refer to the node by this address.
    pub addr: Addr,
    /// The address of the node's active key: the destination of packets of encrypted networks.
    /// Unspecified if the node has none.
    pub active_key: Addr,
    /// UDP ports of the node's WireGuard links. Zero in places without a link.
    pub wireguard_ports_be: [u16; MAX_WIREGUARD_LINKS],
    /// Bits of [`node_flags`].
    pub flags: u32,
}

impl Node {
    /// Whether the map key is the address of a WireGuard key.
    #[inline(always)]
    pub const fn is_key(&self) -> bool {
        self.flags & node_flags::KEY != 0
    }
}

/// Bits of [`Node::flags`].
pub mod node_flags {
    /// The map key of the entry is the address of a WireGuard key. Only packets that came out of a
    /// WireGuard link may have it.
    pub const KEY: u32 = 1;
}

/// Value of `ROUTES`, by the longest matching prefix of [`crate::NetAddr`]. In
/// [`crate::HOST_NET`]: the node's own routes, for packets of tasks to the outside. In any other
/// network: its subnets, and as an entry of its own the last address of each IPv4 subnet, which
/// stands for all its hosts (RFC 919).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Route {
    /// Source address of packets that leave by this route. If it is of the other family than the
    /// packet, the packet has no route. Of a subnet: its gateway address. Of a broadcast address:
    /// unspecified.
    pub source: Addr,
    /// Index of the link that the packets leave by. Zero for a subnet: its packets do not leave.
    pub ifindex: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draining_backend_takes_no_new_flow() {
        let backend = Backend::default();
        assert!(backend.takes_new());
        assert!(!Backend { flags: backend_flags::DRAINING, ..backend }.takes_new());
    }
}
