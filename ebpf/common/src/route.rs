//! Where things are: published ports, services, their backends, tasks. Written by user space only.

use crate::Addr;

/// Key of `PORTS`. The address is unspecified where the port is published on every address of the node.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// [`crate::HOST_NET`].
    pub net: u32,
    pub port_be: u16,
    /// IP protocol number.
    pub proto: u8,
    pub _pad: u8,
    pub addr: Addr,
}

/// Value of `PORTS`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PortTarget {
    pub service: u32,
    /// The port that the tasks listen on.
    pub port_be: u16,
    pub _pad: u16,
}

/// Value of `SERVICES`, by service id.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Service {
    /// Slots 0 to `slots` - 1 hold the backends that take new flows.
    pub slots: u32,
}

/// Key of `SLOTS`; its value is a backend id.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotKey {
    pub service: u32,
    pub slot: u32,
}

/// Value of `BACKENDS`, by backend id. Ids never return, so an id that is not in the map is a dead backend.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backend {
    pub net: u32,
    pub service: u32,
    /// Host side of the task's veth; zero where the task is on another node.
    pub ifindex: u32,
    pub mac: [u8; 6],
    /// [`backend_flags`].
    pub flags: u8,
    pub _pad: u8,
    pub v4: Addr,
    pub v6: Addr,
    /// The task's node: its end of the tunnels.
    pub node: Addr,
}

impl Backend {
    /// Whether new flows may be sent to this backend.
    #[inline(always)]
    pub const fn takes_new(&self) -> bool {
        self.flags & backend_flags::DRAINING == 0
    }
}

pub mod backend_flags {
    /// Keeps its flows, takes no new one.
    pub const DRAINING: u8 = 1;
}

/// Value of `ENDPOINTS`, by the ifindex of the host side of a task's veth: what the task on it may do.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Endpoint {
    pub net: u32,
    /// The ifindex of the task's first interface (itself, on the first): a task with several may answer, on the
    /// interface that its routes choose, what was delivered to the first.
    pub primary: u32,
    /// [`endpoint_flags`].
    pub flags: u16,
    pub mac: [u8; 6],
    pub v4: Addr,
    pub v6: Addr,
    pub v4_subnet: Addr,
    pub v4_mask: Addr,
    pub v6_subnet: Addr,
    pub v6_mask: Addr,
    pub v4_gateway: Addr,
    pub v6_gateway: Addr,
}

pub mod endpoint_flags {
    /// The network has no way out.
    pub const INTERNAL: u16 = 1;
    /// Tasks of the network cannot reach each other.
    pub const ISOLATED: u16 = 2;
}

/// Value of `FORWARD`, by network and address: where a task is.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forward {
    /// The task's node, where it is another.
    pub node: Addr,
    /// Host side of the task's veth; zero where the task is on another node.
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub _pad: u16,
}

/// Value of `ROUTES` (longest prefix of [`crate::NetAddr`]): the node's own routes, for packets of tasks to the outside.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Route {
    /// Address that the packets leave with.
    pub source: Addr,
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
