//! The changes that users and other managers ask this manager for.

use super::{
    super::{
        ctx::{Ctx, Packet, host_at},
        sabotage::Sabotage,
    },
    Manager,
};
use weft_model::{Applied, Command, NodeId, Rejection};

use crate::{
    raft::ProposalId,
    swarm::manager::voters::{check_demotion, is_demotion},
};

/// As in `manager::propose`.
const PROPOSE_MS: u64 = 10_000;
const PROPOSE_RETRY_MS: u64 = 100;
pub(in crate::swarm::tests::sim) type Outcome = (u64, Result<Applied, Rejection>);

/// A change that a user, or another manager, has asked this manager for.
#[derive(Debug)]
pub(in crate::swarm::tests::sim) struct Request {
    pub(super) id: ProposalId,
    pub(super) command: Command,
    pub(super) deadline_ms: u64,
    /// The manager that has forwarded the request, and its number for it.
    from: Option<(usize, u64)>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Waiting {
        until_ms: u64,
    },
    /// A quorum must confirm that this manager leads.
    Confirming {
        asked_ms: u64,
        term: u64,
    },
    /// Asks which managers answer, before a demotion.
    Pinging {
        asked_ms: u64,
        term: u64,
    },
    Writing {
        index: u64,
        term: u64,
    },
    Forwarded {
        number: u64,
        leader: u64,
    },
}

impl Request {
    pub(in crate::swarm::tests::sim) fn of_user(id: ProposalId, command: Command, now_ms: u64) -> Self {
        let stage = Stage::Waiting { until_ms: now_ms };
        Self { id, command, deadline_ms: now_ms + PROPOSE_MS, from: None, stage }
    }
}
impl Manager {
    /// As `manager::propose`: tries until there is an outcome.
    pub(super) fn run_requests(&mut self, ctx: &mut Ctx<'_>) {
        for mut request in std::mem::take(&mut self.requests) {
            if ctx.now_ms >= request.deadline_ms {
                ctx.unknown(request.id);
                continue;
            }
            if let Some(outcome) = self.run_request(ctx, &mut request) {
                match request.from {
                    None => ctx.outcome(request.id, outcome),
                    Some((host, number)) => ctx.send(host, Packet::Proposed { number, outcome: Some(outcome) }),
                }
            } else if request.from.is_some() && matches!(request.stage, Stage::Waiting { .. }) {
                // Only the first manager tries again.
                let Some((host, number)) = request.from else { continue };
                ctx.send(host, Packet::Proposed { number, outcome: None });
            } else {
                self.requests.push(request);
            }
        }
    }

    fn run_request(&mut self, ctx: &mut Ctx<'_>, request: &mut Request) -> Option<Outcome> {
        let retry = Stage::Waiting { until_ms: ctx.now_ms + PROPOSE_RETRY_MS };
        match request.stage {
            Stage::Waiting { until_ms } if ctx.now_ms >= until_ms => {
                request.stage = retry;
                if let Some(term) = self.raft.leads() {
                    let asked_ms = self.ask_quorum(ctx);
                    request.stage = Stage::Confirming { asked_ms, term };
                } else if let Some(leader) = self.raft.leader.filter(|_| request.from.is_none())
                    && let Some(voter) = self.raft.effective().and_then(|voters| voters.get_node(&leader))
                {
                    self.next_number += 1;
                    let (number, command) = (self.next_number, request.command.clone());
                    ctx.send(host_at(voter.rpc_addr), Packet::Propose { number, id: request.id, command });
                    request.stage = Stage::Forwarded { number, leader };
                }
            }
            Stage::Confirming { asked_ms, term } => {
                if self.raft.leads() != Some(term) {
                    request.stage = retry;
                } else if self.is_confirmed(asked_ms, ctx.now_ms) && self.applied >= self.raft.first_of_term() {
                    if is_demotion(&self.replica.state, &request.command) {
                        request.stage = Stage::Pinging { asked_ms: self.ping_others(ctx), term };
                        return None;
                    }
                    let index = self.propose(ctx, request.id, request.command.clone());
                    request.stage = index.map_or(retry, |index| Stage::Writing { index, term });
                }
            }
            Stage::Pinging { asked_ms, term } => {
                let answered = self.answered_since(asked_ms, ctx.now_ms)?;
                let reachable = |node: &NodeId| *node == self.node || answered.contains(node);
                let state = &self.replica.state;
                let checked = check_demotion(state, &request.command, reachable);
                if let Some(rejection) = checked.err().filter(|_| !ctx.does(Sabotage::AssumeAnswers)) {
                    return Some((state.index, Err(rejection)));
                }
                let index = self.propose(ctx, request.id, request.command.clone());
                request.stage = index.map_or(retry, |index| Stage::Writing { index, term });
            }
            Stage::Writing { index, term } => {
                if self.applied >= index {
                    match self.results.get(&index).filter(|(id, _)| *id == request.id) {
                        Some((_, result)) => return Some((index, result.clone())),
                        None => request.stage = retry,
                    }
                } else if self.raft.leads() != Some(term) {
                    request.stage = retry;
                }
            }
            Stage::Forwarded { leader, .. } if self.raft.leader != Some(leader) => request.stage = retry,
            Stage::Waiting { .. } | Stage::Forwarded { .. } => {}
        }
        None
    }

    /// Another manager forwards a request.
    pub(in crate::swarm::tests::sim) fn receive_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: usize,
        number: u64,
        id: ProposalId,
        command: Command,
    ) {
        let stage = Stage::Waiting { until_ms: ctx.now_ms };
        let mut request =
            Request { id, command, deadline_ms: ctx.now_ms + PROPOSE_MS, from: Some((from, number)), stage };
        if self.raft.leads().is_none() {
            return ctx.send(from, Packet::Proposed { number, outcome: None });
        }
        self.run_request(ctx, &mut request);
        self.requests.push(request);
        self.advance(ctx);
    }

    pub(in crate::swarm::tests::sim) fn receive_outcome(
        &mut self,
        ctx: &mut Ctx<'_>,
        number: u64,
        outcome: Option<Outcome>,
    ) {
        let forwarded = |r: &Request| matches!(r.stage, Stage::Forwarded { number: n, .. } if n == number);
        let Some(position) = self.requests.iter().position(forwarded) else { return };
        match outcome {
            Some(outcome) => ctx.outcome(self.requests.remove(position).id, outcome),
            None => self.requests[position].stage = Stage::Waiting { until_ms: ctx.now_ms + PROPOSE_RETRY_MS },
        }
    }
}
