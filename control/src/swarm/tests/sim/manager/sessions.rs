//! The sessions of the nodes with this leader.

use std::sync::Arc;

use rand::Rng;
use weft_model::{ClusterState, NodeId, NodePlan, NodeReport, plan::PlanVersion, state::FEATURE_LEVEL};

use super::{
    super::{
        ctx::{Ctx, Packet, SessionBody, host_at},
        sabotage::Sabotage,
    },
    Manager,
    term::{Leading, Term},
};
use crate::{
    plan::plan,
    swarm::{
        dispatch::exchange::{Acked, Opening, Outgoing},
        liveness::{CertificateStatus, SessionId},
        manager::steps::heartbeat_timeout_ms,
    },
};

#[derive(Debug)]
pub(super) struct Session {
    pub(super) node: NodeId,
    id: SessionId,
    epoch: u64,
    outgoing: Outgoing,
    /// The index of the state that the last message was computed from.
    computed: Option<u64>,
    /// The session still sends its last message.
    busy_until_ms: u64,
    /// A plan that waits for the confirmation of a quorum.
    waiting: Option<NodePlan>,
}

/// A session that begins when a quorum has confirmed this leader.
#[derive(Debug)]
pub(super) struct Unconfirmed {
    pub(super) conn: u64,
    pub(super) node: NodeId,
    acked: PlanVersion,
    report: NodeReport,
    asked_ms: u64,
}

impl Manager {
    /// A node opens a session, as `dispatch::sessions`.
    pub(in crate::swarm::tests::sim) fn open_session(
        &mut self,
        ctx: &mut Ctx<'_>,
        conn: u64,
        node: &NodeId,
        acked: PlanVersion,
        report: NodeReport,
    ) {
        if !self.leads() {
            return self.redirect(ctx, conn, node);
        }
        let known = acked_of(acked);
        let state = Arc::clone(&self.replica.state);
        let opening = known.opening(&state, node);
        let Term::Leading { leading, .. } = &mut self.term else { return };
        if opening == Opening::FormerCluster {
            ctx.send_to_node(node, Packet::Session(conn, SessionBody::Refused { removed: false }));
            return;
        }
        let timeout_ms = heartbeat_timeout_ms(&state);
        if !leading.view.may_begin_session(node, ctx.now_ms, timeout_ms) {
            ctx.send_to_node(node, Packet::Session(conn, SessionBody::Refused { removed: false }));
            return;
        }
        if opening == Opening::Unknown || known.is_later((state.epoch, state.index)) {
            let session = Unconfirmed { conn, node: node.clone(), acked, report, asked_ms: ctx.now_ms };
            leading.unconfirmed.push(session);
            self.ask_quorum(ctx);
            return;
        }
        begin_session(ctx, leading, &state, conn, node, acked, report);
        self.advance(ctx);
    }

    pub(in crate::swarm::tests::sim) fn receive_message(
        &mut self,
        ctx: &mut Ctx<'_>,
        conn: u64,
        acked: PlanVersion,
        report: Option<NodeReport>,
    ) {
        let index = self.replica.state.index;
        let Term::Leading { leading, .. } = &mut self.term else { return };
        let Some(session) = leading.sessions.get(&conn) else { return };
        let acked = acked_of(acked).counts_as((session.epoch, index));
        let (node, mut id) = (session.node.clone(), session.id);
        if ctx.does(Sabotage::AcceptFormerSessions)
            && let Some(newest) = leading.newest.get(&node).and_then(|conn| leading.sessions.get(conn))
        {
            id = newest.id;
        }
        let view = &mut leading.view;
        match view.record_message(&node, id, ctx.now_ms, acked, report, CertificateStatus::default()) {
            Some(changed) => {
                leading.changed |= changed;
                if changed {
                    ctx.counts_ack(&node, acked);
                }
                if leading.newest.get(&node) != Some(&conn) {
                    ctx.violation(format!("{} takes a message of an earlier session of {node}", self.node));
                }
            }
            None => self.close_session(ctx, conn),
        }
    }

    /// The connection has ended.
    pub(in crate::swarm::tests::sim) fn closed(&mut self, conn: u64) {
        if let Term::Leading { leading, .. } = &mut self.term {
            leading.sessions.remove(&conn);
            leading.unconfirmed.retain(|session| session.conn != conn);
        }
    }

