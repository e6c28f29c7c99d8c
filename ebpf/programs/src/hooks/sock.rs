//! The socket programs: they replace the address that a process connects or sends to.
//!
//! ```text
//! socket of a task      VIP of one of its networks      -> address of a backend
//! socket of a task      RESOLVER, port 53               -> where its resolver listens, same port
//! socket of the node    published port of localhost     -> the node's own address, same port
//! any other socket      any address                     -> not changed
//! ```
//!
//! The address is replaced once, when the process calls `connect`, or `sendmsg` on an unconnected
//! socket. The packets then need no translation. `recvmsg` and `getpeername` put the original
//! address back, so the process never sees the backend's.
//!
//! `SOCKETS` remembers both directions, by the socket's cookie: from the original address to the
//! backend (`is_original` is 1; only for unconnected UDP, so that a socket keeps its backend), and
//! from the replaced address to the original one (`is_original` is 0).
//!
//! The address of a resolver needs no such memory, because it is the same for all sockets of the
//! namespace (`RESOLVERS`). The programs cannot tell a socket whose address they have replaced from
//! one that uses the resolver's own address. So a process that asks there gets replies from
//! [`RESOLVER`], and `getpeername` returns that. resolv.conf names only [`RESOLVER`].
//!
//! IPv6 sockets that use v4-mapped addresses are handled like IPv4 sockets: the maps hold IPv4
//! addresses in this form.
//!
//! The programs must never refuse a call, and must not use `scratch`, because they may be
//! interrupted by a tc program.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use core::ptr::{read_volatile, write_volatile};
use weft_ebpf_common::{Addr, Backend, DNS_PORT, MAX_NETS_PER_TASK, NetAddr, Nets, RESOLVER, SocketKey, SocketPeer};

use crate::{
    flow::{
        pick::{find_backend, pick_backend},
        published,
    },
    maps::{NETNS, RESOLVERS, SOCKETS, VIPS, config},
    packet::parse::{TCP, UDP},
};

/// The kernel continues the call with the address as it is now. The programs return nothing else.
const PROCEED: i32 = 1;

#[cgroup_sock_addr(connect4)]
pub fn sock_connect4(context: SockAddrContext) -> i32 {
    translate_remote::<V4>(&context, Reuse::No)
}

#[cgroup_sock_addr(connect6)]
pub fn sock_connect6(context: SockAddrContext) -> i32 {
    translate_remote::<V6>(&context, Reuse::No)
}

#[cgroup_sock_addr(sendmsg4)]
pub fn sock_sendmsg4(context: SockAddrContext) -> i32 {
    translate_remote::<V4>(&context, Reuse::SameSocket)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sock_sendmsg6(context: SockAddrContext) -> i32 {
    translate_remote::<V6>(&context, Reuse::SameSocket)
}

#[cgroup_sock_addr(recvmsg4)]
pub fn sock_recvmsg4(context: SockAddrContext) -> i32 {
    restore_remote::<V4>(&context)
}

#[cgroup_sock_addr(recvmsg6)]
pub fn sock_recvmsg6(context: SockAddrContext) -> i32 {
    restore_remote::<V6>(&context)
}

#[cgroup_sock_addr(getpeername4)]
pub fn sock_getpeername4(context: SockAddrContext) -> i32 {
    restore_remote::<V4>(&context)
}

#[cgroup_sock_addr(getpeername6)]
pub fn sock_getpeername6(context: SockAddrContext) -> i32 {
    restore_remote::<V6>(&context)
}

/// Whether a socket that uses the same address again gets the same backend.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reuse {
    /// A new connection gets the next backend.
    No,
    /// Another datagram goes to the same backend, as long as it exists.
    SameSocket,
}

/// How the context of a hook holds the remote address. The verifier allows access to these fields
/// only by whole words, one at a time.
trait Family {
    /// # Safety
    ///
    /// `context` is this program's context.
    unsafe fn read(context: *mut bpf_sock_addr) -> Addr;
    /// # Safety
    ///
    /// `context` is this program's context.
    unsafe fn write(context: *mut bpf_sock_addr, addr: &Addr);
}

struct V4;
struct V6;

impl Family for V4 {
    #[inline(always)]
    unsafe fn read(context: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the caller passes this program's context.
        Addr::from_v4_be(unsafe { read_volatile(&raw const (*context).user_ip4) })
    }

    #[inline(always)]
    unsafe fn write(context: *mut bpf_sock_addr, addr: &Addr) {
        // SAFETY: the caller passes this program's context.
        unsafe { write_volatile(&raw mut (*context).user_ip4, addr.v4_be()) }
    }
}

impl Family for V6 {
    #[inline(always)]
    unsafe fn read(context: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the caller passes this program's context.
        unsafe {
            let ip6 = &raw const (*context).user_ip6;
            let word = |i| read_volatile(ip6.cast::<u32>().add(i));
            Addr { words_be: [word(0), word(1), word(2), word(3)] }
        }
    }

    #[inline(always)]
    unsafe fn write(context: *mut bpf_sock_addr, addr: &Addr) {
        // SAFETY: the caller passes this program's context.
        unsafe {
            let ip6 = (&raw mut (*context).user_ip6).cast::<u32>();
            write_volatile(ip6, addr.words_be[0]);
            write_volatile(ip6.add(1), addr.words_be[1]);
            write_volatile(ip6.add(2), addr.words_be[2]);
            write_volatile(ip6.add(3), addr.words_be[3]);
        }
    }
}

