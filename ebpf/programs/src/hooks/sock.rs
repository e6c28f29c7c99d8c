//! Sockets: a virtual address becomes a backend once, when it is dialled, at no cost for the packets after. Sockets of
//! namespaces that this node does not know pass untouched, whatever they dial.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use core::ptr::{read_volatile, write_volatile};
use weft_ebpf_common::{Addr, Backend, MAX_NETS_PER_TASK, NetAddr, Nets, SocketKey, SocketPeer};

use crate::{
    flow::{
        pick::{find_backend, pick_backend},
        published,
    },
    maps::{NETNS, SOCKETS, VIPS, config},
    packet::parse::{TCP, UDP},
};

/// Go on, with the address as it now stands. The only verdict that these hooks give.
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

/// What a socket gets that dials the same address again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reuse {
    /// A new connection: whoever is next.
    No,
    /// Another datagram: the same backend, as long as it lives.
    SameSocket,
}

/// How a hook holds the remote address. Its fields must be touched one by one and word by word: the verifier knows no
/// other access to them.
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
        // SAFETY: as the trait demands.
        Addr::from_v4_be(unsafe { read_volatile(&raw const (*context).user_ip4) })
    }

    #[inline(always)]
    unsafe fn write(context: *mut bpf_sock_addr, addr: &Addr) {
        // SAFETY: as the trait demands.
        unsafe { write_volatile(&raw mut (*context).user_ip4, addr.v4_be()) }
    }
}

impl Family for V6 {
    #[inline(always)]
    unsafe fn read(context: *mut bpf_sock_addr) -> Addr {
        // SAFETY: as the trait demands.
        unsafe {
            let ip6 = &raw const (*context).user_ip6;
            let word = |i| read_volatile(ip6.cast::<u32>().add(i));
            Addr { words_be: [word(0), word(1), word(2), word(3)] }
        }
    }

    #[inline(always)]
    unsafe fn write(context: *mut bpf_sock_addr, addr: &Addr) {
        // SAFETY: as the trait demands.
        unsafe {
            let ip6 = (&raw mut (*context).user_ip6).cast::<u32>();
            write_volatile(ip6, addr.words_be[0]);
            write_volatile(ip6.add(1), addr.words_be[1]);
            write_volatile(ip6.add(2), addr.words_be[2]);
            write_volatile(ip6.add(3), addr.words_be[3]);
        }
    }
}

/// The remote end as the hook shows it, in the form of a key.
#[inline(always)]
fn remote<F: Family>(context: &SockAddrContext) -> Option<SocketKey> {
    let raw = context.sock_addr;
    // SAFETY: the context of this program; the helper takes it.
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

#[inline(always)]
fn translate_remote<F: Family>(context: &SockAddrContext, reuse: Reuse) -> i32 {
    let Some(mut key) = remote::<F>(context) else { return PROCEED };
    // SAFETY: the context of this program.
    let netns = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    // SAFETY: written by user space only; deleted meanwhile, it stays memory of the map, at worst another entry by now.
    let peer = match unsafe { NETNS.get(netns) } {
        Some(nets) => resolve_vip(nets, &mut key, reuse),
        None => resolve_localhost_port(netns, &key),
    };
    let Some(peer) = peer else { return PROCEED };
    // SAFETY: the context of this program.
    unsafe { F::write(context.sock_addr, &peer.addr) };
    let dialled = SocketPeer { addr: key.addr, port_be: key.port_be, backend: 0, _pad: [0; 3] };
    key.is_original = 0;
    key.addr = peer.addr;
    let _ = SOCKETS.insert(&key, dialled, 0);
    PROCEED
}

/// A virtual address of one of the task's networks.
#[inline(always)]
fn resolve_vip(nets: &Nets, key: &mut SocketKey, reuse: Reuse) -> Option<SocketPeer> {
    let service = find_service(nets, &key.addr)?;
    key.is_original = 1;
    if reuse == Reuse::SameSocket {
        // SAFETY: read at once.
        if let Some(kept) = unsafe { SOCKETS.get(&*key) }
            && find_backend(kept.backend).is_some()
        {
            return Some(*kept);
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

#[inline(always)]
fn find_service(nets: &Nets, addr: &Addr) -> Option<u32> {
    let mut i = 0;
    while i < MAX_NETS_PER_TASK {
        let net = nets.vnis[i];
        if net == 0 {
            return None;
        }
        // SAFETY: written by user space only; deleted meanwhile, it stays memory of the map, at worst another entry by now.
        if let Some(&service) = unsafe { VIPS.get(NetAddr { net, addr: *addr }) } {
            return Some(service);
        }
        i += 1;
    }
    None
}

/// A published port of localhost, by a socket of the node itself.
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

/// Shows the program the address that it dialled.
#[inline(always)]
fn restore_remote<F: Family>(context: &SockAddrContext) -> i32 {
    let Some(key) = remote::<F>(context) else { return PROCEED };
    // SAFETY: read at once.
    if let Some(dialled) = unsafe { SOCKETS.get(&key) } {
        let addr = dialled.addr;
        // SAFETY: the context of this program.
        unsafe { F::write(context.sock_addr, &addr) };
    }
    PROCEED
}
