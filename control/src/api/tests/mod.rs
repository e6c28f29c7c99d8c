//! Tests of the routes with a cluster in memory. They send the requests that clients send, and
//! check the answers.

mod attach;
mod bodies;
mod booleans;
mod cluster;
mod containers;
mod dependencies;
mod engine;
mod fields;
mod networks;
mod registry;
mod services;
mod system;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
};
use bytes::Bytes;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{self, BoxFuture},
    stream,
    stream::BoxStream,
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt as _;
use weft_model::{
    Applied, ClusterState, Command, ContainerNetworks, LogError, LogOptions, LogRecord, NetworkId, NodeId, NodePlan,
    NodeReport, TaskId, UnlockKey,
    command::{AttachContainer, ObjectKind},
    plan::NetworkPlan,
    spec::{ClusterSpec, Role},
    state::RootRotation,
};

use super::{
    LocalNode,
    announce::Announced,
    cluster::{ClusterHandle, Member},
};
use crate::{
    fixture,
    plan::plan,
    swarm::{InitOptions, JoinOptions, Membership, ProposeError, RestoreOptions, RotateError, SwarmError},
};

/// A member of a cluster in memory. Managers have a cluster, workers and other nodes have none.
struct TestMember {
    membership: Membership,
    cluster: Option<Arc<InMemoryCluster>>,
    /// What the agent of the node has reported.
    report: NodeReport,
    /// The plan of a node that has no cluster state.
    plan: Mutex<Option<Arc<NodePlan>>>,
    /// The options of each init and join request.
    requests: Mutex<Vec<String>>,
}

impl TestMember {
    /// A change of this node's containers, and its new plan.
    async fn change(&self, command: impl FnOnce(NodeId) -> Command) -> Result<(), SwarmError> {
        let cluster = self.cluster.clone().ok_or(SwarmError::NotMember)?;
        let node = cluster.change(|cluster| cluster.first_node());
        cluster.propose(command(node)).await.map_err(SwarmError::Change)?;
        Ok(())
    }
}

/// The cluster state of a single manager.
struct InMemoryCluster {
    cluster: Mutex<fixture::TestCluster>,
    state: watch::Sender<Arc<ClusterState>>,
    /// The plans of the first node.
    plans: watch::Sender<Option<Arc<NodePlan>>>,
    log_options: Mutex<Option<LogOptions>>,
    /// No leader confirms the state.
    is_stale: AtomicBool,
}

impl InMemoryCluster {
    fn change<T>(&self, change: impl FnOnce(&mut fixture::TestCluster) -> T) -> T {
        let mut cluster = self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut cluster);
        self.state.send_replace(Arc::new(cluster.state.clone()));
        let plan = cluster.state.nodes.keys().next().and_then(|node| plan(&cluster.state, node));
        self.plans.send_replace(plan.map(Arc::new));
        changed
    }
}

#[async_trait]
impl Member for TestMember {
    fn membership(&self) -> Membership {
        self.membership.clone()
    }

    fn report(&self) -> NodeReport {
        self.report.clone()
    }

    fn plan(&self) -> Option<Arc<NodePlan>> {
        if let (Some(cluster), Membership::Active { node, .. }) = (&self.cluster, &self.membership) {
            return cluster.change(|cluster| plan(&cluster.state, node)).map(Arc::new);
        }
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remotes(&self) -> Vec<(NodeId, SocketAddr)> {
        Vec::new()
    }

    async fn init(&self, options: InitOptions) -> Result<NodeId, SwarmError> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{options:?}"));
        Ok(NodeId::from_random(7))
    }

