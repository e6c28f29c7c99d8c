//! What must hold at every moment of a run. The checks see everything: the log that the managers
//! have committed, and what is in effect on each node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use weft_model::{
    BackendId, ClusterState, DualAddr, NetworkId, NodeId, NodePlan, ServiceId, TaskId,
    plan::{AttachmentPlan, PlanVersion},
    state::{Attachment, Node, Slot, Task, Traffic},
};

use super::{
    network::Network,
    raft::{LogEntry, Payload},
    world::Host,
};
use crate::{orchestrate::ACK_WAIT_MS, plan::plan, raft::Replica};

/// Every so many generations the content of plans is compared.
const CONTENT_EVERY: u64 = 4;
/// The leader waits for no node that has acked nothing for this long: 15 s, and the time of a step.
const GATES_MS: u64 = 20_000;
/// For this long, DNS replies and packets may still lead to an address that was freed.
const STALE_MS: u64 = 2_000;

/// What has happened, in its order.
#[derive(Debug)]
pub(super) enum Event {
    /// A manager has applied an entry.
    Applied { manager: NodeId, index: u64, entry: Rc<LogEntry>, state: Arc<ClusterState> },
    /// The leader of this term has sent a plan.
    Sent { term: u64, plan: Box<NodePlan> },
    /// A node has acked a version with this plan in its kernel.
    Acked { node: NodeId, acked: PlanVersion, kernel: Option<Box<NodePlan>>, disk: Option<Box<NodePlan>> },
    /// The leader on this host sets a node to down. `timeout_ms` is that of a node with a session.
    Down { leader: usize, node: NodeId, timeout_ms: Option<u64>, voters: Vec<u64> },
    /// The leader removes voters. These remain.
    Removed { remaining: Vec<u64> },
}

/// Whether the addresses have one in common.
fn share(one: DualAddr, other: DualAddr) -> bool {
    one.v6 == other.v6 || one.v4.is_some() && one.v4 == other.v4
}

