//! A simulated cluster. Its nodes receive their plans late, start and stop tasks slowly, and
//! acknowledge their plans. The simulator checks after each step that no invariant is violated.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    BackendId, ClusterState, Command, DualAddr, NetworkId, NodeId, NodePlan, ServiceId, TaskId,
    spec::{NodeSpec, ServiceSpec},
    state::{Node, NodeStatus, Task, TaskState, Traffic},
    wireguard::{EncryptedPeer, NodeKey, PublicKey},
};

use crate::{
    fixture::{
        TestCluster,
        machine::{Machine, Process, Runtime},
        observed,
    },
    orchestrate::{Acks, decide, traffic::ACK_WAIT_MS},
    plan::plan,
    state::is_news,
};

/// The simulated time advances in steps of this length.
pub(super) const TICK_MS: u64 = 100;

/// How long a node takes to apply a plan and to start or stop a task.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delays {
    /// From a change of the cluster state until the plan is in effect in the node's kernel.
    pub(super) plan_ms: u64,
    /// To start a task.
    pub(super) start_ms: u64,
    /// To stop a task.
    pub(super) stop_ms: u64,
    /// From a change of the node's WireGuard keys until the leader has the report of it.
    pub(super) report_ms: u64,
}

impl Default for Delays {
    fn default() -> Self {
        Self { plan_ms: 200, start_ms: 300, stop_ms: 500, report_ms: 100 }
    }
}

#[derive(Debug)]
struct SimNode {
    delays: Delays,
    /// A disconnected node receives no plans and sends no reports.
    disconnected: bool,
    /// A stuck node puts no plan into effect, and reports.
    stuck: bool,
    /// The node was stuck or without a daemon, and has not put the newest plan into effect since
    /// then. Its plan may be older than what the cluster has done without it.
    recovering: bool,
    /// Plans that are not in effect yet, with the time when they will be.
    pending_plans: Vec<(u64, NodePlan)>,
    plan: Option<NodePlan>,
    machine: Machine,
    /// Reports of the keys that the leader does not have yet, with the time when it will.
    pending_reports: Vec<(u64, KeyReport)>,
    /// The last report that the node has sent.
    sent: Option<KeyReport>,
    /// The last report that the leader has received.
    received: Option<KeyReport>,
}

/// The keys in a node's report, and the plan generation that it acknowledges.
#[derive(Debug, Clone, PartialEq)]
struct KeyReport {
    keys: Vec<NodeKey>,
    acked: u64,
}

#[derive(Debug)]
pub(super) struct Sim {
    pub(super) cluster: TestCluster,
    pub(super) acks: Acks,
    nodes: BTreeMap<NodeId, SimNode>,
    /// Images whose tasks fail as soon as they have started.
    pub(super) broken_images: BTreeSet<String>,
    /// Images that cannot be prepared.
    pub(super) missing_images: BTreeSet<String>,
    /// Whether a test has injected a fault (a crash, a failed node, or a node that does not
    /// acknowledge). Then requests may be lost, and the simulator does not check that backends
    /// answer.
    pub(super) fault_injected: bool,
    /// All backend ids that were ever used, with their task.
    backends: BTreeMap<BackendId, TaskId>,
    /// The number of WireGuard keys that all nodes have made.
    keys_made: u64,
    /// Keys that their nodes have lost. Plans may contain them until the leader knows.
    lost_keys: BTreeSet<PublicKey>,
}

impl Sim {
    /// A cluster of one manager and `workers` workers.
    pub(super) fn new(workers: usize) -> Self {
        let mut cluster = TestCluster::new();
        for nth in 0..workers {
            cluster.node(&format!("n{}", nth + 2), &[]);
        }
        let mut sim = Self {
            acks: Acks::since(cluster.now_ms),
            nodes: BTreeMap::new(),
            broken_images: BTreeSet::new(),
            missing_images: BTreeSet::new(),
            fault_injected: false,
            backends: BTreeMap::new(),
            keys_made: 0,
            lost_keys: BTreeSet::new(),
            cluster,
        };
        for id in sim.cluster.state.nodes.keys() {
            sim.nodes.insert(id.clone(), SimNode::new(Delays::default()));
        }
        sim
    }

    /// A new node joins and is ready.
    pub(super) fn add_node(&mut self, hostname: &str, delays: Delays) -> NodeId {
        let id = self.cluster.node(hostname, &[]);
        self.nodes.insert(id.clone(), SimNode::new(delays));
        self.settle();
        id
    }

    pub(super) fn state(&self) -> &ClusterState {
        &self.cluster.state
    }

