//! What must hold at every moment of a run. The checks see everything: the log that the managers
//! have committed, and what is in effect on each node.
//!
//! This module has the log and the states, `changes` what an entry may change, and `hosts` what the
//! leader may conclude about hosts.

mod changes;
mod hosts;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use weft_model::{
    Applied, BackendId, ClusterState, NetworkId, NodeId, NodePlan, Rejection, ServiceId, TaskId, plan::PlanVersion,
    state::Slot,
};

use super::{
    network::Network,
    raft::{LogEntry, Payload},
    world::Host,
};
use crate::{plan::plan, raft::Replica};

/// Every so many generations the content of plans is compared.
const CONTENT_EVERY: u64 = 4;
/// For this long, DNS replies and packets may still lead to an address that was freed.
const STALE_MS: u64 = 2_000;

/// What has happened, in its order.
#[derive(Debug)]
pub(super) enum Event {
    /// A manager has applied an entry.
    Applied { manager: NodeId, index: u64, entry: Rc<LogEntry>, state: Arc<ClusterState> },
    /// The leader of this term has sent a plan. The content is present if it is to be compared.
    Sent { term: u64, node: NodeId, plan: Option<Box<NodePlan>> },
    /// A node has acked a version with this plan in its kernel.
    Acked { node: NodeId, acked: PlanVersion, kernel: Option<Rc<NodePlan>>, disk: Option<Rc<NodePlan>> },
    /// The leader on this host sets a node to down. `timeout_ms` is that of a node with a session.
    Down { leader: usize, node: NodeId, timeout_ms: Option<u64>, voters: Vec<u64> },
    /// A leader counts an ack of a node.
    Counted { leader: usize, node: NodeId, acked: u64 },
    /// The leader removes voters. These remain.
    Removed { remaining: Vec<u64> },
}

/// The result of an entry with a change.
#[derive(Debug)]
pub(super) struct AppliedEntry {
    /// Whether its change was not applied before.
    pub is_new: bool,
    /// How many changes were applied before.
    pub changes: usize,
    pub applied: Result<Applied, Rejection>,
}

/// The log that the managers have committed, and the state after each entry.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pub violation: Option<String>,
    events: Vec<Event>,
    log: Vec<Rc<LogEntry>>,
    /// Applies each entry too. It shares its state with no manager.
    replica: Replica,
    empty: Arc<ClusterState>,
    states: Vec<Arc<ClusterState>>,
    results: Vec<Option<AppliedEntry>>,
    /// The last plan of each node that was computed here, and its generation.
    plans: BTreeMap<NodeId, (u64, Option<NodePlan>)>,
    /// When each entry was committed.
    committed_ms: Vec<u64>,
    /// How many entries were committed before the last [`hosts::GATES_MS`].
    aged: u64,
    proposals: BTreeSet<u128>,
    /// The Raft ids of all logs that were ever begun.
    raft_ids: BTreeSet<u64>,
    /// The Raft id of each term's leader.
    leaders: BTreeMap<u64, u64>,
    /// When each address was freed on the cluster's clock, and the slot that had it.
    freed: BTreeMap<(NetworkId, IpAddr), (u64, ServiceId, Slot)>,
    /// When the first entry of each term was committed.
    terms: BTreeMap<u64, u64>,
    /// All backend ids that were ever used, with their task.
    backends: BTreeMap<BackendId, TaskId>,
    /// The last index at which the cluster did not wait for the node.
    missed: BTreeMap<NodeId, u64>,
}

impl Checks {
    pub(super) fn fail(&mut self, text: String) {
        self.violation.get_or_insert(text);
    }

    pub(super) fn state(&self) -> &Arc<ClusterState> {
        self.states.last().unwrap_or(&self.empty)
    }

    pub(super) fn entries(&self) -> usize {
        self.log.len()
    }

    /// Whether the change is in the committed log.
    pub(super) fn contains(&self, id: u128) -> bool {
        self.proposals.contains(&id)
    }

    pub(super) fn record(&mut self, event: Event) {
        self.events.push(event);
    }

