//! What a daemon can do while it handles one event, and what hosts send each other.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use rand::{Rng, rngs::StdRng};
use weft_model::{ClusterState, Command, NodeId, NodePlan, NodeReport, plan::PlanVersion};

use super::{
    invariants::{AppliedEntry, Checks, Event},
    manager::Outcome,
    network::Network,
    raft::{LogEntry, Mark, RaftMessage},
    sabotage::Sabotage,
    users::Users,
};
use crate::{
    raft::{ProposalId, Replica},
    swarm::dispatch::exchange::PlanMessage,
};

/// How many lines of the trace a failure prints.
const TRACE_LINES: usize = 150;

/// What hosts send each other.
#[derive(Debug, Clone)]
pub(super) enum Packet {
    Raft { source: u64, target: u64, message: RaftMessage },
    Ping,
    Pong,
    Propose { number: u64, id: ProposalId, command: Command },
    Proposed { number: u64, outcome: Option<Outcome> },
    Session(u64, SessionBody),
}

/// A message of a session.
#[derive(Debug, Clone)]
pub(super) enum SessionBody {
    Open { acked: PlanVersion, report: Box<NodeReport> },
    Message { acked: PlanVersion, report: Option<Box<NodeReport>> },
    Plan(PlanMessage),
    Redirect(Option<usize>),
    Refused { removed: bool },
}

/// A sync of a log that has begun.
#[derive(Debug)]
pub(super) struct Sync {
    pub host: usize,
    pub life: u64,
    pub mark: Mark,
    pub then: Vec<(u64, RaftMessage)>,
}

/// The syncs that have begun, by the time at which they end.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    queue: BTreeMap<(u64, u64), Sync>,
    next: u64,
}

impl Syncs {
    pub(super) fn insert(&mut self, at_ms: u64, sync: Sync) {
        self.next += 1;
        self.queue.insert((at_ms, self.next), sync);
    }

    /// How many syncs have begun.
    pub(super) fn count(&self) -> u64 {
        self.next
    }

    pub(super) fn next_ms(&self) -> Option<u64> {
        self.queue.keys().next().map(|(at_ms, _)| *at_ms)
    }

    pub(super) fn pop(&mut self, now_ms: u64) -> Option<Sync> {
        Some(self.queue.first_entry().filter(|entry| entry.key().0 <= now_ms)?.remove())
    }
}

/// The last lines of what happened. `None` while nothing is recorded.
pub(super) type Trace = Option<VecDeque<String>>;

/// What a daemon can do while it handles one event.
pub(super) struct Ctx<'a> {
    /// The time since the start, which is also the monotonic clock of all hosts.
    pub now_ms: u64,
    /// The wall clock of this host.
    pub wall_ms: u64,
    pub rng: &'a mut StdRng,
    pub ids: &'a mut StdRng,
    /// The number of WireGuard keys that were made.
    pub keys_made: &'a mut u64,
    /// The host of each Raft id.
    pub raft_hosts: &'a BTreeMap<u64, usize>,
    pub host: usize,
    pub life: u64,
    pub min_sync_ms: u64,
    pub sync_ms: u64,
    /// After so many entries a manager writes a snapshot.
    pub snapshot_every: u64,
    /// How long a step of a leader takes at most. To send a plan takes up to twice as long.
    pub step_ms: u64,
    pub node: &'a NodeId,
    /// The node of each host.
    pub nodes: &'a [NodeId],
    pub node_hosts: &'a BTreeMap<NodeId, usize>,
    pub net: &'a mut Network,
    pub syncs: &'a mut Syncs,
    pub checks: &'a mut Checks,
    pub users: &'a mut Users,
    pub trace: &'a mut Trace,
    pub sabotage: Option<Sabotage>,
}

