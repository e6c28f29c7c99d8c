//! The vocabulary of weft: what users ask for, what the cluster decided, and what one node must make true.
//!
//! Owns every type that more than one layer speaks, and the rules that make a value of such a type valid. It must not
//! know how any of them is stored, sent, drawn or programmed: no tokio, no I/O, no clocks. Rooms, in reading order:
//!
//! - [`id`] and [`name`]: newtypes, valid by construction;
//! - [`spec`]: what a user wants (one writer: the user);
//! - [`state`]: what the cluster decided and observed: the one Raft table;
//! - [`command`]: the only way to change the table;
//! - [`plan`]: what one node must make true, a function of the table;
//! - [`report`]: what a node says of itself;
//! - [`logs`]: the records of a task's output, and the trait that a runtime serves them by;
//! - [`backoff`]: the delay before a retry.

mod newtype;
pub mod id;
pub mod name;
pub mod net;
pub mod spec;
pub mod state;
pub mod command;
pub mod plan;
pub mod report;
pub mod logs;
pub mod backoff;

pub use backoff::Backoff;
pub use command::{Applied, Command, Entry, Rejection};
pub use id::{BackendId, MeshServiceId, NetworkId, NodeId, ServiceId, TaskId, Vni};
pub use logs::{LogError, LogOptions, LogRecord, LogSource};
pub use name::{NetworkName, NodeName, ServiceName};
pub use net::{DualAddr, Mac};
pub use plan::NodePlan;
pub use report::NodeReport;
pub use state::ClusterState;

/// UDP port of the VXLAN tunnel (IANA, RFC 7348). Cannot be published.
pub const TUNNEL_PORT: u16 = 4789;
/// TCP port of the node RPC, as in Swarm. Cannot be published.
pub const CONTROL_PORT: u16 = 2377;
/// Source ports of packets that tasks send to the outside, after translation to the node's address.
pub const EGRESS_PORTS: std::ops::RangeInclusive<u16> = 61000..=65535;
/// First VNI that a network can get; smaller ones are the tunnel's own (1: requests, 2: replies of published ports).
pub const FIRST_VNI: u32 = 4096;
/// Ports given to `-p 80` without a published port, and to `-P`.
pub const DYNAMIC_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// What the data plane has room for with each task.
pub const MAX_NETWORKS_PER_SERVICE: usize = 8;
/// The built-in network of services that name none.
pub const INGRESS_NETWORK: &str = "ingress";