    /// A manager has applied an entry, and has this state then. Managers with equal states get the
    /// same copy, so that the next comparison finds most parts to be the same.
    pub(super) fn record_applied(
        &mut self,
        manager: &NodeId,
        index: u64,
        entry: Rc<LogEntry>,
        state: &mut Arc<ClusterState>,
    ) {
        if let Some(known) = self.state_at(index) {
            let position = usize::try_from(index - 1).expect("a small log");
            if !Rc::ptr_eq(&self.log[position], &entry) && self.log[position] != entry {
                self.fail(format!("{manager} has applied another entry at {index}"));
            } else if !Arc::ptr_eq(known, state) && known != state {
                self.fail(format!("the state of {manager} at {index} differs from that of others"));
            } else {
                *state = Arc::clone(known);
            }
            return;
        }
        self.events.push(Event::Applied { manager: manager.clone(), index, entry, state: Arc::clone(state) });
    }

    /// What follows from the entry in this state. Each entry is applied twice: by the first manager
    /// that gets so far, and here. Both must get the same state. Other managers take it, if they
    /// have the same entry, and had the same state before it.
    pub(super) fn known(
        &self,
        index: u64,
        entry: &Rc<LogEntry>,
        before: &Arc<ClusterState>,
    ) -> Option<(&AppliedEntry, &Arc<ClusterState>)> {
        let position = usize::try_from(index - 1).expect("a small log");
        let same_entry = self.log.get(position).is_some_and(|known| Rc::ptr_eq(known, entry));
        let same_state = same_entry && self.state_at(index - 1).is_some_and(|known| Arc::ptr_eq(known, before));
        let result = self.results.get(position).filter(|_| same_state)?.as_ref()?;
        Some((result, &self.states[position]))
    }

    /// A manager has this state after a snapshot.
    pub(super) fn check_snapshot(&mut self, manager: &NodeId, index: u64, state: &Arc<ClusterState>) {
        if !self.state_at(index).is_some_and(|known| Arc::ptr_eq(known, state) || known == state) {
            self.fail(format!("the snapshot of {manager} at {index} differs from the state of others"));
        }
    }

    /// A manager starts with an empty log.
    pub(super) fn record_log(&mut self, raft_id: u64) {
        if !self.raft_ids.insert(raft_id) {
            self.fail(format!("a second log has the Raft id {raft_id}"));
        }
    }

    /// A manager was elected.
    pub(super) fn record_leader(&mut self, term: u64, raft_id: u64) {
        let leader = *self.leaders.entry(term).or_insert(raft_id);
        if leader != raft_id {
            self.fail(format!("{leader} and {raft_id} lead in term {term}"));
        }
    }

    /// The leader of this term sends a plan.
    pub(super) fn record_sent(&mut self, term: u64, plan: &NodePlan) {
        let compared = plan.generation.is_multiple_of(CONTENT_EVERY).then(|| Box::new(plan.clone()));
        self.events.push(Event::Sent { term, node: plan.node.clone(), plan: compared });
    }

    /// A node acks a version with this plan in its kernel.
    pub(super) fn record_ack(
        &mut self,
        node: &NodeId,
        acked: PlanVersion,
        kernel: Option<&Rc<NodePlan>>,
        disk: Option<&Rc<NodePlan>>,
    ) {
        if acked.generation.is_multiple_of(CONTENT_EVERY) {
            let (kernel, disk) = (kernel.cloned(), disk.cloned());
            self.record(Event::Acked { node: node.clone(), acked, kernel, disk });
        }
    }

    /// Checks what has happened since the last call.
    pub(super) fn check_events(&mut self, now_ms: u64, hosts: &[Host], net: &Network) {
        for event in std::mem::take(&mut self.events) {
            match event {
                Event::Applied { manager, index, entry, state } => {
                    self.check_applied(now_ms, &manager, (index, &entry), &state, hosts);
                }
                Event::Sent { term, node, plan } => self.check_sent(term, &node, plan.as_deref()),
                Event::Acked { node, acked, kernel, disk } => {
                    for (found, place) in [(kernel, "in effect"), (disk, "on the disk")] {
                        if !self.is_planned(&node, acked.generation, found.as_deref()) {
                            self.fail(format!("{node} acks {acked:?}, and another plan is {place}"));
                        }
                    }
                }
                Event::Down { leader, node, timeout_ms, voters } => {
                    self.check_down(now_ms, (leader, &hosts[leader]), &node, timeout_ms, &voters, hosts, net);
                }
                Event::Counted { leader, node, acked } => {
                    let mut own = hosts.iter().filter(|host| host.node.id == node);
                    if own.any(|own| own.node.acked.generation < acked) {
                        let leader = &hosts[leader].node.id;
                        self.fail(format!("{leader} counts an ack of {acked} that {node} has not sent"));
                    }
                }
                Event::Removed { remaining } => self.check_removed(now_ms, &remaining, hosts),
            }
        }
    }

