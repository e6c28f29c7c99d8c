//! A cluster to test with. Every wait is for a condition and has a deadline.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use weft_model::{
    ClusterState, Command, LogError, LogOptions, LogRecord, LogSource, NodeId, NodePlan, NodeReport, TaskId,
    plan::TaskGoal,
    spec::{Availability, ClusterSpec, NodeSpec, Role},
    state::{Node, NodeStatus, TaskState, TaskStatus},
};

use crate::swarm::{InitOptions, JoinOptions, Manager, ProposeError, Swarm, SwarmConfig, SwarmError};

/// Longest wait for anything: far beyond what a busy machine needs.
pub(super) const DEADLINE: Duration = Duration::from_secs(40);

/// One daemon's place: its directory, its address, its name. It outlives the daemon.
pub(super) struct Place {
    dir: TempDir,
    name: String,
    addr: Ipv4Addr,
}

/// A running daemon, with an agent that programs nothing and says that all went well.
pub(super) struct Daemon {
    pub place: Place,
    pub swarm: Swarm,
    agent: JoinHandle<()>,
}

impl Place {
    pub(super) fn new(name: &str) -> Self {
        // Tests run side by side: each place has a loopback address of its own.
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let addr = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 77, 0, 0)) + number);
        Self { dir: tempfile::tempdir().expect("a directory"), name: name.to_owned(), addr }
    }

    pub(super) fn addr(&self) -> Ipv4Addr {
        self.addr
    }

    pub(super) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub(super) async fn start(self) -> Daemon {
        let swarm = Swarm::open(self.config()).await.expect("the daemon starts");
        let agent = tokio::spawn(agent(swarm.plans(), swarm.reports()));
        Daemon { place: self, swarm, agent }
    }

    fn config(&self) -> SwarmConfig {
        config(self.dir.path(), &self.name)
    }
}

pub(super) fn config(dir: &std::path::Path, name: &str) -> SwarmConfig {
    SwarmConfig {
        data_dir: dir.to_owned(),
        hostname: name.parse().expect("a name"),
        version: "test".to_owned(),
        logs: Arc::new(OneLine),
    }
}

/// A spec whose clocks suit a test.
pub(super) fn spec() -> ClusterSpec {
    ClusterSpec { heartbeat_ms: 200, heartbeat_misses: 10, ..ClusterSpec::default() }
}

impl Daemon {
    pub(super) async fn new(name: &str) -> Self {
        Place::new(name).start().await
    }

    /// A daemon that formed a cluster.
    pub(super) async fn first(name: &str) -> Self {
        let daemon = Self::new(name).await;
        daemon.swarm.init(daemon.init_options()).await.expect("it forms a cluster");
        daemon
    }

    pub(super) fn init_options(&self) -> InitOptions {
        InitOptions {
            advertise_addr: None,
            listen_addr: SocketAddr::new(self.place.addr.into(), 0),
            spec: spec(),
            availability: Availability::Active,
        }
    }

    pub(super) fn join_options(&self, remote: SocketAddr, token: &str) -> JoinOptions {
        JoinOptions {
            remotes: vec![remote],
            token: token.to_owned(),
            advertise_addr: None,
            listen_addr: SocketAddr::new(self.place.addr.into(), 0),
            availability: Availability::Active,
        }
    }

    /// A daemon that joined the cluster of `manager`.
    pub(super) async fn joined(name: &str, manager: &Self, role: Role) -> Self {
        let daemon = Self::new(name).await;
        daemon.join(manager, role).await.expect("it joins");
        daemon
    }

    pub(super) async fn join(&self, manager: &Self, role: Role) -> Result<(), SwarmError> {
        let token = manager.manager().join_token(role);
        self.swarm.join(self.join_options(manager.rpc_addr(), &token)).await
    }

    pub(super) fn manager(&self) -> Manager {
        self.swarm.manager().expect("it is a manager")
    }

    pub(super) fn id(&self) -> NodeId {
        self.swarm.plans().borrow().as_ref().expect("it has a plan").node.clone()
    }

    pub(super) fn rpc_addr(&self) -> SocketAddr {
        let state = self.manager().state();
        let state = state.borrow();
        state.nodes[self.manager().node()].rpc_addr
    }

    /// Ends the daemon and leaves its place.
    pub(super) async fn stop(self) -> Place {
        self.swarm.shutdown().await;
        self.agent.abort();
        self.place
    }

    /// Waits until the table here is as `wanted`.
    pub(super) async fn table(&self, what: &str, wanted: impl Fn(&ClusterState) -> bool) {
        table(&self.manager(), what, wanted).await;
    }

    /// Waits until this node is (no) manager that holds the table.
    pub(super) async fn is_manager(&self, wanted: bool) {
        let mut managers = self.swarm.lifecycle.channels.manager.subscribe();
        let came = timeout(DEADLINE, managers.wait_for(|m| m.is_some() == wanted)).await;
        let manager = came.expect("the role changes in time").expect("the daemon runs").clone();
        if let Some(manager) = manager {
            table(&manager, "the table arrives", |state| state.cluster.is_some()).await;
        }
    }

    /// The certificate that this node shows now, with its key.
    pub(super) async fn certificate(&self) -> String {
        let running = self.swarm.lifecycle.running.lock().await;
        running.as_ref().expect("a running membership").context().credentials.identity().to_pem().to_owned()
    }

