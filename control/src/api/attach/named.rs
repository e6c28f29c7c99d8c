//! Finds the networks of the cluster that users name, and the docker networks that stand for them.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use weft_model::{NodePlan, command::ObjectKind, plan::NetworkPlan, state::Network};

use super::super::{Api, docker_networks, error::ApiError, features, find};

/// How long a request waits until the plan of this node has a network that was created a moment
/// ago.
const PLAN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a worker waits for a network that neither its plan nor its engine has.
const UNKNOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// The fewest characters of an id by which a network is found.
const SHORT_ID_LEN: usize = 12;

/// The network of the cluster with this name or id. `None` for the engine's own networks, and if
/// the engine is to say that there is none.
///
/// # Errors
/// If the text names a docker network that stands for one of the cluster: users do not know it.
pub(super) async fn resolve(api: &Api, text: &str) -> Result<Option<NetworkPlan>, ApiError> {
    if is_builtin(text) {
        return Ok(None);
    }
    if api.node_id().is_some()
        && let Some(network) = find_network(api, text).await?
    {
        return Ok(Some(network));
    }
    if docker_networks::hides(api, text).await? {
        return Err(ApiError::NotFound { kind: ObjectKind::Network, name: text.to_owned() });
    }
    Ok(None)
}

/// The network of the cluster with this name or id.
async fn find_network(api: &Api, text: &str) -> Result<Option<NetworkPlan>, ApiError> {
    let mut plans = api.member.plans();
    if let Some(cluster) = api.member.cluster() {
        cluster.catch_up().await;
        let state = cluster.state().borrow().clone();
        let is_named = |network: &&Network| network.spec.name.as_str() == text || text.len() >= SHORT_ID_LEN;
        let Some(network) = find::network(&state, text).ok().filter(is_named) else { return Ok(None) };
        // The plan has what the runtime needs, a moment after the state.
        let has = |plan: &Option<Arc<NodePlan>>| {
            plan.as_ref().is_some_and(|plan| plan.networks.iter().any(|planned| planned.id == network.id))
        };
        let waited = timeout(PLAN_TIMEOUT, plans.wait_for(has)).await;
        let plan = waited.ok().and_then(Result::ok).and_then(|plan| plan.clone());
        let planned = plan.and_then(|plan| plan.networks.iter().find(|planned| planned.id == network.id).cloned());
        return planned
            .map(Some)
            .ok_or_else(|| ApiError::Unavailable(format!("this node does not know network {text} yet: try again")));
    }
    // A worker knows the networks of its plan.
    let find = |plan: &Option<Arc<NodePlan>>| {
        let networks = || plan.iter().flat_map(|plan| &plan.networks);
        let named = networks().find(|network| network.id.as_str() == text || network.name.as_str() == text);
        let by_prefix = || {
            let mut found = networks().filter(|n| text.len() >= SHORT_ID_LEN && n.id.as_str().starts_with(text));
            found.next().filter(|_| found.next().is_none())
        };
        named.or_else(by_prefix).cloned()
    };
    let known = find(&plans.borrow());
    if known.is_some() || docker_networks::inspect(api, text).await?.is_some() {
        return Ok(known);
    }
    // The network may have been created a moment ago.
    let waited = timeout(UNKNOWN_TIMEOUT, plans.wait_for(|plan| find(plan).is_some())).await;
    Ok(waited.ok().and_then(Result::ok).and_then(|plan| find(&plan)))
}

/// Whether this is the mode of a container that is on no network that a user has created.
pub(super) fn is_builtin(text: &str) -> bool {
    matches!(text, "" | "default" | "bridge" | "host" | "none") || text.starts_with("container:")
}

/// The docker network of a network of the cluster.
pub(super) async fn docker_network(api: &Api, network: &NetworkPlan) -> Result<String, ApiError> {
    let Some(networks) = api.node.networks.as_ref().filter(|_| api.node.engine.is_some()) else {
        return Err(features::CONNECTED_CONTAINERS.refusal());
    };
    networks.docker_network(network).await.map_err(ApiError::Unavailable)
}
