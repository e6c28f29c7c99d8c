//! The routes against a table in memory: what clients send and what they must get.

mod bodies;
mod booleans;
mod cluster;
mod engine;
mod fields;
mod networks;
mod services;
mod system;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream, stream::BoxStream};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt as _;
use weft_model::{
    Applied, ClusterState, Command, LogError, LogOptions, LogRecord, NodeId, TaskId, command::ObjectKind, spec::Role,
};

use super::{
    LocalNode,
    cluster::{ClusterHandle, Member},
};
use crate::{
    fixture,
    swarm::{InitOptions, JoinOptions, Membership, ProposeError, SwarmError},
};

/// A manager, a worker or no member, as `table` and `membership` say.
struct Fake {
    membership: Membership,
    table: Option<Arc<Memory>>,
    asked: Mutex<Vec<String>>,
}

/// The real table, without the cluster around it.
struct Memory {
    table: Mutex<fixture::TestCluster>,
    state: watch::Sender<Arc<ClusterState>>,
    log_options: Mutex<Option<LogOptions>>,
}

impl Memory {
    fn change<T>(&self, change: impl FnOnce(&mut fixture::TestCluster) -> T) -> T {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = change(&mut table);
        self.state.send_replace(Arc::new(table.state.clone()));
        changed
    }
}

#[async_trait]
impl Member for Fake {
    fn membership(&self) -> Membership {
        self.membership.clone()
    }

    fn remotes(&self) -> Vec<(NodeId, SocketAddr)> {
        Vec::new()
    }

    async fn init(&self, options: InitOptions) -> Result<NodeId, SwarmError> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{options:?}"));
        Ok(NodeId::from_random(7))
    }

    async fn join(&self, options: JoinOptions) -> Result<(), SwarmError> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{options:?}"));
        Ok(())
    }

    async fn leave(&self, force: bool) -> Result<(), SwarmError> {
        if force { Ok(()) } else { Err(SwarmError::ManagerNeedsForce { consequence: "It is the last.".into() }) }
    }

    async fn table_arrives(&self) {}

    fn table(&self) -> Option<Arc<dyn ClusterHandle>> {
        self.table.clone().map(|table| table as Arc<dyn ClusterHandle>)
    }
}

#[async_trait]
impl ClusterHandle for Memory {
    fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.state.subscribe()
    }

    async fn catch_up(&self) -> bool {
        true
    }

    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        Ok(self.change(|table| table.apply(command))?)
    }

    fn standing(&self, node: &NodeId) -> (Option<NodeId>, bool) {
        (Some(node.clone()), true)
    }

    fn join_token(&self, role: Role) -> String {
        format!("SWMTKN-1-{role:?}")
    }

    async fn rotate_token(&self, role: Role) -> Result<String, ProposeError> {
        self.propose(Command::RotateToken { role, secret: "rotated".into() }).await?;
        Ok(self.join_token(role))
    }

    async fn task_logs(&self, task: &TaskId, options: LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError> {
        *self.log_options.lock().unwrap_or_else(PoisonError::into_inner) = Some(options);
        let line = Bytes::from(format!("I am {task}"));
        Ok(stream::iter([LogRecord { time_ns: 1, stderr: false, line }]).boxed())
    }
}

struct Fixture {
    router: Router,
    fake: Arc<Fake>,
}

impl Fixture {
    fn new(membership: Membership, table: Option<fixture::TestCluster>) -> Self {
        Self::with_engine(membership, table, None)
    }

    fn with_engine(membership: Membership, table: Option<fixture::TestCluster>, engine: Option<PathBuf>) -> Self {
        let table = table.map(|table| {
            let state = watch::Sender::new(Arc::new(table.state.clone()));
            Arc::new(Memory { table: Mutex::new(table), state, log_options: Mutex::default() })
        });
        let fake = Arc::new(Fake { membership, table, asked: Mutex::default() });
        let node = LocalNode {
            hostname: "n1".parse().expect("a name"),
            version: "0.1.0".into(),
            runtime: "process".into(),
            data_dir: "/var/lib/weft".into(),
            engine,
        };
        Self { router: super::routes(Arc::clone(&fake) as Arc<dyn Member>, node), fake }
    }

    fn manager() -> Self {
        let table = fixture::TestCluster::new();
        let node = table.first_node();
        let (cluster, addr) =
            (table.state.cluster.as_ref().expect("a cluster").id.clone(), table.state.nodes[&node].addr);
        Self::new(Membership::Active { node, cluster, role: Role::Manager, addr }, Some(table))
    }

    fn change<T>(&self, change: impl FnOnce(&mut fixture::TestCluster) -> T) -> T {
        self.fake.table.as_ref().expect("a manager").change(change)
    }

    /// How the logs of a task were last asked for.
    fn log_options(&self) -> LogOptions {
        let cluster = self.fake.table.as_ref().expect("a manager");
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

/// What the docker client sends for `service create --name NAME IMAGE`, empty parts included.
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
