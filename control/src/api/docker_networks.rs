//! The docker networks by which the engine of this node connects containers to networks of the
//! cluster. The docker runtime makes them, one for each network of the cluster that a container of
//! this node is on, with a label that names the cluster's network.
//!
//! Users see only the network of the cluster, once and under its own id. So the handlers that show
//! or forward something of the engine translate one into the other with [`DockerNetworks`]:
//! `networks`, `containers` and `events`. No request of a client may reach a docker network of this
//! kind: the runtime removes it with the cluster's network, and containers that are stopped hold
//! its id until then.

use std::path::Path;

use axum::{
    extract::{Request, State},
    response::Response,
};
use serde_json::{Value, json};
use weft_model::{NETWORK_LABEL, NetworkId, NodePlan};

use super::{
    Api, engine,
    error::ApiError,
    query::{self, encoded},
    version::ApiVersion,
};

/// The driver of these networks, as the engine's events name it.
const DRIVER: &str = "weft";
/// Length of the suffix that the runtime gives to a name that is taken: a prefix of the network's
/// id.
const SUFFIX_LEN: usize = 8;

/// A docker network, and the network of the cluster that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DockerNetwork {
    /// The engine's id of it.
    pub(super) docker_id: String,
    /// Its name in the engine: that of the cluster's network, and a suffix if that was taken.
    pub(super) docker_name: String,
    pub(super) network: NetworkId,
    /// The name of the cluster's network.
    pub(super) name: String,
    /// The network was created without IPv6. Its containers have IPv6 addresses nevertheless, which
    /// users do not see.
    pub(super) hides_v6: bool,
}

impl DockerNetwork {
    /// Reads a network of the engine. `None` if it is a network of the user.
    fn read(found: &Value, plan: Option<&NodePlan>) -> Option<Self> {
        let network: NetworkId = found["Labels"].get(NETWORK_LABEL)?.as_str()?.parse().ok()?;
        let (docker_id, docker_name) = (found["Id"].as_str()?.to_owned(), found["Name"].as_str()?.to_owned());
        let planned = plan.and_then(|plan| plan.networks.iter().find(|planned| planned.id == network));
        let suffix = format!(".{}", &network.as_str()[..SUFFIX_LEN]);
        // The cluster's network may be gone while its last containers stop.
        let name = planned.map_or_else(
            || docker_name.strip_suffix(&suffix).unwrap_or(&docker_name).to_owned(),
            |planned| planned.name.to_string(),
        );
        let hides_v6 = planned.is_some_and(|planned| !planned.ipv6);
        Some(Self { docker_id, docker_name, network, name, hides_v6 })
    }
}

/// The docker networks of a node.
#[derive(Debug, Clone, Default)]
pub(super) struct DockerNetworks(Vec<DockerNetwork>);

impl DockerNetworks {
    /// Asks the engine of the node. Empty if the node has no engine.
    pub(super) async fn of(api: &Api) -> Result<Self, ApiError> {
        let Some(socket) = &api.node.engine else { return Ok(Self::default()) };
        let filters = json!({"label": [NETWORK_LABEL]}).to_string();
        let found = engine::get_json(socket, &list_path(&filters), None).await?;
        Ok(Self::read(&found, api.member.plan().as_deref()))
    }

