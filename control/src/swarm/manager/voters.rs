//! Decides which managers vote: compares the managers in the cluster state with the members of the
//! Raft log, and returns the next change. The leader's loop calls these functions, which are pure.
//!
//! ```text
//!               AddLearners            Promote (have caught up)
//!   not a member ─────────▶ learner ─────────────────────────▶ voter
//!        ▲                     │                                 │
//!        └── RemoveLearners ───┴──────────── Demote ─────────────┘
//! ```
//!
//! One change covers all nodes that are due for it. So three managers instead of one are one step:
//! with two voters, the loss of either one would stop the cluster.
//!
//! No change is made that would leave fewer voters answering than a majority. [`check_demotion`]
//! refuses such a change when a user asks for it, and [`next_change`] and [`keeps_quorum`] check
//! again before each step, because managers may have failed in between.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{ClusterState, Command, NodeId, Rejection, spec::Role, state::Node};

use crate::raft::{Voter, Voters};

/// A learner becomes a voter once it lacks at most this many entries. A voter that lacks many would
/// delay every commit that needs its answer.
const MAX_LAG: u64 = 64;

/// One change of the log's membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::swarm) enum VoterChange {
    /// Finish a change that an earlier leader began: the log is in a joint configuration.
    FinishJoint,
    /// Replace the addresses of these members.
    Readdress { members: BTreeMap<u64, Voter> },
    /// Send the log to new managers, which do not vote yet.
    AddLearners { learners: BTreeMap<u64, Voter> },
    /// Let learners vote that have caught up.
    Promote { raft_ids: BTreeSet<u64> },
    /// Remove voters that are no longer managers. They get no more entries.
    Demote { raft_ids: BTreeSet<u64> },
    /// Remove learners that are no longer managers.
    RemoveLearners { raft_ids: BTreeSet<u64> },
}

/// What the leader knows about the members of the log.
#[derive(Debug, Clone, Copy)]
pub(in crate::swarm) struct Members<'a> {
    pub voters: &'a Voters,
    /// The last entry that each voter and learner has.
    pub replicated: &'a BTreeMap<u64, u64>,
    /// The last entry of the log.
    pub last: u64,
    /// This leader, which is demoted after all others.
    pub me: u64,
    /// The other managers that answer.
    pub answering: &'a BTreeSet<NodeId>,
    /// Whether learners that have caught up wait for the other learners.
    pub wait_for_all: bool,
}

impl Members<'_> {
    fn votes(&self, id: u64) -> bool {
        is_voter(self.voters, id)
    }

    /// Whether a learner may vote now.
    fn is_ready(&self, id: u64) -> bool {
        let caught_up = self.replicated.get(&id).is_some_and(|at| at + MAX_LAG >= self.last);
        caught_up && self.voters.get_node(&id).is_some_and(|member| self.answering.contains(&member.node))
    }
}

/// The voters of all configurations. One of two configurations appears twice.
/// `Membership::voter_ids` would collect the ids first.
fn voter_ids(voters: &Voters) -> impl Iterator<Item = u64> {
    voters.get_joint_config().iter().flatten().copied()
}

fn is_voter(voters: &Voters, id: u64) -> bool {
    voters.get_joint_config().iter().any(|config| config.contains(&id))
}

/// Whether a majority of the voters that remain without `removed` answers. The leader `me` does.
pub(in crate::swarm) fn keeps_quorum(
    voters: &Voters,
    removed: &BTreeSet<u64>,
    me: u64,
    answering: &BTreeSet<NodeId>,
) -> bool {
    let remaining: BTreeSet<u64> = voter_ids(voters).filter(|id| !removed.contains(id)).collect();
    let answers = |id: &&u64| **id == me || voters.get_node(id).is_some_and(|v| answering.contains(&v.node));
    remaining.iter().filter(answers).count() * 2 > remaining.len()
}

/// The managers in the cluster state, by the ids of their logs.
fn wanted(state: &ClusterState) -> BTreeMap<u64, &Node> {
    state.nodes.values().filter(|node| node.is_manager()).map(|node| (node.raft_id, node)).collect()
}