impl Ctx<'_> {
    /// Whether this run makes this mistake.
    pub(super) fn does(&self, sabotage: Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    pub(super) fn violation(&mut self, text: String) {
        self.checks.fail(text);
    }

    pub(super) fn trace(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = self.trace {
            if lines.len() == TRACE_LINES {
                lines.pop_front();
            }
            lines.push_back(format!("{:>8.3} {}", self.now_ms as f64 / 1_000.0, line()));
        }
    }

    pub(super) fn send(&mut self, to: usize, packet: Packet) {
        self.net.send(self.host, to, packet, self.now_ms, self.rng);
    }

    pub(super) fn send_to_node(&mut self, node: &NodeId, packet: Packet) {
        if let Some(to) = self.node_hosts.get(node) {
            self.send(*to, packet);
        }
    }

    pub(super) fn connect(&mut self, manager: usize) -> u64 {
        self.net.connect(self.host, manager, self.rng)
    }

    /// The node on this host closes its end of the connection.
    pub(super) fn close(&mut self, conn: u64) {
        self.net.close(conn, true, self.now_ms, self.rng);
    }

    /// This host has no manager for the connection.
    pub(super) fn refuse(&mut self, conn: u64) {
        self.net.close(conn, false, self.now_ms, self.rng);
    }

    /// Whether the committed cluster state contains the node.
    pub(super) fn is_member(&self, node: &NodeId) -> bool {
        self.checks.state().nodes.contains_key(node)
    }

    /// An earlier plan of the node.
    pub(super) fn past_plan(&mut self, node: &NodeId, acked: PlanVersion) -> Option<NodePlan> {
        let generation = self.rng.random_range(1..acked.generation.max(2));
        self.checks.plan_at(node, generation).filter(|plan| plan.version() < acked)
    }

    /// A manager was elected.
    pub(super) fn elected(&mut self, term: u64, raft_id: u64) {
        self.checks.record_leader(term, raft_id);
    }

    pub(super) fn sync(&mut self, mark: Mark, then: Vec<(u64, RaftMessage)>) {
        let at_ms = self.now_ms + self.rng.random_range(self.min_sync_ms..=self.sync_ms);
        let sync = Sync { host: self.host, life: self.life, mark, then };
        self.syncs.insert(at_ms, sync);
    }

    /// What a manager in this state gets from the next entry, if it is known.
    pub(super) fn known(
        &self,
        index: u64,
        entry: &Rc<LogEntry>,
        replica: &Replica,
    ) -> Option<(&AppliedEntry, &Arc<ClusterState>)> {
        let known = self.checks.known(index, entry, &replica.state)?;
        (!self.does(Sabotage::ApplyTwice) && replica.outcomes() == known.0.changes).then_some(known)
    }

    pub(super) fn committed(&mut self, index: u64, entry: Rc<LogEntry>, replica: &mut Replica) {
        self.checks.record_applied(self.node, index, entry, &mut replica.state);
    }

    pub(super) fn sends_plan(&mut self, term: u64, plan: &NodePlan) {
        self.checks.record_sent(term, plan);
    }

    pub(super) fn acks(&mut self, acked: PlanVersion, kernel: Option<&Rc<NodePlan>>, disk: Option<&Rc<NodePlan>>) {
        self.checks.record_ack(self.node, acked, kernel, disk);
    }

    /// A manager has the state of a snapshot.
    pub(super) fn loads(&mut self, index: u64, state: &Arc<ClusterState>) {
        self.checks.check_snapshot(self.node, index, state);
    }

    /// A manager starts with an empty log.
    pub(super) fn new_log(&mut self, raft_id: u64) {
        self.checks.record_log(raft_id);
    }

    /// The leader sets a node to down. `timeout_ms`: that of a node that has a session.
    pub(super) fn sets_down(&mut self, node: &NodeId, timeout_ms: Option<u64>, voters: Vec<u64>) {
        let (leader, node) = (self.host, node.clone());
        self.checks.record(Event::Down { leader, node, timeout_ms, voters });
    }

    /// The leader counts an ack.
    pub(super) fn counts_ack(&mut self, node: &NodeId, acked: u64) {
        self.checks.record(Event::Counted { leader: self.host, node: node.clone(), acked });
    }

    /// The leader removes voters. These remain.
    pub(super) fn removes_voters(&mut self, remaining: Vec<u64>) {
        self.checks.record(Event::Removed { remaining });
    }

    /// A request has an outcome.
    pub(super) fn outcome(&mut self, id: ProposalId, (index, result): Outcome) {
        match result {
            Ok(_) => self.users.confirm(id, index),
            Err(rejection) => {
                self.users.rejected += 1;
                self.trace(|| format!("a change was rejected: {rejection}"));
            }
        }
    }

    /// A request has timed out.
    pub(super) fn unknown(&mut self, _: ProposalId) {
        self.users.unknown += 1;
    }
}

/// The host with this address.
pub(super) fn host_at(addr: SocketAddr) -> usize {
    let IpAddr::V4(ip) = addr.ip() else { unreachable!("hosts have IPv4 addresses") };
    usize::from(ip.octets()[3]) - 1
}
