//! Converts nodes: the spec in both directions, and a node to JSON.
//!
//! One field is an extension of weft: `Description.Encryption`, whether and how the node encrypts,
//! and its WireGuard keys.

use std::collections::BTreeSet;

use bollard_stubs::models;
use serde_json::{Value, json};
use weft_model::{
    spec::{Availability, NodeSpec, Role},
    state::{Cluster, EnginePlugin, KeyRecord, Node, NodeDescription, NodeStatus},
};

use super::{
    cluster::show_tls,
    encryption,
    fields::{self, Ignored},
    unsupported,
    values::{date, labels, set, signed, text, timestamp, to_json, version},
};
use crate::api::error::ApiError;

/// Reads a spec. If the role or the availability is absent, it keeps its value from `current`. If
/// the name or the labels are absent, they become empty, because clients always send them.
pub(crate) fn read(body: &mut Value, current: &NodeSpec, ignored: &mut Ignored) -> Result<NodeSpec, ApiError> {
    use models::{NodeSpecAvailabilityEnum as A, NodeSpecRoleEnum as R};
    let requested: models::NodeSpec = fields::read_known(body, ignored)?;
    let spec = NodeSpec {
        name: requested.name.filter(|name| !name.is_empty()),
        labels: requested.labels.unwrap_or_default().into_iter().collect(),
        role: match requested.role {
            None | Some(R::EMPTY) => current.role,
            Some(R::WORKER) => Role::Worker,
            Some(R::MANAGER) => Role::Manager,
        },
        availability: match requested.availability {
            None | Some(A::EMPTY) => current.availability,
            Some(A::ACTIVE) => Availability::Active,
            Some(A::PAUSE) => Availability::Pause,
            Some(A::DRAIN) => Availability::Drain,
        },
    };
    unsupported::refuse(body, &to_json(write(&spec)))?;
    Ok(spec)
}

fn write(spec: &NodeSpec) -> models::NodeSpec {
    models::NodeSpec {
        name: spec.name.clone(),
        labels: Some(labels(&spec.labels)),
        role: Some(match spec.role {
            Role::Worker => models::NodeSpecRoleEnum::WORKER,
            Role::Manager => models::NodeSpecRoleEnum::MANAGER,
        }),
        availability: Some(match spec.availability {
            Availability::Active => models::NodeSpecAvailabilityEnum::ACTIVE,
            Availability::Pause => models::NodeSpecAvailabilityEnum::PAUSE,
            Availability::Drain => models::NodeSpecAvailabilityEnum::DRAIN,
        }),
    }
}

/// What the local manager knows about a manager. This is not part of the cluster state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ManagerView {
    pub(crate) is_leader: bool,
    pub(crate) is_reachable: bool,
}

/// A node in the form of `GET /nodes/{id}`. Its `TLSInfo` follows from the cluster state.
pub(crate) fn show(node: &Node, cluster: Option<&Cluster>, manager: ManagerView) -> Value {
    let mut shown = to_json(models::Node {
        id: Some(node.id.to_string()),
        version: version(&node.meta),
        created_at: date(node.meta.created_ms),
        updated_at: date(node.meta.updated_ms),
        spec: Some(write(&node.spec)),
        description: Some(description(node, cluster)),
        status: Some(models::NodeStatus {
            state: Some(match node.status {
                NodeStatus::Unknown => models::NodeState::UNKNOWN,
                NodeStatus::Ready => models::NodeState::READY,
                NodeStatus::Down => models::NodeState::DOWN,
            }),
            message: text(&status_message(node)),
            addr: Some(node.addr.to_string()),
        }),
        manager_status: (node.voter || node.is_manager()).then(|| models::ManagerStatus {
            leader: manager.is_leader.then_some(true),
            reachability: Some(match (manager.is_reachable, node.voter) {
                // A manager that does not vote yet cannot replace one that fails.
                (_, false) => models::Reachability::UNKNOWN,
                (true, true) => models::Reachability::REACHABLE,
                (false, true) => models::Reachability::UNREACHABLE,
            }),
            addr: Some(node.rpc_addr.to_string()),
        }),
    });
    if let Some(machine) = &node.description {
        let keys: Vec<_> = node.keys.keys.iter().map(key).collect();
        set(&mut shown["Description"], "Encryption", encryption::show(&machine.encryption, &keys));
    }
    shown
}

/// Why the node is not ready, that it does not converge, or that its role changes.
fn status_message(node: &Node) -> String {
    match &node.lag {
        Some(lag) if node.is_ready() => format!("not converged: {}", lag.reason),
        _ if !node.message.is_empty() => node.message.clone(),
        _ if node.is_manager() && !node.voter => "becoming a manager: it does not vote yet".to_owned(),
        _ if node.voter && !node.is_manager() => "becoming a worker: it still votes".to_owned(),
        _ => String::new(),
    }
}

/// A WireGuard key: which one it is, how far it is in use, and since when the leader knows it.
fn key(record: &KeyRecord) -> Value {
    let mut shown = encryption::show_key(&record.key);
    set(&mut shown, "State", json!(record.stage.as_str()));
    set(&mut shown, "CreatedAt", json!(timestamp(record.created_ms)));
    shown
}

fn description(node: &Node, cluster: Option<&Cluster>) -> models::NodeDescription {
    let mut shown = models::NodeDescription {
        hostname: Some(node.hostname.to_string()),
        tls_info: cluster.map(|cluster| show_tls(cluster, Some(node))),
        ..Default::default()
    };
    if let Some(known) = &node.description {
        shown.platform = Some(models::Platform { architecture: Some(known.arch.clone()), os: Some(known.os.clone()) });
        shown.resources = Some(models::ResourceObject {
            nano_cpus: Some(signed(known.nano_cpus)),
            memory_bytes: Some(signed(known.memory_bytes)),
            generic_resources: None,
        });
        shown.engine = Some(models::EngineDescription {
            engine_version: Some(known.version.clone()),
            labels: Some(labels(&known.engine_labels)),
            plugins: Some(plugins(known)),
        });
    }
    shown
}

/// The plugins of the node's engine, and the network driver of weft.
fn plugins(machine: &NodeDescription) -> Vec<models::EngineDescriptionPlugins> {
    let own = EnginePlugin { kind: "Network".to_owned(), name: "overlay".to_owned() };
    let all: BTreeSet<_> = machine.plugins.iter().chain([&own]).collect();
    all.into_iter()
        .map(|plugin| models::EngineDescriptionPlugins {
            typ: Some(plugin.kind.clone()),
            name: Some(plugin.name.clone()),
        })
        .collect()
}
