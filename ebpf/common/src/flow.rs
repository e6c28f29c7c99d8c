//! What the kernel half remembers. Written by eBPF only.

use crate::Addr;

/// Who would see a packet: the same five-tuple means different things in different places.
pub mod zone {
    /// Packets that a node receives from its links.
    pub const HOST: u32 = crate::HOST_NET;
    /// Requests that came through the tunnel.
    pub const REQUEST: u32 = crate::VNI_REQUEST;
    /// Replies that came through the tunnel, to tasks that dialled a published port of their own node.
    pub const REPLY: u32 = crate::VNI_REPLY;
    // Any other zone is a network's VNI.
}

/// Key of `FLOWS`: a packet as it stands before weft touches it. ICMP echo has its identifier as source port in
/// requests and as destination port in replies; the other port is zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// [`zone`].
    pub zone: u32,
    pub src: Addr,
    pub dst: Addr,
    pub sport_be: u16,
    pub dport_be: u16,
    /// IP protocol number.
    pub proto: u8,
    pub _pad: [u8; 3],
}

/// Value of `FLOWS`: what the packet becomes, and where it goes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    /// Balanced flows, towards the backend: its id. Else zero.
    pub backend: u64,
    pub src: Addr,
    pub dst: Addr,
    /// Other end of the tunnel, for [`Action::Reply`].
    pub node: Addr,
    /// The network of `dst`, for [`Action::Task`].
    pub net: u32,
    /// Way out for [`Action::Link`] and [`Action::Client`]; for flows that came in by a link, that link.
    pub ifindex: u32,
    /// When the last packet passed, in units of 2^30 ns (near enough a second) of the monotonic clock. Only kept up to
    /// date for datagrams to the outside; connections note when they were closed.
    pub last_seen_s: u32,
    pub sport_be: u16,
    pub dport_be: u16,
    /// [`Action`].
    pub action: u8,
    /// [`flow_flags`].
    pub flags: u8,
    /// Where the client's last packet came from and what it was sent to, on the link `ifindex`: for [`Action::Client`],
    /// and for flows that came in by a link.
    pub client_mac: [u8; 6],
    pub link_mac: [u8; 6],
    pub _pad: [u8; 2],
}

/// Where a packet of a flow goes once it is rewritten.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// To the flow's backend on this node.
    LocalBackend = 1,
    /// As it is, through the tunnel to the node of the flow's backend.
    Request = 2,
    /// Through the tunnel to the node where the request came in.
    Reply = 3,
    /// Through the tunnel to the node of the flow's backend, as a packet of their network.
    Overlay = 4,
    /// To the task of this node that owns the destination.
    Task = 5,
    /// Out of a link, to the neighbour that the node's routes name.
    Link = 6,
    /// To the client, the way its last packet came: out of that link, to the neighbour that sent it. Up the node's own
    /// stack where the link is loopback.
    Client = 7,
}

pub mod flow_flags {
    /// A FIN passed.
    pub const FIN: u8 = 1;
    /// An RST passed.
    pub const RST: u8 = 2;
    /// Answers to the outside that have not come yet.
    pub const UNANSWERED: u8 = 4;
}

/// Key of `FRAGMENTS`: what the fragments of one datagram have in common (RFC 791, 3.2; RFC 8200, 4.5).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// [`zone`].
    pub zone: u32,
    pub src: Addr,
    pub dst: Addr,
    pub id_be: u32,
    /// IP protocol number.
    pub proto: u32,
}

/// Value of `FRAGMENTS`: what only the first fragment says.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FragmentPorts {
    pub sport_be: u16,
    pub dport_be: u16,
}

/// Key of `SOCKETS`: one remote end of a socket.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct SocketKey {
    /// The socket's cookie.
    pub socket: u64,
    pub addr: Addr,
    pub port_be: u16,
    /// IP protocol number.
    pub proto: u8,
    /// 1 where `addr` is what the program dialled, 0 where it is what weft made of it.
    pub is_original: u8,
    pub _pad: u32,
}

/// Value of `SOCKETS`: the other side of the same remote end.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SocketPeer {
    /// Zero where the remote end is no backend.
    pub backend: u64,
    pub addr: Addr,
    pub port_be: u16,
    pub _pad: [u16; 3],
}
