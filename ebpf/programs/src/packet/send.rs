//! Sending a packet from a hook: to a task, to a link, or through the tunnel.
//!
//! Each function writes the Ethernet addresses that the receiver needs, if any, calls a redirect
//! helper and returns its verdict. Addresses and ports must be final before. If a helper fails, the
//! packet is dropped and counted as `Helper`.
//!
//! Packets of encrypted networks go through the tunnel to the address of the other node's active
//! WireGuard key. They are dropped if there is none, or if the node's routes would send them by
//! another link than weft's WireGuard links. They never leave in clear.
//!
//! | Receiver | Function | Tunnel VNI |
//! |---|---|---|
//! | task on this node | [`to_task`], [`to_task_with_address`], [`back_to_task`] | |
//! | task on another node, packet of their network | [`to_task_node`] | the network's |
//! | backend on another node, packet to a published port | [`to_backend_node`] | `VNI_REQUEST` |
//! | ingress node, reply to such a packet | [`to_ingress_node`] | `VNI_REPLY` |
//! | client of a published port | [`to_client`] | |
//! | host outside of the cluster | [`to_neighbour`] | |
//! | sender of this packet | [`to_sender`] | |

use weft_ebpf_common::{
    Addr, Backend, Config, DropReason, Flow, Forward, HOST_NET, LOOPBACK_IFINDEX, NetAddr, Node, ROUTER_MAC, VNI_REPLY,
    VNI_REQUEST,
};

use super::{
    parse::Packet,
    skb::{Macs, Skb},
};
use crate::{
    maps::{FORWARD, NODES, config},
    verdict::{Verdict, drop},
};

/// Length of the UDP header, in bytes (RFC 768).
const UDP_HEADER_LEN: u32 = 8;
/// First byte of the inner destination MAC of a request: a locally administered address. The low
/// five bytes of the backend's id follow.
const BACKEND_MAC_PREFIX: u8 = 0x02;

/// Sends the packet out of a link, to the neighbour that the node's routing table gives.
#[inline(always)]
pub fn to_neighbour(skb: Skb, ifindex: u32) -> Verdict {
    if ifindex != LOOPBACK_IFINDEX {
        return skb.redirect_to_neighbour(ifindex);
    }
    to_link(skb, ifindex, Macs::ZERO)
}

/// Sends the packet into the task behind a veth of this node.
#[inline(always)]
pub fn to_task(skb: Skb, ifindex: u32, mac: &[u8; 6]) -> Verdict {
    if skb.write_macs(&Macs { dst: *mac, src: ROUTER_MAC }).is_err() {
        return drop(DropReason::Helper);
    }
    // A packet on loopback comes from a socket of the node, which still accounts for it. Such a
    // packet goes through the host side of the veth, as any packet of the node does.
    if skb.ifindex() == LOOPBACK_IFINDEX { skb.redirect_to_link(ifindex) } else { skb.redirect_to_peer(ifindex) }
}

/// Sends the packet into the task of this node that has the address in network `net`.
#[inline(always)]
pub fn to_task_with_address(skb: Skb, net: u32, addr: &Addr) -> Verdict {
    match find_task(net, addr) {
        Some(found) if found.ifindex != 0 => to_task(skb, found.ifindex, &found.mac),
        _ => drop(DropReason::NoTask),
    }
}

/// Where the task with the address in network `net` is. `None` if no task has it.
#[inline(always)]
pub fn find_task(net: u32, addr: &Addr) -> Option<&'static Forward> {
    // SAFETY: only user space writes this map. If it deletes the entry meanwhile, the memory still
    // belongs to the map and holds at worst another entry.
    unsafe { FORWARD.get(NetAddr { net, addr: *addr }) }
}

/// Sends the packet back into the task that it came from.
#[inline(always)]
pub fn back_to_task(skb: Skb, mac: &[u8; 6]) -> Verdict {
    if skb.write_macs(&Macs { dst: *mac, src: ROUTER_MAC }).is_err() {
        return drop(DropReason::Helper);
    }
    skb.redirect_to_link(skb.ifindex())
}

/// Sends a packet to a published port unchanged to the node of its backend. The inner destination
/// MAC carries the backend's id.
#[inline(always)]
pub fn to_backend_node(skb: Skb, id: u64, backend: &Backend) -> Verdict {
    let [.., a, b, c, d, e] = id.to_be_bytes();
    let dst = [BACKEND_MAC_PREFIX, a, b, c, d, e];
    to_tunnel(skb, VNI_REQUEST, &RemoteNode { addr: backend.node, encrypt: backend.is_encrypted() }, dst)
}

/// The id of the backend that a packet from [`to_backend_node`] is for. `None` if the frame has no
/// such MAC.
#[inline(always)]
pub fn requested_backend(skb: Skb) -> Option<u64> {
    let mut mac = [0_u8; 6];
    skb.load(0, &mut mac).ok()?;
    let [first, a, b, c, d, e] = mac;
    (first == BACKEND_MAC_PREFIX).then_some(u64::from_be_bytes([0, 0, 0, a, b, c, d, e]))
}

/// A node as the receiver of tunnel packets.
#[derive(Clone, Copy)]
pub struct RemoteNode {
    pub addr: Addr,
    /// Whether the packet must be encrypted.
    pub encrypt: bool,
}

/// Sends a reply to the ingress node, where the request came in. The reply is translated already.
#[inline(always)]
pub fn to_ingress_node(skb: Skb, node: &RemoteNode) -> Verdict {
    to_tunnel(skb, VNI_REPLY, node, ROUTER_MAC)
}

