//! What a request asks for: the networks of the cluster that it names. Reserves their addresses,
//! and rewrites the request for the engine.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};
use weft_model::{
    CONTAINER_GATEWAY_OPTION, CONTAINER_LINK_OPTION, CONTAINER_OPTION, NodeId, Rejection, TaskId,
    command::{AttachContainer, WantedLink},
    plan::NetworkPlan,
    state::ContainerIdentity,
};

use super::{
    super::{Api, error::ApiError, features},
    named::{docker_network, is_builtin, resolve},
    reserve::release,
};
use crate::swarm::{ProposeError, SwarmError};

/// How long a request waits for an address that was freed a moment ago: that of a container which
/// another one replaces.
const QUARANTINE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long it waits for an address that another container has: it may have been removed a moment
/// ago.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause before the next attempt. Each one costs a log entry.
const QUARANTINE_POLL: Duration = Duration::from_millis(500);

/// The parts of a request to create a container that are about networks.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Creation {
    mac_address: Option<String>,
    host_config: Option<HostConfig>,
    networking_config: Option<NetworkingConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    network_mode: Option<String>,
    port_bindings: Option<Map<String, Value>>,
    publish_all_ports: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkingConfig {
    endpoints_config: Option<BTreeMap<String, Option<Endpoint>>>,
}

/// What a request says of a container on one network.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Endpoint {
    #[serde(rename = "IPAMConfig")]
    ipam_config: Option<Addresses>,
    links: Option<Vec<String>>,
    aliases: Option<Vec<String>>,
    mac_address: Option<String>,
    driver_opts: Option<Map<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
struct Addresses {
    #[serde(rename = "IPv4Address", default)]
    v4: Option<String>,
    #[serde(rename = "IPv6Address", default)]
    v6: Option<String>,
    #[serde(rename = "LinkLocalIPs", default)]
    link_local: Option<Vec<String>>,
}

/// The networks of the cluster that a request names.
pub(super) struct Wanted {
    pub(super) networks: Vec<WantedNetwork>,
    /// How many networks of the engine's own the container is on.
    pub(super) others: usize,
}

pub(super) struct WantedNetwork {
    /// The name that the request has for the network.
    key: String,
    pub(super) plan: NetworkPlan,
    link: WantedLink,
    docker_network: String,
}

/// The settings of one endpoint that the cluster chooses.
pub(super) struct Settings {
    addresses: Value,
    options: Value,
}

impl Wanted {
    /// `None` if the request names no network of the cluster.
    pub(super) async fn of_creation(api: &Api, creation: &Creation) -> Result<Option<Self>, ApiError> {
        let none = HostConfig::default();
        let host = creation.host_config.as_ref().unwrap_or(&none);
        let mode = host.network_mode.as_deref().unwrap_or_default();
        let endpoints = creation.networking_config.as_ref().and_then(|config| config.endpoints_config.as_ref());
        let mut wanted = Self { networks: Vec::new(), others: 0 };
        let mut mode_is_cluster = false;
        let default = Endpoint::default();
        let given = endpoints.into_iter().flatten().map(|(key, endpoint)| (key.as_str(), endpoint.as_ref()));
        // Beside chosen endpoints, a mode that the engine would replace by them does not count.
        let has_endpoints = endpoints.is_some_and(|endpoints| !endpoints.is_empty());
        let is_listed = endpoints.is_some_and(|endpoints| endpoints.contains_key(mode));
        let mode_alone = (!(is_listed || has_endpoints && is_builtin(mode))).then_some((mode, None));
        for (key, endpoint) in given.chain(mode_alone) {
            match resolve(api, key).await? {
                Some(network) => {
                    mode_is_cluster |= key == mode;
                    let docker_network = docker_network(api, &network).await?;
                    wanted.add(key.to_owned(), network, endpoint.unwrap_or(&default), docker_network)?;
                }
                None => wanted.others += 1,
            }
        }
        if wanted.networks.is_empty() {
            return Ok(None);
        }
        if mode_is_cluster && creation.mac_address.as_ref().is_some_and(|mac| !mac.is_empty()) {
            return Err(features::CHOSEN_MACS.refusal());
        }
        let publishes = host.publish_all_ports == Some(true)
            || host.port_bindings.as_ref().is_some_and(|bindings| !bindings.is_empty());
        if wanted.others == 0 && publishes {
            return Err(features::CONTAINER_PORTS.refusal());
        }
        Ok(Some(wanted))
    }

