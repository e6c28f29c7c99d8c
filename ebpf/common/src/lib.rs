#![cfg_attr(not(test), no_std)]
//! The interface between the two halves of the data plane: the layout of all map keys and values.
//!
//! The eBPF programs (`ebpf/programs`) and their user half (`weft-mesh`) both use this crate. It
//! defines layouts and constants, and in [`names`] the DNS messages that both halves must agree on.
//! It opens no map.
//!
//! Both halves rely on these rules:
//!
//! - Every type is `repr(C)` and has no hidden padding, because the kernel compares keys byte by
//!   byte.
//! - Addresses are 128 bits wide. Two networks may have the same addresses, so every key with an
//!   address begins with the network or the zone; only [`SocketKey`] begins with the socket.
//! - Fields whose names end in `_be` are in network byte order, all others in the machine's.
//! - A program of an older version must not misread a map. Every change of a layout, and every
//!   removal of a map, must raise [`LAYOUT_VERSION`]: maps of another version are not reused. A new
//!   map needs no new version: older programs and daemons do not open it.

mod addr;
mod config;
mod flow;
pub mod names;
mod route;
mod stats;

pub use addr::{Addr, NetAddr};
pub use config::{Config, MAX_NETS_PER_TASK, MAX_WIREGUARD_LINKS, Nets};
pub use flow::{Action, Flow, FlowKey, FragmentKey, FragmentPorts, SocketKey, SocketPeer, flow_flags, zone};
pub use route::{
    Backend, Endpoint, Forward, Node, PortKey, PortTarget, Route, Service, SlotKey, backend_flags, endpoint_flags,
    forward_flags, node_flags,
};
pub use stats::{DropReason, ServiceStats};

/// Version of all layouts in this crate. It is part of the path that maps are pinned at. When it
/// changes, `weft-mesh` creates the maps anew: existing flows are forgotten once, and the counters
/// start at zero.
pub const LAYOUT_VERSION: u32 = 4;

/// The network of addresses that belong to the nodes and not to a task.
pub const HOST_NET: u32 = 0;
/// VXLAN network identifier of packets to published ports, from the ingress node to the node of the
/// backend.
pub const VNI_REQUEST: u32 = 1;
/// VXLAN network identifier of the replies, from the node of the backend to the ingress node.
pub const VNI_REPLY: u32 = 2;
/// First VNI that stands for a network.
pub const FIRST_NETWORK_VNI: u32 = 4096;

/// The mark (`skb->mark`) of packets that came out of a WireGuard link of weft: the letters "weft".
/// The kernel keeps it while it removes the VXLAN header, so the program at the tunnel sees it.
pub const WIREGUARD_MARK: u32 = 0x7765_6674;

/// The address at which the processes of each task ask their resolver.
pub const RESOLVER: Addr = Addr::from_v4_be(u32::from_ne_bytes([127, 0, 0, 11]));
/// The address at which the resolver listens in a container whose [`RESOLVER`] is the DNS server of
/// the container engine. The socket programs replace one by the other.
pub const CONTAINER_RESOLVER: Addr = Addr::from_v4_be(u32::from_ne_bytes([127, 0, 0, 12]));
/// UDP and TCP port of every resolver.
pub const DNS_PORT: u16 = 53;

/// TCP port of the control plane between nodes.
pub const CONTROL_PORT: u16 = 2377;

/// First source port or ICMP identifier that egress translation uses; the last is 65535. The range
/// is outside of Linux's default `ip_local_port_range`, so that it does not collide with the node's
/// own sockets.
pub const EGRESS_FIRST_PORT: u16 = 61000;

/// The MAC address that every neighbour of a task resolves to, and the source of every frame that
/// weft writes.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];

/// Interface index of the loopback device, the same in every network namespace (`LOOPBACK_IFINDEX`,
/// net/flow.h).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// Types without padding for which every bit pattern is valid, so that they can be copied to and
/// from maps as bytes.
///
/// # Safety
///
/// The type must be `repr(C)` and consist of integers only, and its size must be the sum of the
/// sizes of its fields.
#[expect(unsafe_code, reason = "a marker that the map layer relies on; every implementation is checked by size")]
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty: $size:literal),+ $(,)?) => {
        $(
            const _: () = assert!(size_of::<$type>() == $size);
            // SAFETY: the type is `repr(C)` and consists of integers. The assertion above compares
            // its size with the sum of the sizes of its fields.
            #[expect(unsafe_code, reason = "marker implementation, checked by the assertion beside it")]
            unsafe impl Plain for $type {}
        )+
    };
}

plain! {
    u32: 4,
    u64: 8,
    Addr: 16,
    NetAddr: 20,
    PortKey: 24,
    PortTarget: 8,
    Service: 4,
    SlotKey: 8,
    Backend: 68,
    Endpoint: 48,
    Forward: 28,
    Node: 40,
    Route: 20,
    Config: 112,
    Nets: 32,
    FlowKey: 44,
    Flow: 88,
    FragmentKey: 44,
    FragmentPorts: 4,
    SocketKey: 32,
    SocketPeer: 32,
    ServiceStats: 8,
    names::NameKey: 104,
    names::NameScope: 36,
    names::Name: 168,
}
