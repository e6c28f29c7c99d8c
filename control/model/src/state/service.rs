//! Services, with what was allocated for them and the progress of their update.

use serde::{Deserialize, Serialize};

use super::Meta;
use crate::{
    DualAddr, MeshServiceId, NetworkId, ServiceId,
    spec::{PortSpec, ServiceSpec},
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    pub spec: ServiceSpec,
    /// The spec before the last update. `service rollback` returns to it. `None` after an automatic
    /// rollback: the failed spec is nothing to return to.
    pub previous: Option<ServiceSpec>,
    /// The log index at which `spec.task` last changed. A task with a smaller version may be
    /// outdated ([`super::Task::is_current`]).
    pub task_version: u64,
    /// The networks of the spec, in its order. Networks of an earlier spec follow at the end, as
    /// long as a live task is attached to them.
    pub endpoints: Vec<ServiceEndpoint>,
    /// `spec.endpoint.ports`, each with its published port.
    pub ports: Vec<PublishedPort>,
    pub update: Option<UpdateStatus>,
    /// A user has removed the service. Its name and ports are free, and users no longer see it. It
    /// is deleted when its tasks have drained and stopped.
    pub removing: bool,
}

/// A service on one of its networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoint {
    pub network: NetworkId,
    pub mesh: MeshServiceId,
    /// `None` for a service with DNS round robin, and on the ingress network.
    pub vip: Option<DualAddr>,
}

/// A port of the spec, with its published port: the port of every node whose connections are sent
/// to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    pub spec: PortSpec,
    pub published: u16,
}

/// The progress of the last update of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    pub state: UpdateState,
    /// Unix milliseconds.
    pub started_ms: u64,
    /// Unix milliseconds. `None` until the update or rollback is completed.
    pub completed_ms: Option<u64>,
    /// A text for the user, with Swarm's wording.
    pub message: String,
}

/// The state of a service's update. The leader makes all transitions except `service rollback`,
/// which a user requests.
///
/// ```text
///    tasks have an outdated spec
///                │
///                ▼     all slots updated, no longer watched
///            Updating ──────────────────────────────────────▶ Completed
///             │  │    │
///            (1) │   (2)   service rollback, from any state
///             ▼  │    │             │
///         Paused │    ▼             ▼
///                │   RollbackStarted ───────────────────────▶ RollbackCompleted
///               (3)   │
///                │   (4)
///                ▼    ▼
///              RollbackPaused
///
///   (1) too many new tasks failed, and on_failure is Pause, or there is no previous spec
///   (2) too many new tasks failed, on_failure is Rollback, and there is a previous spec
///   (3) as (2), but the previous spec is refused: its port belongs to another service, for example
///   (4) too many new tasks failed, and on_failure of the rollback config is not Continue
/// ```
///
/// A new task that has no place for a minute counts as failed. Slots of a global service on nodes
/// that take no tasks are skipped.
///
/// When a user changes the spec, the status is removed in every state. If tasks are outdated after
/// that, a new update starts. With on_failure Continue, failed tasks do not stop an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateState {
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}