/// The remote address of the call, as a key of `SOCKETS`. `None` if the socket is neither TCP nor
/// UDP.
#[inline(always)]
fn remote<F: Family>(context: &SockAddrContext) -> Option<SocketKey> {
    let raw = context.sock_addr;
    // SAFETY: the pointer is the context of this program, which the helper requires.
    unsafe {
        let proto = read_volatile(&raw const (*raw).protocol) as u8;
        if proto != TCP && proto != UDP {
            return None;
        }
        Some(SocketKey {
            socket: bpf_get_socket_cookie(context.as_ptr()),
            addr: F::read(raw),
            port_be: read_volatile(&raw const (*raw).user_port) as u16,
            proto,
            is_original: 0,
            _pad: 0,
        })
    }
}

/// The cookie of the network namespace of the socket.
#[inline(always)]
fn netns_cookie(context: &SockAddrContext) -> u64 {
    // SAFETY: the pointer is the context of this program, which the helper requires.
    unsafe { bpf_get_netns_cookie(context.as_ptr()) }
}

/// Where the resolver of the socket's namespace listens. `None` if it listens at [`RESOLVER`], if
/// the namespace has none, or if the call has another port.
#[inline(always)]
fn find_resolver(context: &SockAddrContext, key: &SocketKey) -> Option<Addr> {
    if key.port_be != DNS_PORT.to_be() {
        return None;
    }
    // SAFETY: only user space writes this map. If it deletes the entry meanwhile, the memory still
    // belongs to the map and holds at worst another entry.
    unsafe { RESOLVERS.get(netns_cookie(context)) }.copied()
}

/// Replaces the address of the call, and remembers the original one, except that of a resolver.
#[inline(always)]
fn translate_remote<F: Family>(context: &SockAddrContext, reuse: Reuse) -> i32 {
    let Some(mut key) = remote::<F>(context) else { return PROCEED };
    if key.addr == RESOLVER
        && let Some(resolver) = find_resolver(context, &key)
    {
        // SAFETY: the pointer is the context of this program.
        unsafe { F::write(context.sock_addr, &resolver) };
        return PROCEED;
    }
    let netns = netns_cookie(context);
    // SAFETY: only user space writes this map. If it deletes the entry meanwhile, the memory still
    // belongs to the map and holds at worst another entry.
    let peer = match unsafe { NETNS.get(netns) } {
        Some(nets) => resolve_vip(nets, &mut key, reuse),
        None => resolve_localhost_port(netns, &key),
    };
    let Some(peer) = peer else { return PROCEED };
    // SAFETY: the pointer is the context of this program.
    unsafe { F::write(context.sock_addr, &peer.addr) };
    let original = SocketPeer { addr: key.addr, port_be: key.port_be, backend: 0, _pad: [0; 3] };
    key.is_original = 0;
    key.addr = peer.addr;
    let _ = SOCKETS.insert(&key, original, 0);
    PROCEED
}

/// The backend for a task that uses a VIP of one of its networks. `None` if the address is no such
/// VIP or the service has no backend.
#[inline(always)]
fn resolve_vip(nets: &Nets, key: &mut SocketKey, reuse: Reuse) -> Option<SocketPeer> {
    let service = find_service(nets, &key.addr)?;
    key.is_original = 1;
    if reuse == Reuse::SameSocket {
        // SAFETY: the entry is read at once.
        if let Some(cached) = unsafe { SOCKETS.get(&*key) }
            && find_backend(cached.backend).is_some()
        {
            return Some(*cached);
        }
    }
    let (id, found) = pick_backend(service)?;
    let peer =
        SocketPeer { backend: id, addr: backend_address(found, key.addr.is_v4()), port_be: key.port_be, _pad: [0; 3] };
    if reuse == Reuse::SameSocket {
        let _ = SOCKETS.insert(&*key, peer, 0);
    }
    Some(peer)
}

#[inline(always)]
fn backend_address(backend: &Backend, v4: bool) -> Addr {
    if v4 { backend.v4 } else { backend.v6 }
}

/// The id of the service whose VIP this is on one of the networks.
#[inline(always)]
fn find_service(nets: &Nets, addr: &Addr) -> Option<u32> {
    let mut i = 0;
    while i < MAX_NETS_PER_TASK {
        let net = nets.vnis[i];
        if net == 0 {
            return None;
        }
        // SAFETY: only user space writes this map. If it deletes the entry meanwhile, the memory
        // still belongs to the map and holds at worst another entry.
        if let Some(&service) = unsafe { VIPS.get(NetAddr { net, addr: *addr }) } {
            return Some(service);
        }
        i += 1;
    }
    None
}

/// The node's own address, for a socket of the node itself that uses a published port of localhost.
#[inline(always)]
fn resolve_localhost_port(netns: u64, key: &SocketKey) -> Option<SocketPeer> {
    let config = config()?;
    if netns != config.netns_cookie || !key.addr.is_loopback() {
        return None;
    }
    let addr = if key.addr.is_v4() { config.advertise_v4 } else { config.advertise_v6 };
    if addr.is_unspecified() {
        return None;
    }
    published::find_port(key.port_be, key.proto)?;
    Some(SocketPeer { backend: 0, addr, port_be: key.port_be, _pad: [0; 3] })
}

/// Puts the address back that the process used.
#[inline(always)]
fn restore_remote<F: Family>(context: &SockAddrContext) -> i32 {
    let Some(key) = remote::<F>(context) else { return PROCEED };
    let original = if find_resolver(context, &key) == Some(key.addr) {
        Some(RESOLVER)
    } else {
        // SAFETY: the entry is read at once.
        unsafe { SOCKETS.get(&key) }.map(|original| original.addr)
    };
    if let Some(addr) = original {
        // SAFETY: the pointer is the context of this program.
        unsafe { F::write(context.sock_addr, &addr) };
    }
    PROCEED
}
