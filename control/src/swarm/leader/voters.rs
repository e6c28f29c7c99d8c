//! Who votes: a diff between the managers that the table wants and the voters that the log has, one safe step at a time.
//! Pure.

use std::collections::BTreeMap;

use weft_model::{ClusterState, Command};

use crate::raft::{Voter, Voters};

/// A voter is added once it lacks at most that many entries: then it cannot hold up the others for long.
const MAX_LAG: u64 = 64;

/// One change of the log's membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum VoterChange {
    /// A change that an earlier leader left half done: finish it.
    FinishJoint,
    /// The manager is sent the log, and does not vote yet.
    AddLearner { raft_id: u64, voter: Voter },
    /// It has caught up: it votes.
    Promote { raft_id: u64 },
    /// No manager any more: it neither votes nor gets the log.
    Demote { raft_id: u64 },
    /// The same for one that did not vote yet.
    RemoveLearner { raft_id: u64 },
}

/// The next step, or `None` where all is as it shall be or a new manager has yet to catch up. `replicated` is how far each
/// voter and learner has come, `last` the end of the log, `me` this leader, which is demoted last.
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
    // Never below one voter: the last one stays until another has caught up.
    let staying = voters.voter_ids().filter(|id| wanted.contains_key(id)).count();
    let mut leaving: Vec<u64> = voters.voter_ids().filter(|id| !wanted.contains_key(id)).collect();
    leaving.sort_by_key(|&id| id == me);
    leaving.first().filter(|_| staying > 0).map(|&raft_id| VoterChange::Demote { raft_id })
}

/// Brings the table's notes of who votes and who has a seat into line with the log. Nobody loses a seat while a change is
/// under way (`changing`): it may be the one that gives the seat.
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
