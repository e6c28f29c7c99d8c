//! Decides which managers vote: compares the managers in the cluster state with the members of the
//! Raft log, and returns the next change. The leader's loop calls these functions, which are pure.
//!
//! The log's membership changes one node at a time:
//!
//! ```text
//!               AddLearner             Promote (has caught up)
//!   not a member ─────────▶ learner ─────────────────────────▶ voter
//!        ▲                     │                                 │
//!        └── RemoveLearner ────┴──────────── Demote ─────────────┘
//! ```

use std::collections::BTreeMap;

use weft_model::{ClusterState, Command};

use crate::raft::{Voter, Voters};

/// A learner becomes a voter once it lacks at most this many entries. A voter that lacks many would
/// delay every commit that needs its answer.
const MAX_LAG: u64 = 64;

/// One change of the log's membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum VoterChange {
    /// Finish a change that an earlier leader began: the log is in a joint configuration.
    FinishJoint,
    /// Send the log to a new manager, which does not vote yet.
    AddLearner { raft_id: u64, voter: Voter },
    /// Let a learner vote that has caught up.
    Promote { raft_id: u64 },
    /// Remove a voter that is no longer a manager. It gets no more entries.
    Demote { raft_id: u64 },
    /// Remove a learner that is no longer a manager.
    RemoveLearner { raft_id: u64 },
}

/// The next change, or `None` if there is nothing to change or a new manager has not caught up yet.
///
/// `replicated` is the last entry that each voter and learner has, `last` the last entry of the
/// log. `me` is this leader, which is demoted after all others.
pub(super) fn next_change(
    state: &ClusterState,
    voters: &Voters,
    replicated: &BTreeMap<u64, u64>,
    last: u64,
    me: u64,
) -> Option<VoterChange> {
    let wanted: BTreeMap<u64, Voter> = state
        .nodes
        .values()
        .filter(|node| node.is_manager())
        .map(|node| (node.raft_id, Voter { node: node.id.clone(), rpc_addr: node.rpc_addr }))
        .collect();
    if wanted.is_empty() {
        return None;
    }
    if voters.get_joint_config().len() > 1 {
        return Some(VoterChange::FinishJoint);
    }
    let votes = |id: u64| voters.voter_ids().any(|voter| voter == id);
    for (&raft_id, voter) in &wanted {
        if voters.get_node(&raft_id).is_none() {
            return Some(VoterChange::AddLearner { raft_id, voter: voter.clone() });
        }
    }
    for &raft_id in wanted.keys() {
        let caught_up = replicated.get(&raft_id).is_some_and(|at| at + MAX_LAG >= last);
        if !votes(raft_id) && caught_up {
            return Some(VoterChange::Promote { raft_id });
        }
    }
    if let Some(raft_id) = voters.learner_ids().find(|id| !wanted.contains_key(id)) {
        return Some(VoterChange::RemoveLearner { raft_id });
    }
    // Demote only while another manager votes: a log without voters can never change again.
    let staying = voters.voter_ids().filter(|id| wanted.contains_key(id)).count();
    let mut leaving: Vec<u64> = voters.voter_ids().filter(|id| !wanted.contains_key(id)).collect();
    leaving.sort_by_key(|&id| id == me);
    leaving.first().filter(|_| staying > 0).map(|&raft_id| VoterChange::Demote { raft_id })
}

/// The commands that bring `voter` and `in_raft_config` of the nodes in the cluster state into line
/// with the log's membership. `in_raft_config` is not cleared while a change runs (`changing`),
/// because that change may be the one that adds the node.
pub(super) fn flag_updates(state: &ClusterState, voters: &Voters, changing: bool) -> Vec<Command> {
    if voters.get_joint_config().len() > 1 {
        return Vec::new();
    }
    let mut commands = Vec::new();
    for node in state.nodes.values() {
        let voter = voters.voter_ids().any(|id| id == node.raft_id);
        if voter != node.voter {
            commands.push(Command::SetVoter { id: node.id.clone(), voter });
        }
        let in_raft_config = node.is_manager() || voters.get_node(&node.raft_id).is_some();
        if node.in_raft_config && !in_raft_config && !changing {
            commands.push(Command::ClearRaftConfig { id: node.id.clone() });
        }
    }
    commands
}
