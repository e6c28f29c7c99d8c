//! Applies commands to the cluster state: the only code that changes [`ClusterState`].
//!
//! The Raft state machine ([`crate::raft`]) calls [`apply`] with each committed entry of the log.
//! The orchestrator executes its commands on a copy of the cluster state, to see their effect
//! before it proposes them.
//!
//! This module checks every rule that depends on the cluster state (names, versions, ports,
//! overlapping subnets) and allocates everything that must be unique (addresses, VIPs, VNIs, ports,
//! backend ids).
//!
//! Invariants that others rely on:
//!
//! - All replicas compute the same result. This module reads no clock and no random numbers, and
//!   iterates over no unordered collection. Everything else that it needs is in the command.
//! - A refused command changes only the index and the clock of the cluster state. So each function
//!   checks and allocates everything before it changes anything.
//!
//! In reading order: `addresses`, `subnets` and `ports` allocate; `keys`, `configurations`,
//! `networks`, `dependencies`, `services`, `tasks`, `attached`, `nodes` and `cluster` change the
//! objects of their kind; `rotation` completes the replacement of the CA; `reform` makes a state
//! whose only manager is one node; `stored` is the form of the state in snapshots and backups.

mod addresses;
mod subnets;
mod ports;
mod keys;
mod configurations;
mod networks;
mod dependencies;
mod services;
mod tasks;
mod attached;
mod rotation;
mod nodes;
mod cluster;
mod reform;
pub(crate) mod stored;

#[cfg(test)]
mod tests;

use weft_model::{
    Applied, ClusterState, Command, Entry, NetworkId, NodeId, Rejection, ServiceId, TaskId,
    command::ObjectKind,
    state::{Cluster, Meta, Network, Node, Service, Task},
};

pub use addresses::{QUARANTINE_MS, release_at_ms, slot_may_reuse};
pub(crate) use attached::gone;
pub use keys::is_news;
pub use nodes::{moved, readdress};
pub use reform::{reform, restore};

/// Applies the log entry at `index`.
///
/// # Errors
/// The reason why the command was refused. Then only the index and the clock of the cluster state
/// have changed.
pub fn apply(state: &mut ClusterState, index: u64, entry: Entry) -> Result<Applied, Rejection> {
    state.index = state.index.max(index);
    state.now_ms = state.now_ms.max(entry.now_ms);
    match entry.command {
        Command::Batch(commands) => {
            let mut next = state.clone();
            for command in commands {
                execute(&mut next, command)?;
            }
            *state = next;
            Ok(Applied::Done)
        }
        command => execute(state, command),
    }
}

