//! What the programs remember about traffic. Only the programs write these.

use crate::Addr;

/// Where a packet is seen. The same five-tuple belongs to different flows in different zones.
pub mod zone {
    /// Packets that a node receives from its links.
    pub const HOST: u32 = crate::HOST_NET;
    /// Packets to published ports that another node sent through the tunnel.
    pub const REQUEST: u32 = crate::VNI_REQUEST;
    /// Replies that came through the tunnel to tasks of this node, which had connected to a
    /// published port of their own node.
    pub const REPLY: u32 = crate::VNI_REPLY;
    // Any other zone is the VNI of a network: packets from its tasks, or between them.
}

/// Key of `FLOWS`: a packet as it is before translation. An ICMP echo request has its identifier as
/// source port, an echo reply as destination port; the other port is zero.
///
/// A reply has the key of the packet that it answers with the two ends exchanged:
///
/// ```
/// use weft_ebpf_common::{Addr, FlowKey, zone};
///
/// let client = Addr::from_v4_be(u32::from_ne_bytes([198, 51, 100, 7]));
/// let node = Addr::from_v4_be(u32::from_ne_bytes([192, 0, 2, 1]));
/// let request = FlowKey {
///     zone: zone::HOST,
///     src: client,
///     dst: node,
///     sport_be: 40_000_u16.to_be(),
///     dport_be: 8080_u16.to_be(),
///     proto: 6,
///     _pad: [0; 3],
/// };
/// let reply = FlowKey {
///     src: request.dst,
///     dst: request.src,
///     sport_be: request.dport_be,
///     dport_be: request.sport_be,
///     ..request
/// };
/// assert_eq!((reply.src, reply.dst), (node, client));
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// One of [`zone`], or a VNI.
    pub zone: u32,
    pub src: Addr,
    pub dst: Addr,
    pub sport_be: u16,
    pub dport_be: u16,
    /// IP protocol number.
    pub proto: u8,
    pub _pad: [u8; 3],
}

/// Value of `FLOWS`: the packet after translation, and where to send it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    /// Id of the backend, in flows that go to one. Zero in others.
    pub backend: u64,
    pub src: Addr,
    pub dst: Addr,
    /// The ingress node, for [`Action::Reply`].
    pub node: Addr,
    /// VNI of the network of `dst`, for [`Action::Task`].
    pub net: u32,
    /// Index of the link to send by, for [`Action::Link`] and [`Action::Client`]. In flows of
    /// packets that came in by a link, the index of that link.
    pub ifindex: u32,
    /// Time of the last packet, in units of 2^30 ns (1.07 s) of the monotonic clock. Updated for
    /// each packet only in flows of datagrams to the outside; in TCP flows, only when the
    /// connection is opened to the outside, and from the first FIN on. Zero if never set.
    pub last_seen_s: u32,
    pub sport_be: u16,
    pub dport_be: u16,
    /// [`Action`].
    pub action: u8,
    /// [`flow_flags`].
    pub flags: u8,
    /// MAC address that the client's last packet came from. For [`Action::Client`], and in flows of
    /// packets that came in by a link.
    pub client_mac: [u8; 6],
    /// MAC address that the client's last packet was sent to.
    pub link_mac: [u8; 6],
    pub _pad: [u8; 2],
}

impl Flow {
    /// Whether packets of the flow between nodes must be encrypted.
    #[inline(always)]
    pub const fn is_encrypted(&self) -> bool {
        self.flags & flow_flags::ENCRYPTED != 0
    }
}

/// Where a packet of a flow is sent after translation.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// To the flow's backend on this node.
    LocalBackend = 1,
    /// Unchanged through the tunnel, to the node of the flow's backend.
    Request = 2,
    /// Through the tunnel, to the ingress node.
    Reply = 3,
    /// Through the tunnel, to the node of the flow's backend, as a packet of the backend's network.
    Overlay = 4,
    /// To the task of this node that has the destination address.
    Task = 5,
    /// Out of a link, to the neighbour that the node's routing table gives.
    Link = 6,
    /// To the client: out of the link that its last packet came by, to the neighbour that sent it.
    /// To the node's own stack if the link is loopback.
    Client = 7,
}

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// A FIN was seen.
    pub const FIN: u8 = 1;
    /// An RST was seen.
    pub const RST: u8 = 2;
    /// Nothing has answered yet. Only in flows of replies from the outside.
    pub const UNANSWERED: u8 = 4;
    /// The network of the flow's backend is encrypted, so packets of the flow between nodes must be
    /// encrypted. In both directions of a flow to a published port.
    pub const ENCRYPTED: u8 = 8;
}

/// Key of `FRAGMENTS`: what all fragments of one datagram have in common (RFC 791, 3.2; RFC 8200,
/// 4.5).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// One of [`zone`], or a VNI.
    pub zone: u32,
    pub src: Addr,
    pub dst: Addr,
    /// Identification of the datagram.
    pub id_be: u32,
    /// IP protocol number.
    pub proto: u32,
}

/// Value of `FRAGMENTS`: the ports, which only the first fragment has.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FragmentPorts {
    pub sport_be: u16,
    pub dport_be: u16,
}

/// Key of `SOCKETS`: a remote address that a socket uses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// Cookie of the socket (`SO_COOKIE`).
    pub socket: u64,
    pub addr: Addr,
    pub port_be: u16,
    /// IP protocol number.
    pub proto: u8,
    /// 1 if `addr` is the address that the process used, 0 if it is the one that weft replaced it
    /// with.
    pub is_original: u8,
    pub _pad: u32,
}

/// Value of `SOCKETS`: the other one of the two addresses, original and replaced.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketPeer {
    /// Id of the backend. Zero if `addr` is not the address of a backend.
    pub backend: u64,
    pub addr: Addr,
    pub port_be: u16,
    pub _pad: [u16; 3],
}
