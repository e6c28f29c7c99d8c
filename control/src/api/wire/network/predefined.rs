//! The networks that each node has by itself, as objects of the API. As in Swarm, they have an id
//! in the cluster, which is not the id of the engine's network, and no list shows them: the engine
//! of a node lists its own ones.

use bollard_stubs::models;
use serde_json::{Map, Value, json};
use weft_model::{
    ClusterState, NetworkId, NodeId,
    spec::NodeNetwork,
    state::{Task, TaskState},
};

use crate::api::wire::values::{date, set, timestamp, to_json};

/// The label of these networks, and its value, as in Swarm.
const LABEL: (&str, &str) = ("com.docker.swarm.predefined", "true");

/// The id of the network, which is the same in all clusters.
pub(crate) fn id(network: NodeNetwork) -> NetworkId {
    // Random numbers.
    NetworkId::from_random(match network {
        NodeNetwork::Host => 0x29b1_63d8_7c0e_4f45_a6f2_0d1b_58c3_e79a,
        NodeNetwork::Bridge => 0x1e84_a7c6_30d9_4b12_95ee_7f60_c4ab_2d53,
    })
}

/// The network with this id.
pub(crate) fn of_id(text: &str) -> Option<NodeNetwork> {
    NodeNetwork::ALL.into_iter().find(|network| id(*network).as_str() == text)
}

/// The network with this id or name.
pub(crate) fn find(text: &str) -> Option<NodeNetwork> {
    of_id(text).or_else(|| NodeNetwork::ALL.into_iter().find(|network| network.as_str() == text))
}

/// Whether Docker has a network of this name on each host, so that no other network may have it.
pub(crate) fn is_reserved(name: &str) -> bool {
    find(name).is_some() || matches!(name, "none" | "default")
}

/// The network in the form of `GET /networks/{id}`, with the tasks of the node `local`.
pub(crate) fn show(state: &ClusterState, network: NodeNetwork, local: Option<&NodeId>) -> Value {
    let (key, value) = LABEL;
    let mut shown = to_json(models::Network {
        name: Some(network.as_str().to_owned()),
        id: Some(id(network).to_string()),
        created: date(created_ms(state)),
        scope: Some("swarm".into()),
        driver: Some(network.as_str().to_owned()),
        enable_ipv4: Some(true),
        enable_ipv6: Some(false),
        ipam: Some(models::Ipam { driver: Some(String::new()), options: None, config: Some(Vec::new()) }),
        internal: Some(false),
        attachable: Some(false),
        ingress: Some(false),
        config_from: Some(models::ConfigReference { network: Some(String::new()) }),
        config_only: Some(false),
        options: Some([].into()),
        labels: Some([(key.to_owned(), value.to_owned())].into()),
        peers: None,
    });
    let tasks = state.tasks.values().filter(|task| {
        local.is_some() && task.node.as_ref() == local && task.spec.node_network == Some(network) && is_attached(task)
    });
    let containers: Map<String, Value> = tasks.map(show_task).collect();
    set(&mut shown, "Containers", Value::Object(containers));
    shown
}

/// Whether the task has a node, and has not ended.
pub(crate) fn is_attached(task: &Task) -> bool {
    task.status.state >= TaskState::Assigned && !task.status.state.is_terminal()
}

fn show_task(task: &Task) -> (String, Value) {
    let id = task.status.container.clone().unwrap_or_else(|| task.id.to_string());
    // The cluster knows no addresses of it.
    let shown = json!({
        "Name": task.name,
        "EndpointID": task.id.as_str(),
        "MacAddress": "",
        "IPv4Address": "",
        "IPv6Address": "",
    });
    (id, shown)
}

/// The network in the form that an attachment of a task contains.
pub(crate) fn show_attached(state: &ClusterState, network: NodeNetwork) -> Value {
    let ((key, value), name) = (LABEL, network.as_str());
    let created = timestamp(created_ms(state));
    json!({
        "ID": id(network).as_str(),
        "Version": {"Index": 0},
        "CreatedAt": created,
        "UpdatedAt": created,
        "Spec": {
            "Name": name,
            "Labels": {key: value},
            "DriverConfiguration": {"Name": name},
            "Scope": "swarm",
        },
        "DriverState": {"Name": name},
        "IPAMOptions": {"Driver": {}},
    })
}

fn created_ms(state: &ClusterState) -> u64 {
    state.cluster.as_ref().map_or(0, |cluster| cluster.meta.created_ms)
}
