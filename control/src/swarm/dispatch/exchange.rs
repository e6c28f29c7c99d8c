//! What a session decides about a node's messages, and which messages it sends. Pure; `sessions`
//! calls it, and the simulation does.

use bytes::Bytes;
use weft_model::{ClusterState, NodeId, NodePlan};

use crate::rpc::{MAX_MESSAGE_BYTES, pb::leader_message::Message};

/// The feature level from which on nodes know epochs.
const EPOCH_LEVEL: u32 = 1;
/// The feature level from which on nodes take a plan in parts.
const PARTS_LEVEL: u32 = 1;
/// A longer plan is sent in parts of this length, so that no plan is too long for a message.
pub(in crate::swarm) const PLAN_PART_BYTES: usize = 4 << 20;
/// The longest plan that a node takes in parts: that of 1,000 services with a spec of 1 MB each.
pub(in crate::swarm) const MAX_PLAN_BYTES: usize = 1 << 30;
/// What a message contains beside a plan, at most.
const ENVELOPE_BYTES: usize = 64;

/// What a message of a node acks.
#[derive(Debug, Clone, Copy)]
pub(in crate::swarm) struct Acked {
    pub epoch: u64,
    pub generation: u64,
    /// The feature level that the node's release supports.
    pub level: u32,
}

/// How a leader answers the first message of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::swarm) enum Opening {
    /// The session may begin.
    Member,
    /// The node has a plan of a later epoch. This leader must not say that the node was removed,
    /// because it has joined the new cluster.
    FormerCluster,
    /// The cluster state does not contain the node. A quorum must confirm that the state is the
    /// newest before the node hears that it was removed.
    Unknown,
}

impl Acked {
    pub(in crate::swarm) fn opening(self, state: &ClusterState, node: &NodeId) -> Opening {
        if self.epoch > state.epoch {
            Opening::FormerCluster
        } else if !state.nodes.contains_key(node) {
            Opening::Unknown
        } else {
            Opening::Member
        }
    }

    /// The plan generation that counts, of a cluster state with this epoch and index. A node still
    /// acks its last plan of the former epoch when it opens its first session after the cluster was
    /// formed again. The generation of that plan can be greater than all of this epoch, and says
    /// nothing about its plans. The same holds for a generation that this state has not reached.
    pub(in crate::swarm) fn counts_as(self, (epoch, index): (u64, u64)) -> u64 {
        let is_of_state = (self.epoch == epoch || self.level < EPOCH_LEVEL) && self.generation <= index;
        if is_of_state { self.generation } else { 0 }
    }

    /// Whether the node has a later plan of the same epoch than the state with this epoch and index
    /// has.
    pub(in crate::swarm) fn is_later(self, (epoch, index): (u64, u64)) -> bool {
        self.epoch == epoch && self.generation > index
    }
}

/// The plans that one session sends.
#[derive(Debug, Default)]
pub(in crate::swarm) struct Outgoing {
    sent: Option<NodePlan>,
}

/// A message about the node's plan.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::swarm) enum PlanMessage {
    Plan(Box<NodePlan>),
    /// The plan is the same at this generation.
    Unchanged(u64),
}

impl Outgoing {
    /// The message for the node's current plan.
    pub(in crate::swarm) fn next(&mut self, plan: NodePlan) -> PlanMessage {
        if let Some(sent) = &mut self.sent {
            sent.generation = plan.generation;
            if *sent == plan {
                return PlanMessage::Unchanged(plan.generation);
            }
        }
        self.sent = Some(plan.clone());
        PlanMessage::Plan(Box::new(plan))
    }
}

/// The messages that send an encoded plan to a node whose release supports this feature level.
///
/// # Errors
/// The reason why the node takes no plan of this length.
pub(in crate::swarm) fn plan_messages(mut plan: Bytes, node_level: u32) -> Result<Vec<Message>, String> {
    let takes_parts = node_level >= PARTS_LEVEL;
    let longest = if takes_parts { MAX_PLAN_BYTES } else { MAX_MESSAGE_BYTES - ENVELOPE_BYTES };
    if plan.len() > longest {
        return Err(format!(
            "the node's plan has {} MiB, and its release of weft takes less than {} MiB: {}run fewer services with \
             large specs on it",
            plan.len().div_ceil(1 << 20),
            longest.div_ceil(1 << 20),
            if takes_parts { "" } else { "upgrade it, or " },
        ));
    }
    let mut messages = Vec::new();
    while takes_parts && plan.len() > PLAN_PART_BYTES {
        messages.push(Message::PlanPart(plan.split_to(PLAN_PART_BYTES)));
    }
    messages.push(Message::Plan(plan));
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_plan_is_sent_in_parts_to_nodes_that_take_them() {
        let plan = |len: usize| Bytes::from((0..len).map(|at| at as u8).collect::<Vec<u8>>());
        for (len, parts) in [(0, 0), (PLAN_PART_BYTES, 0), (PLAN_PART_BYTES + 1, 1), (3 * PLAN_PART_BYTES, 2)] {
            let messages = plan_messages(plan(len), PARTS_LEVEL).expect("sent");
            let mut joined = Vec::new();
            for (nth, message) in messages.iter().enumerate() {
                match message {
                    Message::PlanPart(part) if nth < parts => joined.extend_from_slice(part),
                    Message::Plan(last) if nth == parts => joined.extend_from_slice(last),
                    other => panic!("message {nth} of {len} octets is {other:?}"),
                }
            }
            assert!(joined == plan(len), "{len} octets");
        }
    }

    #[test]
    fn a_node_of_the_first_release_gets_a_plan_whole_or_the_reason_why_not() {
        let messages = plan_messages(vec![0; 2 * PLAN_PART_BYTES].into(), 0).expect("sent");
        assert!(matches!(&messages[..], [Message::Plan(plan)] if plan.len() == 2 * PLAN_PART_BYTES));
        let refused = plan_messages(vec![0; MAX_MESSAGE_BYTES].into(), 0).expect_err("too long");
        assert!(refused.contains("64 MiB") && refused.contains("upgrade it"), "{refused}");
    }

    #[test]
    fn an_ack_counts_in_its_epoch_only() {
        let acked = Acked { epoch: 5, generation: 7, level: EPOCH_LEVEL };
        assert_eq!(acked.counts_as((5, 8)), 7);
        assert_eq!(acked.counts_as((6, 8)), 0);
        assert_eq!(Acked { epoch: 0, level: 0, ..acked }.counts_as((6, 8)), 7, "the first release sends no epoch");
    }

    #[test]
    fn an_ack_that_the_state_has_not_reached_does_not_count() {
        let acked = Acked { epoch: 5, generation: 7, level: EPOCH_LEVEL };
        for (state, expected, later) in [((5, 7), 7, false), ((5, 6), 0, true), ((6, 6), 0, false)] {
            assert_eq!((acked.counts_as(state), acked.is_later(state)), (expected, later), "{state:?}");
        }
    }
}
