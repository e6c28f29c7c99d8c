//! Clusters to test with. Every wait is for a condition and has a deadline.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::BoxStream};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use weft_model::{
    ClusterState, Command, DEFAULT_TUNNEL_PORT, LogError, LogOptions, LogRecord, LogSource, NodeId, NodePlan,
    NodeReport, Rejection, TaskId,
    plan::TaskGoal,
    spec::{Availability, ClusterSpec, NodeSpec, Role},
    state::{Node, NodeStatus, TaskState, TaskStatus},
    wireguard::{NodeKey, PublicKey},
};

use crate::{
    pki::Identity,
    swarm::{
        InitOptions, JoinOptions, LocalAddrs, Manager, ProposeError, RestoreOptions, Swarm, SwarmConfig, SwarmError,
        context::Context,
    },
};

/// The longest wait for anything: far more than a busy machine needs.
pub(super) const DEADLINE: Duration = Duration::from_secs(40);

/// The parts of a daemon that remain while it is stopped: its data directory, its address and its
/// name.
pub(super) struct Host {
    dir: TempDir,
    name: String,
    addrs: Arc<HostAddr>,
}

/// The only address of a host, on its link.
pub(super) struct HostAddr(Mutex<Ipv4Addr>);

impl HostAddr {
    /// Tests run in parallel, so each host has loopback addresses of its own.
    fn unused() -> Ipv4Addr {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 77, 0, 0)) + number)
    }

    fn lock(&self) -> MutexGuard<'_, Ipv4Addr> {
        self.0.lock().expect("no test thread panicked")
    }
}

impl LocalAddrs for HostAddr {
    fn addrs(&self) -> io::Result<Vec<(IpAddr, String)>> {
        Ok(vec![((*self.lock()).into(), "eth0".to_owned())])
    }
}

/// A running daemon. Its agent programs nothing and reports that everything went well.
pub(super) struct Daemon {
    pub host: Host,
    pub swarm: Swarm,
    agent: JoinHandle<()>,
}

/// Forms a cluster of nodes `n1`, `n2`, … with these roles; the first must be a manager. Resolves
/// when every manager sees that all nodes are ready and all managers vote.
pub(super) async fn cluster<const N: usize>(roles: [Role; N]) -> [Daemon; N] {
    cluster_on(std::array::from_fn(|at| Host::new(&format!("n{}", at + 1))), roles).await
}

/// The same on these hosts.
pub(super) async fn cluster_on<const N: usize>(hosts: [Host; N], roles: [Role; N]) -> [Daemon; N] {
    assert_eq!(roles.first(), Some(&Role::Manager), "the first node forms the cluster");
    let mut daemons: Vec<Daemon> = Vec::new();
    for (host, role) in hosts.into_iter().zip(roles) {
        let daemon = host.start().await;
        match daemons.first() {
            None => drop(daemon.swarm.init(daemon.init_options()).await.expect("the node forms a cluster")),
            Some(first) => daemon.join(first, role).await.expect("the node joins"),
        }
        daemons.push(daemon);
    }
    let managers = roles.iter().filter(|role| **role == Role::Manager).count();
    for (daemon, role) in daemons.iter().zip(roles) {
        if role == Role::Manager {
            let complete = |s: &ClusterState| ready_nodes(s) == N && voters(s) == managers;
            daemon.wait_until("all nodes are ready and all managers vote", complete).await;
        }
    }
    daemons.try_into().unwrap_or_else(|_| unreachable!("one daemon for each role"))
}

/// Stops the daemons, the last one first.
pub(super) async fn stop<const N: usize>(daemons: [Daemon; N]) {
    for daemon in daemons.into_iter().rev() {
        daemon.stop().await;
    }
}

impl Host {
    pub(super) fn new(name: &str) -> Self {
        let addrs = Arc::new(HostAddr(Mutex::new(HostAddr::unused())));
        Self { dir: tempfile::tempdir().expect("a temporary directory"), name: name.to_owned(), addrs }
    }

    pub(super) fn addr(&self) -> Ipv4Addr {
        *self.addrs.lock()
    }

    pub(super) fn set_addr(&self, addr: Ipv4Addr) {
        *self.addrs.lock() = addr;
    }

