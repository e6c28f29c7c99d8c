//! Forms the cluster again with this node as its only manager: from this manager's own log
//! (`swarm init --force-new-cluster`), or from a backup. `lifecycle` calls this module while no
//! manager runs on this node.
//!
//! The new log is written beside the old one and replaces it as a whole. The Raft id changes with
//! it, and the two files cannot be replaced at the same moment. So the new keys are written to
//! `manager.new.json` first, and [`finish`] completes the change after a crash.

use std::{net::SocketAddr, time::Duration};

use weft_model::{NodeId, command::JoinNode, id::ClusterId, spec::Role};

use super::{address, backup::Backup, store::MembershipStore};
use crate::{
    pki::{Ca, Identity, Kek, KeyRequest, Subject},
    raft::{self, Base, Voter},
    state,
    swarm::{
        clock::now_ms,
        context::Record,
        error::SwarmError,
        manager::ManagerKeys,
        types::{RestoreOptions, SwarmConfig},
    },
};

fn failed(reason: impl std::fmt::Display) -> SwarmError {
    SwarmError::Internal { what: "form the cluster again", reason: reason.to_string() }
}

/// Replaces the log of this manager by one whose only voter is this manager.
///
/// # Errors
/// If the log cannot be read or written. The old log stays then.
pub(super) async fn reform(store: &MembershipStore, record: &Record) -> Result<(), SwarmError> {
    let keys = store.manager_keys()?.ok_or_else(|| failed("this node has no keys of a manager"))?;
    let mut base = Base::read(&store.log_path(), store.vault()).await.map_err(failed)?;
    let index = base.next_index();
    let raft_id = state::reform(base.state_mut(), index, &record.node, now_ms()).map_err(failed)?;
    state::readdress(base.state_mut(), &record.node, record.addr).map_err(failed)?;
    let known = &base.state_mut().nodes[&record.node];
    let voter = Voter { node: record.node.clone(), rpc_addr: known.rpc_addr };
    write(store, base, ManagerKeys { raft_id, kek: keys.kek }, voter).await?;
    tracing::warn!(index, raft_id, "formed the cluster again with this node as its only manager");
    Ok(())
}

/// Makes this node the only manager of the cluster in the backup. All files are written when this
/// resolves.
///
/// # Errors
/// The backup, an address or the data directory cannot be used. In that case files may remain, but
/// no record.
pub(super) async fn restore(
    config: &SwarmConfig,
    store: &MembershipStore,
    options: RestoreOptions,
) -> Result<Record, SwarmError> {
    let addr = address::choose(options.advertise_addr, options.listen_addr)?;
    let tunnel_addr = options.tunnel_addr.map_or(Ok(addr), address::check)?;
    let backup = Backup::open(options.file, options.passphrase).await?;
    let unusable = |reason: &dyn std::fmt::Display| SwarmError::Backup { reason: reason.to_string() };
    let kek = Kek::from_bytes(&backup.kek)?;
    let cluster = backup.state.cluster.clone().ok_or_else(|| unusable(&"it contains no cluster"))?;
    let ca = Ca::open(&cluster.id, &cluster.ca_cert_pem, &cluster.ca_key_sealed, &kek)?;
    let id = NodeId::from_random(crate::host::random());
    let identity = sign(&ca, &cluster.id, &id, cluster.spec.cert_expiry_ms)?;
    store.wipe()?;
    let rpc_addr = SocketAddr::new(addr, options.listen_addr.port());
    let join = JoinNode {
        id: id.clone(),
        hostname: config.hostname.clone(),
        role: Role::Manager,
        addr,
        tunnel_addr,
        rpc_addr,
        availability: options.availability,
        ca_cert_pem: String::new(),
    };
    let mut base = Base::from_backup(backup.state, backup.term);
    let index = base.next_index();
    let raft_id = state::restore(base.state_mut(), index, join, now_ms()).map_err(|e| unusable(&e))?;
    let record = Record {
        cluster: cluster.id,
        node: id.clone(),
        addr,
        link: None,
        listen_addr: options.listen_addr,
        remotes: vec![rpc_addr],
        ca_pem: cluster.ca_cert_pem,
        ca_plan: (0, 0),
    };
    store.set_lock(&cluster.lock)?;
    store.write_identity(&identity)?;
    write(store, base, ManagerKeys { raft_id, kek }, Voter { node: id, rpc_addr }).await?;
    store.write_record(&record)?;
    let age_ms = now_ms().saturating_sub(backup.taken_ms);
    tracing::warn!(index, age_ms, "restored the cluster from a backup, with this node as its only manager");
    Ok(record)
}

fn sign(ca: &Ca, cluster: &ClusterId, node: &NodeId, life_ms: u64) -> Result<Identity, SwarmError> {
    let request = KeyRequest::generate()?;
    let subject = Subject { cluster, node, role: Role::Manager, life: Duration::from_millis(life_ms) };
    let cert_pem = ca.sign(request.csr_pem(), subject)?;
    Ok(request.finish(&cert_pem, ca.cert_pem())?)
}

async fn write(store: &MembershipStore, base: Base, keys: ManagerKeys, voter: Voter) -> Result<(), SwarmError> {
    store.remove_new_log()?;
    base.write(&store.new_log_path(), store.vault(), keys.raft_id, voter).await.map_err(failed)?;
    store.write_new_manager_keys(&keys)?;
    store.use_new_log()?;
    store.use_new_manager_keys()
}

/// Completes what a crash has interrupted: if the log is the new one, the new keys belong to it.
///
/// # Errors
/// If a file cannot be read or written.
pub(super) async fn finish(store: &MembershipStore) -> Result<(), SwarmError> {
    let Some(keys) = store.new_manager_keys()? else {
        return Ok(());
    };
    if raft::has_voter(&store.log_path(), store.vault(), keys.raft_id).await.map_err(failed)? {
        return store.use_new_manager_keys();
    }
    store.remove_new_manager_keys()
}
