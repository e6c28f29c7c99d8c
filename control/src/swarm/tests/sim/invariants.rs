//! What must hold at every moment of a run. The checks see everything: the log that the managers
//! have committed, and what is in effect on each node.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

use weft_model::{
    BackendId, ClusterState, NodeId, NodePlan, TaskId,
    plan::PlanVersion,
    state::{Attachment, Node, StateDigest, Task, Traffic},
};

use super::{
    raft::{LogEntry, Payload},
    world::Host,
};
use crate::{orchestrate::ACK_WAIT_MS, plan::plan, raft::Replica};

/// Every so many entries the digests of the states are compared.
const DIGEST_EVERY: u64 = 16;
/// Every so many generations the content of plans is compared.
const CONTENT_EVERY: u64 = 4;

/// What has happened, in its order.
#[derive(Debug)]
enum Event {
    /// A manager has applied an entry.
    Applied { manager: NodeId, index: u64, entry: Rc<LogEntry>, digest: Option<StateDigest> },
    /// The leader of this term has sent a plan.
    Sent { term: u64, plan: Box<NodePlan> },
    /// A node has acked a version with this plan in its kernel.
    Acked { node: NodeId, acked: PlanVersion, kernel: Option<Box<NodePlan>> },
}

/// The log that the managers have committed, and the state after each entry.
#[derive(Debug, Default)]
pub(super) struct Checks {
    pub violation: Option<String>,
    events: Vec<Event>,
    log: Vec<Rc<LogEntry>>,
    replica: Replica,
    states: Vec<Arc<ClusterState>>,
    digests: BTreeMap<u64, StateDigest>,
    proposals: BTreeSet<u128>,
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

    /// A manager has applied an entry.
    pub(super) fn record(&mut self, manager: &NodeId, index: u64, entry: Rc<LogEntry>, replica: &Replica) {
        let digest = index.is_multiple_of(DIGEST_EVERY).then(|| replica.digest(index).expect("an encoded state"));
        self.events.push(Event::Applied { manager: manager.clone(), index, entry, digest });
    }

    /// The leader of this term sends a plan.
    pub(super) fn record_sent(&mut self, term: u64, plan: &NodePlan) {
        self.events.push(Event::Sent { term, plan: Box::new(plan.clone()) });
    }

    /// A node acks a version with this plan in its kernel.
    pub(super) fn record_ack(&mut self, node: &NodeId, acked: PlanVersion, kernel: Option<&NodePlan>) {
        if acked.generation.is_multiple_of(CONTENT_EVERY) {
            let kernel = kernel.cloned().map(Box::new);
            self.events.push(Event::Acked { node: node.clone(), acked, kernel });
        }
    }

    /// Checks what has happened since the last call.
    pub(super) fn check_events(&mut self, now_ms: u64, hosts: &[Host]) {
        for event in std::mem::take(&mut self.events) {
            match event {
                Event::Applied { manager, index, entry, digest } => {
                    self.check_applied(now_ms, &manager, (index, &entry), digest, hosts);
                }
                Event::Sent { term, plan } => self.check_sent(term, &plan),
                Event::Acked { node, acked, kernel } => self.check_ack(&node, acked, kernel),
            }
        }
    }

    fn check_applied(
        &mut self,
        now_ms: u64,
        manager: &NodeId,
        (index, entry): (u64, &Rc<LogEntry>),
        digest: Option<StateDigest>,
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
        if digest.is_some_and(|digest| self.digests.get(&index) != Some(&digest)) {
            self.fail(format!("the state of {manager} at {index} differs from that of others"));
        }
    }

    fn extend(&mut self, now_ms: u64, index: u64, entry: &Rc<LogEntry>, hosts: &[Host]) {
        self.terms.entry(entry.term).or_insert(now_ms);
        self.log.push(Rc::clone(entry));
        if let Payload::Normal(proposal) = &entry.payload {
            self.proposals.insert(proposal.id.0);
            let before = Arc::clone(&self.replica.state);
            // A refused command changes nothing.
            let _ = self.replica.apply(index, proposal.clone());
            let after = Arc::clone(&self.replica.state);
            for node in after.nodes.values().filter(|node| !node.gates_changes()) {
                self.missed.insert(node.id.clone(), index);
            }
            self.check_change(&before, &after, hosts);
        }
        if index.is_multiple_of(DIGEST_EVERY) {
            self.digests.insert(index, self.replica.digest(index).expect("an encoded state"));
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

    fn check_ack(&mut self, node: &NodeId, acked: PlanVersion, kernel: Option<Box<NodePlan>>) {
        let known = self.state_at(acked.generation).and_then(|state| plan(state, node));
        let kernel = kernel.map(|kernel| NodePlan { generation: acked.generation, ..*kernel });
        if known != kernel {
            self.fail(format!("{node} acks {acked:?}, and another plan is in effect on it"));
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
                let uses = |a: &weft_model::plan::AttachmentPlan| a.network == got.network && a.addr == got.addr;
                if alive && other.attachments.iter().any(uses) {
                    found = Some(format!("{} got an address that {} uses on {}", task.name, other.name, host.node.id));
                }
            }
            if self.is_reliable(state, host) {
                let same = |network, addr| got.network == network && got.addr == addr;
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
    pub(super) fn check_hosts(&mut self, hosts: &[Host]) {
        let mut places = BTreeMap::new();
        for host in hosts {
            for (task, _) in host.node.machine.processes.iter().filter(|(_, process)| process.is_alive()) {
                if let Some(other) = places.insert(task, &host.node.id) {
                    let text = format!("task {task} runs on {other} and on {}", host.node.id);
                    return self.fail(text);
                }
            }
            let Some(manager) = &host.manager else { continue };
            for (node, acked) in manager.acks() {
                let own = hosts.iter().find(|host| host.node.id == *node);
                if own.is_some_and(|own| own.node.acked.generation < acked) {
                    let text = format!("{} counts an ack of {acked} that {node} has not sent", manager.node);
                    return self.fail(text);
                }
            }
        }
    }
}
