//! Nodes: the spec both ways, and a node as the API shows it.

use bollard_stubs::models as wire;
use serde_json::Value;
use weft_model::{
    spec::{Availability, NodeSpec, Role},
    state::{Node, NodeStatus},
};

use super::{date, fields, json as to_json, service::labels, signed, text, unsupported, version};
use crate::api::error::ApiError;

/// Reads a spec; what is absent stays as it is in `current`, but labels and name, which a client always sends whole.
pub(crate) fn read(body: &mut Value, current: &NodeSpec) -> Result<NodeSpec, ApiError> {
    use wire::{NodeSpecAvailabilityEnum as A, NodeSpecRoleEnum as R};
    let asked: wire::NodeSpec = fields::read(body)?;
    let spec = NodeSpec {
        name: asked.name.filter(|name| !name.is_empty()),
        labels: asked.labels.unwrap_or_default().into_iter().collect(),
        role: match asked.role {
            None | Some(R::EMPTY) => current.role,
            Some(R::WORKER) => Role::Worker,
            Some(R::MANAGER) => Role::Manager,
        },
        availability: match asked.availability {
            None | Some(A::EMPTY) => current.availability,
            Some(A::ACTIVE) => Availability::Active,
            Some(A::PAUSE) => Availability::Pause,
            Some(A::DRAIN) => Availability::Drain,
        },
    };
    unsupported::refuse(body, &to_json(write(&spec)))?;
    Ok(spec)
}

fn write(spec: &NodeSpec) -> wire::NodeSpec {
    wire::NodeSpec {
        name: spec.name.clone(),
        labels: Some(labels(&spec.labels)),
        role: Some(match spec.role {
            Role::Worker => wire::NodeSpecRoleEnum::WORKER,
            Role::Manager => wire::NodeSpecRoleEnum::MANAGER,
        }),
        availability: Some(match spec.availability {
            Availability::Active => wire::NodeSpecAvailabilityEnum::ACTIVE,
            Availability::Pause => wire::NodeSpecAvailabilityEnum::PAUSE,
            Availability::Drain => wire::NodeSpecAvailabilityEnum::DRAIN,
        }),
    }
}

/// What only the asked manager knows about another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standing {
    pub(crate) leader: bool,
    pub(crate) reachable: bool,
}

/// A node as `GET /nodes/{id}` shows it.
pub(crate) fn show(node: &Node, standing: Standing) -> Value {
    to_json(wire::Node {
        id: Some(node.id.to_string()),
        version: version(&node.meta),
        created_at: date(node.meta.created_ms),
        updated_at: date(node.meta.updated_ms),
        spec: Some(write(&node.spec)),
        description: Some(description(node)),
        status: Some(wire::NodeStatus {
            state: Some(match node.status {
                NodeStatus::Unknown => wire::NodeState::UNKNOWN,
                NodeStatus::Ready => wire::NodeState::READY,
                NodeStatus::Down => wire::NodeState::DOWN,
            }),
            message: text(&node.message),
            addr: Some(node.addr.to_string()),
        }),
        manager_status: (node.voter || node.is_manager()).then(|| wire::ManagerStatus {
            leader: standing.leader.then_some(true),
            reachability: Some(match (standing.reachable, node.voter) {
                (true, _) => wire::Reachability::REACHABLE,
                (false, true) => wire::Reachability::UNREACHABLE,
                (false, false) => wire::Reachability::UNKNOWN,
            }),
            addr: Some(node.rpc_addr.to_string()),
        }),
    })
}

fn description(node: &Node) -> wire::NodeDescription {
    let mut shown = wire::NodeDescription { hostname: Some(node.hostname.to_string()), ..Default::default() };
    if let Some(known) = &node.description {
        shown.platform = Some(wire::Platform { architecture: Some(known.arch.clone()), os: Some(known.os.clone()) });
        shown.resources = Some(wire::ResourceObject {
            nano_cpus: Some(signed(known.nano_cpus)),
            memory_bytes: Some(signed(known.memory_bytes)),
            generic_resources: None,
        });
        shown.engine = Some(wire::EngineDescription {
            engine_version: Some(known.version.clone()),
            labels: Some(labels(&known.engine_labels)),
            plugins: None,
        });
    }
    shown
}
