//! The steps on WireGuard links: which to create, delete and give other peers. Pure.
//!
//! The parent module calls it. An unchanged peer is in no step, because setting it again would end
//! its session.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnetwork::IpNetwork;
use weft_model::wireguard::PublicKey;

use crate::{
    actual::{Actual, ActualPeer, ActualWireGuard},
    desired::{Desired, DesiredPeer, DesiredWireGuard},
    name,
    wireguard::PrivateKey,
};

/// One step on a WireGuard link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WireGuardOp {
    Delete {
        name: String,
    },
    /// Creates a link without peers.
    Create {
        name: String,
        private_key: PrivateKey,
        public_key: PublicKey,
        port: u16,
        /// In octets.
        mtu: u32,
    },
    SetPeers {
        name: String,
        /// The peers to add or to change.
        put: BTreeMap<PublicKey, DesiredPeer>,
        remove: BTreeSet<PublicKey>,
    },
}

impl WireGuardOp {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Delete { name } | Self::Create { name, .. } | Self::SetPeers { name, .. } => name,
        }
    }
}

impl fmt::Display for WireGuardOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delete { name } => write!(f, "delete WireGuard link {name}"),
            Self::Create { name, public_key, port, mtu, .. } => {
                write!(f, "create WireGuard link {name} port {port} mtu {mtu} key {public_key}")
            }
            Self::SetPeers { name, put, remove } => {
                write!(f, "set {} peers of {name} and remove {}", put.len(), remove.len())
            }
        }
    }
}

/// Computes the steps on all WireGuard links of weft.
pub(super) fn diff(desired: &Desired, actual: &Actual) -> Vec<WireGuardOp> {
    let mut ops = Vec::new();
    for name in name::WIREGUARD {
        let link = actual.wireguard.get(name).filter(|_| actual.node.links.contains_key(name));
        diff_link(name, desired.wireguard.get(name), link, actual, &mut ops);
    }
    ops
}

fn diff_link(
    name: &str,
    desired: Option<&DesiredWireGuard>,
    link: Option<&ActualWireGuard>,
    actual: &Actual,
    ops: &mut Vec<WireGuardOp>,
) {
    let is_same = |desired: &DesiredWireGuard| {
        link.filter(|link| link.public_key == desired.public_key && link.port == desired.port)
    };
    let kept = desired.and_then(is_same);
    // Another key means another link: a link whose key changed would have to be told apart from the
    // one that peers and packets in flight still use.
    if kept.is_none() && (actual.node.links.contains_key(name) || actual.wireguard.contains_key(name)) {
        ops.push(WireGuardOp::Delete { name: name.to_owned() });
    }
    let Some(desired) = desired else { return };
    if kept.is_none() {
        let DesiredWireGuard { private_key, public_key, port, mtu, .. } = *desired;
        ops.push(WireGuardOp::Create { name: name.to_owned(), private_key, public_key, port, mtu });
    }
    let no_peers = BTreeMap::new();
    let peers = kept.map_or(&no_peers, |link| &link.peers);
    let is_changed = |(key, peer): &(&PublicKey, &DesiredPeer)| !peers.get(key).is_some_and(|p| is_same_peer(p, peer));
    let put: BTreeMap<_, _> = desired.peers.iter().filter(is_changed).map(|(key, peer)| (*key, *peer)).collect();
    let remove: BTreeSet<_> = peers.keys().filter(|key| !desired.peers.contains_key(key)).copied().collect();
    if !put.is_empty() || !remove.is_empty() {
        ops.push(WireGuardOp::SetPeers { name: name.to_owned(), put, remove });
    }
}

fn is_same_peer(actual: &ActualPeer, desired: &DesiredPeer) -> bool {
    let allowed = IpNetwork::from(std::net::IpAddr::V6(desired.address));
    actual.endpoint == Some(desired.endpoint) && actual.allowed_ips.iter().eq([&allowed])
}
