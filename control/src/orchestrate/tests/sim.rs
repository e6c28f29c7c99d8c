//! A cluster without a kernel: nodes that take their plans late, start and stop tasks slowly, and ack. Checked at every
//! step: what must never happen.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    BackendId, ClusterState, Command, NodeId, NodePlan, ServiceId, TaskId,
    plan::TaskGoal,
    spec::ServiceSpec,
    state::{NodeStatus, Task, TaskState, Traffic},
};

use crate::{
    fixture::{TestCluster, observed},
    orchestrate::{Acks, decide, traffic::ACK_WAIT_MS},
    plan::plan,
};

/// Time moves in steps of this.
pub(super) const TICK_MS: u64 = 100;

/// How fast a node is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// From a change of the table to the node's kernel.
    pub(super) plan_ms: u64,
    pub(super) start_ms: u64,
    pub(super) stop_ms: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { plan_ms: 200, start_ms: 300, stop_ms: 500 }
    }
}

/// A process of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    Held,
    Starting { since_ms: u64 },
    Running,
    Stopping { since_ms: u64 },
    Ended(TaskState),
}

#[derive(Debug)]
struct SimNode {
    pace: Pace,
    /// Cut off: no plan reaches it, no report leaves it.
    cut: bool,
    /// Plans on their way to its kernel, with the time of arrival.
    coming: Vec<(u64, NodePlan)>,
    plan: Option<NodePlan>,
    processes: BTreeMap<TaskId, Process>,
}

#[derive(Debug)]
pub(super) struct Sim {
    pub(super) cluster: TestCluster,
    pub(super) acks: Acks,
    nodes: BTreeMap<NodeId, SimNode>,
    /// Services whose tasks cannot stay up: they fail as soon as they run.
    pub(super) broken_images: BTreeSet<String>,
    /// Images that no node has.
    pub(super) missing_images: BTreeSet<String>,
    /// Whether something died that no hand-over can foresee: then requests may be lost.
    pub(super) disturbed: bool,
    backends: BTreeMap<BackendId, TaskId>,
}

impl Sim {
    /// A manager and `workers` workers.
    pub(super) fn new(workers: usize) -> Self {
        let mut cluster = TestCluster::new();
        for nth in 0..workers {
            cluster.node(&format!("n{}", nth + 2), &[]);
        }
        let mut sim = Self {
            acks: Acks { acked: BTreeMap::new(), since_ms: cluster.now_ms },
            nodes: BTreeMap::new(),
            broken_images: BTreeSet::new(),
            missing_images: BTreeSet::new(),
            disturbed: false,
            backends: BTreeMap::new(),
            cluster,
        };
        for id in sim.cluster.state.nodes.keys() {
            let node = SimNode {
                pace: Pace::default(),
                cut: false,
                coming: Vec::new(),
                plan: None,
                processes: BTreeMap::new(),
            };
            sim.nodes.insert(id.clone(), node);
        }
        sim
    }

    pub(super) fn state(&self) -> &ClusterState {
        &self.cluster.state
    }

