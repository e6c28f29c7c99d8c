//! The server of the Engine API. The `docker` client, its SDKs and the `weft` command line control
//! the cluster through it.
//!
//! The daemon builds [`router`] and serves it on a socket with [`serve()`]. Only this module knows
//! the paths, bodies, statuses and error texts of the API. It makes no decisions about the cluster:
//! it converts a write to a [`weft_model::Command`], and answers a read from the cluster state. It
//! answers requests about the cluster, and forwards all other requests to the container engine of
//! the node, if there is one.
//!
//! It must never ignore what the Engine API has: it refuses each field, flag or path that weft does
//! not support, and names it in the error. Fields that the Engine API does not have are ignored, as
//! in moby, with a warning in the answer or in the log.
//!
//! `wire` only converts between JSON and weft's types. Each kind of object has a file with its
//! handlers. `engine` forwards requests, `attach` those that put containers on networks of the
//! cluster. `docker_networks` knows by which of the engine's networks containers are on networks of
//! the cluster, `announce` says which version of the API holds for weft and the engine, and `serve`
//! accepts connections.

mod cluster;
mod error;
mod features;
mod version;
mod query;
mod body;
mod find;
mod address;
mod wire;
mod engine;
mod announce;
mod docker_networks;
mod attach;
mod serve;
mod credentials;
mod distribution;
mod system;
mod swarm;
mod nodes;
mod networks;
mod dependencies;
mod containers;
mod services;
mod tasks;
mod logs;
mod events;
mod unsupported;
pub mod fuzzing;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, header},
    middleware::{self, Next},
    response::Response,
    routing::{any, get, post},
};
use tokio::time::timeout;
use weft_model::{ClusterState, ContainerNetworks, NodeId, NodeName, spec::Role};

use self::{
    announce::Announced,
    cluster::{ClusterHandle, Member},
    error::ApiError,
};
use crate::swarm::{Membership, Swarm, SwarmError};

pub use serve::serve;

/// How long a request waits at most until a newly promoted manager has the cluster state.
const PROMOTION_TIMEOUT: Duration = Duration::from_secs(5);

/// What the API reports about the node that it runs on.
#[derive(Clone)]
pub struct LocalNode {
    pub hostname: NodeName,
    /// The version of weft.
    pub version: String,
    /// The runtime of tasks: `process` or `docker`.
    pub runtime: String,
    pub data_dir: PathBuf,
    /// The socket of the local container engine, if there is one.
    pub engine: Option<PathBuf>,
    /// Connects containers of the engine to networks of the cluster. `None` if the tasks are
    /// processes.
    pub networks: Option<Arc<dyn ContainerNetworks>>,
}

impl std::fmt::Debug for LocalNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalNode")
            .field("hostname", &self.hostname)
            .field("runtime", &self.runtime)
            .finish_non_exhaustive()
    }
}

/// The state that each handler gets.
#[derive(Clone)]
struct Api {
    member: Arc<dyn Member>,
    node: Arc<LocalNode>,
    announced: Arc<Announced>,
    attaching: Arc<attach::Locks>,
    history: Arc<events::History>,
}

impl Api {
    /// The handle to the cluster state. Only managers have it.
    ///
    /// # Errors
    /// If this node does not have the cluster state. The error says why.
    fn cluster(&self) -> Result<Arc<dyn ClusterHandle>, ApiError> {
        if let Some(cluster) = self.member.cluster() {
            return Ok(cluster);
        }
        Err(match self.member.membership() {
            Membership::None => ApiError::NotInSwarm,
            Membership::Active { role: Role::Worker, .. } => ApiError::Worker,
            Membership::Active { role: Role::Manager, .. } => {
                ApiError::Unavailable("this manager is still catching up with the others: try again shortly".into())
            }
            Membership::Joining => {
                ApiError::Unavailable("this node is joining a swarm: try again when `weft info` shows it active".into())
            }
            Membership::Locked => SwarmError::Locked.into(),
            Membership::Error(text) => ApiError::Unavailable(text),
        })
    }

    /// The cluster state as it is now.
    fn state(&self) -> Result<Arc<ClusterState>, ApiError> {
        Ok(Arc::clone(&self.cluster()?.state().borrow()))
    }

    /// The id of this node, if it is in a cluster.
    fn node_id(&self) -> Option<NodeId> {
        match self.member.membership() {
            Membership::Active { node, .. } => Some(node),
            _ => None,
        }
    }
}

