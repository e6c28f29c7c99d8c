//! What the programs must know about WireGuard keys: the addresses of the nodes' keys, and the
//! links that encrypt. The parent module calls it. Pure.
//!
//! Invariant: the programs send a packet of an encrypted network only if both ends have an active
//! key and the link of this node's key exists. A key that is missing here never means that a packet
//! may go in clear: the programs drop it.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use weft_ebpf_common::{Addr, MAX_WIREGUARD_LINKS, NetAddr, Node, Route, node_flags};
use weft_model::{NodePlan, wireguard};

use super::unreachable_route;
use crate::{
    facts::{LocalFacts, LocalWireGuard},
    tables::{Prefix, addr, host_addr},
};

/// The other nodes, by their address and by the address of each of their live keys.
pub(super) fn nodes(plan: &NodePlan) -> BTreeMap<NetAddr, Node> {
    let clear = plan.peers.iter().map(|peer| {
        let node = Node { addr: addr(peer.addr), ..Node::default() };
        (host_addr(peer.addr), node)
    });
    let mut nodes: BTreeMap<NetAddr, Node> = clear.collect();
    for peer in plan.encryption.iter().flat_map(|encryption| &encryption.peers) {
        // The plan can name a node whose membership ended meanwhile: it is no peer then.
        let Some(node) = nodes.get_mut(&host_addr(peer.addr)) else { continue };
        let key_address = |key| IpAddr::V6(wireguard::key_address(&plan.cluster, key));
        node.active_key = peer.active.as_ref().map_or(Addr::UNSPECIFIED, |key| addr(key_address(key)));
        node.wireguard_ports_be = fill(peer.keys.iter().map(|key| key.port.to_be()));
        let of_key = Node { flags: node_flags::KEY, ..*node };
        nodes.extend(peer.keys.iter().map(|key| (host_addr(key_address(&key.public_key)), of_key)));
    }
    nodes
}

/// The address of this node's active key. Unspecified if the key has no link yet.
pub(super) fn own_active_key(plan: &NodePlan, facts: &LocalFacts) -> Addr {
    let active = plan.encryption.as_ref().and_then(|encryption| encryption.active.as_ref());
    active
        .filter(|active| facts.wireguard.iter().any(|link| link.key.public_key == **active))
        .map_or(Addr::UNSPECIFIED, |active| addr(wireguard::key_address(&plan.cluster, active).into()))
}

/// The prefix of all addresses of keys, if this node takes part in an encrypted network.
pub(super) fn key_prefix_be(plan: &NodePlan) -> [u32; 2] {
    if plan.encryption.is_none() {
        return [0; 2];
    }
    let [first, second, ..] = addr(wireguard::cluster_range(&plan.cluster).network().into()).words_be;
    [first, second]
}

/// A value of each WireGuard link of this node, and the default value in the places without a link.
pub(super) fn links<T: Default + Copy>(
    facts: &LocalFacts,
    value: impl Fn(&LocalWireGuard) -> T,
) -> [T; MAX_WIREGUARD_LINKS] {
    fill(facts.wireguard.iter().map(value))
}

fn fill<T: Default + Copy>(values: impl Iterator<Item = T>) -> [T; MAX_WIREGUARD_LINKS] {
    let mut places = [T::default(); MAX_WIREGUARD_LINKS];
    for (place, value) in places.iter_mut().zip(values) {
        *place = value;
    }
    places
}

/// The route of tasks' packets to addresses of keys. No task has anything to send there.
pub(super) fn unreachable_keys(plan: &NodePlan) -> Option<(Prefix, Route)> {
    plan.encryption.as_ref()?;
    let range = IpNetwork::V6(wireguard::cluster_range(&plan.cluster));
    Some((Prefix::of_host(range), unreachable_route(range)))
}
