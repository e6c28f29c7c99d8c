//! The control plane: the cluster state that the managers replicate, and everything that reads or
//! changes it.
//!
//! The root crate (`src/`) uses it: the daemon opens [`swarm::Swarm`] and serves [`api`]. The agent
//! receives plans from the swarm and sends its reports to it. This crate never changes the kernel's
//! network configuration and never starts a task of a service.
//!
//! In reading order:
//! - Pure: [`state`] applies a command to the cluster state, [`mod@plan`] computes one node's plan
//!   from it, [`schedule`] chooses a node for a task, [`orchestrate`] decides which commands the
//!   leader proposes next.
//! - Formats: `codec` encodes values for the wire and the disk, [`json`] those of readable files,
//!   and [`files`] writes small files atomically.
//! - [`vault`] keeps the files with the node's secrets, encrypted while managers are locked.
//! - Between nodes: [`pki`] makes certificates and tokens, [`rpc`] makes calls between nodes,
//!   [`raft`] replicates the cluster state.
//! - [`swarm`] runs one node's membership of a cluster.
//! - [`api`] serves the Engine API to users.
//! - [`fuzzing`] reads arbitrary octets as each of these, for the fuzzer.

pub mod state;
pub mod plan;
pub mod schedule;
pub mod orchestrate;
mod codec;
mod host;
pub mod files;
pub mod json;
pub mod pki;
pub mod vault;
pub mod rpc;
pub mod raft;
pub mod swarm;
pub mod api;
pub mod fuzzing;

#[cfg(test)]
mod fixture;
