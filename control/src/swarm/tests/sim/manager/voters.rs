//! The changes of the voters, one at a time.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{ClusterState, Command, NodeId};

use super::{
    super::{
        ctx::Ctx,
        raft::{Payload, next_membership},
        sabotage::Sabotage,
    },
    Manager,
    term::Leading,
};
use crate::{
    raft::{Voter, Voters},
    swarm::manager::voters::{Members, VoterChange, flag_updates, keeps_quorum, next_change, ready_learners},
};

/// As in `manager::leader`, in milliseconds.
const VOTER_CHANGE_MS: u64 = 10_000;
const LEARNERS_WAIT_MS: u64 = 5_000;

/// What decides about the next change of the voters.
#[derive(Debug, PartialEq)]
pub(super) struct Inputs {
    index: u64,
    last: u64,
    answering: BTreeSet<NodeId>,
}

impl Manager {
    pub(super) fn reconcile_voters(
        &mut self,
        ctx: &mut Ctx<'_>,
        leading: &mut Leading,
        state: &ClusterState,
    ) -> Vec<Command> {
        let Some((settled, voters)) = self.raft.committed() else { return Vec::new() };
        let voters = &voters.clone();
        let joint = voters.get_joint_config().len() > 1;
        let finished = |(change, until_ms): &mut (VoterChange, u64)| {
            ctx.now_ms >= *until_ms || (settled && !joint && !matches!(change, VoterChange::FinishJoint))
        };
        leading.change.take_if(finished);
        if settled && joint {
            // The second half of a change; or an earlier leader has begun one.
            let last = voters.get_joint_config().last().cloned().unwrap_or_default();
            let retain = matches!(leading.change, Some((VoterChange::Promote { .. }, _)));
            self.change_membership(ctx, next_membership(voters, &last, retain));
        } else if settled && leading.change.is_none() {
            leading.change = self.next_change(ctx, leading, state, voters);
        }
        flag_updates(state, voters, !settled || leading.change.is_some())
    }

    fn next_change(
        &mut self,
        ctx: &mut Ctx<'_>,
        leading: &mut Leading,
        state: &ClusterState,
        voters: &Voters,
    ) -> Option<(VoterChange, u64)> {
        let (replicated, mut answering) = (self.raft.replicated(), self.answering(ctx.now_ms));
        // The decision is pure, and long. What a learner has is news.
        let inputs = Inputs { index: state.index, last: self.raft.log.last(), answering: answering.clone() };
        let learns = voters.learner_ids().next().is_some();
        if leading.unchanged.as_ref() == Some(&inputs) && !learns {
            return None;
        }
        leading.unchanged = None;
        if ctx.does(Sabotage::AssumeAnswers) {
            answering = state.nodes.keys().cloned().collect();
        }
        let members = Members {
            voters,
            replicated: &replicated,
            last: self.raft.log.last(),
            me: self.raft.id,
            answering: &answering,
            wait_for_all: true,
        };
        let change = if ready_learners(state, members).is_empty() {
            leading.ready_since_ms = None;
            let change = next_change(state, members);
            leading.unchanged = change.is_none().then_some(inputs);
            change
        } else {
            let since_ms = *leading.ready_since_ms.get_or_insert(ctx.now_ms);
            next_change(state, Members { wait_for_all: ctx.now_ms < since_ms + LEARNERS_WAIT_MS, ..members })
        }?;
        if let VoterChange::Demote { raft_ids } = &change {
            let asked_ms = match leading.demotion_asked_ms {
                Some(asked_ms) => asked_ms,
                None => self.ping_others(ctx),
            };
            leading.demotion_asked_ms = Some(asked_ms);
            let answered = self.answered_since(asked_ms, ctx.now_ms)?;
            leading.demotion_asked_ms = None;
            if !ctx.does(Sabotage::AssumeAnswers) && !keeps_quorum(voters, raft_ids, self.raft.id, &answered) {
                return None;
            }
        }
        if let VoterChange::Demote { raft_ids } = &change {
            ctx.removes_voters(voters.voter_ids().filter(|id| !raft_ids.contains(id)).collect());
        }
        ctx.trace(|| format!("{} changes the voters: {change:?}", self.node));
        let mut nodes: BTreeMap<u64, Voter> = voters.nodes().map(|(id, voter)| (*id, voter.clone())).collect();
        let mut ids: BTreeSet<u64> = voters.voter_ids().collect();
        let next = match &change {
            VoterChange::FinishJoint => return None,
            VoterChange::Readdress { members } | VoterChange::AddLearners { learners: members } => {
                nodes.extend(members.clone());
                Voters::new(vec![ids], nodes)
            }
            VoterChange::RemoveLearners { raft_ids } => {
                nodes.retain(|id, _| !raft_ids.contains(id));
                Voters::new(vec![ids], nodes)
            }
            VoterChange::Promote { raft_ids } => {
                ids.extend(raft_ids);
                next_membership(voters, &ids, true)
            }
            VoterChange::Demote { raft_ids } => {
                ids.retain(|id| !raft_ids.contains(id));
                next_membership(voters, &ids, false)
            }
        };
        self.change_membership(ctx, next);
        Some((change, ctx.now_ms + VOTER_CHANGE_MS))
    }

    fn change_membership(&mut self, ctx: &mut Ctx<'_>, voters: Voters) {
        if let Some((_, effects)) = self.raft.propose(Payload::Membership(voters), ctx.now_ms) {
            self.perform(ctx, effects);
        }
    }
}
