//! The control plane: the cluster state that all managers agree on, and everything that reads or
//! changes it.
//!
//! Used by the root crate (`src/`): the daemon opens [`swarm::Swarm`] and serves [`api`], the agent
//! takes plans from the swarm and puts its reports there. This crate never touches the kernel's
//! network configuration and never starts a task of a service.
//!
//! In reading order:
//! - Pure: [`state`] applies a command to the cluster state, [`mod@plan`] computes one node's plan
//!   from it, [`schedule`] chooses a node for a task, [`orchestrate`] decides which commands come
//!   next.
//! - Formats: `codec` encodes values for the wire and the disk, `files` writes small files
//!   atomically.
//! - Between nodes: [`pki`] makes certificates and tokens, [`rpc`] carries calls, [`raft`]
//!   replicates the cluster state.
//! - [`swarm`] runs one node's membership of a cluster.
//! - [`api`] is the Engine API that users talk to.

pub mod state;
pub mod plan;
pub mod schedule;
pub mod orchestrate;
mod codec;
mod files;
pub mod pki;
pub mod rpc;
pub mod raft;
pub mod swarm;
pub mod api;

#[cfg(test)]
mod fixture;
