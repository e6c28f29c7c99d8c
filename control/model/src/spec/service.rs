//! Services (`service create`, `service update`): their tasks, ports and updates.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    Labels,
    task::{ContainerSpec, TaskSpec},
};
use crate::{ServiceName, Shared};

/// The desired state of a service.
///
/// ```
/// use weft_model::spec::{ContainerSpec, PortSpec, Protocol, ServiceMode, ServiceSpec};
///
/// let name = "whoami".parse().expect("a valid service name");
/// let mut spec = ServiceSpec {
///     mode: ServiceMode::Replicated { replicas: 3 },
///     ..ServiceSpec::new(name, ContainerSpec::new("weft/whoami"))
/// };
/// // --publish published=8080,target=80
/// let port = PortSpec { protocol: Protocol::Tcp, target: 80, published: Some(8080) };
/// spec.endpoint.ports.push(port);
/// assert!(spec.task.networks.is_empty(), "the tasks are on the ingress network");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub name: ServiceName,
    pub labels: Labels,
    pub task: Shared<TaskSpec>,
    pub mode: ServiceMode,
    pub update: UpdateConfig,
    pub rollback: UpdateConfig,
    pub endpoint: EndpointSpec,
    /// The parts that the user has left out, which have their defaults. It only says how the spec
    /// is shown. It is beside the task spec, so that no task is replaced because of it.
    #[serde(default)]
    pub left_out: BTreeSet<SpecPart>,
}

/// A part of a service's spec that a user may leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum SpecPart {
    StopGrace,
    Dns,
    Resources,
    Limits,
    Reservations,
    Restart,
    RestartDelay,
    Placement,
    Update,
    UpdateMonitor,
    Rollback,
    RollbackMonitor,
    Endpoint,
}

impl ServiceSpec {
    /// A service with one replica of `container` and every option at its default.
    pub fn new(name: ServiceName, container: ContainerSpec) -> Self {
        Self {
            name,
            labels: Labels::new(),
            task: TaskSpec::new(container).into(),
            mode: ServiceMode::Replicated { replicas: 1 },
            update: UpdateConfig::default(),
            rollback: UpdateConfig::default(),
            endpoint: EndpointSpec { mode: EndpointMode::Vip, ports: Vec::new() },
            left_out: BTreeSet::new(),
        }
    }
}

/// How many tasks a service has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceMode {
    Replicated {
        replicas: u64,
    },
    /// One task on each eligible node.
    Global,
}

/// What to do when too many new tasks fail during an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureAction {
    Pause,
    Continue,
    Rollback,
}

/// Whether the old task stops before or after the new task has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateOrder {
    StopFirst,
    StartFirst,
}

/// How an update or a rollback replaces the tasks of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// How many tasks are replaced at the same time. Zero: all.
    pub parallelism: u64,
    /// The delay before the next tasks are replaced.
    pub delay_ms: u64,
    pub on_failure: FailureAction,
    /// How long a new task is watched for failure.
    pub monitor_ms: u64,
    /// How many new tasks may fail before the update has failed, in thousandths of the service's
    /// tasks.
    pub max_failure_permille: u32,
    pub order: UpdateOrder,
}

impl Default for UpdateConfig {
    fn default() -> Self {
        Self {
            parallelism: 1,
            delay_ms: 0,
            on_failure: FailureAction::Pause,
            monitor_ms: 5_000,
            max_failure_permille: 0,
            order: UpdateOrder::StopFirst,
        }
    }
}

/// How clients reach a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    pub mode: EndpointMode,
    pub ports: Vec<PortSpec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointMode {
    /// The name resolves to a virtual address (VIP), whose connections are balanced over the tasks.
    Vip,
    /// The name resolves to the addresses of the tasks.
    Dnsrr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// The IP protocol number assigned by IANA.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// `-p published:target/protocol`: a port of every node, whose connections are balanced over a port
/// of the tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    pub protocol: Protocol,
    pub target: u16,
    /// `None`: a free port of [`crate::DYNAMIC_PORTS`].
    pub published: Option<u16>,
}
