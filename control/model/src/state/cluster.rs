//! The cluster itself: its settings, its certificate authority and its join secrets.

use serde::{Deserialize, Serialize};

use super::Meta;
use crate::{id::ClusterId, spec::ClusterSpec};

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
}

/// A heartbeat timeout that nodes may still rely on: they learn of a shorter one with a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EarlierTimeout {
    pub timeout_ms: u64,
    /// It holds for nodes that have not acknowledged a plan of this log index.
    pub index: u64,
}

impl Cluster {
    /// After this time without a message, a node is down. `acked` is the plan generation that it
    /// has acknowledged.
    pub fn heartbeat_timeout_ms(&self, acked: u64) -> u64 {
        let current = self.spec.heartbeat_timeout_ms();
        let earlier = self.earlier_timeout.as_ref().filter(|earlier| acked < earlier.index);
        earlier.map_or(current, |earlier| earlier.timeout_ms.max(current))
    }
}