    /// Gives the host another address, which it returns. A daemon that runs keeps its socket with
    /// the former one.
    pub(super) fn change_addr(&self) -> IpAddr {
        let addr = HostAddr::unused();
        self.set_addr(addr);
        addr.into()
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The certificate that the host's node has stored.
    pub(super) fn identity(&self) -> Identity {
        let read = |name: &str| std::fs::read_to_string(self.dir.path().join("swarm").join(name)).expect("a file");
        let record: serde_json::Value = serde_json::from_str(&read("node.json")).expect("a record");
        let ca_pem = record["ca_pem"].as_str().expect("the CA's certificate");
        Identity::from_pem(&read("identity.pem"), ca_pem).expect("a stored certificate")
    }

    /// The files of the node, as a snapshot of its machine has them. A running daemon may replace a
    /// staged file meanwhile.
    pub(super) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = std::fs::read_dir(self.dir.path().join("swarm")).expect("a directory");
        let paths = entries.map(|entry| entry.expect("an entry").path());
        let read = |path: PathBuf| match std::fs::read(&path) {
            Ok(content) => Some((path, content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => panic!("{}: {error}", path.display()),
        };
        paths.filter_map(read).collect()
    }

    /// Sets the disk back to these files.
    pub(super) fn set_back(&self, files: &[(PathBuf, Vec<u8>)]) {
        for (path, _) in self.files() {
            std::fs::remove_file(path).expect("removed");
        }
        for (path, content) in files {
            std::fs::write(path, content).expect("written");
        }
    }

    pub(super) async fn start(self) -> Daemon {
        let swarm =
            Swarm::open(config_at(self.dir.path(), &self.name, self.addrs.clone())).await.expect("the daemon starts");
        let agent = tokio::spawn(agent(swarm.plans(), swarm.reports()));
        Daemon { host: self, swarm, agent }
    }
}

/// The configuration of a host with this address.
pub(super) fn config(dir: &Path, name: &str, addr: Ipv4Addr) -> SwarmConfig {
    config_at(dir, name, Arc::new(HostAddr(Mutex::new(addr))))
}

fn config_at(dir: &Path, name: &str, addrs: Arc<HostAddr>) -> SwarmConfig {
    SwarmConfig {
        data_dir: dir.to_owned(),
        hostname: name.parse().expect("a node name"),
        version: "test".to_owned(),
        logs: Arc::new(TestLogs),
        addrs,
    }
}

/// A cluster spec with short heartbeats.
pub(super) fn spec() -> ClusterSpec {
    ClusterSpec { heartbeat_ms: 200, heartbeat_misses: 10, ..ClusterSpec::default() }
}

impl Daemon {
    /// A daemon that is not a member of a cluster.
    pub(super) async fn new(name: &str) -> Self {
        Host::new(name).start().await
    }

    /// A daemon that has formed a cluster.
    pub(super) async fn first(name: &str) -> Self {
        let daemon = Self::new(name).await;
        daemon.swarm.init(daemon.init_options()).await.expect("the node forms a cluster");
        daemon
    }

    /// A daemon that has joined the cluster of `manager`.
    pub(super) async fn joined(name: &str, manager: &Self, role: Role) -> Self {
        let daemon = Self::new(name).await;
        daemon.join(manager, role).await.expect("the node joins");
        daemon
    }

    /// A daemon that is the only manager of the cluster in this backup.
    pub(super) async fn restored(name: &str, file: Vec<u8>, passphrase: &str, listen_addr: SocketAddr) -> Self {
        let daemon = Self::new(name).await;
        let options = RestoreOptions {
            file,
            passphrase: passphrase.to_owned(),
            advertise_addr: None,
            listen_addr,
            tunnel_addr: None,
            availability: Availability::Active,
        };
        daemon.swarm.restore(options).await.expect("the cluster is restored");
        daemon
    }

    pub(super) fn init_options(&self) -> InitOptions {
        InitOptions {
            advertise_addr: None,
            listen_addr: SocketAddr::new(self.host.addr().into(), 0),
            tunnel_addr: None,
            tunnel_port: DEFAULT_TUNNEL_PORT,
            spec: spec(),
            auto_lock: false,
            availability: Availability::Active,
        }
    }

    pub(super) fn join_options(&self, remote: SocketAddr, token: &str) -> JoinOptions {
        JoinOptions {
            remotes: vec![remote],
            token: token.to_owned(),
            advertise_addr: None,
            listen_addr: SocketAddr::new(self.host.addr().into(), 0),
            tunnel_addr: None,
            availability: Availability::Active,
        }
    }

    pub(super) async fn join(&self, manager: &Self, role: Role) -> Result<(), SwarmError> {
        let token = manager.manager().join_token(role);
        self.swarm.join(self.join_options(manager.rpc_addr(), &token)).await
    }

    pub(super) fn manager(&self) -> Manager {
        self.swarm.manager().expect("the node is a manager with the cluster state")
    }

    pub(super) fn id(&self) -> NodeId {
        self.swarm.plans().borrow().as_ref().expect("the node has a plan").node.clone()
    }

    pub(super) fn rpc_addr(&self) -> SocketAddr {
        let state = self.manager().state();
        let state = state.borrow();
        state.nodes[self.manager().node()].rpc_addr
    }

    /// Stops the daemon. Its host can start it again.
    pub(super) async fn stop(self) -> Host {
        self.swarm.shutdown().await;
        self.agent.abort();
        self.host
    }

    /// Waits until the cluster state here fulfils `condition`, which `what` describes.
    pub(super) async fn wait_until(&self, what: &str, condition: impl Fn(&ClusterState) -> bool) {
        wait_until(&self.manager(), what, condition).await;
    }

    /// Waits until this node is a manager that has the cluster state.
    pub(super) async fn becomes_manager(&self) {
        timeout(DEADLINE, self.swarm.wait_until_manager()).await.expect("a manager in time");
    }

    /// Waits until no manager runs on this node.
    pub(super) async fn becomes_worker(&self) {
        let mut managers = self.swarm.lifecycle.channels.manager.subscribe();
        let stopped = timeout(DEADLINE, managers.wait_for(Option::is_none)).await;
        stopped.expect("a worker in time").expect("the daemon runs");
    }

    /// Whether this node leads and has got a message of `node` in its term.
    pub(super) fn has_session_of(&self, node: &NodeId) -> bool {
        let view = self.swarm.manager().and_then(|manager| manager.tracker().view());
        view.is_some_and(|view| view.nodes.contains_key(node))
    }

    pub(super) async fn context(&self) -> Arc<Context> {
        let slot = self.swarm.lifecycle.slot.lock().await;
        slot.running().expect("a running membership").context().clone()
    }

    pub(super) async fn identity(&self) -> Arc<Identity> {
        self.context().await.credentials.identity()
    }

    /// The node's current certificate and its key.
    pub(super) async fn certificate(&self) -> String {
        self.identity().await.to_pem().to_owned()
    }

    /// Waits for another certificate than `known`.
    pub(super) async fn next_certificate(&self, known: &str) -> String {
        let mut interval = tokio::time::interval(Duration::from_millis(20));
        let next = async {
            loop {
                interval.tick().await;
                let now = self.certificate().await;
                if now != known {
                    return now;
                }
            }
        };
        timeout(DEADLINE, next).await.expect("a new certificate in time")
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

async fn wait_until(manager: &Manager, what: &str, condition: impl Fn(&ClusterState) -> bool) {
    let mut state = manager.state();
    let fulfilled = timeout(DEADLINE, state.wait_for(|state| condition(state))).await;
    if fulfilled.is_err() {
        let nodes: Vec<_> = manager
            .state()
            .borrow()
            .nodes
            .values()
            .map(|n| (n.hostname.to_string(), n.status, n.spec.role, n.voter, n.message.clone()))
            .collect();
        panic!(
            "timed out waiting until {what}; the nodes in the cluster state here: {nodes:?}; the log: {}",
            manager.log_metrics()
        );
    }
}

/// Waits until the log of each daemon has one of the daemons as its leader, and returns the first
/// daemon that is its own log's leader.
pub(super) async fn leader_among<'a>(daemons: &[&'a Daemon]) -> &'a Daemon {
    for daemon in daemons {
        let manager = daemon.manager();
        let ids: Vec<_> = daemons.iter().map(|d| d.manager().keys().raft_id).collect();
        let leader = timeout(DEADLINE, manager.wait_for_leader(&ids)).await.expect("a leader in time");
        if leader == manager.keys().raft_id {
            return daemon;
        }
    }
    panic!("none of the daemons leads")
}

/// Whether the cluster state contains a node `hostname` that fulfils `condition`.
pub(super) fn node(state: &ClusterState, hostname: &str, condition: impl Fn(&Node) -> bool) -> bool {
    state.nodes.values().any(|node| node.hostname.as_str() == hostname && condition(node))
}

pub(super) fn is_ready(node: &Node) -> bool {
    node.status == NodeStatus::Ready
}

pub(super) fn is_down(node: &Node) -> bool {
    node.status == NodeStatus::Down
}

fn ready_nodes(state: &ClusterState) -> usize {
    state.nodes.values().filter(|node| is_ready(node)).count()
}

pub(super) fn voters(state: &ClusterState) -> usize {
    state.nodes.values().filter(|node| node.voter).count()
}

/// Makes a change that [`has_label`] can find later: adds a label to the cluster.
pub(super) async fn set_label(daemon: &Daemon, key: &str) -> Result<(), ProposeError> {
    propose_label(&daemon.manager(), key).await
}

/// The same through this manager. Its state may be older than that of the leader, which then
/// refuses the change.
pub(super) async fn propose_label(manager: &Manager, key: &str) -> Result<(), ProposeError> {
    let mut states = manager.state();
    loop {
        let (version, mut spec) = {
            let state = states.borrow_and_update();
            let cluster = state.cluster.as_ref().expect("a cluster");
            (cluster.meta.version, cluster.spec.clone())
        };
        spec.labels.insert(key.to_owned(), String::new());
        match manager.propose(Command::UpdateCluster { version, spec }).await {
            Err(ProposeError::Rejected(Rejection::OutOfSequence { current, .. })) => {
                let has_it = |state: &Arc<ClusterState>| {
                    state.cluster.as_ref().is_some_and(|cluster| cluster.meta.version >= current)
                };
                let newer = timeout(DEADLINE, states.wait_for(has_it)).await;
                drop(newer.expect("the newest state in time").expect("the manager runs"));
            }
            result => return result.map(|_| ()),
        }
    }
}

pub(super) fn has_label(state: &ClusterState, key: &str) -> bool {
    state.cluster.as_ref().is_some_and(|cluster| cluster.spec.labels.contains_key(key))
}

/// A loopback address on which no daemon listens.
pub(super) fn unused_loopback(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 78, 0, last).into()
}