/// A manager as a member of the log.
fn as_member((id, node): (&u64, &&Node)) -> (u64, Voter) {
    (*id, Voter { node: node.id.clone(), rpc_addr: node.rpc_addr })
}

/// The new managers that have caught up and do not vote yet.
pub(in crate::swarm) fn ready_learners(state: &ClusterState, members: Members<'_>) -> BTreeSet<u64> {
    wanted(state).into_keys().filter(|id| !members.votes(*id) && members.is_ready(*id)).collect()
}

/// The next change, or `None` if there is nothing to change or the next change has to wait: for a
/// new manager that has not caught up, or for managers that do not answer.
pub(in crate::swarm) fn next_change(state: &ClusterState, members: Members<'_>) -> Option<VoterChange> {
    let voters = members.voters;
    let wanted = wanted(state);
    // A leader that has removed itself leads until openraft notices. The next one goes on.
    if wanted.is_empty() || !members.votes(members.me) {
        return None;
    }
    if voters.get_joint_config().len() > 1 {
        return Some(VoterChange::FinishJoint);
    }
    let moved: BTreeMap<u64, Voter> = wanted
        .iter()
        .filter(|(id, node)| {
            voters.get_node(id).is_some_and(|member| (&member.node, member.rpc_addr) != (&node.id, node.rpc_addr))
        })
        .map(as_member)
        .collect();
    if !moved.is_empty() {
        return Some(VoterChange::Readdress { members: moved });
    }
    let learners: BTreeMap<u64, Voter> =
        wanted.iter().filter(|(id, _)| voters.get_node(id).is_none()).map(as_member).collect();
    if !learners.is_empty() {
        return Some(VoterChange::AddLearners { learners });
    }
    // The log of this id is lost: the id only counts as a voter that never answers.
    let replaced = |id: &u64| {
        let node = voters.get_node(id).and_then(|member| state.nodes.get(&member.node));
        *id != members.me && node.is_some_and(|node| node.is_manager() && node.raft_id != *id)
    };
    let former: BTreeSet<u64> = voter_ids(voters).filter(replaced).collect();
    if !former.is_empty() && keeps_quorum(voters, &former, members.me, members.answering) {
        return Some(VoterChange::Demote { raft_ids: former });
    }
    let ready = ready_learners(state, members);
    let learning = wanted.keys().filter(|id| !members.votes(**id)).count();
    if !ready.is_empty() && (ready.len() == learning || !members.wait_for_all) {
        return Some(VoterChange::Promote { raft_ids: ready });
    }
    let obsolete: BTreeSet<u64> = voters.learner_ids().filter(|id| !wanted.contains_key(id)).collect();
    if !obsolete.is_empty() {
        return Some(VoterChange::RemoveLearners { raft_ids: obsolete });
    }
    let mut leaving: BTreeSet<u64> = voter_ids(voters).filter(|id| !wanted.contains_key(id)).collect();
    if leaving.len() > 1 {
        leaving.remove(&members.me);
    }
    // A log without voters can never change again; `keeps_quorum` is false for no voters.
    let safe = || keeps_quorum(voters, &leaving, members.me, members.answering);
    (!leaving.is_empty() && safe()).then_some(VoterChange::Demote { raft_ids: leaving })
}

/// Whether a command makes a worker of a manager.
pub(in crate::swarm) fn is_demotion(state: &ClusterState, command: &Command) -> bool {
    let Command::UpdateNode { id, spec, .. } = command else {
        return false;
    };
    spec.role == Role::Worker && state.nodes.get(id).is_some_and(Node::is_manager)
}

/// Refuses a command that makes a worker of a manager, for the reasons of [`check_absence`].
pub(in crate::swarm) fn check_demotion(
    state: &ClusterState,
    command: &Command,
    reachable: impl Fn(&NodeId) -> bool,
) -> Result<(), Rejection> {
    match command {
        Command::UpdateNode { id, .. } if is_demotion(state, command) => check_absence(state, id, reachable),
        _ => Ok(()),
    }
}

