//! WireGuard keys of nodes: records what a node reports, and the stage of each key.
//!
//! When a key moves to its next stage is decided by [`crate::orchestrate`].

use weft_model::{
    Applied, ClusterState, NodeId, Rejection,
    state::{KeyRecord, KeyStage, NodeKeys},
    wireguard::{NodeKey, PublicKey},
};

use super::node_mut;

/// Whether `report` would change the keys. `acked` is the plan generation that was in effect on
/// the node when it reported `reported`.
pub fn is_news(keys: &NodeKeys, reported: &[NodeKey], acked: u64) -> bool {
    keys.keys.iter().any(|record| is_lost(record, reported, acked))
        || reported.iter().any(|key| match keys.find(&key.public_key) {
            Some(record) => record.key != *key,
            None => is_new(keys, acked),
        })
}

/// Whether the node no longer holds this key: it has applied a plan that contains the key, and does
/// not report it.
fn is_lost(record: &KeyRecord, reported: &[NodeKey], acked: u64) -> bool {
    record.created_index <= acked && !reported.iter().any(|key| key.public_key == record.key.public_key)
}

/// Whether a reported key that is not recorded is a new one. If the node has not yet applied the
/// removal of its last removed key, it may be that one.
fn is_new(keys: &NodeKeys, acked: u64) -> bool {
    acked >= keys.removed_index
}

/// Records the keys that a node holds: adds new ones, removes lost ones, and updates ports.
pub(super) fn report(
    state: &mut ClusterState,
    node: &NodeId,
    reported: &[NodeKey],
    acked: u64,
) -> Result<Applied, Rejection> {
    let (index, now_ms) = (state.index, state.now_ms);
    let keys = &mut node_mut(state, node)?.keys;
    let before = keys.keys.len();
    let takes_new = is_new(keys, acked);
    keys.keys.retain(|record| !is_lost(record, reported, acked));
    if keys.keys.len() < before {
        keys.removed_index = index;
    }
    for key in reported {
        match keys.keys.iter_mut().find(|record| record.key.public_key == key.public_key) {
            Some(record) => record.key = *key,
            None if takes_new => keys.keys.push(KeyRecord {
                key: *key,
                epoch: keys.epoch,
                created_ms: now_ms,
                created_index: index,
                stage: KeyStage::Announced,
                stage_index: index,
                stage_since_ms: now_ms,
            }),
            None => {}
        }
    }
    Ok(Applied::Done)
}

/// Removes the keys of all nodes, after the last encrypted network was removed. The nodes then
/// delete their keys, also those that they have not reported yet.
pub(super) fn clear(state: &mut ClusterState) {
    let index = state.index;
    for node in state.nodes.values_mut() {
        node.keys.keys.clear();
        node.keys.removed_index = index;
    }
}

pub(super) fn request(state: &mut ClusterState, node: &NodeId) -> Result<Applied, Rejection> {
    node_mut(state, node)?.keys.epoch += 1;
    Ok(Applied::Done)
}

/// Refused if the key is already at this stage or a later one.
pub(super) fn set_stage(
    state: &mut ClusterState,
    node: &NodeId,
    key: &PublicKey,
    stage: KeyStage,
) -> Result<Applied, Rejection> {
    let (index, now_ms) = (state.index, state.now_ms);
    let keys = &mut node_mut(state, node)?.keys;
    let current = find(keys, node, key)?.stage;
    if current >= stage {
        let (from, to) = (current.as_str(), stage.as_str());
        return Err(Rejection::Invalid(format!("WireGuard key {key} is {from}, it cannot become {to}")));
    }
    for record in &mut keys.keys {
        let next = if record.key.public_key == *key {
            stage
        } else if stage == KeyStage::Active && record.stage == KeyStage::Active {
            KeyStage::Retiring
        } else {
            continue;
        };
        (record.stage, record.stage_index, record.stage_since_ms) = (next, index, now_ms);
    }
    Ok(Applied::Done)
}

/// Refused while other nodes have the key.
pub(super) fn forget(state: &mut ClusterState, node: &NodeId, key: &PublicKey) -> Result<Applied, Rejection> {
    let index = state.index;
    let keys = &mut node_mut(state, node)?.keys;
    if find(keys, node, key)?.stage != KeyStage::Withdrawn {
        return Err(Rejection::Invalid(format!("WireGuard key {key} is in use")));
    }
    keys.keys.retain(|record| record.key.public_key != *key);
    keys.removed_index = index;
    Ok(Applied::Done)
}

fn find<'a>(keys: &'a NodeKeys, node: &NodeId, key: &PublicKey) -> Result<&'a KeyRecord, Rejection> {
    keys.find(key).ok_or_else(|| Rejection::Invalid(format!("node {node} has no WireGuard key {key}")))
}
