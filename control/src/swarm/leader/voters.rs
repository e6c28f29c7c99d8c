//! Who votes: a diff between the managers that the table wants and the voters that the log has, one safe step at a time.
//! Pure.

use std::collections::BTreeMap;

use weft_model::{ClusterState, Command};

use crate::raft::{Voter, Voters};

/// A voter is added once it lacks at most that many entries: then it cannot hold up the others for long.
const CAUGHT_UP: u64 = 64;

/// One change of the log's membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// A change that an earlier leader left half done: finish it.
    Settle,
    /// The manager is sent the log, and does not vote yet.
    Teach { raft_id: u64, voter: Voter },
    /// It has caught up: it votes.
    Promote { raft_id: u64 },
    /// No manager any more: it neither votes nor gets the log.
    Demote { raft_id: u64 },
    /// The same for one that did not vote yet.
    Dismiss { raft_id: u64 },
}

/// The next step, or `None` where all is as it shall be or a new manager has yet to catch up. `matched` is how far each
/// voter and learner has come, `last` the end of the log, `me` this leader, which is demoted last.
pub(super) fn next_step(
    state: &ClusterState,
    voters: &Voters,
    matched: &BTreeMap<u64, u64>,
    last: u64,
    me: u64,
) -> Option<Step> {
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
        return Some(Step::Settle);
    }
    let votes = |id: u64| voters.voter_ids().any(|voter| voter == id);
    for (&raft_id, voter) in &wanted {
        if voters.get_node(&raft_id).is_none() {
            return Some(Step::Teach { raft_id, voter: voter.clone() });
        }
    }
    for &raft_id in wanted.keys() {
        let caught_up = matched.get(&raft_id).is_some_and(|at| at + CAUGHT_UP >= last);
        if !votes(raft_id) && caught_up {
            return Some(Step::Promote { raft_id });
        }
    }
    if let Some(raft_id) = voters.learner_ids().find(|id| !wanted.contains_key(id)) {
        return Some(Step::Dismiss { raft_id });
    }
    // Never below one voter: the last one stays until another has caught up.
    let staying = voters.voter_ids().filter(|id| wanted.contains_key(id)).count();
    let mut leaving: Vec<u64> = voters.voter_ids().filter(|id| !wanted.contains_key(id)).collect();
    leaving.sort_by_key(|&id| id == me);
    leaving.first().filter(|_| staying > 0).map(|&raft_id| Step::Demote { raft_id })
}

/// Brings the table's notes of who votes and who has a seat into line with the log. Nobody loses a seat while a change is
/// under way (`changing`): it may be the one that gives the seat.
pub(super) fn notes(state: &ClusterState, voters: &Voters, changing: bool) -> Vec<Command> {
    if voters.get_joint_config().len() > 1 {
        return Vec::new();
    }
    let mut notes = Vec::new();
    for node in state.nodes.values() {
        let voter = voters.voter_ids().any(|id| id == node.raft_id);
        if voter != node.voter {
            notes.push(Command::SetVoter { id: node.id.clone(), voter });
        }
        let in_raft_config = node.is_manager() || voters.get_node(&node.raft_id).is_some();
        if node.in_raft_config && !in_raft_config && !changing {
            notes.push(Command::ClearRaftConfig { id: node.id.clone() });
        }
    }
    notes
}
