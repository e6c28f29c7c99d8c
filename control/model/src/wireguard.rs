//! Types of encrypted networks: the WireGuard keys of nodes, and what a node must configure.
//!
//! A packet of an encrypted network crosses the underlay inside of WireGuard. Each node makes its
//! own keys; a private key never leaves its node, and only public keys are in reports, in the
//! cluster state and in plans. A node has one WireGuard device for each of its keys: one, or two
//! while it replaces its key.
//!
//! The address of a key ([`key_address`]) follows from the cluster and the public key, so no
//! address is allocated, and a new key has a new address. A node sends to a peer through the
//! address of the peer's active key.
//!
//! weft-control decides when keys are replaced, weft-overlay configures the devices. This module
//! only defines the types and the addresses.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ipnetwork::Ipv6Network;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{NodeId, id::ClusterId};

/// UDP ports of the WireGuard devices of a node. They cannot be published.
pub const WIREGUARD_PORTS: [u16; 2] = [51820, 51821];

/// The subnet id of [`cluster_range`] inside the unique local /48 of its cluster (RFC 4193).
const SUBNET_ID: u16 = 0x7767;

/// A Curve25519 public key. Its text form is base64, as in the tool `wg`.
///
/// ```
/// use weft_model::wireguard::PublicKey;
///
/// let key = PublicKey([7; 32]);
/// assert_eq!(key.to_string(), "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=");
/// assert_eq!(key.to_string().parse(), Ok(key));
/// assert!("BwcH".parse::<PublicKey>().is_err());
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

/// Text that is not a public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a WireGuard public key: it must be 32 bytes in base64")]
pub struct InvalidKey(pub String);

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| InvalidKey(text.to_owned()))
    }
}

/// A key of a node, and the UDP port of the device that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeKey {
    pub public_key: PublicKey,
    pub port: u16,
}

/// Whether a node can encrypt, and with which implementation of WireGuard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EncryptionSupport {
    /// The WireGuard of the kernel.
    Kernel,
    /// The WireGuard of the daemon, on a TUN device.
    UserSpace,
    /// The node cannot encrypt, with the reason. It gets no tasks on encrypted networks.
    Unavailable(String),
}

impl EncryptionSupport {
    pub fn is_available(&self) -> bool {
        !matches!(self, Self::Unavailable(_))
    }
}

/// What a node must configure for encrypted networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionPlan {
    /// The node makes a new key if its newest one is of an earlier epoch
    /// ([`EncryptionPlan::needs_key`]).
    pub epoch: u64,
    /// The keys that the leader knows. The node keeps their devices, and deletes the keys that are
    /// no longer in this list ([`EncryptionPlan::keeps`]).
    pub own: Vec<PublicKey>,
    /// The node sends from this key. `None`: the node must not send yet, because peers may not have
    /// configured its key.
    pub active: Option<PublicKey>,
    /// All other nodes that have keys, ordered by node id.
    pub peers: Vec<EncryptedPeer>,
}

impl EncryptionPlan {
    /// Whether the node keeps this key. A newest key that is not in [`EncryptionPlan::own`] is one
    /// that the leader does not know yet: it may be about to record a report of it.
    pub fn keeps(&self, key: &PublicKey, is_newest: bool) -> bool {
        is_newest || self.own.contains(key)
    }

    /// The epoch of a key that the node holds with the epoch `made_for`. A key that the leader does
    /// not know yet counts for the epoch of the plan.
    pub fn epoch_of(&self, key: &PublicKey, made_for: u64) -> u64 {
        if self.own.contains(key) { made_for } else { self.epoch }
    }

    /// Whether the node must make a new key, given the epoch of the newest key that it holds.
    pub fn needs_key(&self, newest: Option<u64>) -> bool {
        newest.is_none_or(|newest| newest < self.epoch)
    }
}

/// Another node, with all its keys. Every device of a node has every key of every peer as a
/// WireGuard peer, so all combinations of old and new keys work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptedPeer {
    pub node: NodeId,
    /// The underlay address of the peer: the endpoint of its keys, with their ports.
    pub addr: IpAddr,
    /// Oldest first.
    pub keys: Vec<NodeKey>,
    /// Packets to the peer are sent to the address of this key, which is one of `keys`. `None`:
    /// nothing can be sent to the peer yet.
    pub active: Option<PublicKey>,
}

/// The /64 that contains the addresses of all keys of a cluster: a unique local prefix (RFC 4193)
/// with 40 bits that are derived from the id of the cluster.
pub fn cluster_range(cluster: &ClusterId) -> Ipv6Network {
    let digest = Sha256::new().chain_update(b"weft wireguard ").chain_update(cluster.as_str()).finalize();
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&digest[..5]);
    octets[6..8].copy_from_slice(&SUBNET_ID.to_be_bytes());
    Ipv6Network::new_checked(Ipv6Addr::from(octets), 64).expect("64 is a prefix length")
}

/// The address of a key: an address in [`cluster_range`], with 64 bits of the SHA-256 digest of the
/// public key.
///
/// ```
/// use weft_model::{id::ClusterId, wireguard::{PublicKey, cluster_range, key_address}};
///
/// let cluster = ClusterId::from_random(1);
/// let address = key_address(&cluster, &PublicKey([7; 32]));
/// assert!(cluster_range(&cluster).contains(address));
/// assert_ne!(address, key_address(&cluster, &PublicKey([8; 32])));
/// assert_ne!(address, key_address(&ClusterId::from_random(2), &PublicKey([7; 32])));
/// ```
pub fn key_address(cluster: &ClusterId, key: &PublicKey) -> Ipv6Addr {
    let mut octets = cluster_range(cluster).ip().octets();
    octets[8..].copy_from_slice(&Sha256::digest(key.0)[..8]);
    Ipv6Addr::from(octets)
}
