//! Measures the control plane with one large network: a /16 that is created, filled with the tasks
//! of one service, emptied and removed. `cargo xtask bench control` runs it.
//!
//! It drives the pure core, `apply`, `decide` and `plan`, as the leader does, without a log and
//! without a network. The nodes are simulated: they acknowledge every plan at once, and report
//! every task as running or stopped. Each line of the output is a JSON object with the name of a
//! step, its duration in milliseconds, and how many log entries it needed.
//!
//! Arguments: the number of tasks (default 10000).

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use weft_control::{
    orchestrate::{Acks, decide},
    plan::plan,
    state::{QUARANTINE_MS, apply},
};
use weft_model::{
    Applied, ClusterState, Command, DEFAULT_TUNNEL_PORT, Entry, NetworkId, NodeId, ServiceId, TaskId,
    command::{InitCluster, JoinNode},
    id::ClusterId,
    spec::{
        Availability, ClusterSpec, ContainerSpec, NetworkAttachment, NetworkSpec, Role, ServiceMode, ServiceSpec,
        SubnetSpec,
    },
    state::{NodeDescription, NodeStatus, TaskState, TaskStatus, Traffic},
    wireguard::EncryptionSupport,
};

const NODES: u8 = 10;
const DEFAULT_TASKS: u64 = 10_000;

struct Cluster {
    /// As in the state machine: the published state is shared, so the first change of an entry
    /// copies it.
    state: Arc<ClusterState>,
    now_ms: u64,
    nodes: Vec<NodeId>,
    next_id: u128,
    entries: usize,
    deciding: Duration,
    applying: Duration,
}

impl Cluster {
    fn new() -> Self {
        let mut cluster = Self {
            state: Arc::default(),
            now_ms: 1_700_000_000_000,
            nodes: Vec::new(),
            next_id: 1,
            entries: 0,
            deciding: Duration::ZERO,
            applying: Duration::ZERO,
        };
        let first = cluster.joining(1, Role::Manager);
        let init = InitCluster {
            feature_level: weft_model::state::FEATURE_LEVEL,
            unlock_key: None,
            id: ClusterId::from_random(1),
            spec: ClusterSpec::default(),
            tunnel_port: DEFAULT_TUNNEL_PORT,
            ca_cert_pem: String::new(),
            ca_key_sealed: Vec::new(),
            worker_secret: String::new(),
            manager_secret: String::new(),
            ingress: NetworkId::from_random(1),
            node: first,
        };
        cluster.apply(Command::InitCluster(Box::new(init)));
        for host in 2..=NODES {
            let join = cluster.joining(host, Role::Worker);
            cluster.apply(Command::JoinNode(Box::new(join)));
        }
        for node in cluster.nodes.clone() {
            let description = NodeDescription {
                os: "linux".to_owned(),
                arch: "x86_64".to_owned(),
                nano_cpus: 8_000_000_000,
                memory_bytes: 16 << 30,
                version: "0.1.0".to_owned(),
                runtime: "process".to_owned(),
                engine_labels: Default::default(),
                addresses: Vec::new(),
                routes: Vec::new(),
                encryption: EncryptionSupport::Kernel,
                plugins: Default::default(),
            };
            cluster.apply(Command::DescribeNode { node: node.clone(), description: Box::new(description) });
            cluster.apply(Command::SetNodeStatus { id: node, status: NodeStatus::Ready, message: String::new() });
        }
        cluster
    }

    fn id(&mut self) -> u128 {
        self.next_id += 1;
        self.next_id
    }