    /// Reads the engine's list of networks.
    pub(super) fn read(listed: &Value, plan: Option<&NodePlan>) -> Self {
        let listed = listed.as_array().map(Vec::as_slice).unwrap_or_default();
        Self(listed.iter().filter_map(|found| DockerNetwork::read(found, plan)).collect())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &DockerNetwork> {
        self.0.iter()
    }

    pub(super) fn of_docker_id(&self, id: &str) -> Option<&DockerNetwork> {
        self.0.iter().find(|network| network.docker_id == id)
    }

    /// The docker network of the cluster's network with this id.
    pub(super) fn of_network(&self, id: &NetworkId) -> Option<&DockerNetwork> {
        self.0.iter().find(|network| network.network == *id)
    }

    /// The docker network of the cluster's network that a user names: by its id, its name, or a
    /// prefix of its id that no other has.
    pub(super) fn named(&self, text: &str) -> Option<&DockerNetwork> {
        let by_id = self.0.iter().find(|network| network.network.as_str() == text);
        let by_name = || self.0.iter().find(|network| network.name == text);
        let by_prefix = || {
            let mut found = self.0.iter().filter(|network| network.network.as_str().starts_with(text));
            found.next().filter(|_| found.next().is_none() && !text.is_empty())
        };
        by_id.or_else(by_name).or_else(by_prefix)
    }
}

/// The networks of the engine that are networks of users. Networks of scope `swarm` are left out:
/// they belong to a Docker Swarm of which the engine is a member, and not to this cluster.
pub(super) async fn networks_of_users(
    socket: &Path,
    filters: &str,
    version: Option<ApiVersion>,
) -> Result<Vec<Value>, ApiError> {
    match engine::get_json(socket, &list_path(filters), version).await? {
        Value::Array(networks) => Ok(networks.into_iter().filter(is_of_user).collect()),
        other => Err(ApiError::Unavailable(format!("the container engine answered with {other}"))),
    }
}

fn is_of_user(network: &Value) -> bool {
    network["Scope"] != "swarm" && !is_of_cluster(network)
}

/// Whether a network of the engine stands for one of the cluster.
fn is_of_cluster(network: &Value) -> bool {
    network["Labels"].get(NETWORK_LABEL).is_some()
}

/// Whether an event of the engine is about a docker network that stands for one of the cluster. It
/// may be gone already.
pub(super) fn is_event_of_cluster(event: &Value) -> bool {
    event["Type"] == "network" && event["Actor"]["Attributes"]["type"] == DRIVER
}

/// Whether the engine would take `text` for a docker network that stands for one of the cluster.
/// Requests with it must not be forwarded.
pub(super) async fn hides(api: &Api, text: &str) -> Result<bool, ApiError> {
    Ok(inspect(api, text).await?.is_some_and(|network| is_of_cluster(&network)))
}

/// The engine's network of this id or name. `None` if it has none.
pub(super) async fn inspect(api: &Api, text: &str) -> Result<Option<Value>, ApiError> {
    let Some(socket) = &api.node.engine else { return Ok(None) };
    let path = format!("/networks/{}", encoded(text));
    engine::find_json(socket, &path, None).await
}

/// Forwards a request to remove unused networks of the engine, which must not remove those that
/// stand for networks of the cluster.
pub(super) async fn forward_prune(api: Api, mut request: Request) -> Result<Response, ApiError> {
    *request.uri_mut() = query::change_filters(request.uri(), |filters| {
        query::add_filter(filters, "label!", NETWORK_LABEL);
    })?;
    engine::forward(State(api), request).await
}

fn list_path(filters: &str) -> String {
    match filters {
        "" => "/networks".to_owned(),
        filters => format!("/networks?filters={}", encoded(filters)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A docker network as an engine of version 20.10 lists it.
    fn listed(docker_id: &str, docker_name: &str, network: &NetworkId) -> Value {
        json!({
            "Name": docker_name, "Id": docker_id, "Scope": "local", "Driver": "weft",
            "Labels": {"weft.network": network.as_str(), "weft.node": "n1"},
        })
    }

    #[test]
    fn only_networks_of_the_user_are_listed() {
        for (network, is_listed) in [
            (json!({"Scope": "local", "Labels": {}}), true),
            (json!({"Scope": "local", "Labels": null}), true),
            (json!({"Scope": "swarm"}), false),
            (json!({"Scope": "local", "Labels": {"weft.network": "an id"}}), false),
        ] {
            assert_eq!(is_of_user(&network), is_listed, "{network}");
        }
    }

    #[test]
    fn filters_are_percent_encoded_in_the_path() {
        assert_eq!(list_path(""), "/networks");
        assert_eq!(list_path(r#"{"name":["a-b_c.d"]}"#), "/networks?filters=%7B%22name%22%3A%5B%22a-b_c.d%22%5D%7D");
    }

    #[test]
    fn a_docker_network_is_found_by_what_users_know_of_the_clusters() {
        let (app, db) = (NetworkId::from_random(1 << 100), NetworkId::from_random(2 << 100));
        let taken = format!("db.{}", &db.as_str()[..SUFFIX_LEN]);
        let all = json!([listed("d1", "app", &app), listed("d2", &taken, &db), {"Name": "bridge", "Id": "d3"}]);
        let networks = DockerNetworks::read(&all, None);
        let docker_id = |text: &str| networks.named(text).map(|network| network.docker_id.as_str());
        assert_eq!(networks.iter().count(), 2);
        assert_eq!(docker_id("app"), Some("d1"));
        assert_eq!(docker_id(app.as_str()), Some("d1"));
        assert_eq!(docker_id(&app.as_str()[..12]), Some("d1"));
        assert_eq!(docker_id("db"), Some("d2"));
        for text in [taken.as_str(), "d1", "bridge", ""] {
            assert_eq!(docker_id(text), None, "{text}");
        }
        assert_eq!(networks.of_docker_id("d2").map(|network| network.name.as_str()), Some("db"));
        assert_eq!(networks.of_network(&db).map(|network| network.docker_name.as_str()), Some(taken.as_str()));
    }
}