/// Refuses to do without this node, if it is a manager and the managers that would remain and are
/// `reachable` are no majority of those that would remain.
pub(super) fn check_absence(
    state: &ClusterState,
    id: &NodeId,
    reachable: impl Fn(&NodeId) -> bool,
) -> Result<(), Rejection> {
    let Some(node) = state.nodes.get(id).filter(|node| node.is_manager()) else {
        return Ok(());
    };
    let remaining: Vec<&Node> = state.nodes.values().filter(|n| n.is_manager() && n.id != *id).collect();
    let missing: Vec<&Node> = remaining.iter().copied().filter(|n| !reachable(&n.id)).collect();
    let (managers, answering) = (remaining.len(), remaining.len() - missing.len());
    if managers == 0 || answering * 2 > managers {
        return Ok(());
    }
    let needed = managers / 2 + 1;
    let names: Vec<String> = missing.iter().map(|n| format!("{} ({})", n.hostname, n.rpc_addr)).collect();
    Err(Rejection::Invalid(format!(
        "without {} the swarm would have no quorum: {answering} of the {managers} managers that would remain are \
         reachable, and {needed} are needed; unreachable: {}; start these first, or demote one of them instead \
         (`weft node demote`)",
        node.hostname,
        names.join(", ")
    )))
}

/// Refuses a command that makes a manager of a worker whose release cannot read the managers' log.
/// A worker whose `supported` feature level is unknown would, as a manager, refuse the log and not
/// vote.
pub(super) fn check_promotion(
    state: &ClusterState,
    command: &Command,
    supported: impl Fn(&NodeId) -> Option<u32>,
) -> Result<(), Rejection> {
    let Command::UpdateNode { id, spec, .. } = command else {
        return Ok(());
    };
    let promoted = state.nodes.get(id).filter(|node| spec.role == Role::Manager && !node.is_manager());
    let Some(node) = promoted.filter(|_| supported(id).is_some_and(|level| level < state.feature_level)) else {
        return Ok(());
    };
    let version = node.description.as_ref().map_or("an older version", |description| &description.version);
    Err(Rejection::Invalid(format!(
        "{} runs weft {version}, which cannot read the log of the managers: install their version on it, and promote \
         it then",
        node.hostname
    )))
}

/// Whether a Raft message of this caller may be accepted: it is a member of the Raft configuration
/// here, or will be one in entries that this manager does not have yet. Raft ids are assigned in
/// increasing order, from 1, and never reused. So an assigned id that is not the caller's current
/// one is no longer valid.
///
/// This stops a manager that does not know of its demotion or removal. Against one that forges its
/// id only a new certificate authority helps: each manager has had the authority's key.
pub(in crate::swarm) fn may_be_member(state: &ClusterState, voters: &Voters, caller: &NodeId, raft_id: u64) -> bool {
    if let Some(member) = voters.get_node(&raft_id) {
        return member.node == *caller;
    }
    let unknown_yet = state.cluster.is_none() || raft_id >= state.allocated.next_raft_id;
    // A node that is no manager has the id 0 in the state.
    raft_id != 0 && (unknown_yet || state.nodes.get(caller).is_some_and(|node| node.raft_id == raft_id))
}

/// The commands that bring `voter` and `in_raft_config` of the nodes in the cluster state into line
/// with `voters`, the committed membership of the log. `in_raft_config` is not cleared while a
/// change runs (`changing`), because that change may be the one that adds the node.
pub(in crate::swarm) fn flag_updates(state: &ClusterState, voters: &Voters, changing: bool) -> Vec<Command> {
    if voters.get_joint_config().len() > 1 {
        return Vec::new();
    }
    let mut commands = Vec::new();
    for node in state.nodes.values() {
        let voter = is_voter(voters, node.raft_id);
        if voter != node.voter {
            commands.push(Command::SetVoter { id: node.id.clone(), voter });
        }
        let in_raft_config = node.is_manager() || voters.nodes().any(|(_, member)| member.node == node.id);
        if node.in_raft_config && !in_raft_config && !changing {
            commands.push(Command::ClearRaftConfig { id: node.id.clone() });
        }
    }
    commands
}