/// All routes of the API, with or without a version before the path. The caller must be in a tokio
/// runtime: a task records the events of the cluster.
pub fn router(swarm: Swarm, node: LocalNode) -> Router {
    routes(Arc::new(swarm), node)
}

fn routes(member: Arc<dyn Member>, node: LocalNode) -> Router {
    let announced = Arc::new(Announced::new(node.engine.clone()));
    routes_with(member, node, announced)
}

fn routes_with(member: Arc<dyn Member>, node: LocalNode, announced: Arc<Announced>) -> Router {
    let history = Arc::default();
    tokio::spawn(events::record(Arc::downgrade(&member), Arc::clone(&history)));
    let (node, attaching) = (Arc::new(node), Arc::default());
    let api = Api { member, node, announced: Arc::clone(&announced), attaching, history };
    let routes = Router::new()
        .route("/info", get(system::info))
        .route("/events", get(events::stream))
        .route("/swarm", get(swarm::inspect))
        .route("/swarm/init", post(swarm::init))
        .route("/swarm/join", post(swarm::join))
        .route("/swarm/leave", post(swarm::leave))
        .route("/swarm/update", post(swarm::update))
        .route("/swarm/backup", post(swarm::back_up))
        .route("/swarm/restore", post(swarm::restore))
        .route("/swarm/unlockkey", get(swarm::unlock_key))
        .route("/swarm/unlock", post(swarm::unlock))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{id}", get(nodes::inspect).delete(nodes::remove))
        .route("/nodes/{id}/update", post(nodes::update))
        .route("/networks", get(networks::list))
        .route("/networks/create", post(networks::create))
        .route("/networks/prune", post(networks::prune))
        .route("/networks/{id}", get(networks::inspect).delete(networks::remove))
        .route("/networks/{id}/connect", post(attach::connect))
        .route("/networks/{id}/disconnect", post(attach::disconnect))
        .route("/containers/json", get(containers::list).fallback(engine::forward))
        .route("/containers/{id}/json", get(containers::inspect).fallback(engine::forward))
        .route("/system/df", get(containers::disk_usage).fallback(engine::forward))
        .route("/services", get(services::list))
        .route("/services/create", post(services::create))
        .route("/services/{id}", get(services::inspect).delete(services::remove))
        .route("/services/{id}/update", post(services::update))
        .route("/services/{id}/logs", get(logs::of_service))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{id}", get(tasks::inspect))
        .route("/tasks/{id}/logs", get(logs::of_task))
        .route("/plugins", any(unsupported::plugins))
        .route("/plugins/{*rest}", any(unsupported::plugins));
    let routes = dependencies::add_routes(routes)
        .route_layer(middleware::from_fn_with_state(api.clone(), catch_up))
        // Clients send these requests to any node at any time. They must not wait for the cluster,
        // so they are added after `catch_up`.
        .route("/_ping", get(system::ping))
        .route("/version", get(system::version))
        .route("/distribution/{*rest}", get(distribution::inspect))
        // Most containers are on no network of the cluster.
        .route("/containers/create", post(attach::create))
        .fallback(engine::forward)
        .with_state(api);
    serve::wrap(routes, announced)
}

/// The warning in an answer from a cluster state that no leader has confirmed (RFC 7234, section
/// 5.5.1).
const STALE: &str = "110 weft \"the managers have no quorum: this answer may be out of date\"";

/// Waits before each request until this manager has all earlier writes, including those that
/// clients sent to other managers. If there is no leader, the answer is from the state that this
/// manager has, and says so in its header `Warning`.
async fn catch_up(State(api): State<Api>, request: Request, next: Next) -> Response {
    let is_manager = matches!(api.member.membership(), Membership::Active { role: Role::Manager, .. });
    if is_manager
        && api.member.cluster().is_none()
        && timeout(PROMOTION_TIMEOUT, api.member.wait_until_manager()).await.is_err()
    {
        tracing::debug!(path = request.uri().path(), "manager has no cluster state yet");
    }
    let mut is_stale = false;
    if let Some(cluster) = api.member.cluster() {
        is_stale = !cluster.catch_up().await;
    }
    let mut response = next.run(request).await;
    if is_stale {
        response.headers_mut().insert(header::WARNING, HeaderValue::from_static(STALE));
    }
    response
}