    /// Sends each node its plan, after a quorum has confirmed this leader.
    pub(super) fn run_sessions(&mut self, ctx: &mut Ctx<'_>) {
        let Some((term, mut leading)) = self.take_leading() else { return };
        if let Some(asked_ms) = leading.lease_asked_ms.filter(|asked_ms| self.is_confirmed(*asked_ms, ctx.now_ms)) {
            leading.lease.confirm(asked_ms);
            leading.lease_asked_ms = None;
        }
        self.confirm_sessions(ctx, &mut leading);
        let state = Arc::clone(&self.replica.state);
        let mut removed = Vec::new();
        let Leading { sessions, lease, lease_asked_ms, .. } = &mut *leading;
        for (conn, session) in sessions {
            if session.waiting.is_none() && session.computed != Some(state.index) && ctx.now_ms >= session.busy_until_ms
            {
                session.computed = Some(state.index);
                session.waiting = plan(&state, &session.node);
                if session.waiting.is_none() {
                    removed.push(*conn);
                }
            }
            if session.waiting.is_none() {
                continue;
            }
            if lease.holds(ctx.now_ms) || ctx.does(Sabotage::KeepLease) {
                let Some(plan) = session.waiting.take() else { continue };
                session.busy_until_ms = ctx.now_ms + ctx.rng.random_range(0..=2 * ctx.step_ms);
                ctx.sends_plan(term, &plan);
                let message = session.outgoing.next(plan);
                ctx.send_to_node(&session.node, Packet::Session(*conn, SessionBody::Plan(message)));
            } else if lease_asked_ms.is_none() {
                *lease_asked_ms = Some(self.ask_quorum(ctx));
            }
        }
        for conn in removed {
            if let Some(session) = leading.sessions.remove(&conn) {
                let (node, asked_ms) = (session.node, self.ask_quorum(ctx));
                let (acked, report) = Default::default();
                leading.unconfirmed.push(Unconfirmed { conn, node, acked, report, asked_ms });
            }
        }
        self.term = Term::Leading { term, leading };
    }

    pub(super) fn redirect(&self, ctx: &mut Ctx<'_>, conn: u64, node: &NodeId) {
        let leader = self.raft.leader.filter(|leader| *leader != self.raft.id);
        let leader = leader.and_then(|id| Some(host_at(self.raft.effective()?.get_node(&id)?.rpc_addr)));
        ctx.send_to_node(node, Packet::Session(conn, SessionBody::Redirect(leader)));
    }

    fn close_session(&mut self, ctx: &mut Ctx<'_>, conn: u64) {
        if let Term::Leading { leading, .. } = &mut self.term
            && let Some(session) = leading.sessions.remove(&conn)
        {
            self.redirect(ctx, conn, &session.node);
        }
    }

    fn confirm_sessions(&self, ctx: &mut Ctx<'_>, leading: &mut Leading) {
        let state = &self.replica.state;
        for session in std::mem::take(&mut leading.unconfirmed) {
            if !self.is_confirmed(session.asked_ms, ctx.now_ms) {
                leading.unconfirmed.push(session);
                continue;
            }
            let Unconfirmed { conn, node, acked, report, .. } = session;
            if acked_of(acked).opening(state, &node) == Opening::Unknown {
                ctx.send_to_node(&node, Packet::Session(conn, SessionBody::Refused { removed: true }));
            } else {
                if acked_of(acked).is_later((state.epoch, state.index)) {
                    ctx.violation(format!("{node} has acked {acked:?}, and the state is at {}", state.index));
                }
                begin_session(ctx, leading, state, conn, &node, acked, report);
            }
        }
    }
}

fn acked_of(version: PlanVersion) -> Acked {
    Acked { epoch: version.epoch, generation: version.generation, level: FEATURE_LEVEL }
}

fn begin_session(
    ctx: &mut Ctx<'_>,
    leading: &mut Leading,
    state: &ClusterState,
    conn: u64,
    node: &NodeId,
    acked: PlanVersion,
    report: NodeReport,
) {
    let acked = acked_of(acked).counts_as((state.epoch, state.index));
    ctx.counts_ack(node, acked);
    let report = NodeReport { acked, ..report };
    let id = leading.view.begin_session(node, ctx.now_ms, report, FEATURE_LEVEL, CertificateStatus::default());
    let (outgoing, epoch) = (Outgoing::default(), state.epoch);
    let session = Session { node: node.clone(), id, epoch, outgoing, computed: None, busy_until_ms: 0, waiting: None };
    // The node's earlier sessions end at their next message.
    leading.sessions.insert(conn, session);
    leading.newest.insert(node.clone(), conn);
    leading.changed = true;
}
