//! Tasks: their desired state, their observed state, and which nodes send traffic to them.

use serde::{Deserialize, Serialize};

use super::{Meta, service::Service};
use crate::{
    BackendId, DualAddr, Mac, NetworkId, NodeId, ServiceId, Shared, TaskId,
    spec::{Labels, TaskSpec},
};

/// One run of a service's container or process, on one node, from start to end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub meta: Meta,
    pub service: ServiceId,
    /// `<service>.<slot>.<task id>`, or `<service>.<node id>.<task id>` for a global service.
    pub name: String,
    pub slot: Slot,
    /// That of the service when the task was created. All tasks of one spec share it.
    pub spec: Shared<TaskSpec>,
    pub labels: Labels,
    /// [`Service::task_version`] when the task was created.
    pub version: u64,
    /// Set once: by the scheduler, or at creation for a task of a global service.
    pub node: Option<NodeId>,
    /// In the order of the spec's networks. Allocated when the task is assigned to its node, and
    /// freed when the task has ended.
    pub attachments: Vec<Attachment>,
    /// The state that the leader wants the task to reach. Never decreases.
    pub desired: TaskState,
    /// The task may not start before this time, in Unix milliseconds: the delay of a restart.
    pub not_before_ms: u64,
    pub restarts: Restarts,
    pub status: TaskStatus,
    /// [`super::ClusterState::now_ms`] when `status.state` last changed. `status.since_ms` is the
    /// same time by the node's clock.
    pub state_since_ms: u64,
    pub traffic: Traffic,
    /// The log index at which `traffic` last changed. A node that has acknowledged this plan
    /// generation has put the change into effect.
    pub traffic_index: u64,
    /// [`super::ClusterState::now_ms`] when `traffic` last changed.
    pub traffic_since_ms: u64,
    /// In a stored state, the position of the spec in [`super::ClusterState::specs`]; `spec` is
    /// empty then. `None` in memory.
    #[serde(default)]
    pub stored_spec: Option<u32>,
}

/// The restarts of a slot before a task. A restart is a new task with the same spec as the task
/// before it, which ended by itself. A task that replaces one that was moved or lost is no restart,
/// and keeps these numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restarts {
    /// Since the task spec changed.
    pub total: u64,
    /// How many tasks in a row, up to the one before this task, ended soon after they had started.
    pub ended_at_once: u32,
    /// When the restarts within the window of the restart policy happened, in Unix milliseconds,
    /// oldest first. Empty for a policy without a window or without a limit.
    pub recent_ms: Vec<u64>,
}

/// The position of a task in its service. When the task of a slot has ended or is replaced, the
/// next task gets the same slot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Slot {
    /// A slot of a replicated service. The first one has number 1.
    Replica(u64),
    /// The slot of a global service on this node.
    Node(NodeId),
}

/// A task on one of its networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub network: NetworkId,
    pub addr: DualAddr,
    pub mac: Mac,
    pub backend: BackendId,
}

/// The state of a task. Names and order are Swarm's. The observed state never decreases.
///
/// ```text
///   leader:   Pending ──▶ Assigned
///                            │
///                            ▼
///   agent:                Accepted ──▶ Preparing ──▶ Ready ──▶ Starting ──▶ Running
///                                          │                      │            │
///                                  cannot be prepared       start failed     exited
///                                          ▼                      ▼            ▼
///                                      Rejected                Failed   Complete or Failed
///
///   agent:    from Accepted to Running, when the plan says Stop ──▶ Shutdown
///   leader:   from Assigned to Running, when the node is down or removed ──▶ Orphaned
/// ```
///
/// The leader assigns the task. From then on the node's agent reports the state, and a report may
/// skip states. No task has the observed state `New`, which Swarm uses before `Pending`, or the
/// observed state `Remove`.
///
/// As a desired state the leader uses `Ready` (prepare and hold), `Running`, `Shutdown` (stop) and
/// `Remove` (stop, then delete).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskState {
    New,
    /// Waits for a node.
    Pending,
    /// Has a node, which has not confirmed it yet.
    Assigned,
    /// The node's agent has received the task.
    Accepted,
    /// The node fetches what the task needs.
    Preparing,
    /// Prepared, and held until the desired state is `Running`.
    Ready,
    /// Started, but not yet listening on the TCP ports that its service publishes.
    Starting,
    Running,
    /// Exited without an error. The agent did not stop it.
    Complete,
    /// Stopped by the agent, because the plan said so.
    Shutdown,
    /// Exited with an error, or could not be started.
    Failed,
    /// Could not be prepared.
    Rejected,
    /// A desired state only: stop the task, then delete it.
    Remove,
    /// The node went down or was removed before the task ended.
    Orphaned,
}

impl TaskState {
    /// All states, in their order.
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// Whether the task has ended, with or without an error.
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

/// The last observation of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    pub state: TaskState,
    /// When the task entered the state, by the node's clock, in Unix milliseconds.
    pub since_ms: u64,
    pub message: String,
    /// Empty if there was no error.
    pub error: String,
    pub exit_code: Option<i32>,
    /// The id under which the runtime knows the task's container.
    pub container: Option<String>,
    pub pid: Option<u32>,
}

/// Which nodes send traffic to a task. Never decreases. `orchestrate::traffic` in weft-control
/// makes the transitions. Their order ensures that no request is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Traffic {
    /// No node has the task as a backend, because it has not run yet.
    None,
    /// Only the task's own node has it as a backend. The node acks once it can deliver to it.
    Local,
    /// All nodes have the task as a backend.
    Active,
    /// All nodes keep the existing flows of the task, and send no new flows to it.
    Draining,
    /// All ready nodes have acknowledged that the task drains, or the wait for them has timed out.
    /// The task's node may stop it.
    Drained,
}

impl Task {
    /// Whether the task has addresses, so that other tasks may exchange packets with it.
    pub fn holds_addresses(&self) -> bool {
        !self.attachments.is_empty() && !self.status.state.is_terminal()
    }

    /// Whether the task has the current spec of its service. Such a task can be older than the last
    /// change of the spec: after a rollback, the tasks that the update had not replaced have the
    /// current spec again. A task that got its image with other credentials is current too.
    pub fn is_current(&self, service: &Service) -> bool {
        let has_image = self.status.state >= TaskState::Ready && self.status.state != TaskState::Rejected;
        self.spec == service.spec.task || (has_image && self.spec.is_same_but_for_credentials(&service.spec.task))
    }

    /// Whether the task's node must stop it now.
    pub fn must_stop(&self) -> bool {
        self.desired > TaskState::Running && matches!(self.traffic, Traffic::None | Traffic::Drained)
    }
}