/// The log that the managers have committed, and the state after each entry.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pub violation: Option<String>,
    events: Vec<Event>,
    log: Vec<Rc<LogEntry>>,
    replica: Replica,
    states: Vec<Arc<ClusterState>>,
    /// When each entry was committed.
    committed_ms: Vec<u64>,
    /// How many entries were committed before the last [`GATES_MS`].
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
        &self.replica.state
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

    /// A manager has applied an entry, and has this state then.
    pub(super) fn record_applied(
        &mut self,
        manager: &NodeId,
        index: u64,
        entry: Rc<LogEntry>,
        state: &Arc<ClusterState>,
    ) {
        if let Some(known) = self.state_at(index) {
            let position = usize::try_from(index - 1).expect("a small log");
            if !Rc::ptr_eq(&self.log[position], &entry) && self.log[position] != entry {
                self.fail(format!("{manager} has applied another entry at {index}"));
            } else if known != state {
                self.fail(format!("the state of {manager} at {index} differs from that of others"));
            }
            return;
        }
        self.events.push(Event::Applied { manager: manager.clone(), index, entry, state: Arc::clone(state) });
    }

    /// A manager starts with an empty log.
    pub(super) fn record_log(&mut self, raft_id: u64) {
        if !self.raft_ids.insert(raft_id) {
            self.fail(format!("a second log has the Raft id {raft_id}"));
        }
    }

    /// A manager begins to lead.
    pub(super) fn record_leader(&mut self, term: u64, raft_id: u64) {
        let leader = *self.leaders.entry(term).or_insert(raft_id);
        if leader != raft_id {
            self.fail(format!("{leader} and {raft_id} lead in term {term}"));
        }
    }

    /// The leader of this term sends a plan.
    pub(super) fn record_sent(&mut self, term: u64, plan: &NodePlan) {
        self.events.push(Event::Sent { term, plan: Box::new(plan.clone()) });
    }

    /// A node acks a version with this plan in its kernel.
    pub(super) fn record_ack(
        &mut self,
        node: &NodeId,
        acked: PlanVersion,
        kernel: Option<&NodePlan>,
        disk: Option<&NodePlan>,
    ) {
        if acked.generation.is_multiple_of(CONTENT_EVERY) {
            let (kernel, disk) = (kernel.cloned().map(Box::new), disk.cloned().map(Box::new));
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
                Event::Sent { term, plan } => self.check_sent(term, &plan),
                Event::Acked { node, acked, kernel, disk } => {
                    let known = self.state_at(acked.generation).and_then(|state| plan(state, &node));
                    for (found, place) in [(kernel, "in effect"), (disk, "on the disk")] {
                        let found = found.map(|found| NodePlan { generation: acked.generation, ..*found });
                        if found != known {
                            self.fail(format!("{node} acks {acked:?}, and another plan is {place}"));
                        }
                    }
                }
                Event::Down { leader, node, timeout_ms, voters } => {
                    self.check_down(now_ms, (leader, &hosts[leader]), &node, timeout_ms, &voters, hosts, net);
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
            None if position == self.log.len() => self.extend(now_ms, index, entry, hosts),
            None => {
                return self.fail(format!(
                    "{manager} has applied entry {index}, but no manager has applied the entry before it"
                ));
            }
        }
        if self.state_at(index) != Some(state) {
            self.fail(format!("the state of {manager} at {index} differs from that of others"));
        }
    }

    fn extend(&mut self, now_ms: u64, index: u64, entry: &Rc<LogEntry>, hosts: &[Host]) {
        self.terms.entry(entry.term).or_insert(now_ms);
        self.log.push(Rc::clone(entry));
        self.committed_ms.push(now_ms);
        if let Payload::Normal(proposal) = &entry.payload {
            let is_new = self.proposals.insert(proposal.id.0);
            let before = Arc::clone(&self.replica.state);
            // A change that was applied before does not set the time again.
            if is_new && proposal.entry.now_ms < before.now_ms {
                self.fail(format!("the cluster's time went back at {index}"));
            }
            // A refused command changes nothing.
            let _ = self.replica.apply(index, proposal.clone());
            let after = Arc::clone(&self.replica.state);
            if !is_new && *after != (ClusterState { index, ..(*before).clone() }) {
                self.fail(format!("the change {:x} was applied again at {index}", proposal.id.0));
            }
            for node in after.nodes.values().filter(|node| !node.gates_changes()) {
                self.missed.insert(node.id.clone(), index);
            }
            self.check_change(&before, &after, hosts);
        }
        self.states.push(Arc::clone(&self.replica.state));
    }

    fn state_at(&self, generation: u64) -> Option<&Arc<ClusterState>> {
        self.states.get(usize::try_from(generation.checked_sub(1)?).ok()?)
    }

    fn check_sent(&mut self, term: u64, sent: &NodePlan) {
        if let Some((later, _)) = self.terms.range(term + 1..).next() {
            let text =
                format!("the deposed leader of term {term} sends a plan to {}; term {later} has begun", sent.node);
            return self.fail(text);
        }
        if !sent.generation.is_multiple_of(CONTENT_EVERY) {
            return;
        }
        let known = self.state_at(sent.generation).and_then(|state| plan(state, &sent.node));
        if known.as_ref() != Some(sent) {
            self.fail(format!("the plan {:?} of {} is not that of the committed state", sent.version(), sent.node));
        }
    }

    /// A leader that sets a node to down can hear from a quorum, and does not hear from the node.
    #[expect(clippy::too_many_arguments, reason = "the facts of one event")]
    fn check_down(
        &mut self,
        now_ms: u64,
        (number, leader): (usize, &Host),
        node: &NodeId,
        timeout_ms: Option<u64>,
        voters: &[u64],
        hosts: &[Host],
        net: &Network,
    ) {
        let id = leader.raft_id();
        let reaches = |(from, host): (usize, &Host)| {
            let votes = host.raft_id().is_some_and(|id| voters.contains(&id));
            let is_heard = host.raft_id() == id || !net.is_blocked(from, number);
            votes && is_heard && host.has_answered(now_ms)
        };
        if hosts.iter().enumerate().filter(|host| reaches(*host)).count() * 2 <= voters.len() {
            self.fail(format!("{} sets {node} to down while it hears from no quorum", leader.node.id));
        }
        let calm_since_ms = hosts.iter().find(|host| host.node.id == *node).map(|host| host.calm_since_ms);
        if let Some((since_ms, timeout_ms)) = calm_since_ms.zip(timeout_ms)
            && since_ms + timeout_ms + STALE_MS < now_ms
        {
            self.fail(format!("{} sets {node} to down, which sends heartbeats", leader.node.id));
        }
    }

    /// A majority of the voters that remain has answered.
    fn check_removed(&mut self, now_ms: u64, remaining: &[u64], hosts: &[Host]) {
        let answers = |id: &&u64| {
            let mut hosts = hosts.iter().filter(|host| host.raft_id() == Some(**id));
            hosts.any(|host| host.has_answered(now_ms))
        };
        if remaining.iter().filter(answers).count() * 2 <= remaining.len() {
            self.fail(format!("voters are removed, and no majority of {remaining:?}, which remain, runs"));
        }
    }

    /// Whether the cluster may rely on what is in effect on the node.
    fn is_reliable(&self, state: &ClusterState, host: &Host) -> bool {
        let missed = self.missed.get(&host.node.id).copied().unwrap_or(0);
        let gates = state.nodes.get(&host.node.id).is_some_and(Node::gates_changes);
        gates && host.node.acked.generation >= missed
    }

    fn check_change(&mut self, before: &ClusterState, after: &ClusterState, hosts: &[Host]) {
        self.check_allocations(after);
        self.record_freed(before, after);
        for task in after.tasks.values() {
            let old = before.tasks.get(&task.id);
            if let Some(old) = old {
                self.check_step(old, task, after, hosts);
            }
            if old.is_none_or(|old| old.attachments.is_empty()) {
                for attachment in &task.attachments {
                    let owner = self.backends.entry(attachment.backend).or_insert_with(|| task.id.clone());
                    if *owner != task.id {
                        return self.fail(format!("the backend id of {} was used before", task.name));
                    }
                    self.check_address_is_unknown(task, attachment, after, hosts);
                    self.check_address_is_fresh(task, attachment, after);
                }
            }
        }
    }

    /// One holder for each address, port and VNI.
    fn check_allocations(&mut self, state: &ClusterState) {
        let vips = state.services.values().flat_map(|s| &s.endpoints).filter_map(|e| Some((&e.network, e.vip?)));
        let tasks = state.tasks.values().flat_map(|t| &t.attachments).map(|a| (&a.network, a.addr));
        let waiting = state.allocated.quarantine.iter().map(|f| (&f.network, f.addr));
        let mut seen = BTreeSet::new();
        for (network, addr) in vips.chain(tasks).chain(waiting) {
            for ip in addr.ips() {
                if !seen.insert((network, ip)) {
                    return self.fail(format!("{ip} was allocated twice"));
                }
            }
        }
        let mut ports = BTreeSet::new();
        for service in state.services.values().filter(|service| !service.removing) {
            for port in &service.ports {
                if !ports.insert((port.published, port.spec.protocol)) {
                    return self.fail(format!("port {} was allocated twice", port.published));
                }
            }
        }
        let vnis: BTreeSet<_> = state.networks.values().map(|network| network.vni).collect();
        if vnis.len() != state.networks.len() {
            self.fail("a VNI was allocated twice".to_owned());
        }
    }

    /// No process on any node uses the address, also on nodes that are down. No node on which the
    /// cluster relies knows it as the address of another task or of a service.
    fn check_address_is_unknown(&mut self, task: &Task, got: &Attachment, state: &ClusterState, hosts: &[Host]) {
        let mut found = None;
        for host in hosts {
            let Some(kernel) = &host.node.kernel else { continue };
            for other in kernel.tasks.iter().filter(|other| other.id != task.id) {
                let alive = host.node.machine.processes.get(&other.id).is_some_and(|process| process.is_alive());
                let uses = |a: &AttachmentPlan| a.network == got.network && share(a.addr, got.addr);
                if alive && other.attachments.iter().any(uses) {
                    found = Some(format!("{} got an address that {} uses on {}", task.name, other.name, host.node.id));
                }
            }
            if self.is_reliable(state, host) {
                let same = |network, addr| got.network == network && share(got.addr, addr);
                let mut endpoints = kernel.endpoints.iter().filter(|endpoint| endpoint.task != task.id);
                let known = endpoints.any(|e| same(e.network.clone(), e.addr))
                    || kernel.services.iter().any(|s| s.vip.is_some_and(|vip| same(s.network.clone(), vip)));
                if known {
                    found = Some(format!("{} still knows an address that {} got", host.node.id, task.name));
                }
            }
        }
        if let Some(found) = found {
            self.fail(found);
        }
    }

    /// Remembers which addresses tasks no longer have.
    fn record_freed(&mut self, before: &ClusterState, after: &ClusterState) {
        for task in before.tasks.values().filter(|task| !task.attachments.is_empty()) {
            if after.tasks.get(&task.id).is_none_or(|now| now.attachments.is_empty()) {
                for attachment in &task.attachments {
                    for ip in attachment.addr.ips() {
                        let owner = (after.now_ms, task.service.clone(), task.slot.clone());
                        self.freed.insert((attachment.network.clone(), ip), owner);
                    }
                }
            }
        }
    }

    /// No client takes the task for another one that had its address a moment ago. The next task of
    /// the same slot may have it.
    fn check_address_is_fresh(&mut self, task: &Task, got: &Attachment, state: &ClusterState) {
        for ip in got.addr.ips() {
            let Some((freed_ms, service, slot)) = self.freed.get(&(got.network.clone(), ip)) else { continue };
            let same_slot = (service, slot) == (&task.service, &task.slot);
            if !same_slot && state.now_ms < freed_ms + STALE_MS {
                let text = format!("{} got {ip}, which another task had {} ms ago", task.name, state.now_ms - freed_ms);
                return self.fail(text);
            }
        }
    }

    /// The states of a task never decrease, and it never moves to another node. All nodes get it as
    /// a backend only after its own node delivers to it. Its node stops it only after no node sends
    /// new flows to it. Both waits end after [`ACK_WAIT_MS`].
    fn check_step(&mut self, old: &Task, new: &Task, state: &ClusterState, hosts: &[Host]) {
        if new.status.state < old.status.state || new.desired < old.desired || new.traffic < old.traffic {
            return self.fail(format!("a state of {} decreased", new.name));
        }
        if old.node.is_some() && old.node != new.node {
            return self.fail(format!("{} moved to another node", new.name));
        }
        if state.now_ms >= old.traffic_since_ms + ACK_WAIT_MS {
            return;
        }
        let sends = |host: &Host| {
            let mut plans = host.node.kernel.iter().flat_map(|plan| &plan.services).flat_map(|s| &s.backends);
            plans.any(|backend| backend.task == new.id && !backend.draining)
        };
        if old.traffic < Traffic::Active && new.traffic == Traffic::Active {
            let own = hosts.iter().find(|host| Some(&host.node.id) == new.node.as_ref());
            if own.is_some_and(|own| own.node.kernel.is_some() && self.is_reliable(state, own) && !sends(own)) {
                return self.fail(format!("all nodes send to {} before its own node delivers to it", new.name));
            }
        }
        if !old.must_stop() && new.must_stop() {
            let sender = hosts.iter().find(|host| self.is_reliable(state, host) && sends(host));
            if let Some(host) = sender {
                let text = format!("{} must stop while {} sends new flows to it", new.name, host.node.id);
                self.fail(text);
            }
        }
    }

    /// What must hold between any two events.
    pub(super) fn check_hosts(&mut self, now_ms: u64, hosts: &[Host]) {
        let is_aged = |at_ms: &u64| at_ms + GATES_MS <= now_ms;
        while usize::try_from(self.aged).is_ok_and(|aged| self.committed_ms.get(aged).is_some_and(is_aged)) {
            self.aged += 1;
        }
        let mut places = BTreeMap::new();
        let changed = hosts.iter().any(|host| !host.node.is_idle());
        for host in hosts {
            for (task, _) in host.node.machine.processes.iter().filter(|(_, process)| changed && process.is_alive()) {
                if let Some(other) = places.insert(task, &host.node.id) {
                    let text = format!("task {task} runs on {other} and on {}", host.node.id);
                    return self.fail(text);
                }
            }
            let Some(manager) = &host.manager else { continue };
            for (node, acked) in manager.acks() {
                let own = hosts.iter().find(|host| host.node.id == *node);
                let is_calm = manager.leads_since_ms().is_some_and(|at_ms| is_aged(&at_ms.max(host.calm_since_ms)));
                let is_calm = is_calm && own.is_some_and(|own| is_aged(&own.calm_since_ms));
                if is_calm
                    && own.is_some_and(|own| own.node.acked.generation < self.aged)
                    && manager.state().nodes.get(node).is_some_and(Node::gates_changes)
                {
                    return self
                        .fail(format!("the cluster waits for {node}, which has acked nothing for {GATES_MS} ms"));
                }
                if own.is_some_and(|own| own.node.acked.generation < acked) {
                    let text = format!("{} counts an ack of {acked} that {node} has not sent", manager.node);
                    return self.fail(text);
                }
            }
        }
    }
}