    pub(super) fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().cloned().collect()
    }

    pub(super) fn set_pace(&mut self, node: &NodeId, pace: Pace) {
        self.nodes.get_mut(node).unwrap().pace = pace;
    }

    pub(super) fn create(&mut self, spec: ServiceSpec) -> ServiceId {
        self.cluster.service(spec).unwrap()
    }

    /// A user's command, seen by the orchestrator at once.
    pub(super) fn ask(&mut self, command: Command) {
        self.change(command);
        self.settle();
    }

    /// The node's machine is gone: nothing runs there any more.
    pub(super) fn kill_node(&mut self, id: &NodeId) {
        self.disturbed = true;
        let node = self.nodes.get_mut(id).unwrap();
        node.cut = true;
        node.processes.clear();
        node.coming.clear();
        node.plan = None;
        self.acks.acked.remove(id);
        self.cluster.status(id, NodeStatus::Down);
        self.settle();
    }

    pub(super) fn revive_node(&mut self, id: &NodeId) {
        self.nodes.get_mut(id).unwrap().cut = false;
        self.cluster.status(id, NodeStatus::Ready);
        self.settle();
    }

    /// A process of the task's dies.
    pub(super) fn crash(&mut self, id: &TaskId) {
        self.disturbed = true;
        for node in self.nodes.values_mut() {
            if let Some(process) = node.processes.get_mut(id)
                && *process == Process::Running
            {
                *process = Process::Ended(TaskState::Failed);
            }
        }
    }

    /// Another manager leads: it knows of no ack until the nodes have sent them again.
    pub(super) fn change_leader(&mut self) {
        self.acks = Acks { acked: BTreeMap::new(), since_ms: self.cluster.now_ms };
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, duration_ms: u64) {
        let end_ms = self.cluster.now_ms + duration_ms;
        while self.cluster.now_ms < end_ms {
            self.tick();
        }
    }

    /// Lets time pass until this holds.
    pub(super) fn run_until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end_ms = self.cluster.now_ms + 300_000;
        while !holds(self) {
            assert!(self.cluster.now_ms < end_ms, "waited in vain for: {what}\n{:#?}", self.state().tasks);
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
    }

    fn tick_node(&mut self, id: &NodeId) {
        let now_ms = self.cluster.now_ms;
        let node = self.nodes.get_mut(id).unwrap();
        if node.cut {
            return;
        }
        let known = node.coming.last().map(|(_, p)| p).or(node.plan.as_ref());
        if known.is_none_or(|known| known.generation < self.cluster.state.index) {
            node.coming.push((now_ms + node.pace.plan_ms, plan(&self.cluster.state, id).unwrap()));
        }
        while node.coming.first().is_some_and(|(at_ms, _)| *at_ms <= now_ms) {
            node.plan = Some(node.coming.remove(0).1);
        }
        let Some(plan) = node.plan.clone() else { return };
        self.acks.acked.insert(id.clone(), plan.generation);
        node.run_processes(&plan, now_ms, &self.broken_images, &self.missing_images);
        let mut reports = Vec::new();
        for (task, process) in &node.processes {
            let state = process.state();
            let known = self.cluster.state.tasks.get(task).map(|t| t.status.state);
            if known.is_some_and(|known| known < state && !known.is_terminal()) {
                reports.push((task.clone(), observed(state, now_ms)));
            }
        }
        if !reports.is_empty() {
            self.change(Command::ReportTasks { node: id.clone(), tasks: reports });
        }
    }

    /// Decides until there is nothing left to decide, then once more.
    pub(super) fn settle(&mut self) {
        for _ in 0..100 {
            let now_ms = self.cluster.now_ms;
            let mut cluster = self.cluster.clone();
            let decision = decide(&self.cluster.state, now_ms, &self.acks, &mut || cluster.random());
            self.cluster = cluster;
            assert_eq!(decision.refused, [], "decisions must fit the cluster that they were made from");
            if decision.commands.is_empty() {
                return;
            }
            for command in decision.commands {
                self.change(command);
            }
            let again = decide(&self.cluster.state, now_ms, &self.acks, &mut || unreachable_id());
            assert!(
                again.commands.is_empty() || again.wake_at_ms == Some(now_ms),
                "decided twice: {:#?}",
                again.commands
            );
        }
        panic!("decisions without end");
    }

    fn change(&mut self, command: Command) {
        let before = self.cluster.state.tasks.clone();
        self.cluster.ok(command);
        self.check_addresses();
        for task in self.cluster.state.tasks.values() {
            if let Some(old) = before.get(&task.id) {
                self.check_step(old, task);
            }
        }
        for task in self.cluster.state.tasks.values() {
            for attachment in &task.attachments {
                let owner = self.backends.entry(attachment.backend).or_insert_with(|| task.id.clone());
                assert_eq!(*owner, task.id, "a backend id came back");
            }
        }
    }

    /// Nobody shares an address with anybody.
    fn check_addresses(&self) {
        let state = &self.cluster.state;
        let mut seen = BTreeSet::new();
        let vips = state.services.values().flat_map(|s| &s.endpoints).filter_map(|e| Some((&e.network, e.vip?)));
        let tasks = state.tasks.values().flat_map(|t| &t.attachments).map(|a| (&a.network, a.addr));
        let waiting = state.allocated.quarantine.iter().map(|f| (&f.network, f.addr));
        for (network, addr) in vips.chain(tasks).chain(waiting) {
            let subnets = &state.networks[network].subnets;
            assert!(subnets.v4.contains(addr.v4) && subnets.v6.contains(addr.v6), "{addr:?} is outside its subnet");
            assert!(addr.v4 != subnets.v4_gateway && addr.v6 != subnets.v6_gateway, "{addr:?} is the gateway");
            assert!(seen.insert((network, std::net::IpAddr::V4(addr.v4))), "{addr:?} was given out twice");
            assert!(seen.insert((network, std::net::IpAddr::V6(addr.v6))), "{addr:?} was given out twice");
        }
    }

    /// A task only moves forward, and is told to stop only when every ready node has it draining.
    fn check_step(&self, old: &Task, new: &Task) {
        assert!(new.status.state >= old.status.state, "{} went back", new.name);
        assert!(new.desired >= old.desired && new.traffic >= old.traffic, "{} went back", new.name);
        assert!(old.node.is_none() || old.node == new.node, "{} moved", new.name);
        let since_ms = old.traffic_since_ms.max(self.acks.since_ms);
        let waited = self.cluster.now_ms >= since_ms + ACK_WAIT_MS;
        if old.traffic < Traffic::Active && new.traffic == Traffic::Active && !waited {
            let own = &self.nodes[new.node.as_ref().unwrap()];
            let knows = own.plan.as_ref().is_some_and(|plan| backend_states(plan, &new.id).any(|draining| !draining));
            assert!(knows, "{} was offered to all nodes before its own delivered to it", new.name);
        }
        if !old.must_stop() && new.must_stop() && !waited {
            for (id, node) in &self.nodes {
                let ready = self.cluster.state.nodes.get(id).is_some_and(|n| n.status == NodeStatus::Ready);
                let sends = node.plan.as_ref().is_some_and(|p| backend_states(p, &new.id).any(|draining| !draining));
                assert!(!(ready && sends), "{} was told to stop while node {id} sends new flows to it", new.name);
            }
        }
    }

    /// Whatever any node balances over can take a request: its process runs, and its own node delivers to it.
    fn check_backends_answer(&self) {
        if self.disturbed {
            return;
        }
        for plan in self.nodes.values().filter_map(|n| n.plan.as_ref()) {
            for backend in plan.services.iter().flat_map(|s| &s.backends).filter(|b| !b.draining) {
                let home = &self.nodes[&backend.node];
                assert_eq!(
                    home.processes.get(&backend.task),
                    Some(&Process::Running),
                    "{} cannot answer",
                    backend.task_name
                );
                let knows = home.plan.as_ref().is_some_and(|p| backend_states(p, &backend.task).next().is_some());
                assert!(knows, "{}'s own node does not deliver to it", backend.task_name);
            }
        }
    }

    /// How many backends each node would send a new flow of this service to: the fewest of all nodes.
    pub(super) fn fewest_backends(&self, service: &ServiceId) -> usize {
        let plans = self.nodes.values().filter_map(|n| n.plan.as_ref());
        let counts = plans.map(|plan| {
            let first = plan.services.iter().find(|s| s.service == *service);
            first.map_or(0, |s| s.backends.iter().filter(|b| !b.draining).count())
        });
        counts.min().unwrap_or(0)
    }

    /// The service's tasks that every node sends to, and that shall stay.
    pub(super) fn active(&self, service: &ServiceId) -> Vec<&Task> {
        let tasks = self.state().tasks_of(service);
        tasks.filter(|t| is_active(t)).collect()
    }

    pub(super) fn task_processes(&self, node: &NodeId) -> Vec<TaskId> {
        let alive = |p: &Process| !matches!(p, Process::Ended(_));
        self.nodes[node].processes.iter().filter(|(_, p)| alive(p)).map(|(id, _)| id.clone()).collect()
    }
}