    fn check_applied(
        &mut self,
        now_ms: u64,
        manager: &NodeId,
        (index, entry): (u64, &Rc<LogEntry>),
        state: &Arc<ClusterState>,
        hosts: &[Host],
    ) {
        let position = usize::try_from(index - 1).expect("a small log");
        match self.log.get(position) {
            Some(known) if Rc::ptr_eq(known, entry) || known == entry => {}
            Some(_) => return self.fail(format!("{manager} has applied another entry at {index}")),
            None if position == self.log.len() => return self.extend(now_ms, (manager, index), entry, state, hosts),
            None => {
                return self.fail(format!(
                    "{manager} has applied entry {index}, but no manager has applied the entry before it"
                ));
            }
        }
        if !self.state_at(index).is_some_and(|known| Arc::ptr_eq(known, state) || known == state) {
            self.fail(format!("the state of {manager} at {index} differs from that of others"));
        }
    }

    /// `after` is the state of the manager that was the first to apply the entry.
    fn extend(
        &mut self,
        now_ms: u64,
        (manager, index): (&NodeId, u64),
        entry: &Rc<LogEntry>,
        after: &Arc<ClusterState>,
        hosts: &[Host],
    ) {
        let before = Arc::clone(self.state());
        self.terms.entry(entry.term).or_insert(now_ms);
        self.log.push(Rc::clone(entry));
        self.committed_ms.push(now_ms);
        let mut applied = None;
        if let Payload::Normal(proposal) = &entry.payload {
            let is_new = self.proposals.insert(proposal.id.0);
            // A change that was applied before does not set the time again.
            if is_new && proposal.entry.now_ms < before.now_ms {
                self.fail(format!("the cluster's time went back at {index}"));
            }
            // A refused command changes nothing.
            let changes = self.replica.outcomes();
            let result = self.replica.apply(index, proposal.clone());
            applied = Some(AppliedEntry { is_new, changes, applied: result });
            if !is_new && **after != (ClusterState { index, ..(*before).clone() }) {
                self.fail(format!("the change {:x} was applied again at {index}", proposal.id.0));
            }
            for node in after.nodes.values().filter(|node| !node.gates_changes()) {
                self.missed.insert(node.id.clone(), index);
            }
            self.check_change(&before, after, hosts);
        }
        self.results.push(applied);
        if self.replica.state != *after {
            self.fail(format!("the state of {manager} at {index} differs from that of others"));
        }
        self.states.push(Arc::clone(after));
    }

    fn state_at(&self, generation: u64) -> Option<&Arc<ClusterState>> {
        self.states.get(usize::try_from(generation.checked_sub(1)?).ok()?)
    }

    pub(super) fn plan_at(&self, node: &NodeId, generation: u64) -> Option<NodePlan> {
        plan(self.state_at(generation)?, node)
    }

    fn check_sent(&mut self, term: u64, node: &NodeId, sent: Option<&NodePlan>) {
        if let Some((later, _)) = self.terms.range(term + 1..).next() {
            let text = format!("the deposed leader of term {term} sends a plan to {node}; term {later} has begun");
            return self.fail(text);
        }
        let Some(sent) = sent else { return };
        if !self.is_planned(node, sent.generation, Some(sent)) {
            self.fail(format!("the plan {:?} of {} is not that of the committed state", sent.version(), sent.node));
        }
    }

    /// Whether this is the node's plan at this generation. That of `found` may be earlier, if the
    /// plan was the same then.
    fn is_planned(&mut self, node: &NodeId, generation: u64, found: Option<&NodePlan>) -> bool {
        let mut known = match self.plans.remove(node).filter(|(at, _)| *at == generation) {
            Some((_, known)) => known,
            None => self.state_at(generation).and_then(|state| plan(state, node)),
        };
        if let Some((known, found)) = known.as_mut().zip(found) {
            known.generation = found.generation;
        }
        let same = known.as_ref() == found;
        self.plans.insert(node.clone(), (generation, known));
        same
    }
}
