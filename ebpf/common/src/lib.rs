#![no_std]
//! The contract between the two halves of the data plane: the bytes of every map key and value.
//!
//! Owns the layout, and nothing else: no map, no decision. Everything is `repr(C)` without hidden padding, because the
//! kernel compares keys byte by byte. Addresses are 128 bits wide; every key that names an address starts with the
//! network, so that networks may overlap. Fields whose name ends in `_be` are in network byte order, all others in the
//! machine's.
//!
//! A change here that an older object could misread must raise [`LAYOUT_VERSION`]: maps of another layout are not
//! reused.

mod addr;
mod config;
mod flow;
mod route;
mod stats;

pub use addr::{Addr, NetAddr};
pub use config::{Config, MAX_NETS_PER_TASK, Nets};
pub use flow::{Action, Flow, FlowKey, FragmentKey, FragmentPorts, SocketKey, SocketPeer, flow_flags, zone};
pub use route::{
    Backend, Endpoint, Forward, PortKey, PortTarget, Route, Service, SlotKey, backend_flags, endpoint_flags,
};
pub use stats::{DropReason, ServiceStats};

/// Version of all layouts in this crate. Part of the pin path.
pub const LAYOUT_VERSION: u32 = 3;

/// The network of addresses that belong to the nodes, not to any task.
pub const HOST_NET: u32 = 0;
/// VXLAN network identifier of requests to published ports on their way to a backend's node.
pub const VNI_REQUEST: u32 = 1;
/// VXLAN network identifier of replies on their way back to the node where the request came in.
pub const VNI_REPLY: u32 = 2;
/// VNIs from here on are networks.
pub const FIRST_NETWORK_VNI: u32 = 4096;

/// UDP port of the tunnel (RFC 7348, section 8).
pub const TUNNEL_PORT: u16 = 4789;
/// TCP port of the control plane between nodes.
pub const CONTROL_PORT: u16 = 2377;

/// First source port (or ICMP identifier) that egress translation gives out; the last is 65535. Outside of Linux's
/// default `ip_local_port_range`.
pub const EGRESS_FIRST_PORT: u16 = 61000;

/// The address that stands behind every neighbour of a task, and the source of every frame that weft writes.
pub const ROUTER_MAC: [u8; 6] = [0x02, 0x77, 0x65, 0x66, 0x74, 0x01];

/// Interface index of the loopback device, the same in every network namespace (`LOOPBACK_IFINDEX`, net/flow.h).
pub const LOOPBACK_IFINDEX: u32 = 1;

/// Types whose every bit pattern is a value and that have no padding, so they may cross the map boundary as bytes.
///
/// # Safety
///
/// The type is `repr(C)`, built of integers only, and the sum of its fields' sizes is its size.
#[expect(unsafe_code, reason = "a marker that the map layer relies on; every implementation is checked by size")]
pub unsafe trait Plain: Copy + 'static {}

macro_rules! plain {
    ($($type:ty: $size:literal),+ $(,)?) => {
        $(
            const _: () = assert!(size_of::<$type>() == $size);
            // SAFETY: repr(C), integers only; the assertion above holds the sum of the fields' sizes.
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
    Endpoint: 144,
    Forward: 28,
    Route: 20,
    Config: 64,
    Nets: 32,
    FlowKey: 44,
    Flow: 88,
    FragmentKey: 44,
    FragmentPorts: 4,
    SocketKey: 32,
    SocketPeer: 32,
    ServiceStats: 8,
}