    async fn join(&self, options: JoinOptions) -> Result<(), SwarmError> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{options:?}"));
        Ok(())
    }

    async fn reform(&self, advertise_addr: Option<IpAddr>) -> Result<NodeId, SwarmError> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(format!("reform {advertise_addr:?}"));
        Ok(NodeId::from_random(7))
    }

    async fn back_up(&self, passphrase: String) -> Result<Vec<u8>, SwarmError> {
        Ok(format!("file of {passphrase}").into_bytes())
    }

    async fn restore(&self, options: RestoreOptions) -> Result<NodeId, SwarmError> {
        let file = String::from_utf8_lossy(&options.file).into_owned();
        let request = format!("{options:?} {file} {}", options.passphrase);
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        Ok(NodeId::from_random(7))
    }

    async fn leave(&self, force: bool) -> Result<(), SwarmError> {
        if force { Ok(()) } else { Err(SwarmError::ManagerNeedsForce { consequence: "It is the last.".into() }) }
    }

    async fn unlock(&self, key: UnlockKey) -> Result<(), SwarmError> {
        if key == UnlockKey([7; 32]) { Ok(()) } else { Err(SwarmError::WrongUnlockKey) }
    }

    async fn wait_until_manager(&self) -> bool {
        if self.cluster.is_none() {
            future::pending::<()>().await;
        }
        true
    }

    fn plans(&self) -> watch::Receiver<Option<Arc<NodePlan>>> {
        self.cluster.as_ref().map_or_else(|| watch::channel(None).1, |cluster| cluster.plans.subscribe())
    }

    async fn attach(&self, attach: AttachContainer) -> Result<(), SwarmError> {
        self.change(|node| Command::AttachContainer(Box::new(AttachContainer { node, ..attach }))).await
    }

    async fn detach(&self, id: TaskId, networks: Vec<NetworkId>) -> Result<(), SwarmError> {
        self.change(|node| Command::DetachContainer { node, id, networks }).await
    }

    fn cluster(&self) -> Option<Arc<dyn ClusterHandle>> {
        self.cluster.clone().map(|cluster| cluster as Arc<dyn ClusterHandle>)
    }
}

#[async_trait]
impl ClusterHandle for InMemoryCluster {
    fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.subscribe()
    }

    async fn catch_up(&self) -> bool {
        !self.is_stale.load(Ordering::Relaxed)
    }

    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        Ok(self.change(|cluster| cluster.apply(command))?)
    }

    fn leader(&self) -> Option<NodeId> {
        Some(self.change(|cluster| cluster.first_node()))
    }

    fn is_manager_reachable(&self, _node: &NodeId) -> bool {
        true
    }

    fn join_token(&self, role: Role) -> String {
        format!("SWMTKN-1-{role:?}")
    }

    async fn rotate_token(&self, role: Role) -> Result<String, ProposeError> {
        self.propose(Command::RotateToken { role, secret: "rotated".into() }).await?;
        Ok(self.join_token(role))
    }

    async fn rotate_root(
        &self,
        version: u64,
        spec: ClusterSpec,
        own: Option<(String, String)>,
    ) -> Result<(), RotateError> {
        let (ca_cert_pem, key_pem) = own.unwrap_or(("new".into(), "key".into()));
        let (ca_key_sealed, cross_signed_pem) = (key_pem.into_bytes(), "cross".into());
        let (worker_secret, manager_secret) = ("worker".into(), "manager".into());
        let rotation = RootRotation { ca_cert_pem, ca_key_sealed, cross_signed_pem, worker_secret, manager_secret };
        let rotation = Box::new(rotation);
        self.propose(Command::RotateRoot { version, spec, rotation }).await?;
        Ok(())
    }

    async fn task_logs(&self, task: &TaskId, options: LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError> {
        *self.log_options.lock().unwrap_or_else(PoisonError::into_inner) = Some(options);
        let line = Bytes::from(format!("I am {task}"));
        Ok(stream::iter([LogRecord { time_ns: 1, stderr: false, line }]).boxed())
    }
}

/// The docker network of a network has its name with a prefix.
struct DockerNetworks;

impl ContainerNetworks for DockerNetworks {
    fn docker_network<'a>(&'a self, network: &'a NetworkPlan) -> BoxFuture<'a, Result<String, String>> {
        future::ready(Ok(format!("docker-{}", network.name))).boxed()
    }
}

struct Fixture {
    router: Router,
    member: Arc<TestMember>,
    announced: Arc<Announced>,
}

impl Fixture {
    fn new(membership: Membership, cluster: Option<fixture::TestCluster>) -> Self {
        Self::with_engine(membership, cluster, None)
    }