pub(super) fn is_active(task: &Task) -> bool {
    task.traffic == Traffic::Active && task.desired == TaskState::Running && task.status.state == TaskState::Running
}

fn unreachable_id() -> u128 {
    u128::MAX
}

fn backend_states(plan: &NodePlan, task: &TaskId) -> impl Iterator<Item = bool> {
    let backends = plan.services.iter().flat_map(|s| &s.backends);
    backends.filter(move |b| b.task == *task).map(|b| b.draining)
}

impl Process {
    fn state(self) -> TaskState {
        match self {
            Self::Held => TaskState::Ready,
            Self::Starting { .. } => TaskState::Starting,
            Self::Running | Self::Stopping { .. } => TaskState::Running,
            Self::Ended(state) => state,
        }
    }
}

impl SimNode {
    fn run_processes(
        &mut self,
        plan: &NodePlan,
        now_ms: u64,
        broken_images: &BTreeSet<String>,
        missing_images: &BTreeSet<String>,
    ) {
        self.processes.retain(|id, _| plan.tasks.iter().any(|t| t.id == *id));
        for task in &plan.tasks {
            let present = self.processes.get(&task.id).copied();
            let broken = broken_images.contains(&task.container.image);
            let next = match (task.desired, present) {
                (TaskGoal::Stop, None | Some(Process::Held | Process::Starting { .. })) => {
                    Process::Ended(TaskState::Shutdown)
                }
                (TaskGoal::Stop, Some(Process::Running)) => Process::Stopping { since_ms: now_ms },
                (_, None) if missing_images.contains(&task.container.image) => Process::Ended(TaskState::Rejected),
                (TaskGoal::Ready, None) => Process::Held,
                (TaskGoal::Run, None | Some(Process::Held)) => Process::Starting { since_ms: now_ms },
                (_, Some(Process::Starting { since_ms })) if now_ms >= since_ms + self.pace.start_ms => {
                    if broken {
                        Process::Ended(TaskState::Failed)
                    } else {
                        Process::Running
                    }
                }
                (_, Some(Process::Stopping { since_ms })) if now_ms >= since_ms + self.pace.stop_ms => {
                    Process::Ended(TaskState::Shutdown)
                }
                (_, Some(same)) => same,
            };
            self.processes.insert(task.id.clone(), next);
        }
    }
}