/// Applies one command at the current index and clock of the cluster state. A refused command
/// changes nothing.
pub(crate) fn execute(state: &mut ClusterState, command: Command) -> Result<Applied, Rejection> {
    if let Command::InitCluster(init) = command {
        return cluster::init(state, *init);
    }
    if state.cluster.is_none() {
        return Err(Rejection::NotInitialised);
    }
    match command {
        Command::InitCluster(_) => Err(Rejection::AlreadyInitialised),
        Command::Batch(_) => Err(Rejection::Invalid("a batch cannot contain another batch".to_owned())),

        Command::UpdateCluster { version, spec } => cluster::update(state, version, spec),
        Command::RotateToken { role, secret } => cluster::rotate_token(state, role, secret),
        Command::JoinNode(join) => nodes::join(state, *join),
        Command::UpdateNode { id, version, spec } => nodes::update(state, &id, version, spec),
        Command::RemoveNode { id, force } => nodes::remove(state, &id, force),
        Command::CreateNetwork { id, spec } => networks::create(state, id, *spec),
        Command::RemoveNetwork { id } => networks::remove(state, &id),
        Command::CreateService { id, spec } => services::create(state, id, *spec),
        Command::UpdateService { id, version, spec } => services::update(state, &id, version, *spec),
        Command::RollbackService { id, version, message, automatic } => {
            services::roll_back(state, &id, version, message, automatic)
        }
        Command::RemoveService { id } => services::remove(state, &id),

        Command::SetNodeStatus { id, status, message } => nodes::set_status(state, &id, status, message),
        Command::SetConvergence { id, convergence } => nodes::set_convergence(state, &id, convergence),
        Command::SetVoter { id, voter } => nodes::set_voter(state, &id, voter),
        Command::ClearRaftConfig { id } => nodes::clear_raft_config(state, &id),
        Command::CreateTask { id, service, slot, desired, not_before_ms, restarts } => {
            tasks::create(state, tasks::NewTask { id, service, slot, desired, not_before_ms, restarts })
        }
        Command::AssignTask { id, node, reuse } => tasks::assign(state, &id, node, &reuse),
        Command::DelayTask { id, error } => tasks::delay(state, &id, error),
        Command::SetDesired { id, desired } => tasks::set_desired(state, &id, desired),
        Command::SetTraffic { id, traffic } => tasks::set_traffic(state, &id, traffic),
        Command::OrphanTask { id } => tasks::orphan(state, &id),
        Command::ForgetTask { id } => tasks::forget(state, &id),
        Command::ForgetService { id } => services::forget(state, &id),
        Command::SetUpdateStatus { service, version, status } => {
            services::set_update_status(state, &service, version, status)
        }
        Command::ReleaseAddresses { acked_index, owners } => addresses::release(state, acked_index, &owners),
        Command::RequestKey { node } => keys::request(state, &node),
        Command::SetKeyStage { node, key, stage } => keys::set_stage(state, &node, &key, stage),
        Command::ForgetKey { node, key } => keys::forget(state, &node, &key),

        Command::ReportTasks { node, tasks } => tasks::report(state, &node, tasks),
        Command::DescribeNode { node, description } => nodes::describe(state, &node, *description),
        Command::ReportKeys { node, keys, acked } => keys::report(state, &node, &keys, acked),

        Command::SetFeatureLevel { level } => cluster::set_feature_level(state, level),
        Command::SetUnlockKey { version, spec, key } => cluster::set_unlock_key(state, version, spec, key),
        Command::ReplaceRaftId { node, raft_id } => nodes::replace_raft_id(state, &node, raft_id),
        Command::ReportDigest { node, digest } => nodes::report_digest(state, &node, digest),
        Command::AttachContainer(attach) => attached::attach(state, *attach),
        Command::DetachContainer { node, id, networks } => attached::detach(state, &node, &id, &networks),
        Command::CreateDependency { id, spec } => dependencies::create(state, id, *spec),
        Command::UpdateDependency { id, version, labels } => dependencies::update(state, &id, version, labels),
        Command::RemoveDependency { id } => dependencies::remove(state, &id),
        Command::RotateRoot { version, spec, rotation } => cluster::rotate_root(state, version, spec, *rotation),
        Command::SetRotated { nodes, ca_cert_pem } => rotation::set_rotated(state, &nodes, &ca_cert_pem),
    }
}

fn not_found(kind: ObjectKind, id: &impl ToString) -> Rejection {
    Rejection::NotFound { kind, id: id.to_string() }
}

fn cluster_mut(state: &mut ClusterState) -> Result<&mut Cluster, Rejection> {
    state.cluster.as_mut().ok_or(Rejection::NotInitialised)
}

fn node_mut<'a>(state: &'a mut ClusterState, id: &NodeId) -> Result<&'a mut Node, Rejection> {
    state.nodes.get_mut(id).ok_or_else(|| not_found(ObjectKind::Node, id))
}

fn network_by_id<'a>(state: &'a ClusterState, id: &NetworkId) -> Result<&'a Network, Rejection> {
    state.networks.get(id).ok_or_else(|| not_found(ObjectKind::Network, id))
}

fn service_mut<'a>(state: &'a mut ClusterState, id: &ServiceId) -> Result<&'a mut Service, Rejection> {
    state.services.get_mut(id).ok_or_else(|| not_found(ObjectKind::Service, id))
}

fn task_mut<'a>(state: &'a mut ClusterState, id: &TaskId) -> Result<&'a mut Task, Rejection> {
    state.tasks.get_mut(id).ok_or_else(|| not_found(ObjectKind::Task, id))
}

/// The version and times of an object that is created now.
fn new_meta(state: &ClusterState) -> Meta {
    Meta { version: state.index, created_ms: state.now_ms, updated_ms: state.now_ms }
}

/// The version and times of an object that a user changes now.
fn updated_meta(state: &ClusterState, meta: Meta) -> Meta {
    Meta { version: state.index, updated_ms: state.now_ms, ..meta }
}

fn check_version(kind: ObjectKind, id: &impl ToString, meta: Meta, given: u64) -> Result<(), Rejection> {
    if meta.version == given {
        Ok(())
    } else {
        Err(Rejection::OutOfSequence { kind, id: id.to_string(), current: meta.version, given })
    }
}
