//! The ways out of a hook.

use weft_ebpf_common::{
    Addr, Backend, DropReason, Flow, Forward, LOOPBACK_IFINDEX, NetAddr, ROUTER_MAC, VNI_REPLY, VNI_REQUEST,
};

use super::skb::{ETH_LEN, Skb};
use crate::{
    maps::{FORWARD, config},
    verdict::{Verdict, drop},
};

/// Ethernet destination and source.
#[repr(C)]
#[derive(Clone, Copy)]
struct Macs {
    dst: [u8; 6],
    src: [u8; 6],
}

/// First byte of the inner destination MAC of a request; the backend's id follows.
const BACKEND_MAC_PREFIX: u8 = 0x02;

/// Out of a link, to the neighbour that the node's routes name.
#[inline(always)]
pub fn to_neighbour(skb: Skb, ifindex: u32) -> Verdict {
    if ifindex != LOOPBACK_IFINDEX {
        return skb.redirect_to_neighbour(ifindex);
    }
    to_link(skb, ifindex, Macs { dst: [0; 6], src: [0; 6] })
}

/// Into the task behind a veth of this node.
#[inline(always)]
pub fn to_task(skb: Skb, ifindex: u32, mac: &[u8; 6]) -> Verdict {
    if skb.store(0, &Macs { dst: *mac, src: ROUTER_MAC }).is_err() {
        return drop(DropReason::Helper);
    }
    // What comes from the node's own sockets has not left them for good yet: it takes the ordinary way.
    if skb.ifindex() == LOOPBACK_IFINDEX { skb.redirect_to_link(ifindex) } else { skb.redirect_to_peer(ifindex) }
}

/// Into the task of this node that owns an address.
#[inline(always)]
pub fn to_task_with_address(skb: Skb, net: u32, addr: &Addr) -> Verdict {
    match find_task(net, addr) {
        Some(found) if found.ifindex != 0 => to_task(skb, found.ifindex, &found.mac),
        _ => drop(DropReason::NoTask),
    }
}

#[inline(always)]
pub fn find_task(net: u32, addr: &Addr) -> Option<&'static Forward> {
    // SAFETY: written by user space only; deleted meanwhile, it stays memory of the map, at worst another entry by now.
    unsafe { FORWARD.get(NetAddr { net, addr: *addr }) }
}

/// Back into the task whose packet this hook got.
#[inline(always)]
pub fn back_to_task(skb: Skb, mac: &[u8; 6]) -> Verdict {
    if skb.store(0, &Macs { dst: *mac, src: ROUTER_MAC }).is_err() {
        return drop(DropReason::Helper);
    }
    skb.redirect_to_link(skb.ifindex())
}

/// As it is, to the node of a backend.
#[inline(always)]
pub fn to_backend_node(skb: Skb, id: u64, backend: &Backend) -> Verdict {
    let [.., a, b, c, d, e] = id.to_be_bytes();
    to_tunnel(skb, VNI_REQUEST, &backend.node, [BACKEND_MAC_PREFIX, a, b, c, d, e])
}

/// The backend that a request is for.
#[inline(always)]
pub fn requested_backend(skb: Skb) -> Option<u64> {
    let mut mac = [0_u8; 6];
    skb.load(0, &mut mac).ok()?;
    let [first, a, b, c, d, e] = mac;
    (first == BACKEND_MAC_PREFIX).then_some(u64::from_be_bytes([0, 0, 0, a, b, c, d, e]))
}

/// As it is, to the node where the request came in.
#[inline(always)]
pub fn to_ingress_node(skb: Skb, node: &Addr) -> Verdict {
    to_tunnel(skb, VNI_REPLY, node, ROUTER_MAC)
}

/// As a packet of its network, to the node of a task.
#[inline(always)]
pub fn to_task_node(skb: Skb, net: u32, node: &Addr) -> Verdict {
    to_tunnel(skb, net, node, ROUTER_MAC)
}

/// The tunnel's MTU, where this packet is larger. Tasks have links of that MTU; others learn it here. Over IPv4 there is
/// no such limit: the tunnel's own packets may be fragmented there.
#[inline(always)]
pub fn exceeded_tunnel_mtu(skb: Skb) -> Option<u32> {
    let mtu = config()?.tunnel_mtu;
    (mtu != 0 && !skb.is_gso() && skb.len() > mtu + ETH_LEN).then_some(mtu)
}

#[inline(always)]
fn to_tunnel(skb: Skb, vni: u32, node: &Addr, dst: [u8; 6]) -> Verdict {
    let Some(config) = config() else { return drop(DropReason::Helper) };
    // A VXLAN device drops frames whose source is its own address, so the source is one that no device has.
    if skb.store(0, &Macs { dst, src: ROUTER_MAC }).is_err() {
        return drop(DropReason::Helper);
    }
    if skb.set_tunnel(vni, &config.tunnel_addr, node).is_err() {
        return drop(DropReason::Helper);
    }
    skb.redirect_to_link(config.tunnel_ifindex)
}

/// To the client of a published port, the way its last packet came. No route is looked up, and no neighbour: besides
/// the time, `bpf_redirect_neigh` costs kernels before 6.18 a leak of memory for each packet that came out of the tunnel.
#[inline(always)]
pub fn to_client(skb: Skb, flow: &Flow) -> Verdict {
    to_link(skb, flow.ifindex, Macs { dst: flow.client_mac, src: flow.link_mac })
}

/// Back out of the link that the packet came in by, to whoever sent it there: a task or a neighbour of the node.
#[inline(always)]
pub fn to_sender(skb: Skb) -> Verdict {
    match skb.macs() {
        Ok((link, sender)) => to_link(skb, skb.ifindex(), Macs { dst: sender, src: link }),
        Err(_) => drop(DropReason::Helper),
    }
}

#[inline(always)]
fn to_link(skb: Skb, ifindex: u32, macs: Macs) -> Verdict {
    if ifindex != LOOPBACK_IFINDEX {
        if skb.store(0, &macs).is_err() {
            return drop(DropReason::Helper);
        }
        return skb.redirect_to_link(ifindex);
    }
    // The stack takes what carries loopback's own address, which is all zero.
    if skb.store(0, &Macs { dst: [0; 6], src: [0; 6] }).is_err() {
        return drop(DropReason::Helper);
    }
    skb.redirect_to_ingress(ifindex)
}
