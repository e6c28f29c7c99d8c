//! What users talk to: an Engine API server, so that the `docker` client, its SDKs and `weft` itself drive the cluster.
//!
//! Owns the wire: paths, bodies, statuses, texts of errors. It decides nothing: a write becomes a [`weft_model::Command`],
//! a read is a view of the table. What weft cannot honour it refuses by name and never ignores. Paths of the cluster are
//! answered here, everything else goes to the node's container engine, if there is one. Rooms: `wire` converts, pure;
//! one file for each noun; `engine` passes on; `serve` listens.

mod address;
mod body;
mod cluster;
mod engine;
mod error;
mod events;
mod features;
mod find;
mod logs;
mod networks;
mod nodes;
mod query;
mod serve;
mod services;
mod swarm;
mod system;
mod tasks;
#[cfg(test)]
mod tests;
mod unsupported;
mod wire;

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
    routing::{any, get, post},
};
use tokio::time::timeout;
use weft_model::{NodeName, spec::Role};

use self::{
    cluster::{ClusterHandle, Member},
    error::ApiError,
};
use crate::swarm::{Membership, Swarm};

pub use serve::serve;

/// Newest version of the Engine API that is spoken.
const API_VERSION: ApiVersion = ApiVersion { major: 1, minor: 53 };
/// Oldest: the first with services as they are now.
const MIN_API_VERSION: ApiVersion = ApiVersion { major: 1, minor: 24 };
/// For a manager that was just promoted to hold the table.
const ARRIVAL: Duration = Duration::from_secs(5);

/// `1.53`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct ApiVersion {
    major: u32,
    minor: u32,
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl std::str::FromStr for ApiVersion {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once('.').ok_or(())?;
        Ok(Self { major: major.parse().map_err(|_| ())?, minor: minor.parse().map_err(|_| ())? })
    }
}

/// What the API says of the node that it runs on.
#[derive(Debug, Clone)]
pub struct LocalNode {
    pub hostname: NodeName,
    /// Of weft.
    pub version: String,
    /// What runs the tasks: `process` or `docker`.
    pub runtime: String,
    pub data_dir: PathBuf,
    /// Socket of the local container engine, where there is one.
    pub engine: Option<PathBuf>,
}

/// What every handler gets.
#[derive(Clone)]
struct Api {
    member: Arc<dyn Member>,
    node: Arc<LocalNode>,
}

impl Api {
    /// The table, or why this node has none to show.
    fn table(&self) -> Result<Arc<dyn ClusterHandle>, ApiError> {
        if let Some(table) = self.member.table() {
            return Ok(table);
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
            Membership::Error(text) => ApiError::Unavailable(text),
        })
    }

    /// The table as it is now.
    fn state(&self) -> Result<Arc<weft_model::ClusterState>, ApiError> {
        Ok(Arc::clone(&self.table()?.state().borrow()))
    }
}

/// Everything that the API answers, with or without a version before the path.
pub fn router(swarm: Swarm, node: LocalNode) -> Router {
    routes(Arc::new(swarm), node)
}

/// A reader sees what was written before, on whichever manager. Without a leader it sees what this one knows.
async fn catch_up(State(api): State<Api>, request: Request, next: Next) -> Response {
    let is_manager = matches!(api.member.membership(), Membership::Active { role: Role::Manager, .. });
    if is_manager && api.member.table().is_none() && timeout(ARRIVAL, api.member.table_arrives()).await.is_err() {
        tracing::debug!(path = request.uri().path(), "a manager without a table");
    }
    if let Some(table) = api.member.table()
        && !table.catch_up().await
    {
        tracing::debug!(path = request.uri().path(), "answered from a table that no leader confirmed");
    }
    next.run(request).await
}

fn routes(member: Arc<dyn Member>, node: LocalNode) -> Router {
    let api = Api { member, node: Arc::new(node) };
    let routes = Router::new()
        .route("/info", get(system::info))
        .route("/events", get(events::stream))
        .route("/swarm", get(swarm::inspect))
        .route("/swarm/init", post(swarm::init))
        .route("/swarm/join", post(swarm::join))
        .route("/swarm/leave", post(swarm::leave))
        .route("/swarm/update", post(swarm::update))
        .route("/swarm/unlockkey", get(swarm::unlock_key))
        .route("/swarm/unlock", post(swarm::unlock))
        .route("/nodes", get(nodes::list))
        .route("/nodes/{id}", get(nodes::inspect).delete(nodes::remove))
        .route("/nodes/{id}/update", post(nodes::update))
        .route("/networks", get(networks::list))
        .route("/networks/create", post(networks::create))
        .route("/networks/prune", post(networks::prune))
        .route("/networks/{id}", get(networks::inspect).delete(networks::remove))
        .route("/networks/{id}/connect", post(networks::connect))
        .route("/networks/{id}/disconnect", post(networks::connect))
        .route("/services", get(services::list))
        .route("/services/create", post(services::create))
        .route("/services/{id}", get(services::inspect).delete(services::remove))
        .route("/services/{id}/update", post(services::update))
        .route("/services/{id}/logs", get(logs::of_service))
        .route("/tasks", get(tasks::list))
        .route("/tasks/{id}", get(tasks::inspect))
        .route("/tasks/{id}/logs", get(logs::of_task))
        .route("/secrets", any(unsupported::secrets))
        .route("/secrets/{*rest}", any(unsupported::secrets))
        .route("/configs", any(unsupported::configs))
        .route("/configs/{*rest}", any(unsupported::configs))
        .route("/plugins", any(unsupported::plugins))
        .route("/plugins/{*rest}", any(unsupported::plugins))
        .route("/distribution/{*rest}", any(unsupported::distribution))
        .route_layer(middleware::from_fn_with_state(api.clone(), catch_up))
        // Asked of any node at any time: they wait for nobody.
        .route("/_ping", get(system::ping))
        .route("/version", get(system::version))
        .fallback(engine::pass_on)
        .with_state(api);
    serve::with_versions(routes)
}