/// An agent that acks every plan at once, and reports each task in the state that the plan wants.
/// If the plan asks for a WireGuard key, it reports one, which follows from the node's id.
async fn agent(mut plans: watch::Receiver<Option<Arc<NodePlan>>>, reports: watch::Sender<NodeReport>) {
    loop {
        let plan = plans.borrow_and_update().clone();
        reports.send_replace(plan.map_or_else(NodeReport::default, |plan| report(&plan)));
        if plans.changed().await.is_err() {
            return;
        }
    }
}

/// What such an agent reports.
pub(super) fn report(plan: &NodePlan) -> NodeReport {
    NodeReport {
        acked: plan.generation,
        epoch: plan.epoch,
        addr: None,
        problem: String::new(),
        description: Some(crate::fixture::description(&[])),
        keys: plan.encryption.iter().map(|_| key_of(&plan.node)).collect(),
        tasks: plan.tasks.iter().map(|task| (task.id.clone(), status(task.desired))).collect(),
        attached: None,
    }
}

/// The WireGuard key that the agent of this node reports.
pub(super) fn key_of(node: &NodeId) -> NodeKey {
    let mut public_key = PublicKey([0; 32]);
    public_key.0[..node.as_str().len()].copy_from_slice(node.as_str().as_bytes());
    NodeKey { public_key, port: 51820 }
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

/// The log of every task is one line, the task's id. With `follow` it is an endless stream of long
/// lines.
struct TestLogs;

/// How many lines were read from followed logs.
pub(super) static FOLLOWED_LINES: AtomicU64 = AtomicU64::new(0);

impl LogSource for TestLogs {
    fn logs(&self, task: &TaskId, options: &LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError> {
        let line = Bytes::from(task.to_string());
        if options.follow {
            let long = || {
                FOLLOWED_LINES.fetch_add(1, Ordering::Relaxed);
                LogRecord { time_ns: 7, stderr: false, line: Bytes::from(vec![b'x'; 4096]) }
            };
            return Ok(futures_util::stream::iter(std::iter::repeat_with(long)).boxed());
        }
        Ok(futures_util::stream::iter([LogRecord { time_ns: 7, stderr: false, line }]).boxed())
    }
}