/// Sends a packet of network `net` to the node of its task.
#[inline(always)]
pub fn to_task_node(skb: Skb, net: u32, node: &RemoteNode) -> Verdict {
    to_tunnel(skb, net, node, ROUTER_MAC)
}

/// The MTU of the tunnel to the backend's node in bytes, if this packet is larger. The links of
/// tasks have this MTU; clients outside learn it from the ICMP error that the caller sends. A
/// tunnel over IPv4 has no limit, because its own packets may be fragmented.
#[inline(always)]
pub fn exceeded_tunnel_mtu(skb: Skb, backend: &Backend) -> Option<u32> {
    let config = config()?;
    let mtu = if backend.is_encrypted() { config.encrypted_mtu } else { config.tunnel_mtu };
    (mtu != 0 && !skb.is_gso() && skb.ip_len() > mtu).then_some(mtu)
}

/// The MTU of an uplink in bytes, if this packet, or a segment that the kernel cuts from it, is
/// larger. Tasks and clients have links with other MTUs, and the kernel does not fragment what a
/// program sends. `packet` is the packet as parsed.
#[inline(always)]
pub fn exceeded_uplink_mtu(skb: Skb, packet: &Packet, ifindex: u32) -> Option<u32> {
    let smallest = config()?.uplink_mtu;
    let transport_header = if packet.is_tcp() { packet.tcp_header_len.into() } else { UDP_HEADER_LEN };
    let len = match skb.segment_len() {
        0 => skb.ip_len(),
        payload => packet.l4.wrapping_sub(skb.ip_offset()) + transport_header + payload,
    };
    if len <= smallest || ifindex == LOOPBACK_IFINDEX {
        return None;
    }
    skb.mtu_of_link(ifindex).filter(|mtu| len > *mtu)
}

#[inline(always)]
fn to_tunnel(skb: Skb, vni: u32, node: &RemoteNode, dst: [u8; 6]) -> Verdict {
    let Some(config) = config() else { return drop(DropReason::Helper) };
    // A VXLAN device drops frames whose source is its own address, so use an address that no device
    // has.
    if skb.write_macs(&Macs { dst, src: ROUTER_MAC }).is_err() {
        return drop(DropReason::Helper);
    }
    let set = if node.encrypt {
        match find_key(skb, config, &node.addr) {
            Ok(key) => skb.set_tunnel(vni, &config.active_key, &key),
            Err(reason) => return drop(reason),
        }
    } else {
        skb.set_tunnel(vni, &config.tunnel_addr, &node.addr)
    };
    if set.is_err() {
        return drop(DropReason::Helper);
    }
    skb.redirect_to_link(config.tunnel_ifindex)
}

/// The address of the node's active WireGuard key. An error if the VXLAN device could not send an
/// encrypted packet there now.
#[inline(always)]
fn find_key(skb: Skb, config: &Config, node: &Addr) -> Result<Addr, DropReason> {
    let key = find_node(node).ok_or(DropReason::NoKey)?.active_key;
    if key.is_unspecified() || config.active_key.is_unspecified() {
        return Err(DropReason::NoKey);
    }
    // The tunnel exists as long as packets are sent. A WireGuard link ends with its key.
    match skb.route_v6(&config.active_key, &key, config.tunnel_ifindex) {
        Some(ifindex) if config.is_wireguard_link(ifindex) => Ok(key),
        _ => Err(DropReason::UnencryptedRoute),
    }
}

/// The node whose tunnel packets have this source. `None` if it is no node of the cluster.
#[inline(always)]
pub fn find_node(addr: &Addr) -> Option<&'static Node> {
    // SAFETY: only user space writes this map. If it deletes the entry meanwhile, the memory still
    // belongs to the map and holds at worst another entry.
    unsafe { NODES.get(NetAddr { net: HOST_NET, addr: *addr }) }
}

/// Sends a reply to the client of a published port: out of the link and to the neighbour that the
/// client's last packet came from. This needs no lookup of a route or a neighbour. It also avoids
/// `bpf_redirect_neigh`, which leaks memory in kernels before 6.18 for each packet that came out of
/// the tunnel. A link without Ethernet has no neighbours; its MAC addresses in the flow are zero.
#[inline(always)]
pub fn to_client(skb: Skb, flow: &Flow) -> Verdict {
    to_link(skb, flow.ifindex, Macs { dst: flow.client_mac, src: flow.link_mac })
}

/// Sends the packet back out of the link that it came in by, to the task or neighbour that sent it.
#[inline(always)]
pub fn to_sender(skb: Skb) -> Verdict {
    if !skb.has_ethernet() {
        return skb.redirect_to_link(skb.ifindex());
    }
    match skb.macs() {
        Ok(macs) => to_link(skb, skb.ifindex(), Macs { dst: macs.src, src: macs.dst }),
        Err(_) => drop(DropReason::Helper),
    }
}

#[inline(always)]
fn to_link(skb: Skb, ifindex: u32, macs: Macs) -> Verdict {
    if ifindex != LOOPBACK_IFINDEX {
        if skb.write_macs(&macs).is_err() {
            return drop(DropReason::Helper);
        }
        return skb.redirect_to_link(ifindex);
    }
    // The address of loopback is all zero. The node's stack accepts frames that are sent to it.
    if skb.write_macs(&Macs::ZERO).is_err() {
        return drop(DropReason::Helper);
    }
    skb.redirect_to_ingress(ifindex)
}
