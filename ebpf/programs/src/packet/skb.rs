//! Helper calls on a packet. The only file that speaks to the kernel's tc helpers.

use core::{ffi::c_void, mem::zeroed, ptr::null_mut};

use aya_ebpf::{
    bindings::{
        __sk_buff, BPF_F_CURRENT_NETNS, BPF_F_INGRESS, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM,
        BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as bpf_sock_tuple_v4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as bpf_sock_tuple_v6, bpf_tunnel_key,
    },
    helpers::generated::{
        bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_ktime_get_ns, bpf_l3_csum_replace, bpf_l4_csum_replace,
        bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_sk_release, bpf_skb_change_tail, bpf_skb_change_type,
        bpf_skb_get_tunnel_key, bpf_skb_load_bytes, bpf_skb_set_tunnel_key, bpf_skb_store_bytes, bpf_skc_lookup_tcp,
    },
};
use weft_ebpf_common::Addr;

use crate::verdict::Verdict;

/// Ethernet header length; every link that weft attaches to has one.
pub const ETH_LEN: u32 = 14;

/// `PACKET_HOST` (linux/if_packet.h).
const PACKET_HOST: u32 = 0;
/// Time to live of tunnel packets.
const TUNNEL_TTL: u8 = 64;

/// A kernel helper refused.
pub struct HelperError;

/// A packet.
#[derive(Clone, Copy)]
pub struct Skb(*mut __sk_buff);

/// Where a tunnel packet came from.
pub struct TunnelSource {
    pub vni: u32,
    pub node: Addr,
}

#[inline(always)]
fn check(code: i64) -> Result<(), HelperError> {
    if code < 0 { Err(HelperError) } else { Ok(()) }
}

/// Copies of `Skb` are made in the hooks only, from the context that the kernel passed: every helper call below is
/// sound because the pointer is that context, and buffers are given with their own length.
impl Skb {
    #[inline(always)]
    pub fn new(context: *mut __sk_buff) -> Self {
        Self(context)
    }

    #[inline(always)]
    pub fn len(self) -> u32 {
        // SAFETY: the context of this program.
        unsafe { (*self.0).len }
    }

    /// EtherType, in network byte order.
    #[inline(always)]
    pub fn protocol_be(self) -> u16 {
        // SAFETY: the context of this program.
        unsafe { (*self.0).protocol as u16 }
    }

