//! The WireGuard links of this node: one for each of its keys, with all keys of all peers.
//!
//! The parent module calls it. Pure. Every link of this node has every key of every peer, so all
//! combinations of old and new keys work while keys are replaced.
//!
//! The routes are the first of two guards against packets in clear; the programs of the mesh are
//! the second. A packet between keys can only leave by the link of the key that is its source. If
//! that link is missing, the fallback route makes the destination unreachable, because otherwise
//! the default route would match.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv6Addr, SocketAddr},
};

use ipnetwork::{IpNetwork, Ipv6Network};
use weft_model::{
    NodePlan,
    plan::NetworkPlan,
    wireguard::{PublicKey, cluster_range, key_address},
};

use super::{DesiredLink, DesiredLinkKind, DesiredNetns, mtu::Underlay};
use crate::{
    name,
    wireguard::{OwnKey, PrivateKey},
};

/// The WireGuard part of a link. Its MTU and its address are in [`DesiredLink`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredWireGuard {
    pub private_key: PrivateKey,
    pub public_key: PublicKey,
    pub port: u16,
    /// In octets.
    pub mtu: u32,
    pub peers: BTreeMap<PublicKey, DesiredPeer>,
}

/// A key of another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DesiredPeer {
    pub endpoint: SocketAddr,
    /// The only address that packets from this peer may have as source, and the only destination of
    /// packets to it.
    pub address: Ipv6Addr,
}

/// A route of the addresses of keys. weft marks its routes, so that it recognises them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyRoute {
    pub destination: Ipv6Network,
    pub kind: KeyRouteKind,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyRouteKind {
    /// For packets with this source. `link` is the name of the link of that key.
    From { source: Ipv6Addr, link: String },
    /// For all other packets.
    Unreachable,
}

/// Whether the tasks' packets on this network are encrypted between nodes.
pub(super) fn is_encrypted(networks: &[NetworkPlan], network: &weft_model::NetworkId) -> bool {
    networks.iter().any(|plan| plan.id == *network && plan.encrypted)
}

/// The WireGuard links by name. Empty if the node has no part in an encrypted network.
pub(super) fn links(plan: &NodePlan, keys: &[OwnKey], underlay: Underlay) -> BTreeMap<String, DesiredWireGuard> {
    let Some(encryption) = &plan.encryption else { return BTreeMap::new() };
    let peers: BTreeMap<PublicKey, DesiredPeer> = encryption
        .peers
        .iter()
        .flat_map(|peer| peer.keys.iter().map(|key| (peer.addr, key)))
        .map(|(addr, key)| {
            let endpoint = SocketAddr::new(addr, key.port);
            let address = key_address(&plan.cluster, &key.public_key);
            (key.public_key, DesiredPeer { endpoint, address })
        })
        .collect();
    let link = |own: &OwnKey| DesiredWireGuard {
        private_key: own.private_key,
        public_key: own.public_key,
        port: own.port,
        mtu: underlay.wireguard_mtu(),
        peers: peers.clone(),
    };
    keys.iter().map(|own| (name::wireguard(own.port).to_owned(), link(own))).collect()
}

/// Adds the addresses, routes and sysctls of the WireGuard links.
pub(super) fn add_links(plan: &NodePlan, links: &BTreeMap<String, DesiredWireGuard>, node: &mut DesiredNetns) {
    if plan.encryption.is_none() {
        node.key_routes = Some(BTreeSet::new());
        return;
    }
    // The programs of the tunnel ask the kernel for its routes, which it tells only for a link that
    // forwards. It forwards no packet: that takes `forwarding` for all links.
    node.set_sysctl(&format!("net/ipv6/conf/{}/forwarding", name::TUNNEL), "1");
    let destination = cluster_range(&plan.cluster);
    let mut routes = BTreeSet::from([KeyRoute { destination, kind: KeyRouteKind::Unreachable }]);
    for (name, link) in links {
        let address = key_address(&plan.cluster, &link.public_key);
        node.links.insert(
            name.clone(),
            DesiredLink {
                kind: DesiredLinkKind::WireGuard,
                mtu: Some(link.mtu),
                mac: None,
                alias: Some(format!("weft key={}", link.public_key)),
                addresses: Some(BTreeSet::from([IpNetwork::from(std::net::IpAddr::V6(address))])),
            },
        );
        // The link has only the one static address.
        for (key, value) in [("disable_ipv6", "0"), ("accept_ra", "0"), ("addr_gen_mode", "1")] {
            node.set_sysctl(&format!("net/ipv6/conf/{name}/{key}"), value);
        }
        let kind = KeyRouteKind::From { source: address, link: name.clone() };
        routes.insert(KeyRoute { destination, kind });
    }
    node.key_routes = Some(routes);
}
