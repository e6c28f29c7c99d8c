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
}