    pub(super) fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().cloned().collect()
    }

    pub(super) fn set_delays(&mut self, node: &NodeId, delays: Delays) {
        self.node_mut(node).delays = delays;
    }

    fn node_mut(&mut self, id: &NodeId) -> &mut SimNode {
        self.nodes.get_mut(id).expect("a simulated node")
    }

    pub(super) fn create(&mut self, spec: ServiceSpec) -> ServiceId {
        self.cluster.add_service(spec)
    }

    /// Applies a user's change of the spec of a node. The orchestrator decides at once.
    pub(super) fn update_node(&mut self, hostname: &str, change: impl FnOnce(&mut NodeSpec)) {
        let node = self.cluster.node_named(hostname);
        let (id, version, mut spec) = (node.id.clone(), node.meta.version, node.spec.clone());
        change(&mut spec);
        self.submit(Command::UpdateNode { id, version, spec });
    }

    /// Applies a user's command. The orchestrator decides at once.
    pub(super) fn submit(&mut self, command: Command) {
        self.apply(command);
        self.settle();
    }

    /// The machine of the node fails: its processes end, and the leader considers the node down.
    pub(super) fn kill_node(&mut self, id: &NodeId) {
        self.fault_injected = true;
        let node = self.node_mut(id);
        node.disconnected = true;
        node.machine.processes.clear();
        node.pending_plans.clear();
        node.pending_reports.clear();
        node.plan = None;
        self.acks.acked.remove(id);
        self.cluster.status(id, NodeStatus::Down);
        self.settle();
    }

    /// The daemon of the node ends, and the leader considers the node down. Its tasks still run.
    pub(super) fn kill_daemon(&mut self, id: &NodeId) {
        self.fault_injected = true;
        let node = self.node_mut(id);
        node.disconnected = true;
        node.pending_plans.clear();
        node.pending_reports.clear();
        self.acks.acked.remove(id);
        self.cluster.status(id, NodeStatus::Down);
        self.settle();
    }

    /// The leader gets no message of the node, and does not consider it down yet.
    pub(super) fn silence_node(&mut self, id: &NodeId) {
        self.fault_injected = true;
        self.node_mut(id).disconnected = true;
    }

    /// A layer of the node can no longer be configured: no plan takes effect.
    pub(super) fn block_node(&mut self, id: &NodeId) {
        self.fault_injected = true;
        self.node_mut(id).stuck = true;
    }

    /// Ends all faults of the node.
    pub(super) fn revive_node(&mut self, id: &NodeId) {
        let node = self.node_mut(id);
        node.recovering |= node.stuck || node.disconnected;
        (node.disconnected, node.stuck) = (false, false);
        self.cluster.status(id, NodeStatus::Ready);
        self.settle();
    }

    /// The node loses all its WireGuard keys, for example because its disk was replaced.
    pub(super) fn lose_keys(&mut self, id: &NodeId) {
        let former = std::mem::take(&mut self.node_mut(id).machine.keys);
        self.lost_keys.extend(former.iter().map(|(key, _)| key.public_key));
    }

    /// The public keys for which the node has a device, oldest first.
    pub(super) fn keys_of(&self, id: &NodeId) -> Vec<PublicKey> {
        self.nodes[id].machine.keys.iter().map(|(key, _)| key.public_key).collect()
    }

    /// The process of a task dies.
    pub(super) fn crash(&mut self, id: &TaskId) {
        self.fault_injected = true;
        for node in self.nodes.values_mut() {
            if let Some(process) = node.machine.processes.get_mut(id)
                && *process == Process::Running
            {
                *process = Process::Ended(TaskState::Failed);
            }
        }
    }

    /// Another manager becomes the leader. It has no acknowledgements until the nodes send them
    /// again.
    pub(super) fn change_leader(&mut self) {
        self.acks = Acks::since(self.cluster.now_ms);
        for node in self.nodes.values_mut() {
            (node.sent, node.received) = (None, None);
            node.pending_reports.clear();
        }
    }

    /// Advances the simulated time by `duration_ms`.
    pub(super) fn run(&mut self, duration_ms: u64) {
        let end_ms = self.cluster.now_ms + duration_ms;
        while self.cluster.now_ms < end_ms {
            self.tick();
        }
    }

    /// Advances the simulated time until the condition holds.
    pub(super) fn run_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        self.run_until_within(300_000, what, holds);
    }

    /// Advances the simulated time until the condition holds, by `limit_ms` at most.
    pub(super) fn run_until_within(&mut self, limit_ms: u64, what: &str, holds: impl Fn(&Self) -> bool) {
        let end_ms = self.cluster.now_ms + limit_ms;
        while !holds(self) {
            assert!(self.cluster.now_ms < end_ms, "timeout while waiting for: {what}\n{:#?}", self.state().tasks);
            self.tick();
        }
    }

    pub(super) fn tick(&mut self) {
        self.cluster.now_ms += TICK_MS;
        for id in self.node_ids() {
            self.tick_node(&id);
        }
        self.settle();
        self.check_backends_answer();
        self.check_keys();
    }

    fn tick_node(&mut self, id: &NodeId) {
        let now_ms = self.cluster.now_ms;
        let node = self.nodes.get_mut(id).expect("a simulated node");
        if node.disconnected {
            return;
        }
        let newest = node.pending_plans.last().map(|(_, p)| p).or(node.plan.as_ref());
        if newest.is_none_or(|newest| newest.generation < self.cluster.state.index) {
            node.pending_plans
                .push((now_ms + node.delays.plan_ms, plan(&self.cluster.state, id).expect("the plan of a member")));
        }
        while !node.stuck && node.pending_plans.first().is_some_and(|(at_ms, _)| *at_ms <= now_ms) {
            node.plan = Some(node.pending_plans.remove(0).1);
        }
        let Some(plan) = node.plan.clone() else { return };
        self.acks.acked.insert(id.clone(), plan.generation);
        node.recovering &= plan.generation < self.cluster.state.index;
        let Delays { start_ms, stop_ms, .. } = node.delays;
        let (broken_images, missing_images) = (&self.broken_images, &self.missing_images);
        node.machine.run_processes(&plan, now_ms, Runtime { start_ms, stop_ms, broken_images, missing_images });
        let mut reports = Vec::new();
        for (task, process) in &node.machine.processes {
            let state = process.state();
            let known = self.cluster.state.tasks.get(task).map(|t| t.status.state);
            if known.is_some_and(|known| known < state && !known.is_terminal()) {
                reports.push((task.clone(), observed(state, now_ms)));
            }
        }
        node.machine.reconcile_keys(plan.encryption.as_ref(), &mut self.keys_made);
        let received = node.report_keys(plan.generation, now_ms);
        if !reports.is_empty() {
            self.apply(Command::ReportTasks { node: id.clone(), tasks: reports });
        }
        let known = &self.cluster.state.nodes[id].keys;
        if let Some(KeyReport { keys, acked }) = received.filter(|r| is_news(known, &r.keys, r.acked)) {
            self.apply(Command::ReportKeys { node: id.clone(), keys, acked });
        }
    }

    /// Applies decisions until there are no more commands. After each decision it checks that a
    /// second one at the same time is empty.
    pub(super) fn settle(&mut self) {
        for _ in 0..100 {
            let now_ms = self.cluster.now_ms;
            let acked = self.acks.acked.clone();
            self.acks.update(&self.cluster.state, acked, now_ms, |_| String::new());
            let mut cluster = self.cluster.clone();
            let decision = decide(&self.cluster.state, now_ms, &self.acks, &mut || cluster.random());
            self.cluster = cluster;
            assert_eq!(decision.refused, [], "the cluster state refused a command that was decided from it");
            if decision.commands.is_empty() {
                return;
            }
            for command in decision.commands {
                self.apply(command);
            }
            let second = decide(&self.cluster.state, now_ms, &self.acks, &mut || u128::MAX);
            assert!(
                second.commands.is_empty() || second.wake_at_ms == Some(now_ms),
                "the second decision is not empty: {:#?}",
                second.commands
            );
        }
        panic!("the orchestrator does not stop deciding");
    }

    /// Applies a command and checks the invariants.
    fn apply(&mut self, command: Command) {
        let before = self.cluster.state.tasks.clone();
        self.cluster.ok(command);
        self.check_addresses();
        for task in self.cluster.state.tasks.values() {
            if let Some(old) = before.get(&task.id) {
                self.check_step(old, task);
            }
        }
        for task in self.cluster.state.tasks.values() {
            if before.get(&task.id).is_none_or(|old| old.attachments.is_empty()) {
                self.check_addresses_are_unknown(task);
            }
            for attachment in &task.attachments {
                let owner = self.backends.entry(attachment.backend).or_insert_with(|| task.id.clone());
                assert_eq!(*owner, task.id, "a backend id was reused");
            }
        }
    }

    /// Checks that no address is allocated twice and that each is inside its subnet.
    fn check_addresses(&self) {
        let state = &self.cluster.state;
        let mut seen = BTreeSet::new();
        let vips = state.services.values().flat_map(|s| &s.endpoints).filter_map(|e| Some((&e.network, e.vip?)));
        let tasks = state.tasks.values().flat_map(|t| &t.attachments).map(|a| (&a.network, a.addr));
        let waiting = state.allocated.quarantine.iter().map(|f| (&f.network, f.addr));
        for (network, addr) in vips.chain(tasks).chain(waiting) {
            let subnets = &state.networks[network].subnets;
            for ip in addr.ips() {
                let subnet = subnets.containing(ip);
                assert!(subnet.is_some_and(|(_, gateway)| gateway != ip), "{ip} is in no subnet, or is a gateway");
                assert!(seen.insert((network, ip)), "{ip} was allocated twice");
            }
        }
    }

    /// Checks that no node that converges knows an address of a task that was just assigned, as the
    /// address of another task or of a service. And no process on any node, also on one that is
    /// down, uses it.
    fn check_addresses_are_unknown(&self, task: &Task) {
        for node in self.nodes.values() {
            let planned = node.plan.iter().flat_map(|plan| &plan.tasks).filter(|other| other.id != task.id);
            let alive = planned.filter(|other| node.machine.processes.get(&other.id).is_some_and(|p| p.is_alive()));
            for used in alive.flat_map(|other| &other.attachments) {
                let is_taken = task.attachments.iter().any(|a| a.network == used.network && a.addr == used.addr);
                assert!(!is_taken, "{} got an address that a process uses: {used:?}", task.name);
            }
        }
        for plan in
            self.nodes.iter().filter(|(id, _)| self.is_up_to_date(id)).filter_map(|(_, node)| node.plan.as_ref())
        {
            for attachment in &task.attachments {
                let is_same =
                    |network: &NetworkId, addr: DualAddr| *network == attachment.network && addr == attachment.addr;
                let mut others = plan.endpoints.iter().filter(|e| e.task != task.id);
                let known = others.any(|e| is_same(&e.network, e.addr))
                    || plan.services.iter().any(|s| s.vip.is_some_and(|vip| is_same(&s.network, vip)));
                assert!(!known, "{} still knows {attachment:?}, which {} got", plan.hostname, task.name);
            }
        }
    }

    /// Whether the cluster may rely on the plan that is in effect on the node.
    fn is_up_to_date(&self, id: &NodeId) -> bool {
        let node = &self.nodes[id];
        let converged = self.cluster.state.nodes.get(id).is_some_and(Node::has_converged);
        converged && !node.disconnected && !node.recovering
    }

    /// Checks that the states of a task never decrease and that a task never moves to another node.
    /// All nodes get it as a backend only after its own node delivers to it. Its node stops it only
    /// after no ready node sends new flows to it.
    fn check_step(&self, old: &Task, new: &Task) {
        assert!(new.status.state >= old.status.state, "a state of {} decreased", new.name);
        assert!(new.desired >= old.desired && new.traffic >= old.traffic, "a state of {} decreased", new.name);
        assert!(old.node.is_none() || old.node == new.node, "{} moved to another node", new.name);
        let since_ms = old.traffic_since_ms.max(self.acks.since_ms);
        let waited = self.cluster.now_ms >= since_ms + ACK_WAIT_MS;
        if old.traffic < Traffic::Active && new.traffic == Traffic::Active && !waited {
            let own = &self.nodes[new.node.as_ref().expect("an active task has a node")];
            let delivers =
                own.plan.as_ref().is_some_and(|plan| backend_states(plan, &new.id).any(|draining| !draining));
            assert!(delivers, "all nodes send to {} before its own node delivers to it", new.name);
        }
        if !old.must_stop() && new.must_stop() && !waited {
            for (id, node) in &self.nodes {
                let up_to_date = self.is_up_to_date(id);
                let sends = node.plan.as_ref().is_some_and(|p| backend_states(p, &new.id).any(|draining| !draining));
                assert!(!(up_to_date && sends), "{} must stop while node {id} sends new flows to it", new.name);
            }
        }
    }

    /// Checks that each backend that gets new flows from any node can answer: its process runs, and
    /// its own node delivers to it.
    fn check_backends_answer(&self) {
        if self.fault_injected {
            return;
        }
        for plan in self.nodes.values().filter_map(|n| n.plan.as_ref()) {
            for backend in plan.services.iter().flat_map(|s| &s.backends).filter(|b| !b.draining) {
                let own = &self.nodes[&backend.node];
                assert_eq!(
                    own.machine.processes.get(&backend.task),
                    Some(&Process::Running),
                    "{} cannot answer",
                    backend.task_name
                );
                let delivers = own.plan.as_ref().is_some_and(|p| backend_states(p, &backend.task).next().is_some());
                assert!(delivers, "the node of {} does not deliver to it", backend.task_name);
            }
        }
    }

    /// Checks the plans that are in effect on the nodes that are not down: each node that another
    /// node sends to has a device for the key, and all nodes know the key that a node sends from.
    fn check_keys(&self) {
        let Some(network) = self.cluster.state.networks.values().find(|n| n.spec.encrypted) else { return };
        let connected: BTreeMap<&NodeId, &SimNode> =
            self.nodes.iter().filter(|(id, node)| self.is_up_to_date(id) && !node.stuck).collect();
        let plans = || connected.iter().filter_map(|(id, n)| Some((*id, n.plan.as_ref()?.encryption.as_ref()?)));
        // A plan from before the network was created may contain keys for a network that was
        // removed.
        let is_outdated =
            |id: &NodeId| connected[id].plan.as_ref().is_none_or(|plan| plan.generation < network.meta.version);
        for (id, plan) in plans().filter(|(id, _)| !is_outdated(id)) {
            let others = || plans().filter(|(other, _)| *other != id);
            for EncryptedPeer { node, keys, active, .. } in &plan.peers {
                let Some(active) = active.filter(|active| !self.lost_keys.contains(active)) else { continue };
                assert!(keys.iter().any(|key| key.public_key == active), "{id} sends to a key that it does not hold");
                let Some(peer) = connected.get(node) else { continue };
                let has_device = peer.machine.keys.iter().any(|(key, _)| key.public_key == active);
                assert!(has_device, "{id} sends to a key of {node} that has no device there");
            }
            let Some(active) = plan.active.filter(|active| !self.lost_keys.contains(active)) else { continue };
            assert!(plan.own.contains(&active) && self.keys_of(id).contains(&active), "{id} sends from a deleted key");
            for (other, theirs) in others() {
                let mut known = theirs.peers.iter().filter(|p| p.node == *id).flat_map(|p| &p.keys);
                assert!(
                    known.any(|key| key.public_key == active),
                    "{other} does not know the key that {id} sends from"
                );
            }
        }
    }

    /// The number of backends of the service that get new flows: the smallest number on any node.
    pub(super) fn fewest_backends(&self, service: &ServiceId) -> usize {
        let plans = self.nodes.values().filter_map(|n| n.plan.as_ref());
        let counts = plans.map(|plan| {
            let first = plan.services.iter().find(|s| s.service == *service);
            first.map_or(0, |s| s.backends.iter().filter(|b| !b.draining).count())
        });
        counts.min().unwrap_or(0)
    }

    /// The tasks of the service for which [`is_active`] holds.
    pub(super) fn active(&self, service: &ServiceId) -> Vec<&Task> {
        let tasks = self.state().tasks_of(service);
        tasks.filter(|t| is_active(t)).collect()
    }

    /// The tasks of a node whose process has not ended.
    pub(super) fn task_processes(&self, node: &NodeId) -> Vec<TaskId> {
        self.nodes[node].machine.processes.iter().filter(|(_, p)| p.is_alive()).map(|(id, _)| id.clone()).collect()
    }
}

