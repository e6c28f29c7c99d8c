//! Replaces the WireGuard keys of nodes, so that no packet is lost and none is sent to a key that
//! is not ready.
//!
//! Each node makes its keys itself. The leader asks for a new key by a new epoch, and moves each
//! key through its stages ([`KeyStage`]):
//!
//! ```text
//!           the node reports it
//!                   │
//!                   ▼         (1)               (2)                (3)              (4)
//!               Announced ─────────▶ Active ─────────▶ Retiring ─────────▶ Withdrawn ───▶ deleted
//!                   │                                                         ▲
//!                   └──────────────────────────(5)────────────────────────────┘
//!
//!   (1) every awaited node has acknowledged the plan with the key, and no older key is retiring or
//!       withdrawn
//!   (2) a newer key of the node has become active
//!   (3) every awaited node has acknowledged the plan in which the newer key is active
//!   (4) every awaited node has acknowledged the plan without the key
//!   (5) the node has made a newer key before this one became active
//! ```
//!
//! The node's own acknowledgement is needed for each step, so the keys of a node that is not ready
//! stay as they are. The first key of a node becomes active after [`ACK_WAIT_MS`] even if some
//! other node does not acknowledge it: until then nothing can be sent to the node at all. The
//! replacement of an active key has no such limit, because the old key continues to work.

use weft_model::{
    Command,
    state::{KeyRecord, KeyStage, Node, NodeStatus},
};

use super::{Context, traffic::ACK_WAIT_MS};

/// Moves every key to its next stage if the condition of this step holds, and asks for new keys
/// when the active ones have reached their age.
pub(super) fn advance(ctx: &mut Context<'_>) {
    let state = ctx.state;
    if !state.has_encrypted_network() {
        return;
    }
    let Some(cluster) = &state.cluster else { return };
    let rotation_ms = cluster.spec.key_rotation_ms;
    for node in state.nodes.values().filter(|n| n.status == NodeStatus::Ready && n.can_encrypt()) {
        if is_rotation_due(node, rotation_ms, ctx) {
            ctx.propose(Command::RequestKey { node: node.id.clone() });
        }
        for record in &node.keys.keys {
            if let Some(command) = next_step(node, record, ctx) {
                ctx.propose(command);
            }
        }
    }
}

fn next_step(node: &Node, record: &KeyRecord, ctx: &mut Context<'_>) -> Option<Command> {
    let key = record.key.public_key;
    let set = |stage| Command::SetKeyStage { node: node.id.clone(), key, stage };
    let is_newest = node.keys.keys.last().is_some_and(|newest| newest.key.public_key == key);
    match record.stage {
        KeyStage::Announced if !is_newest => Some(set(KeyStage::Withdrawn)),
        KeyStage::Announced => may_become_active(node, record, ctx).then(|| set(KeyStage::Active)),
        KeyStage::Active => None,
        KeyStage::Retiring => is_acked(node, record, ctx).then(|| set(KeyStage::Withdrawn)),
        KeyStage::Withdrawn => is_acked(node, record, ctx).then(|| Command::ForgetKey { node: node.id.clone(), key }),
    }
}

fn may_become_active(node: &Node, record: &KeyRecord, ctx: &mut Context<'_>) -> bool {
    if node.keys.keys.iter().any(|other| other.stage >= KeyStage::Retiring) {
        return false;
    }
    if is_acked(node, record, ctx) {
        return true;
    }
    let since_ms = record.stage_since_ms.max(ctx.acks.since_ms);
    node.keys.active().is_none()
        && ctx.acks.has_acked(&node.id, record.stage_index)
        && ctx.is_due(since_ms.saturating_add(ACK_WAIT_MS))
}

/// Whether the node itself and every awaited node (`Node::gates_changes`) have put the stage of the
/// key into effect.
fn is_acked(node: &Node, record: &KeyRecord, ctx: &Context<'_>) -> bool {
    ctx.acks.has_acked(&node.id, record.stage_index) && ctx.acks.all_acked(ctx.state, record.stage_index)
}

/// A new key is due when the only key of the node has been active for the rotation period.
fn is_rotation_due(node: &Node, rotation_ms: u64, ctx: &mut Context<'_>) -> bool {
    let [only] = &node.keys.keys[..] else { return false };
    only.stage == KeyStage::Active
        && only.epoch == node.keys.epoch
        && ctx.is_due(only.stage_since_ms.saturating_add(rotation_ms))
}
