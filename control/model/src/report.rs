//! What a node says of itself. One writer: the node's agent.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{TaskId, spec::Labels, state::TaskStatus};

/// Sent when anything in it changed, and again after a reconnect.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The plan generation that this node's kernel holds.
    pub acked: u64,
    pub description: Option<NodeDescription>,
    pub tasks: Vec<(TaskId, TaskStatus)>,
}

/// What the machine is. Changes rarely; logged when it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    pub os: String,
    pub arch: String,
    pub nano_cpus: u64,
    pub memory_bytes: u64,
    /// The version of weft.
    pub version: String,
    /// `process` or `docker`.
    pub runtime: String,
    pub engine_labels: Labels,
    /// Global addresses of its links, weft's own left out.
    pub addresses: Vec<IpAddr>,
    /// Destinations of its routes but the default ones: no network may overlap them.
    pub routes: Vec<IpNetwork>,
}