/// Whether the task runs, gets new flows from all nodes, and should stay.
pub(super) fn is_active(task: &Task) -> bool {
    task.traffic == Traffic::Active && task.desired == TaskState::Running && task.status.state == TaskState::Running
}

/// For each backend of the task in the plan, whether it drains.
fn backend_states(plan: &NodePlan, task: &TaskId) -> impl Iterator<Item = bool> {
    let backends = plan.services.iter().flat_map(|s| &s.backends);
    backends.filter(move |b| b.task == *task).map(|b| b.draining)
}

impl SimNode {
    fn new(delays: Delays) -> Self {
        Self {
            delays,
            disconnected: false,
            stuck: false,
            recovering: false,
            pending_plans: Vec::new(),
            plan: None,
            machine: Machine::default(),
            pending_reports: Vec::new(),
            sent: None,
            received: None,
        }
    }

    /// Sends a report if the keys or the acknowledged generation have changed. Returns the report
    /// that the leader has.
    fn report_keys(&mut self, acked: u64, now_ms: u64) -> Option<KeyReport> {
        let report = KeyReport { keys: self.machine.keys.iter().map(|(key, _)| *key).collect(), acked };
        if self.sent.as_ref() != Some(&report) {
            self.sent = Some(report.clone());
            self.pending_reports.push((now_ms + self.delays.report_ms, report));
        }
        while self.pending_reports.first().is_some_and(|(at_ms, _)| *at_ms <= now_ms) {
            self.received = Some(self.pending_reports.remove(0).1);
        }
        self.received.clone()
    }
}
