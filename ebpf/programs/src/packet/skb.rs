//! Calls of kernel helpers for a packet. No other file calls the kernel's tc helpers.
//!
//! The helpers are described in bpf-helpers(7). Methods have the helpers' names where that is
//! possible. Offsets and lengths are in bytes and count from the first byte of the packet: the
//! Ethernet header, or the IP header on a link without Ethernet.

use core::{
    ffi::c_void,
    mem::zeroed,
    ptr::{null_mut, read_volatile},
};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_CURRENT_NETNS, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_fib_lookup as FibParams, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as bpf_sock_tuple_v4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as bpf_sock_tuple_v6, bpf_tunnel_key,
    },
    helpers::generated::{
        bpf_check_mtu, bpf_fib_lookup, bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_ns,
        bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_sk_release,
        bpf_skb_change_head, bpf_skb_change_tail, bpf_skb_change_type, bpf_skb_get_tunnel_key, bpf_skb_load_bytes,
        bpf_skb_set_tunnel_key, bpf_skb_store_bytes, bpf_skc_lookup_tcp,
    },
};
use weft_ebpf_common::Addr;

use crate::verdict::Verdict;

/// Length of the Ethernet header, in bytes.
pub const ETH_LEN: u32 = 14;

/// `PACKET_HOST` (linux/if_packet.h): the frame is addressed to this host.
const PACKET_HOST: u32 = 0;
/// Time to live of the tunnel's own packets.
const TUNNEL_TTL: u8 = 64;

/// A kernel helper returned an error.
pub struct HelperError;

/// A packet, as the kernel passed it to the program.
#[derive(Clone, Copy)]
pub struct Skb {
    context: *mut __sk_buff,
    /// Offset of the IP header. It is a constant in each program: all functions are inlined, so the
    /// compiler knows it everywhere.
    ip_offset: u32,
}

/// Ethernet destination and source, as they are in the frame.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Macs {
    pub dst: [u8; 6],
    pub src: [u8; 6],
}

impl Macs {
    /// The addresses on loopback, and in flows of a link without Ethernet.
    pub const ZERO: Self = Self { dst: [0; 6], src: [0; 6] };
}

/// The tunnel that a packet came from.
pub struct TunnelSource {
    pub vni: u32,
    /// The address of the other end.
    pub addr: Addr,
}

#[inline(always)]
fn check(code: i64) -> Result<(), HelperError> {
    if code < 0 { Err(HelperError) } else { Ok(()) }
}

/// The value of `len`, between 1 and `max`, which must be a power of two. The volatile read
/// prevents that the compiler removes the mask, without which the verifier does not know the
/// bounds.
#[inline(always)]
fn bounded(len: u32, max: u32) -> u32 {
    // SAFETY: the pointer is to a local variable.
    (unsafe { read_volatile(&raw const len) }.wrapping_sub(1) & max - 1) + 1
}

/// Only the hooks make an `Skb`, from the context that the kernel passed to the program. The helper
/// calls below are sound because the pointer is that context and because each buffer is passed with
/// its own length.
impl Skb {
    /// A packet that begins with an Ethernet header.
    #[inline(always)]
    pub fn with_ethernet(context: *mut __sk_buff) -> Self {
        Self { context, ip_offset: ETH_LEN }
    }

    /// A packet that begins with its IP header, because its link has no Ethernet.
    #[inline(always)]
    pub fn without_ethernet(context: *mut __sk_buff) -> Self {
        Self { context, ip_offset: 0 }
    }

    /// Offset of the IP header.
    #[inline(always)]
    pub fn ip_offset(self) -> u32 {
        self.ip_offset
    }

    #[inline(always)]
    pub fn has_ethernet(self) -> bool {
        self.ip_offset != 0
    }

    /// Length of the IP packet, in bytes.
    #[inline(always)]
    pub fn ip_len(self) -> u32 {
        // SAFETY: the pointer is the context of this program.
        unsafe { (*self.context).len }.wrapping_sub(self.ip_offset)
    }

    /// EtherType (linux/if_ether.h).
    #[inline(always)]
    pub fn protocol_be(self) -> u16 {
        // SAFETY: the pointer is the context of this program.
        unsafe { (*self.context).protocol as u16 }
    }