    fn with_engine(membership: Membership, cluster: Option<fixture::TestCluster>, engine: Option<PathBuf>) -> Self {
        let cluster = cluster.map(|cluster| {
            let state = watch::Sender::new(Arc::new(cluster.state.clone()));
            let node = cluster.first_node();
            let plans = watch::Sender::new(plan(&cluster.state, &node).map(Arc::new));
            Arc::new(InMemoryCluster {
                cluster: Mutex::new(cluster),
                state,
                plans,
                log_options: Mutex::default(),
                is_stale: AtomicBool::default(),
            })
        });
        let mut machine = fixture::description(&[]);
        machine.engine_labels = [("zone".to_owned(), "a".to_owned())].into();
        let report = NodeReport { description: Some(machine), ..NodeReport::default() };
        let member =
            Arc::new(TestMember { membership, cluster, report, plan: Mutex::default(), requests: Mutex::default() });
        let node = LocalNode {
            hostname: "n1".parse().expect("a name"),
            version: "0.1.0".into(),
            runtime: "process".into(),
            data_dir: "/var/lib/weft".into(),
            engine,
            networks: Some(Arc::new(DockerNetworks)),
        };
        let announced = Arc::new(Announced::new(node.engine.clone()));
        let router = super::routes_with(Arc::clone(&member) as Arc<dyn Member>, node, Arc::clone(&announced));
        Self { router, member, announced }
    }

    fn manager() -> Self {
        Self::manager_with(None)
    }

    /// A manager with a container engine, which listens on this socket.
    fn manager_with(engine: Option<PathBuf>) -> Self {
        let cluster = fixture::TestCluster::new();
        let node = cluster.first_node();
        let id = cluster.state.cluster.as_ref().expect("a cluster").id.clone();
        let addr = cluster.state.nodes[&node].addr;
        let warning = String::new();
        let membership = Membership::Active { node, cluster: id, role: Role::Manager, addr, warning };
        Self::with_engine(membership, Some(cluster), engine)
    }

    fn change<T>(&self, change: impl FnOnce(&mut fixture::TestCluster) -> T) -> T {
        self.member.cluster.as_ref().expect("a manager").change(change)
    }

    /// The options of the last request for logs.
    fn log_options(&self) -> LogOptions {
        let cluster = self.member.cluster.as_ref().expect("a manager");
        cluster.log_options.lock().unwrap_or_else(PoisonError::into_inner).clone().expect("a request for logs")
    }

    async fn call(&self, method: Method, path: &str, body: Option<Value>) -> (StatusCode, Value) {
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = Request::builder().method(method).uri(path).body(body).expect("a request");
        let response = self.router.clone().oneshot(request).await.expect("an answer");
        let status = response.status();
        let bytes = response.into_body().collect().await.expect("a body").to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        (status, serde_json::from_slice(&bytes).unwrap_or(Value::String(text)))
    }

    /// The header `Warning` of the answer.
    async fn warning(&self, path: &str) -> Option<String> {
        let request = Request::builder().uri(path).body(Body::empty()).expect("a request");
        let response = self.router.clone().oneshot(request).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        response.headers().get("Warning").map(|value| value.to_str().expect("a text").to_owned())
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call(Method::GET, path, None).await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, value) = self.call(Method::POST, path, Some(body)).await;
        assert!(status.is_success(), "{path}: {value}");
        value
    }

    async fn refused(&self, method: Method, path: &str, body: Option<Value>, status: u16, text: &str) {
        let (found, value) = self.call(method, path, body).await;
        let message = value["message"].as_str().unwrap_or_default();
        assert_eq!((found.as_u16(), message.contains(text)), (status, true), "{path}: {message:?} instead of {text:?}");
    }

    async fn network(&self, name: &str) -> String {
        let made = self.post("/networks/create", json!({"Name": name, "Driver": "overlay"})).await;
        made["Id"].as_str().expect("an id").to_owned()
    }
}

/// The body that the docker client sends for `service create --name NAME IMAGE`, with its empty
/// parts.
fn service(name: &str) -> Value {
    json!({
        "Name": name,
        "Labels": {},
        "TaskTemplate": {
            "ContainerSpec": {
                "Image": "weft/whoami:latest", "Labels": null, "Env": null, "DNSConfig": {}, "Init": null,
                "Healthcheck": null, "Isolation": "default",
            },
            "Resources": {"Limits": {}, "Reservations": {}},
            "RestartPolicy": {"Condition": "any", "Delay": 5_000_000_000u64, "MaxAttempts": 0},
            "Placement": {},
            "ForceUpdate": 0,
            "Runtime": "container",
        },
        "Mode": {"Replicated": {"Replicas": 2}},
        "EndpointSpec": {"Mode": "vip", "Ports": [
            {"Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8080, "PublishMode": "ingress"},
        ]},
    })
}

fn with(mut spec: Value, path: &str, value: Value) -> Value {
    let (parent, field) = path.rsplit_once('/').expect("a path");
    spec.pointer_mut(parent).expect(path)[field] = value;
    spec
}