    /// Waits for another certificate than `known`.
    pub(super) async fn next_certificate(&self, known: &str) -> String {
        let mut look = tokio::time::interval(Duration::from_millis(20));
        let next = async {
            loop {
                look.tick().await;
                let now = self.certificate().await;
                if now != known {
                    return now;
                }
            }
        };
        timeout(DEADLINE, next).await.expect("renewed in time")
    }

    /// Sets a node's role, as `node promote` and `node demote` do.
    pub(super) async fn set_role(&self, node: &NodeId, role: Role) -> Result<(), ProposeError> {
        let (version, spec) = {
            let state = self.manager().state();
            let known = &state.borrow().nodes[node];
            (known.meta.version, NodeSpec { role, ..known.spec.clone() })
        };
        self.manager().propose(Command::UpdateNode { id: node.clone(), version, spec }).await.map(|_| ())
    }
}

pub(super) async fn table(manager: &Manager, what: &str, wanted: impl Fn(&ClusterState) -> bool) {
    let mut state = manager.state();
    let came = timeout(DEADLINE, state.wait_for(|state| wanted(state))).await;
    if came.is_err() {
        let nodes: Vec<_> = manager
            .state()
            .borrow()
            .nodes
            .values()
            .map(|n| (n.hostname.to_string(), n.status, n.spec.role, n.voter, n.message.clone()))
            .collect();
        let metrics = manager.log_metrics();
        panic!("{what}: not in time; the table here: {nodes:?}; the log: {metrics}");
    }
}

/// Waits until one of `managers` leads, by the word of all of them.
pub(super) async fn leader_among<'a>(daemons: &[&'a Daemon]) -> &'a Daemon {
    for daemon in daemons {
        let manager = daemon.manager();
        let ids: Vec<_> = daemons.iter().map(|d| d.manager().keys().raft_id).collect();
        let leader = timeout(DEADLINE, manager.wait_for_leader(&ids)).await.expect("a leader in time");
        if leader == manager.keys().raft_id {
            return daemon;
        }
    }
    panic!("nobody leads")
}

/// Whether `hostname` is in the table and is as `wanted`.
pub(super) fn node(state: &ClusterState, hostname: &str, wanted: impl Fn(&Node) -> bool) -> bool {
    state.nodes.values().any(|node| node.hostname.as_str() == hostname && wanted(node))
}

pub(super) fn is_ready(node: &Node) -> bool {
    node.status == NodeStatus::Ready
}

pub(super) fn is_down(node: &Node) -> bool {
    node.status == NodeStatus::Down
}

/// A change that says of itself whether it was made: a label of the cluster.
pub(super) async fn set_label(daemon: &Daemon, key: &str) -> Result<(), ProposeError> {
    label(&daemon.manager(), key).await
}

pub(super) async fn label(manager: &Manager, key: &str) -> Result<(), ProposeError> {
    let (version, mut spec) = {
        let state = manager.state();
        let state = state.borrow();
        let cluster = state.cluster.as_ref().expect("a cluster");
        (cluster.meta.version, cluster.spec.clone())
    };
    spec.labels.insert(key.to_owned(), String::new());
    manager.propose(Command::UpdateCluster { version, spec }).await.map(|_| ())
}

pub(super) fn has_label(state: &ClusterState, key: &str) -> bool {
    state.cluster.as_ref().is_some_and(|cluster| cluster.spec.labels.contains_key(key))
}

pub(super) fn loopback(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 78, 0, last).into()
}

/// Acks every plan at once and reports each task as its plan wants it.
async fn agent(mut plans: watch::Receiver<Option<Arc<NodePlan>>>, reports: watch::Sender<NodeReport>) {
    loop {
        let plan = plans.borrow_and_update().clone();
        let report = plan.map_or_else(NodeReport::default, |plan| NodeReport {
            acked: plan.generation,
            description: Some(crate::fixture::description(&[])),
            tasks: plan.tasks.iter().map(|task| (task.id.clone(), status(task.desired))).collect(),
        });
        reports.send_replace(report);
        if plans.changed().await.is_err() {
            return;
        }
    }
}

fn status(goal: TaskGoal) -> TaskStatus {
    let state = match goal {
        TaskGoal::Ready => TaskState::Ready,
        TaskGoal::Run => TaskState::Running,
        TaskGoal::Stop => TaskState::Shutdown,
    };
    TaskStatus {
        state,
        since_ms: 0,
        message: String::new(),
        error: String::new(),
        exit_code: None,
        container: None,
        pid: None,
    }
}

/// Every task wrote one line: its own id. Whoever follows gets more, without end.
struct OneLine;

/// Lines that were asked of all who are followed.
pub(super) static FOLLOWED: AtomicU64 = AtomicU64::new(0);

impl LogSource for OneLine {
    fn logs(&self, task: &TaskId, options: &LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError> {
        let line = Bytes::from(task.to_string());
        if options.follow {
            let long = || {
                FOLLOWED.fetch_add(1, Ordering::Relaxed);
                LogRecord { time_ns: 7, stderr: false, line: Bytes::from(vec![b'x'; 4096]) }
            };
            return Ok(futures_util::stream::iter(std::iter::repeat_with(long)).boxed());
        }
        Ok(futures_util::stream::iter([LogRecord { time_ns: 7, stderr: false, line }]).boxed())
    }
}