    fn joining(&mut self, host: u8, role: Role) -> JoinNode {
        let addr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, host));
        let id = NodeId::from_random(self.id());
        self.nodes.push(id.clone());
        JoinNode {
            id,
            hostname: format!("n{host}").parse().expect("a valid name"),
            role,
            addr,
            tunnel_addr: addr,
            rpc_addr: SocketAddr::new(addr, 2377),
            availability: Availability::Active,
            ca_cert_pem: String::new(),
        }
    }

    fn apply(&mut self, command: Command) -> Applied {
        let start = Instant::now();
        let published = Arc::clone(&self.state);
        let state = Arc::make_mut(&mut self.state);
        let (index, entry) = (state.index + 1, Entry { now_ms: self.now_ms, command });
        let applied = apply(state, index, entry).expect("the cluster state accepts every command of this program");
        drop(published);
        self.applying += start.elapsed();
        self.entries += 1;
        applied
    }

    /// Lets the leader and the nodes act until `is_done`.
    fn run_until(&mut self, is_done: impl Fn(&ClusterState) -> bool) {
        while !is_done(&self.state) {
            let acked = self.nodes.iter().map(|node| (node.clone(), self.state.index)).collect();
            let acks = Acks { acked, ..Acks::default() };
            let start = Instant::now();
            let next_id = &mut self.next_id;
            let decision = decide(&self.state, self.now_ms, &acks, &mut || {
                *next_id += 1;
                *next_id
            });
            self.deciding += start.elapsed();
            assert!(decision.refused.is_empty(), "{:?}", decision.refused);
            let mut idle = decision.commands.is_empty();
            for command in decision.commands {
                self.apply(command);
            }
            for report in self.reports() {
                idle = false;
                self.apply(report);
            }
            if idle {
                let wake = decision.wake_at_ms.expect("the leader waits for the clock, because nothing else happens");
                self.now_ms = wake.max(self.now_ms + 1);
            }
        }
    }

    /// What the nodes report: new tasks run, and tasks that must stop have stopped.
    fn reports(&self) -> Vec<Command> {
        let next = |task: &weft_model::state::Task| match task.status.state {
            state if task.must_stop() && (TaskState::Assigned..=TaskState::Running).contains(&state) => {
                Some(TaskState::Shutdown)
            }
            TaskState::Assigned if task.desired == TaskState::Running => Some(TaskState::Running),
            _ => None,
        };
        let of_node = |node: &NodeId| {
            let tasks: Vec<(TaskId, TaskStatus)> = self
                .state
                .tasks_on(node)
                .filter_map(|task| Some((task.id.clone(), self.status(next(task)?))))
                .collect();
            (!tasks.is_empty()).then(|| Command::ReportTasks { node: node.clone(), tasks })
        };
        self.nodes.iter().filter_map(of_node).collect()
    }

    fn status(&self, state: TaskState) -> TaskStatus {
        TaskStatus {
            state,
            since_ms: self.now_ms,
            message: String::new(),
            error: String::new(),
            exit_code: None,
            container: None,
            pid: None,
        }
    }

    /// Runs a step and prints how long it took.
    fn step<T>(&mut self, name: &str, step: impl FnOnce(&mut Self) -> T) -> T {
        (self.entries, self.deciding, self.applying) = (0, Duration::ZERO, Duration::ZERO);
        let start = Instant::now();
        let result = step(self);
        let millis = |duration: Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
        let line = serde_json::json!({
            "bench": "control",
            "case": name,
            "ms": millis(start.elapsed()),
            "decide_ms": millis(self.deciding),
            "apply_ms": millis(self.applying),
            "entries": self.entries,
        });
        println!("{line}");
        result
    }
}

/// The number of tasks that take traffic.
fn active(state: &ClusterState) -> u64 {
    state.tasks.values().filter(|task| task.holds_addresses() && task.traffic == Traffic::Active).count() as u64
}

fn main() {
    let replicas = std::env::args().nth(1).map_or(DEFAULT_TASKS, |text| text.parse().expect("a number of tasks"));
    let mut cluster = Cluster::new();
    let network = NetworkId::from_random(cluster.id());
    cluster.step("create the network", |cluster| {
        let v4 = vec![SubnetSpec::new("10.64.0.0/16".parse().expect("a subnet"))];
        let spec = NetworkSpec { v4, ..NetworkSpec::new("large".parse().expect("a name")) };
        cluster.apply(Command::CreateNetwork { id: network.clone(), spec: Box::new(spec) })
    });
    let service = ServiceId::from_random(cluster.id());
    cluster.step("fill it", |cluster| {
        let mut spec = ServiceSpec::new("web".parse().expect("a name"), ContainerSpec::new("weft/whoami"));
        spec.mode = ServiceMode::Replicated { replicas };
        spec.task.networks = vec![NetworkAttachment { network: network.clone(), aliases: Vec::new() }];
        cluster.apply(Command::CreateService { id: service.clone(), spec: Box::new(spec) });
        cluster.run_until(|state| active(state) == replicas);
    });
    let node = cluster.nodes[0].clone();
    cluster.step("the plan of one node", |cluster| {
        let plan = plan(&cluster.state, &node).expect("the plan of a member");
        assert_eq!(plan.endpoints.len() as u64, replicas);
    });
    cluster.step("replace one task", |cluster| {
        let task = cluster.state.tasks.values().next().expect("a task").clone();
        let node = task.node.expect("a node");
        let tasks = vec![(task.id.clone(), cluster.status(TaskState::Failed))];
        cluster.apply(Command::ReportTasks { node, tasks });
        cluster.run_until(|state| active(state) == replicas);
    });
    cluster.step("empty it", |cluster| {
        cluster.apply(Command::RemoveService { id: service.clone() });
        cluster.run_until(|state| !state.services.contains_key(&service));
    });
    cluster.step("release its addresses", |cluster| {
        cluster.now_ms += QUARANTINE_MS;
        cluster.run_until(|state| state.allocated.quarantine.is_empty());
    });
    cluster.step("remove the network", |cluster| cluster.apply(Command::RemoveNetwork { id: network.clone() }));
    assert!(cluster.state.tasks.is_empty() && cluster.state.networks.len() == 1);
    assert_eq!(cluster.state.allocated.addresses.len(), 1, "only those of the ingress network are left");
}
