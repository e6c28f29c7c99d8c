//! The part of a service's spec that describes its tasks.

use serde::{Deserialize, Serialize};

use super::{DependencyKind, DnsConfig, FileReference, HostEntry, Labels, RegistryAuth};
use crate::{NetworkId, Shared};

/// The desired tasks of a service. If a user changes this spec, a rolling update replaces the tasks
/// of the service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// The plans of the tasks share it.
    pub container: Shared<ContainerSpec>,
    pub resources: Resources,
    pub restart: RestartPolicy,
    pub placement: Placement,
    /// In the order that the user has chosen: the first network becomes eth0. Empty: the ingress
    /// network, unless there is a `node_network`.
    pub networks: Vec<NetworkAttachment>,
    /// Incremented by `service update --force`, so that the spec differs and the tasks are
    /// replaced.
    pub force_update: u64,
    /// With which nodes pull the image. `None`: without credentials. A change of it alone replaces
    /// no task that has its image.
    #[serde(default)]
    pub registry_auth: Option<RegistryAuth>,
    /// The tasks are on this network of their node, and on none of the cluster.
    #[serde(default)]
    pub node_network: Option<NodeNetwork>,
}

impl TaskSpec {
    /// A task on the ingress network with every other option at its default.
    pub fn new(container: ContainerSpec) -> Self {
        Self {
            container: container.into(),
            resources: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            networks: Vec::new(),
            force_update: 0,
            registry_auth: None,
            node_network: None,
        }
    }

    /// Whether the tasks are on the ingress network, because the spec has no other.
    pub fn uses_ingress(&self) -> bool {
        self.networks.is_empty() && self.node_network.is_none()
    }

    /// Whether tasks of both specs are the same once they have their image.
    pub fn is_same_but_for_credentials(&self, other: &Self) -> bool {
        let Self { container, resources, restart, placement, networks, node_network, force_update, registry_auth: _ } =
            self;
        *container == other.container
            && *resources == other.resources
            && *restart == other.restart
            && *placement == other.placement
            && *networks == other.networks
            && *node_network == other.node_network
            && *force_update == other.force_update
    }
}

/// A network that each node has by itself. The cluster allocates nothing for tasks on it: they have
/// no address, no name and no backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NodeNetwork {
    /// The network namespace of the node itself.
    Host,
    /// The default network of the node's container engine.
    Bridge,
}

impl NodeNetwork {
    pub const ALL: [Self; 2] = [Self::Bridge, Self::Host];
    /// The feature level from which on managers and nodes know these networks. An earlier release
    /// would run such a task without any network.
    pub const LEVEL: u32 = 1;

    /// The name of the network, and of its driver.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Bridge => "bridge",
        }
    }
}

/// A network that the tasks are attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachment {
    pub network: NetworkId,
    /// Additional DNS names of the service on this network.
    pub aliases: Vec<String>,
}

/// What a task runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub image: String,
    pub labels: Labels,
    /// The entry point. Empty: the entry point of the image.
    pub command: Vec<String>,
    /// The arguments. If these and `command` are empty: the command of the image.
    pub args: Vec<String>,
    /// `KEY=value`. May contain templates, as `hostname` may.
    pub env: Vec<String>,
    /// The working directory.
    pub dir: Option<String>,
    /// `user[:group]`, each a name or a number.
    pub user: Option<String>,
    /// May contain templates such as `{{.Node.Hostname}}`, `{{.Service.Name}}`, `{{.Task.Slot}}`
    /// and `{{.Task.ID}}`. They are expanded in the plan of the node.
    pub hostname: Option<String>,
    pub stop_signal: Option<String>,
    /// How long the task may take to stop before it is killed.
    pub stop_grace_ms: u64,
    /// Whether the root file system is read-only.
    pub read_only: bool,
    /// Whether an init process runs in the container.
    pub init: Option<bool>,
    /// How the tasks look up names outside of the cluster.
    pub dns: DnsConfig,
    /// Additional lines of the tasks' `/etc/hosts`.
    pub hosts: Vec<HostEntry>,
    /// The secrets that the tasks have as files.
    #[serde(default)]
    pub secrets: Vec<FileReference>,
    /// The configs that the tasks have as files.
    #[serde(default)]
    pub configs: Vec<FileReference>,
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
            dns: DnsConfig::default(),
            hosts: Vec::new(),
            secrets: Vec::new(),
            configs: Vec::new(),
        }
    }

    /// The files with secrets and configs.
    pub fn files(&self) -> impl Iterator<Item = (DependencyKind, &FileReference)> {
        let secrets = self.secrets.iter().map(|file| (DependencyKind::Secret, file));
        secrets.chain(self.configs.iter().map(|file| (DependencyKind::Config, file)))
    }
}

