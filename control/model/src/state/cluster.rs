//! The cluster itself: its settings, its certificate authority and its join secrets.

use serde::{Deserialize, Serialize};

use super::Meta;
use crate::{UnlockKey, id::ClusterId, spec::ClusterSpec};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub meta: Meta,
    pub spec: ClusterSpec,
    /// The UDP port of the tunnels between all nodes. Never changes.
    pub tunnel_port: u16,
    /// The certificate of the cluster's CA in PEM. Every join token contains its SHA-256 digest.
    pub ca_cert_pem: String,
    /// The private key of the CA (PKCS#8 DER), encrypted. Only managers have the key that decrypts
    /// it.
    pub ca_key_sealed: Vec<u8>,
    /// The secret part of the worker join token, in base 36.
    pub worker_secret: String,
    /// The secret part of the manager join token, in base 36.
    pub manager_secret: String,
    /// What the heartbeat timeout was before it was shortened. `None` if it never was.
    #[serde(default)]
    pub earlier_timeout: Option<EarlierTimeout>,
    /// The CA that replaces the current one, while not all nodes have a certificate of it.
    #[serde(default)]
    pub root_rotation: Option<RootRotation>,
    /// Whether the managers are locked.
    #[serde(default)]
    pub lock: ManagerLock,
}

/// Whether managers are locked: whether they need a key of the user after a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerLock {
    /// The key that they need. `None` if they are not locked.
    pub key: Option<UnlockKey>,
    /// The log index of the last change. A manager that applies its log again after a restart meets
    /// earlier keys, and must not go back to them.
    pub version: u64,
}

/// A heartbeat timeout that nodes may still rely on: they learn of a shorter one with a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierTimeout {
    pub timeout_ms: u64,
    /// It holds for nodes that have not acknowledged a plan of this log index.
    pub index: u64,
}

/// A new CA, which signs all certificates from the start of the rotation on. When every node uses
/// such a certificate, it becomes the cluster's CA, and the old one is forgotten.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RootRotation {
    /// The certificate of the new CA in PEM.
    pub ca_cert_pem: String,
    /// The private key of the new CA, encrypted like [`Cluster::ca_key_sealed`].
    pub ca_key_sealed: Vec<u8>,
    /// The certificate of the new CA's key, signed by the current CA, in PEM. Nodes present it with
    /// certificates of the new CA, to nodes that know only the current one.
    pub cross_signed_pem: String,
    /// The secrets of the join tokens after the rotation. Tokens name the CA by the digest of its
    /// certificate, so those of the old CA become useless.
    pub worker_secret: String,
    pub manager_secret: String,
}

impl Cluster {
    /// After this time without a message, a node is down. `acked` is the plan generation that it
    /// has acknowledged.
    pub fn heartbeat_timeout_ms(&self, acked: u64) -> u64 {
        let current = self.spec.heartbeat_timeout_ms();
        let earlier = self.earlier_timeout.as_ref().filter(|earlier| acked < earlier.index);
        earlier.map_or(current, |earlier| earlier.timeout_ms.max(current))
    }

    /// The certificates of all CAs that the nodes trust, in PEM. The last one signs.
    pub fn roots_pem(&self) -> String {
        let rotation = self.root_rotation.as_ref().map_or("", |rotation| &rotation.ca_cert_pem);
        format!("{}{rotation}", self.ca_cert_pem)
    }

    /// The certificate and the encrypted key of the CA that signs.
    pub fn signing_ca(&self) -> (&str, &[u8]) {
        match &self.root_rotation {
            Some(rotation) => (&rotation.ca_cert_pem, &rotation.ca_key_sealed),
            None => (&self.ca_cert_pem, &self.ca_key_sealed),
        }
    }
}
