//! The part of a node's plan that is about encrypted networks.
//!
//! Every node that can encrypt has a key and knows the keys of all others as soon as the cluster
//! has an encrypted network, even if it has no task on one. The reasons: a published port of any
//! node can lead to a backend on any network; and a task that is placed on a node can send at once,
//! because no peer has to learn the key of its node first.

use weft_model::{
    ClusterState,
    state::{KeyStage, Node},
    wireguard::{EncryptedPeer, EncryptionPlan, PublicKey},
};

/// What `node` must configure. `None`: no network is encrypted, or the node cannot encrypt.
pub(super) fn encryption(state: &ClusterState, node: &Node) -> Option<EncryptionPlan> {
    (state.has_encrypted_network() && node.can_encrypt()).then(|| EncryptionPlan {
        epoch: node.keys.epoch,
        own: node.keys.keys.iter().map(|record| record.key.public_key).collect(),
        active: active(node),
        peers: peers(state, node),
    })
}

fn active(node: &Node) -> Option<PublicKey> {
    node.keys.active().map(|record| record.key.public_key)
}

/// All other nodes with keys. A withdrawn key is in no plan but that of its own node.
fn peers(state: &ClusterState, node: &Node) -> Vec<EncryptedPeer> {
    let others =
        state.nodes.values().filter(|n| n.id != node.id && n.addr != node.addr && n.tunnel_addr != node.tunnel_addr);
    let peers = others.map(|n| EncryptedPeer {
        node: n.id.clone(),
        addr: n.tunnel_addr,
        keys: n.keys.keys.iter().filter(|r| r.stage < KeyStage::Withdrawn).map(|r| r.key).collect(),
        active: active(n),
    });
    peers.filter(|peer| !peer.keys.is_empty()).collect()
}
