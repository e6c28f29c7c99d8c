//! Desired state: the table that the cluster agrees on, who may change it, and what each node must make of it.
//!
//! In reading order: [`state`] changes the table, [`mod@plan`] reads one node's part out of it, [`schedule`] and
//! [`orchestrate`] decide what to change next: all pure. [`raft`] replicates the table, [`pki`] says who is who,
//! [`rpc`] carries it between nodes, [`swarm`] is one node's membership of the whole, [`api`] is what users talk to.

pub mod state;
pub mod plan;
pub mod schedule;
pub mod orchestrate;
pub mod pki;
pub mod rpc;
pub mod raft;
pub mod swarm;
pub mod api;
mod files;

#[cfg(test)]
mod fixture;
