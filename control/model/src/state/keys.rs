//! The WireGuard keys of a node, and how far the cluster has put each of them into use.

use serde::{Deserialize, Serialize};

use crate::wireguard::{NodeKey, PublicKey};

/// The keys of a node that the leader knows. Empty for a node that has reported none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeKeys {
    /// The node must have a key of this epoch. The leader increases it to have the key replaced.
    pub epoch: u64,
    /// In the order in which the node has made them.
    pub keys: Vec<KeyRecord>,
    /// The log index at which a key was last removed from `keys`. An older report of the node may
    /// still contain that key.
    pub removed_index: u64,
}

/// A key of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRecord {
    pub key: NodeKey,
    /// [`NodeKeys::epoch`] when the node reported the key.
    pub epoch: u64,
    /// [`super::ClusterState::now_ms`] when the node reported the key.
    pub created_ms: u64,
    /// The log index at which the node reported the key.
    pub created_index: u64,
    pub stage: KeyStage,
    /// The log index at which `stage` last changed. A node that has acknowledged this plan
    /// generation has put the change into effect.
    pub stage_index: u64,
    /// [`super::ClusterState::now_ms`] when `stage` last changed.
    pub stage_since_ms: u64,
}

/// How far a key is in use. The leader moves it forward, never back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KeyStage {
    /// Its node has a device for it, and it is in the plans of all nodes. No node sends to it.
    Announced,
    /// All nodes send to it, and its node sends from it.
    Active,
    /// A newer key is active. Nodes that have not received their plan yet still send to this one.
    Retiring,
    /// No node sends to it. It is no longer in the plans of other nodes. Its node keeps its device.
    Withdrawn,
}

impl KeyStage {
    /// The name that users see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Announced => "announced",
            Self::Active => "active",
            Self::Retiring => "retiring",
            Self::Withdrawn => "withdrawn",
        }
    }
}

impl NodeKeys {
    /// The key that other nodes send to. `None`: nothing can be sent to the node yet.
    pub fn active(&self) -> Option<&KeyRecord> {
        self.keys.iter().find(|record| record.stage == KeyStage::Active)
    }

    pub fn find(&self, key: &PublicKey) -> Option<&KeyRecord> {
        self.keys.iter().find(|record| record.key.public_key == *key)
    }
}