    pub(super) fn add(
        &mut self,
        key: String,
        plan: NetworkPlan,
        endpoint: &Endpoint,
        docker_network: String,
    ) -> Result<(), ApiError> {
        let is_given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
        if is_given(&endpoint.links) {
            return Err(features::CONTAINER_LINKS.refusal());
        }
        if endpoint.mac_address.as_ref().is_some_and(|mac| !mac.is_empty()) {
            return Err(features::CHOSEN_MACS.refusal());
        }
        if endpoint.driver_opts.as_ref().is_some_and(|options| !options.is_empty()) {
            return Err(features::ENDPOINT_OPTIONS.refusal());
        }
        let none = Addresses::default();
        let addresses = endpoint.ipam_config.as_ref().unwrap_or(&none);
        if is_given(&addresses.link_local) {
            return Err(features::LINK_LOCAL_ADDRESSES.refusal());
        }
        let link = WantedLink {
            network: plan.id.clone(),
            v4: parse(addresses.v4.as_deref(), "IPv4")?,
            v6: parse(addresses.v6.as_deref(), "IPv6")?,
            aliases: endpoint.aliases.clone().unwrap_or_default(),
        };
        self.networks.push(WantedNetwork { key, plan, link, docker_network });
        Ok(())
    }

    /// Attaches the container to the networks. Returns the settings of the endpoints, in the order
    /// of the networks.
    pub(super) async fn attach(
        &mut self,
        api: &Api,
        id: &TaskId,
        identity: Option<ContainerIdentity>,
        gateway: bool,
    ) -> Result<Vec<Settings>, ApiError> {
        let networks: Vec<_> = self.networks.iter().map(|wanted| wanted.link.clone()).collect();
        // The swarm replaces the node by this one.
        let node = NodeId::from_random(0);
        let attach = AttachContainer { node, id: id.clone(), identity, networks, present: Vec::new(), running: None };
        let began = Instant::now();
        let deadline = began + QUARANTINE_TIMEOUT;
        loop {
            match api.member.attach(attach.clone()).await {
                Ok(()) => break,
                Err(SwarmError::Change(ProposeError::Rejected(Rejection::AddressInQuarantine { .. })))
                    if Instant::now() < deadline =>
                {
                    sleep(QUARANTINE_POLL).await;
                }
                // The node of a container that was removed a moment ago is about to say so.
                Err(SwarmError::Change(ProposeError::Rejected(Rejection::AddressInUse { .. })))
                    if began.elapsed() < RELEASE_TIMEOUT =>
                {
                    sleep(QUARANTINE_POLL).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let plan = api.member.plans().borrow().clone();
        let attached = plan.as_ref().and_then(|plan| plan.attached.iter().find(|container| container.id == *id));
        let links = attached.map(|container| container.links.as_slice()).unwrap_or_default();
        let settings = self.networks.iter().filter_map(|wanted| {
            let link = links.iter().find(|link| link.attachment.network == wanted.plan.id)?;
            let addr = link.attachment.addr;
            let mut options = Map::new();
            options.insert(CONTAINER_OPTION.to_owned(), id.to_string().into());
            options.insert(CONTAINER_LINK_OPTION.to_owned(), link.index.to_string().into());
            if gateway {
                options.insert(CONTAINER_GATEWAY_OPTION.to_owned(), "1".into());
            }
            let mut addresses = json!({ "IPv6Address": addr.v6.to_string() });
            if let Some(v4) = addr.v4 {
                addresses["IPv4Address"] = v4.to_string().into();
            }
            Some(Settings { addresses, options: Value::Object(options) })
        });
        let settings: Vec<_> = settings.collect();
        if settings.len() == self.networks.len() {
            return Ok(settings);
        }
        let networks = self.networks.iter().map(|wanted| wanted.plan.id.clone()).collect();
        release(api, id, networks).await;
        Err(ApiError::Unavailable("the plan of this node has changed: try again".to_owned()))
    }
}

/// Replaces the names of the cluster's networks by the docker networks, and adds the settings.
pub(super) fn rewrite(body: &mut Value, wanted: &Wanted, settings: Vec<Settings>) {
    if body["NetworkingConfig"]["EndpointsConfig"].is_null() {
        if body["NetworkingConfig"].is_null() {
            body["NetworkingConfig"] = json!({});
        }
        body["NetworkingConfig"]["EndpointsConfig"] = json!({});
    }
    for (wanted, settings) in wanted.networks.iter().zip(settings) {
        if body["HostConfig"]["NetworkMode"] == wanted.key.as_str() {
            body["HostConfig"]["NetworkMode"] = wanted.docker_network.as_str().into();
        }
        let Some(endpoints) = body["NetworkingConfig"]["EndpointsConfig"].as_object_mut() else { continue };
        let mut endpoint = endpoints.remove(&wanted.key).unwrap_or(Value::Null);
        apply(&mut endpoint, &settings);
        endpoints.insert(wanted.docker_network.clone(), endpoint);
    }
}

pub(super) fn apply(endpoint: &mut Value, settings: &Settings) {
    if !endpoint.is_object() {
        *endpoint = json!({});
    }
    endpoint["IPAMConfig"] = settings.addresses.clone();
    endpoint["DriverOpts"] = settings.options.clone();
}

fn parse<T: std::str::FromStr>(text: Option<&str>, family: &str) -> Result<Option<T>, ApiError> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| ApiError::Invalid(format!("{text} is no {family} address"))),
    }
}
