//! The types that all parts of weft share: ids, specs, the cluster state, commands, plans and
//! reports.
//!
//! Every type that more than one crate uses is defined here, with the rules that make its values
//! valid. All other crates of weft depend on this one, and it depends on none of them. It contains
//! plain data and pure functions: it does no I/O, reads no clock, and does not define how its types
//! are stored, sent or written to the kernel. In reading order:
//!
//! - [`id`] and [`name`]: types for ids and names, whose values are always valid;
//! - [`net`]: IP addresses, MAC addresses and subnets;
//! - [`wireguard`]: the keys of encrypted networks;
//! - [`spec`]: what users request;
//! - [`state`]: the cluster state, which the managers replicate with Raft;
//! - [`command`]: the only way to change the cluster state;
//! - [`plan`]: what one node must put into effect, computed from the cluster state;
//! - [`report`]: what a node reports about itself;
//! - [`logs`]: the records of a task's output, and the trait by which a runtime provides them;
//! - [`shared`]: values that their copies share;
//! - [`backoff`]: the delay before a retry;
//! - [`fn@error_chain`]: the text of an error with its causes.

mod newtype;
pub mod shared;
pub mod id;
pub mod name;
pub mod net;
pub mod wireguard;
pub mod spec;
pub mod state;
pub mod command;
pub mod plan;
pub mod report;
pub mod logs;
mod container_networks;
mod unlock_key;
pub mod backoff;
mod error_chain;

pub use backoff::Backoff;
pub use command::{Applied, Command, Entry, Rejection};
pub use container_networks::ContainerNetworks;
pub use error_chain::error_chain;
pub use id::{BackendId, DependencyId, MeshServiceId, NetworkId, NodeId, ServiceId, TaskId, Vni};
pub use logs::{LogError, LogOptions, LogRecord, LogSource};
pub use name::{NetworkName, NodeName, ServiceName};
pub use net::{DualAddr, Mac};
pub use plan::NodePlan;
pub use report::NodeReport;
pub use shared::Shared;
pub use state::ClusterState;
pub use unlock_key::{InvalidUnlockKey, UnlockKey};

/// Default UDP port of the VXLAN tunnel (IANA, RFC 7348). The port of the cluster is chosen at its
/// initialisation, and cannot be published.
pub const DEFAULT_TUNNEL_PORT: u16 = 4789;
/// TCP port of the node RPC, as in Swarm. It cannot be published.
pub const CONTROL_PORT: u16 = 2377;
/// Source ports of packets from tasks to addresses outside of the cluster, after SNAT to the
/// address of the node.
pub const EGRESS_PORTS: std::ops::RangeInclusive<u16> = 61000..=65535;
/// The first VNI that a network can have. The tunnel itself uses VNI 1 for requests to published
/// ports and VNI 2 for their replies.
pub const FIRST_VNI: u32 = 4096;
/// For `-P`, and for `-p 80` without a published port, the published port is chosen from this
/// range.
pub const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// The maximum number of networks of a service. The data plane cannot store more for one task.
pub const MAX_NETWORKS_PER_SERVICE: usize = 8;
/// Label of the docker networks by which a container engine connects containers to networks of the
/// cluster: the id of the cluster's network.
pub const NETWORK_LABEL: &str = "weft.network";
/// Name of the image that weft itself is. It is in no registry.
pub const WHOAMI_IMAGE: &str = "weft/whoami";
/// Label of the containers of tasks: the id of the task.
pub const TASK_LABEL: &str = "weft.task";
/// Options of a docker endpoint (`EndpointSettings.DriverOpts`) of a container that is no task: its
/// id in the cluster state, and the number of the link.
pub const CONTAINER_OPTION: &str = "weft.container";
/// See [`CONTAINER_OPTION`].
pub const CONTAINER_LINK_OPTION: &str = "weft.container-link";
/// Present in the options of an endpoint if all networks of its container are networks of the
/// cluster, so that they lead to the outside.
pub const CONTAINER_GATEWAY_OPTION: &str = "weft.container-gateway";
/// How many containers that are no tasks one node may attach to networks of the cluster.
pub const MAX_ATTACHED_PER_NODE: usize = 1_024;
/// Name of the ingress network that a new cluster has. Services whose spec lists no network are
/// attached to the ingress network.
pub const INGRESS_NETWORK: &str = "ingress";
