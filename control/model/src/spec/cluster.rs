//! Settings of the whole cluster (`swarm init`, `swarm update`).

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use serde::{Deserialize, Serialize};

use super::Labels;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    pub labels: Labels,
    /// How many ended tasks are kept for each slot.
    pub task_history_limit: u32,
    /// The time between two heartbeats of a node.
    pub heartbeat_ms: u64,
    /// After this many missed heartbeats the leader considers a node down.
    pub heartbeat_misses: u32,
    /// How long a node certificate is valid.
    pub cert_expiry_ms: u64,
    /// After this time a node's WireGuard key is replaced by a new one. The time starts when the
    /// key becomes active.
    pub key_rotation_ms: u64,
    /// A network without a chosen IPv4 subnet gets one from the first of these pools that has one
    /// left. They do not overlap. A change does not affect the subnets of existing networks.
    pub pools: Vec<Ipv4Network>,
    /// The prefix length of subnets from the pools.
    pub pool_prefix: u8,
    /// A change of this number replaces the CA, as in Swarm.
    #[serde(default)]
    pub force_rotate: u64,
}

impl ClusterSpec {
    /// After this time without a message, a node is down.
    pub fn heartbeat_timeout_ms(&self) -> u64 {
        self.heartbeat_ms.saturating_mul(self.heartbeat_misses.into())
    }
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            labels: Labels::new(),
            task_history_limit: 5,
            heartbeat_ms: 5_000,
            heartbeat_misses: 3,
            cert_expiry_ms: 90 * 24 * 3_600_000,
            key_rotation_ms: 12 * 3_600_000,
            pools: vec![Ipv4Network::new_checked(Ipv4Addr::new(10, 0, 0, 0), 8).expect("10.0.0.0/8 is a network")],
            pool_prefix: 24,
            force_rotate: 0,
        }
    }
}