    /// The link whose hook this is.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        // SAFETY: the context of this program.
        unsafe { (*self.0).ifindex }
    }

    /// Will be cut into segments before it leaves the machine; its length says nothing about theirs.
    #[inline(always)]
    pub fn is_gso(self) -> bool {
        // SAFETY: the context of this program.
        unsafe { (*self.0).gso_size != 0 }
    }

    /// Carries a VLAN tag beside the frame.
    #[inline(always)]
    pub fn has_vlan_tag(self) -> bool {
        // SAFETY: the context of this program.
        unsafe { (*self.0).vlan_present != 0 }
    }

    /// Fills `to` from the bytes at `offset`.
    #[inline(always)]
    pub fn load<T>(self, offset: u32, to: &mut T) -> Result<(), HelperError> {
        // SAFETY: `to` is valid for its size; callers load integers and arrays of integers only.
        check(unsafe {
            bpf_skb_load_bytes(self.0.cast::<c_void>(), offset, (to as *mut T).cast(), size_of::<T>() as u32)
        })
    }

    /// The frame's destination and source.
    #[inline(always)]
    pub fn macs(self) -> Result<([u8; 6], [u8; 6]), HelperError> {
        let mut macs = [[0_u8; 6]; 2];
        self.load(0, &mut macs)?;
        let [dst, src] = macs;
        Ok((dst, src))
    }

    /// Writes `from` at `offset`, leaving every checksum as it is.
    #[inline(always)]
    pub fn store<T>(self, offset: u32, from: &T) -> Result<(), HelperError> {
        // SAFETY: `from` is valid for its size.
        check(unsafe { bpf_skb_store_bytes(self.0, offset, (from as *const T).cast(), size_of::<T>() as u32, 0) })
    }

    /// Writes `from` at `offset` and adjusts the checksum that a device computed over the whole packet.
    #[inline(always)]
    pub fn store_with_csum<T>(self, offset: u32, from: &T) -> Result<(), HelperError> {
        // SAFETY: `from` is valid for its size.
        check(unsafe {
            bpf_skb_store_bytes(
                self.0,
                offset,
                (from as *const T).cast(),
                size_of::<T>() as u32,
                BPF_F_RECOMPUTE_CSUM.into(),
            )
        })
    }

    /// Adjusts the IPv4 header checksum at `offset` for a change of two or four bytes.
    #[inline(always)]
    pub fn update_l3_checksum(self, offset: u32, from: u32, to: u32, bytes: u64) -> Result<(), HelperError> {
        // SAFETY: the context of this program.
        check(unsafe { bpf_l3_csum_replace(self.0, offset, from.into(), to.into(), bytes) })
    }

    /// Adjusts the transport checksum at `offset` for a change in the transport header.
    #[inline(always)]
    pub fn update_l4_checksum(self, offset: u32, from: u16, to: u16, udp: bool) -> Result<(), HelperError> {
        let flags = 2 | if udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        // SAFETY: the context of this program.
        check(unsafe { bpf_l4_csum_replace(self.0, offset, from.into(), to.into(), flags) })
    }

    /// Adjusts the transport checksum at `offset` for a change of a word of the payload.
    #[inline(always)]
    pub fn update_l4_checksum_word(self, offset: u32, from: u32, to: u32) -> Result<(), HelperError> {
        // SAFETY: the context of this program.
        check(unsafe { bpf_l4_csum_replace(self.0, offset, from.into(), to.into(), 4) })
    }

    /// Adjusts the transport checksum at `offset` for a change of one word of an address.
    #[inline(always)]
    pub fn update_l4_checksum_pseudo(self, offset: u32, from: u32, to: u32, udp: bool) -> Result<(), HelperError> {
        let flags = 4 | u64::from(BPF_F_PSEUDO_HDR) | if udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        // SAFETY: the context of this program.
        check(unsafe { bpf_l4_csum_replace(self.0, offset, from.into(), to.into(), flags) })
    }

    /// Cuts or grows the packet to `len` bytes.
    #[inline(always)]
    pub fn resize(self, len: u32) -> Result<(), HelperError> {
        // SAFETY: the context of this program.
        check(unsafe { bpf_skb_change_tail(self.0, len, 0) })
    }

    /// The frame was for somebody's MAC address; now it is for whoever gets it. Kernels before 6.15 do not do this
    /// in `bpf_redirect_peer`.
    #[inline(always)]
    pub fn mark_for_this_host(self) {
        // SAFETY: the context of this program.
        unsafe { bpf_skb_change_type(self.0, PACKET_HOST) };
    }

    /// Into the other end of the veth whose host side is `ifindex`, in one go.
    #[inline(always)]
    pub fn redirect_to_peer(self, ifindex: u32) -> Verdict {
        self.mark_for_this_host();
        // SAFETY: no pointer.
        unsafe { bpf_redirect_peer(ifindex, 0) as Verdict }
    }

    /// Out of a link, as the frame stands.
    #[inline(always)]
    pub fn redirect_to_link(self, ifindex: u32) -> Verdict {
        // SAFETY: no pointer.
        unsafe { bpf_redirect(ifindex, 0) as Verdict }
    }

    /// As if it had come in by a link.
    #[inline(always)]
    pub fn redirect_to_ingress(self, ifindex: u32) -> Verdict {
        // SAFETY: no pointer.
        unsafe { bpf_redirect(ifindex, BPF_F_INGRESS.into()) as Verdict }
    }

    /// Out of a link, to the neighbour that the node's routes name.
    #[inline(always)]
    pub fn redirect_to_neighbour(self, ifindex: u32) -> Verdict {
        // SAFETY: no parameters.
        unsafe { bpf_redirect_neigh(ifindex, null_mut(), 0, 0) as Verdict }
    }

    /// Names the tunnel that the VXLAN device shall put the frame into.
    #[inline(always)]
    pub fn set_tunnel(self, vni: u32, local: &Addr, remote: &Addr) -> Result<(), HelperError> {
        // SAFETY: integers only.
        let mut key: bpf_tunnel_key = unsafe { zeroed() };
        key.tunnel_id = vni;
        key.tunnel_ttl = TUNNEL_TTL;
        // The frame inside has its own checksums, and UDP over IPv4 may go without (RFC 7348, section 5); over IPv6 the
        // receiver would have to be told.
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
        check(unsafe { bpf_skb_set_tunnel_key(self.0, &raw mut key, size_of::<bpf_tunnel_key>() as u32, flags.into()) })
    }

    /// Where the frame came from, on a VXLAN device.
    #[inline(always)]
    pub fn tunnel_source(self) -> Option<TunnelSource> {
        // SAFETY: integers only.
        let mut key: bpf_tunnel_key = unsafe { zeroed() };
        let size = size_of::<bpf_tunnel_key>() as u32;
        // SAFETY: `key` is valid for its size; the union member that is read is the one that the kernel wrote, and
        // every bit pattern is valid in all of them.
        unsafe {
            if bpf_skb_get_tunnel_key(self.0, &raw mut key, size, 0) == 0 {
                let node = Addr::from_v4_be(key.__bindgen_anon_1.remote_ipv4.to_be());
                return Some(TunnelSource { vni: key.tunnel_id, node });
            }
            if bpf_skb_get_tunnel_key(self.0, &raw mut key, size, BPF_F_TUNINFO_IPV6.into()) == 0 {
                let node = Addr { words_be: key.__bindgen_anon_1.remote_ipv6 };
                return Some(TunnelSource { vni: key.tunnel_id, node });
            }
        }
        None
    }

    /// Whether a socket of the node itself has this TCP connection (not merely listens).
    #[inline(always)]
    pub fn has_local_tcp_connection(self, src: &Addr, dst: &Addr, sport_be: u16, dport_be: u16) -> bool {
        // SAFETY: integers only.
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
        // SAFETY: `tuple` is valid for `size`; the reference is released before the program goes on.
        unsafe {
            let socket = bpf_skc_lookup_tcp(self.0.cast(), &raw mut tuple, size as u32, BPF_F_CURRENT_NETNS as u64, 0);
            if socket.is_null() {
                return false;
            }
            let state = (*socket).state;
            bpf_sk_release(socket.cast());
            state != TCP_LISTEN
        }
    }
}

/// `TCP_LISTEN` (net/tcp_states.h).
const TCP_LISTEN: u32 = 10;

#[inline(always)]
pub fn random() -> u32 {
    // SAFETY: no pointer.
    unsafe { bpf_get_prandom_u32() }
}

#[inline(always)]
pub fn cpu_id() -> u32 {
    // SAFETY: no pointer.
    unsafe { bpf_get_smp_processor_id() }
}

/// Monotonic clock, in units of 2^30 ns: near enough a second, and a shift where a division would cost more.
#[inline(always)]
pub fn now_s() -> u32 {
    // SAFETY: no pointer.
    unsafe { (bpf_ktime_get_ns() >> 30) as u32 }
}
