//! What users ask for: specs. One writer: the user. The cluster's own decisions are in [`crate::state`].
//!
//! Fields carry Swarm's meaning and defaults. What weft cannot honour has no field here: the API refuses it by name.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use crate::{NetworkId, NetworkName, ServiceName};

pub type Labels = BTreeMap<String, String>;

/// `swarm update`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSpec {
    pub labels: Labels,
    /// How many ended tasks are kept for each slot.
    pub task_history_limit: u32,
    /// How often a node says that it is alive.
    pub heartbeat_ms: u64,
    /// A node that missed this many heartbeats is down.
    pub heartbeat_misses: u32,
    /// Life of a node certificate.
    pub cert_expiry_ms: u64,
    /// Pool that networks without a subnet are cut from, and the length of the prefix cut.
    pub pool: Ipv4Network,
    pub pool_prefix: u8,
}

impl Default for ClusterSpec {
    fn default() -> Self {
        Self {
            labels: Labels::new(),
            task_history_limit: 5,
            heartbeat_ms: 5_000,
            heartbeat_misses: 3,
            cert_expiry_ms: 90 * 24 * 3_600_000,
            pool: Ipv4Network::new_checked(Ipv4Addr::new(10, 0, 0, 0), 8).expect("10.0.0.0/8 is a network"),
            pool_prefix: 24,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    Worker,
    Manager,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Availability {
    /// Takes tasks.
    Active,
    /// Keeps its tasks, takes no new ones.
    Pause,
    /// Its tasks are moved away.
    Drain,
}

/// `node update`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    pub name: Option<String>,
    pub labels: Labels,
    pub role: Role,
    pub availability: Availability,
}

/// `network create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkSpec {
    pub name: NetworkName,
    pub labels: Labels,
    /// Cut from the cluster's pool where absent.
    pub v4: Option<SubnetSpec<Ipv4Network, Ipv4Addr>>,
    /// A unique local /64 where absent.
    pub v6: Option<SubnetSpec<Ipv6Network, Ipv6Addr>>,
    /// `--ipv6`: names on this network have AAAA records.
    pub ipv6: bool,
    /// `--internal`: no way out.
    pub internal: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetSpec<N, A> {
    pub subnet: N,
    /// The first address of the subnet where absent.
    pub gateway: Option<A>,
    /// Task addresses and VIPs come from here; the whole subnet where absent.
    pub ip_range: Option<N>,
}

/// `service create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSpec {
    pub name: ServiceName,
    pub labels: Labels,
    pub task: TaskSpec,
    pub mode: ServiceMode,
    pub update: UpdateConfig,
    pub rollback: UpdateConfig,
    pub endpoint: EndpointSpec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceMode {
    Replicated { replicas: u64 },
    Global,
}

/// All that makes one task differ from another: a change here rolls the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    pub container: ContainerSpec,
    pub resources: Resources,
    pub restart: RestartPolicy,
    pub placement: Placement,
    /// In the user's order: the first becomes eth0. Empty: the ingress network.
    pub networks: Vec<NetworkAttachment>,
    /// Counted up by `service update --force`.
    pub force_update: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachment {
    pub network: NetworkId,
    /// Further names of the service on this network.
    pub aliases: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub image: String,
    pub labels: Labels,
    /// Entry point; the image's where empty.
    pub command: Vec<String>,
    /// Arguments; the image's command where both are empty.
    pub args: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub dir: Option<String>,
    /// `user[:group]`, names or numbers.
    pub user: Option<String>,
    /// May hold the templates `{{.Node.Hostname}}`, `{{.Service.Name}}`, `{{.Task.Slot}}`, `{{.Task.ID}}`; expanded in the plan.
    pub hostname: Option<String>,
    pub stop_signal: Option<String>,
    pub stop_grace_ms: u64,
    pub read_only: bool,
    pub init: Option<bool>,
}

impl ContainerSpec {
    /// A container of `image` with every option at its default.
    pub fn new(image: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            labels: Labels::new(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
            user: None,
            hostname: None,
            stop_signal: None,
            stop_grace_ms: STOP_GRACE_MS,
            read_only: false,
            init: None,
        }
    }
}

/// Default stop grace, as in Swarm.
pub const STOP_GRACE_MS: u64 = 10_000;

/// Zero: no limit, nothing reserved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub limit_nano_cpus: u64,
    pub limit_memory_bytes: u64,
    pub limit_pids: u64,
    pub reserve_nano_cpus: u64,
    pub reserve_memory_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartCondition {
    None,
    OnFailure,
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    pub delay_ms: u64,
    /// Zero: without end.
    pub max_attempts: u64,
    /// In which attempts are counted; zero: ever.
    pub window_ms: u64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { condition: RestartCondition::Any, delay_ms: 5_000, max_attempts: 0, window_ms: 0 }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    pub constraints: Vec<Constraint>,
    /// `spread=node.labels.zone`: label keys, most significant first.
    pub spread: Vec<NodeAttribute>,
    /// Zero: no bound.
    pub max_replicas_per_node: u64,
}

/// `node.labels.storage==ssd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    pub attribute: NodeAttribute,
    pub equal: bool,
    pub value: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeAttribute {
    Id,
    Hostname,
    Role,
    PlatformOs,
    PlatformArch,
    Label(String),
    EngineLabel(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureAction {
    Pause,
    Continue,
    Rollback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateOrder {
    StopFirst,
    StartFirst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// Tasks at a time; zero: all.
    pub parallelism: u64,
    pub delay_ms: u64,
    pub on_failure: FailureAction,
    /// How long a new task is watched for failure.
    pub monitor_ms: u64,
    /// Failures tolerated, in thousandths of the service's tasks.
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointSpec {
    pub mode: EndpointMode,
    pub ports: Vec<PortSpec>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EndpointMode {
    /// The name resolves to a virtual address that the mesh balances.
    Vip,
    /// The name resolves to the tasks' addresses.
    Dnsrr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// IP protocol number (IANA).
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

/// `-p published:target/protocol`, through the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSpec {
    pub protocol: Protocol,
    pub target: u16,
    /// Chosen by apply from [`crate::DYNAMIC_PORTS`] where absent.
    pub published: Option<u16>,
}
