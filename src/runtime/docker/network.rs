//! The networks of the cluster as docker networks: an engine connects a container to nothing else.
//!
//! [`super::DockerRuntime`] calls it. A docker network has the name of the cluster's network, and a
//! label with its id. The driver and the addresses are weft's ([`super::plugin`]).

use std::collections::{BTreeMap, HashMap};

use bollard::{
    Docker,
    models::{
        EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, Network, NetworkConnectRequest, NetworkCreateRequest,
    },
    query_parameters::ListNetworksOptionsBuilder,
};
use weft_model::{
    NETWORK_LABEL, NetworkId, NodeName, TaskId,
    plan::{AttachmentPlan, NetworkPlan},
};

use super::{
    container::NODE_LABEL,
    error::{engine_error, http_status},
    plugin::{DRIVER, LinkOptions, Owner},
};
use crate::runtime::RuntimeError;

/// The version of the API that can create networks without IPv4.
const IPV6_ONLY_API: (usize, usize) = (1, 48);
/// Length of the suffix of a name that is taken: a prefix of the network's id.
const SUFFIX_LEN: usize = 8;

/// The ids of the docker networks of this node, by the ids of the cluster's networks.
pub(super) async fn list(docker: &Docker, node: &NodeName) -> Result<BTreeMap<NetworkId, String>, RuntimeError> {
    let found = of_node(docker, node).await?.into_iter();
    Ok(found.filter_map(|(id, network)| Some((id, network.id?))).collect())
}

/// The docker networks of this node, with the ids of the cluster's networks.
async fn of_node(docker: &Docker, node: &NodeName) -> Result<Vec<(NetworkId, Network)>, RuntimeError> {
    let labels = vec![format!("{NODE_LABEL}={node}"), NETWORK_LABEL.to_owned()];
    let filters = [("label", labels)].into_iter().collect::<HashMap<_, _>>();
    let options = ListNetworksOptionsBuilder::default().filters(&filters).build();
    let found = docker.list_networks(Some(options)).await.map_err(engine_error("list networks"))?;
    let id_of = |network: &Network| network.labels.as_ref()?.get(NETWORK_LABEL)?.parse().ok();
    Ok(found.into_iter().filter_map(|network| Some((id_of(&network)?, network))).collect())
}

/// The ids of the cluster's networks, by the names and by the ids of this node's docker networks.
pub(super) async fn names(docker: &Docker, node: &NodeName) -> Result<BTreeMap<String, NetworkId>, RuntimeError> {
    let found = of_node(docker, node).await?.into_iter();
    let names = found.flat_map(|(id, network)| [network.id, network.name].map(|name| Some((name?, id.clone()))));
    Ok(names.flatten().collect())
}

/// Creates the docker network of a cluster's network. Returns its id. If a docker network of the
/// user has its name, the name gets a suffix.
pub(super) async fn create(docker: &Docker, node: &NodeName, network: &NetworkPlan) -> Result<String, RuntimeError> {
    let action = "create the docker network";
    if !network.subnets.iter().any(|(range, _)| range.is_ipv4()) && !has_api(docker, IPV6_ONLY_API) {
        let reason = format!("{} has no IPv4, which needs Docker 28 or newer", network.name);
        return Err(RuntimeError::Engine { action, reason });
    }
    let name = network.name.to_string();
    match docker.create_network(request(node, network, name.clone())).await {
        Ok(created) => Ok(created.id),
        Err(error) if matches!(http_status(&error), Some(403 | 409)) => {
            let name = format!("{name}.{}", &network.id.as_str()[..SUFFIX_LEN]);
            let created = docker.create_network(request(node, network, name)).await;
            Ok(created.map_err(engine_error(action))?.id)
        }
        Err(error) => Err(engine_error(action)(error)),
    }
}

/// Whether the engine has this version of the API.
pub(super) fn has_api(docker: &Docker, (major, minor): (usize, usize)) -> bool {
    let version = docker.client_version();
    (version.major_version, version.minor_version) >= (major, minor)
}

/// Removes a docker network. Returns `false` if a container uses it.
pub(super) async fn remove(docker: &Docker, id: &str) -> Result<bool, RuntimeError> {
    match docker.remove_network(id).await {
        Ok(()) => Ok(true),
        Err(error) if http_status(&error) == Some(404) => Ok(true),
        Err(error) if matches!(http_status(&error), Some(403 | 409)) => Ok(false),
        Err(error) => Err(engine_error("remove the docker network")(error)),
    }
}

fn request(node: &NodeName, network: &NetworkPlan, name: String) -> NetworkCreateRequest {
    let config = |(range, gateway): (ipnetwork::IpNetwork, std::net::IpAddr)| IpamConfig {
        subnet: Some(range.to_string()),
        gateway: Some(gateway.to_string()),
        ..IpamConfig::default()
    };
    NetworkCreateRequest {
        name,
        driver: Some(DRIVER.to_owned()),
        ipam: Some(Ipam {
            driver: Some(DRIVER.to_owned()),
            config: Some(network.subnets.iter().map(config).collect()),
            options: None,
        }),
        // All tasks have an IPv6 address, also on networks whose names have none.
        enable_ipv6: Some(true),
        enable_ipv4: network.subnets.iter().all(|(range, _)| range.is_ipv6()).then_some(false),
        labels: Some(
            [(NODE_LABEL, node.to_string()), (NETWORK_LABEL, network.id.to_string())]
                .map(|(key, value)| (key.to_owned(), value))
                .into(),
        ),
        ..NetworkCreateRequest::default()
    }
}

/// The settings of a container on one network.
pub(super) fn endpoint(task: &TaskId, index: u32, attachment: &AttachmentPlan) -> EndpointSettings {
    EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: attachment.addr.v4.map(|addr| addr.to_string()),
            ipv6_address: Some(attachment.addr.v6.to_string()),
            link_local_ips: None,
        }),
        driver_opts: Some(LinkOptions { task: task.clone(), index, owner: Owner::Task }.to_map()),
        ..EndpointSettings::default()
    }
}

/// Connects a container, which does not run, to one more network.
pub(super) async fn connect(
    docker: &Docker,
    container: &str,
    network: &str,
    endpoint: EndpointSettings,
) -> Result<(), RuntimeError> {
    let request = NetworkConnectRequest { container: container.to_owned(), endpoint_config: Some(endpoint) };
    docker.connect_network(network, request).await.map_err(engine_error("connect the container to its network"))
}
