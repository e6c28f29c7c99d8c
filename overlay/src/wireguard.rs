//! What the agent and this crate say to each other about WireGuard: the keys of this node, and
//! which implementation encrypts. Plain data; only [`PrivateKey::generate`] asks the system for
//! something, which is random bytes.
//!
//! The agent makes and stores the keys, and passes those that must have a link to
//! [`crate::Overlay::reconcile`].

use std::fmt;

use weft_model::wireguard::{NodeKey, PublicKey};
use wireguard_control::Key;

/// A Curve25519 private key. It never leaves the node, and its `Debug` form does not show it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PrivateKey(pub [u8; 32]);

impl PrivateKey {
    /// A new random key.
    pub fn generate() -> Self {
        Self(Key::generate_private().0)
    }

    pub fn public_key(&self) -> PublicKey {
        PublicKey(Key(self.0).get_public().0)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey(hidden)")
    }
}

/// A key of this node that must have a link.
///
/// The parity of the port chooses the link, so two keys of one node must have neighbouring ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnKey {
    pub private_key: PrivateKey,
    pub public_key: PublicKey,
    /// The UDP port at which the link of this key listens.
    pub port: u16,
}

impl OwnKey {
    /// What other nodes must know of the key.
    pub fn node_key(&self) -> NodeKey {
        NodeKey { public_key: self.public_key, port: self.port }
    }
}

/// Which implementation of WireGuard the node uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EncryptionMode {
    /// That of the kernel if it has one, otherwise that of the daemon.
    #[default]
    Auto,
    Kernel,
    UserSpace,
}

/// The link of one key of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyLink {
    pub key: NodeKey,
    pub ifindex: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_public_key_follows_from_the_private_key() {
        // A pair that `wg genkey` and `wg pubkey` have made.
        let private = Key::from_base64("SGb+ojrRNDuMePufwtIYhXzA//k6wF3R21tEBgKlzlM=").expect("a key");
        let public = "DD5yKRfzExcV5+kDnTroDgCU15latdMjiQ59j1hEuk8=".parse();
        assert_eq!(Ok(PrivateKey(private.0).public_key()), public);
        assert_ne!(PrivateKey::generate(), PrivateKey::generate());
    }

    #[test]
    fn the_debug_form_hides_the_private_key() {
        let key = OwnKey { private_key: PrivateKey([42; 32]), public_key: PublicKey([7; 32]), port: 51820 };
        assert!(!format!("{key:?}").contains("42"), "{key:?}");
    }
}