    /// Index of the link whose hook runs the program.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        // SAFETY: the pointer is the context of this program.
        unsafe { (*self.context).ifindex }
    }

    /// Whether the kernel cuts the packet into segments before it leaves the machine (generic
    /// segmentation offload). The length of such a packet is not the length of a segment.
    #[inline(always)]
    pub fn is_gso(self) -> bool {
        // SAFETY: the pointer is the context of this program.
        unsafe { (*self.context).gso_size != 0 }
    }

    /// The mark of the packet, a number that programs and the stack give it.
    #[inline(always)]
    pub fn mark(self) -> u32 {
        // SAFETY: the pointer is the context of this program.
        unsafe { (*self.context).mark }
    }

    #[inline(always)]
    pub fn set_mark(self, mark: u32) {
        // SAFETY: the pointer is the context of this program, which may write this field.
        unsafe { (*self.context).mark = mark };
    }

    /// Bytes of transport payload in each segment of such a packet. Zero if it is not cut.
    #[inline(always)]
    pub fn segment_len(self) -> u32 {
        // SAFETY: the pointer is the context of this program.
        unsafe { (*self.context).gso_size }
    }

    /// The MTU of a link in bytes. `None` if there is no such link.
    ///
    /// The helper can also check segments. It then relies on the transport header that the kernel
    /// has noted, which is the outer one for packets that came out of the tunnel.
    #[inline(always)]
    pub fn mtu_of_link(self, ifindex: u32) -> Option<u32> {
        // The length of a packet to check, which the helper replaces by the MTU. Zero would stand
        // for the length of this packet.
        let mut mtu = 1;
        // SAFETY: `mtu` is valid for a read and a write.
        let result = unsafe { bpf_check_mtu(self.context.cast(), ifindex, &raw mut mtu, 0, 0) };
        (result >= 0).then_some(mtu)
    }

    /// Whether the packet carries a VLAN tag, which the kernel keeps outside of the frame.
    #[inline(always)]
    pub fn has_vlan_tag(self) -> bool {
        // SAFETY: the pointer is the context of this program.
        unsafe { (*self.context).vlan_present != 0 }
    }

    /// Fills `to` from the bytes at `offset`.
    #[inline(always)]
    pub fn load<T>(self, offset: u32, to: &mut T) -> Result<(), HelperError> {
        // SAFETY: `to` is valid for its size. Callers load only integers and arrays of integers.
        check(unsafe {
            bpf_skb_load_bytes(self.context.cast::<c_void>(), offset, (to as *mut T).cast(), size_of::<T>() as u32)
        })
    }

    /// The class of the filter that runs the program (clsact only): the lower 16 bits of its
    /// `TCA_BPF_CLASSID` (net/sched/cls_bpf.c, `cls_bpf_classify`). Zero if it has none.
    #[inline(always)]
    pub fn filter_class(self) -> u32 {
        // SAFETY: the pointer is the context of this program. The read is volatile, because the
        // verifier accepts it only with the width of the field.
        unsafe { read_volatile(&raw const (*self.context).tc_classid) & 0xffff }
    }

    /// Fills the first `len` bytes of `to`, at least one, from the bytes at `offset`. `N` must be a
    /// power of two.
    #[inline(always)]
    pub fn load_prefix<const N: usize>(self, offset: u32, to: &mut [u8; N], len: u32) -> Result<(), HelperError> {
        // SAFETY: `to` is valid for the bounded length.
        check(unsafe {
            bpf_skb_load_bytes(self.context.cast::<c_void>(), offset, to.as_mut_ptr().cast(), bounded(len, N as u32))
        })
    }

    /// Writes the first `len` bytes of `from`, at least one, at `offset`. No checksum is updated.
    /// `N` must be a power of two.
    #[inline(always)]
    pub fn store_prefix<const N: usize>(self, offset: u32, from: &[u32; N], len: u32) -> Result<(), HelperError> {
        // SAFETY: `from` is valid for the bounded length.
        check(unsafe {
            bpf_skb_store_bytes(self.context, offset, from.as_ptr().cast(), bounded(len, 4 * N as u32), 0)
        })
    }

    /// Destination and source of the Ethernet header. Zero if there is none.
    #[inline(always)]
    pub fn macs(self) -> Result<Macs, HelperError> {
        let mut macs = Macs::ZERO;
        if self.has_ethernet() {
            self.load(0, &mut macs)?;
        }
        Ok(macs)
    }

    /// Writes destination and source of the Ethernet header, as the last change of the packet. A
    /// packet without such a header gets one, so its offsets are wrong after this call. The kernel
    /// removes the header again if it sends the packet by a link without Ethernet.
    ///
    /// The helper refuses packets of more than about 16,000 bytes that are not segmented later.
    #[inline(always)]
    pub fn write_macs(self, macs: &Macs) -> Result<(), HelperError> {
        if !self.has_ethernet() {
            // SAFETY: the pointer is the context of this program.
            check(unsafe { bpf_skb_change_head(self.context, ETH_LEN, 0) })?;
            self.store(ETH_LEN - 2, &self.protocol_be())?;
        }
        self.store(0, macs)
    }

    /// Writes `from` at `offset`. No checksum is updated.
    #[inline(always)]
    pub fn store<T>(self, offset: u32, from: &T) -> Result<(), HelperError> {
        // SAFETY: `from` is valid for its size.
        check(unsafe { bpf_skb_store_bytes(self.context, offset, (from as *const T).cast(), size_of::<T>() as u32, 0) })
    }

    /// Writes `from` at `offset`, and updates the checksum that a device may have computed over the
    /// whole packet (`BPF_F_RECOMPUTE_CSUM`).
    #[inline(always)]
    pub fn store_with_csum<T>(self, offset: u32, from: &T) -> Result<(), HelperError> {
        // SAFETY: `from` is valid for its size.
        check(unsafe {
            bpf_skb_store_bytes(
                self.context,
                offset,
                (from as *const T).cast(),
                size_of::<T>() as u32,
                BPF_F_RECOMPUTE_CSUM.into(),
            )
        })
    }

    /// Updates the IPv4 header checksum at `offset` for a field of `bytes` bytes (2 or 4) that
    /// changes.
    #[inline(always)]
    pub fn update_l3_checksum(self, offset: u32, from: u32, to: u32, bytes: u64) -> Result<(), HelperError> {
        // SAFETY: the pointer is the context of this program.
        check(unsafe { bpf_l3_csum_replace(self.context, offset, from.into(), to.into(), bytes) })
    }

    /// Updates the transport checksum at `offset` for a 16-bit field of the transport header that
    /// changes.
    #[inline(always)]
    pub fn update_l4_checksum(self, offset: u32, from: u16, to: u16, udp: bool) -> Result<(), HelperError> {
        let flags = 2 | if udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        // SAFETY: the pointer is the context of this program.
        check(unsafe { bpf_l4_csum_replace(self.context, offset, from.into(), to.into(), flags) })
    }

    /// Updates the transport checksum at `offset` for a 32-bit word of the payload that changes.
    #[inline(always)]
    pub fn update_l4_checksum_word(self, offset: u32, from: u32, to: u32) -> Result<(), HelperError> {
        // SAFETY: the pointer is the context of this program.
        check(unsafe { bpf_l4_csum_replace(self.context, offset, from.into(), to.into(), 4) })
    }

    /// Updates the transport checksum at `offset` for a 32-bit word of an address that changes:
    /// part of the pseudo header.
    #[inline(always)]
    pub fn update_l4_checksum_pseudo(self, offset: u32, from: u32, to: u32, udp: bool) -> Result<(), HelperError> {
        let flags = 4 | u64::from(BPF_F_PSEUDO_HDR) | if udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        // SAFETY: the pointer is the context of this program.
        check(unsafe { bpf_l4_csum_replace(self.context, offset, from.into(), to.into(), flags) })
    }

    /// Shortens or extends the packet to `len` bytes.
    #[inline(always)]
    pub fn resize(self, len: u32) -> Result<(), HelperError> {
        // SAFETY: the pointer is the context of this program.
        check(unsafe { bpf_skb_change_tail(self.context, len, 0) })
    }

    /// Marks the frame as addressed to the host that receives it, whatever its MAC address was.
    /// `bpf_redirect_peer` does this itself from Linux 6.15 on.
    #[inline(always)]
    pub fn mark_for_this_host(self) {
        // SAFETY: the pointer is the context of this program.
        unsafe { bpf_skb_change_type(self.context, PACKET_HOST) };
    }

    /// Moves the packet to the other end of the veth whose host side is `ifindex`, without passing
    /// the host side's queue.
    #[inline(always)]
    pub fn redirect_to_peer(self, ifindex: u32) -> Verdict {
        self.mark_for_this_host();
        // SAFETY: the helper takes no pointer.
        unsafe { bpf_redirect_peer(ifindex, 0) as Verdict }
    }

    /// Sends the frame out of a link, with the Ethernet addresses that it has.
    #[inline(always)]
    pub fn redirect_to_link(self, ifindex: u32) -> Verdict {
        // SAFETY: the helper takes no pointer.
        unsafe { bpf_redirect(ifindex, 0) as Verdict }
    }

    /// Hands the frame to the node's stack as if a link had received it.
    #[inline(always)]
    pub fn redirect_to_ingress(self, ifindex: u32) -> Verdict {
        // SAFETY: the helper takes no pointer.
        unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) as Verdict }
    }

    /// Sends the packet out of a link, to the neighbour that the node's routing table gives.
    #[inline(always)]
    pub fn redirect_to_neighbour(self, ifindex: u32) -> Verdict {
        // SAFETY: a null pointer means no parameters, and the length is zero.
        unsafe { bpf_redirect_neigh(ifindex, null_mut(), 0, 0) as Verdict }
    }

    /// Sets the VNI and the endpoints that the VXLAN device uses to encapsulate the frame.
    #[inline(always)]
    pub fn set_tunnel(self, vni: u32, local: &Addr, remote: &Addr) -> Result<(), HelperError> {
        // SAFETY: the type consists of integers, for which zero is valid.
        let mut key: bpf_tunnel_key = unsafe { zeroed() };
        key.tunnel_id = vni;
        key.tunnel_ttl = TUNNEL_TTL;
        // The frame inside has its own checksums, so the outer UDP header needs none over IPv4 (RFC
        // 7348, section 5). Over IPv6, a receiver drops packets without one unless it is configured
        // to accept them.
        let flags = if remote.is_v4() {
            key.__bindgen_anon_1.remote_ipv4 = u32::from_be(remote.v4_be());
            if local.is_v4() {
                key.__bindgen_anon_3.local_ipv4 = u32::from_be(local.v4_be());
            }
            BPF_F_ZERO_CSUM_TX
        } else {
            key.__bindgen_anon_1.remote_ipv6 = remote.words_be;
            if !local.is_v4() {
                key.__bindgen_anon_3.local_ipv6 = local.words_be;
            }
            BPF_F_TUNINFO_IPV6
        };
        // SAFETY: `key` is valid for its size.
        check(unsafe {
            bpf_skb_set_tunnel_key(self.context, &raw mut key, size_of::<bpf_tunnel_key>() as u32, flags.into())
        })
    }

    /// The tunnel that a frame on a VXLAN device came from. `None` if the kernel has no tunnel
    /// metadata for it.
    #[inline(always)]
    pub fn tunnel_source(self) -> Option<TunnelSource> {
        // SAFETY: the type consists of integers, for which zero is valid.
        let mut key: bpf_tunnel_key = unsafe { zeroed() };
        let size = size_of::<bpf_tunnel_key>() as u32;
        // SAFETY: `key` is valid for its size. The code reads the union member that the kernel
        // wrote, and every bit pattern is valid in all members.
        unsafe {
            if bpf_skb_get_tunnel_key(self.context, &raw mut key, size, 0) == 0 {
                let addr = Addr::from_v4_be(key.__bindgen_anon_1.remote_ipv4.to_be());
                return Some(TunnelSource { vni: key.tunnel_id, addr });
            }
            if bpf_skb_get_tunnel_key(self.context, &raw mut key, size, BPF_F_TUNINFO_IPV6.into()) == 0 {
                let addr = Addr { words_be: key.__bindgen_anon_1.remote_ipv6 };
                return Some(TunnelSource { vni: key.tunnel_id, addr });
            }
        }
        None
    }

    /// Index of the link by which the node's routes send packets from `src` to `dst`, which are
    /// IPv6 addresses. `None` if they send none there. `ifindex` is the index of a link with the
    /// sysctl `forwarding`, without which the kernel does not look up.
    #[inline(always)]
    pub fn route_v6(self, src: &Addr, dst: &Addr, ifindex: u32) -> Option<u32> {
        // SAFETY: the type consists of integers, for which zero is valid.
        let mut params: FibParams = unsafe { zeroed() };
        params.family = AF_INET6;
        params.ifindex = ifindex;
        // With a length of zero, the kernel would compare the packet's with the MTU of the link.
        params.__bindgen_anon_1.tot_len = 1;
        params.__bindgen_anon_3.ipv6_src = src.words_be;
        params.__bindgen_anon_4.ipv6_dst = dst.words_be;
        let size = size_of::<FibParams>() as i32;
        // SAFETY: `params` is valid for its size.
        let result = unsafe { bpf_fib_lookup(self.context.cast(), &raw mut params, size, 0) };
        // The kernel writes the index before it looks for a neighbour, which a link without
        // Ethernet does not have.
        (result == ROUTE_FOUND || result == ROUTE_FOUND_NO_NEIGHBOUR).then_some(params.ifindex)
    }

    /// Whether a socket of the node itself has this TCP connection. A socket that only listens does
    /// not count.
    #[inline(always)]
    pub fn has_local_tcp_connection(self, src: &Addr, dst: &Addr, sport_be: u16, dport_be: u16) -> bool {
        // SAFETY: the type consists of integers, for which zero is valid.
        let mut tuple: bpf_sock_tuple = unsafe { zeroed() };
        let size = if src.is_v4() {
            tuple.__bindgen_anon_1.ipv4 =
                bpf_sock_tuple_v4 { saddr: src.v4_be(), daddr: dst.v4_be(), sport: sport_be, dport: dport_be };
            size_of::<bpf_sock_tuple_v4>()
        } else {
            tuple.__bindgen_anon_1.ipv6 =
                bpf_sock_tuple_v6 { saddr: src.words_be, daddr: dst.words_be, sport: sport_be, dport: dport_be };
            size_of::<bpf_sock_tuple_v6>()
        };
        // SAFETY: `tuple` is valid for `size`. The reference to the socket is released before the
        // method returns.
        unsafe {
            let socket =
                bpf_skc_lookup_tcp(self.context.cast(), &raw mut tuple, size as u32, BPF_F_CURRENT_NETNS as u64, 0);
            if socket.is_null() {
                return false;
            }
            let state = (*socket).state;
            bpf_sk_release(socket.cast());
            state != TCP_LISTEN
        }
    }
}

/// `AF_INET6` (linux/socket.h).
const AF_INET6: u8 = 10;
/// Results of `bpf_fib_lookup` that mean that there is a route: `BPF_FIB_LKUP_RET_SUCCESS` and
/// `BPF_FIB_LKUP_RET_NO_NEIGH` (linux/bpf.h).
const ROUTE_FOUND: i64 = 0;
const ROUTE_FOUND_NO_NEIGHBOUR: i64 = 7;
/// `TCP_LISTEN` (net/tcp_states.h).
const TCP_LISTEN: u32 = 10;

/// A pseudo-random number.
#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: the helper takes no pointer.
    unsafe { bpf_get_prandom_u32() }
}

/// Number of the CPU that runs the program.
#[inline(always)]
pub fn cpu_id() -> u32 {
    // SAFETY: the helper takes no pointer.
    unsafe { bpf_get_smp_processor_id() }
}

/// The monotonic clock, in units of 2^30 ns, which is 1.07 s. A shift is cheaper than a division by
/// 10^9.
#[inline(always)]
pub fn now_s() -> u32 {
    // SAFETY: the helper takes no pointer.
    unsafe { (bpf_ktime_get_ns() >> 30) as u32 }
}