/// The default grace period, as in Swarm.
pub const STOP_GRACE_MS: u64 = 10_000;

/// The resources of one task. Zero: no limit, or nothing reserved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// In billionths of a CPU.
    pub limit_nano_cpus: u64,
    pub limit_memory_bytes: u64,
    pub limit_pids: u64,
    /// In billionths of a CPU.
    pub reserve_nano_cpus: u64,
    pub reserve_memory_bytes: u64,
}

/// When an ended task is replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RestartCondition {
    None,
    OnFailure,
    Any,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    pub condition: RestartCondition,
    /// The minimum time between the end of a task and the start of the next one. If tasks end again
    /// and again soon after they have started, the leader waits longer.
    pub delay_ms: u64,
    /// The maximum number of restarts of a slot within the window. Zero: no limit.
    pub max_attempts: u64,
    /// Only the restarts within this time before the end of a task count. Zero: all restarts since
    /// the task spec changed.
    pub window_ms: u64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { condition: RestartCondition::Any, delay_ms: 5_000, max_attempts: 0, window_ms: 0 }
    }
}

/// Which nodes may run a task, and how tasks are spread over them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// A node must satisfy all constraints.
    pub constraints: Vec<Constraint>,
    /// `spread=node.labels.zone`: tasks are spread over the values of these attributes, the most
    /// significant one first.
    pub spread: Vec<NodeAttribute>,
    /// Zero: no limit.
    pub max_replicas_per_node: u64,
    /// The platforms that the image is for. A node must be one of them. Empty: any node.
    #[serde(default)]
    pub platforms: Vec<Platform>,
}

/// A platform of an image. An empty text matches every node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Such as `linux`.
    pub os: String,
    /// Such as `amd64`, or `x86_64` for the same.
    pub arch: String,
}

impl Platform {
    /// Whether a machine with this operating system and architecture is one.
    pub fn is_of(&self, os: &str, arch: &str) -> bool {
        (self.os.is_empty() || self.os == os) && (self.arch.is_empty() || common_arch(&self.arch) == common_arch(arch))
    }
}

/// Images and kernels have different names for the same architecture.
fn common_arch(arch: &str) -> &str {
    match arch {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `node.labels.storage==ssd`, or `!=` if `equal` is false. Values are compared without case.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraint {
    pub attribute: NodeAttribute,
    pub equal: bool,
    pub value: String,
}

/// A property of a node. Constraints and placement preferences refer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeAttribute {
    Id,
    Hostname,
    Role,
    PlatformOs,
    PlatformArch,
    Label(String),
    EngineLabel(String),
    /// The address that the node advertises. The value of a constraint is an address or a subnet.
    Ip,
}

impl NodeAttribute {
    /// The feature level from which on managers know this attribute.
    pub fn level(&self) -> u32 {
        match self {
            Self::Ip => 1,
            Self::Id
            | Self::Hostname
            | Self::Role
            | Self::PlatformOs
            | Self::PlatformArch
            | Self::Label(_)
            | Self::EngineLabel(_) => 0,
        }
    }
}
