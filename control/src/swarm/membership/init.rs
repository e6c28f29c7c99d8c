//! Forms a new cluster that consists of this node only. `lifecycle` calls this module.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::Instant;
use weft_model::{
    Command, NetworkId, NodeId,
    command::{InitCluster, JoinNode},
    id::ClusterId,
    spec::Role,
    state::{FEATURE_LEVEL, ManagerLock},
};

use super::{address, role::start_manager, store::MembershipStore};
use crate::{
    pki::{self, Ca, Kek, KeyRequest, Subject},
    raft::{ProposalId, Start, Voter},
    rpc::Bound,
    swarm::{
        context::{Context, NodeChannels, Record},
        error::{ProposeError, SwarmError},
        manager::{Manager, ManagerKeys, ManagerRuntime},
        types::{InitOptions, SwarmConfig},
    },
};

/// The raft id of the first manager. `apply` assigns the next ids to later managers.
const FIRST_RAFT_ID: u64 = 1;
/// How long this node has to apply the first entry.
const APPLY_TIMEOUT: Duration = Duration::from_secs(12);

/// A new cluster: everything that the supervisor needs to start.
pub(super) struct Formed {
    pub context: Arc<Context>,
    pub bound: Bound,
    pub runtime: ManagerRuntime,
}

/// Forms a cluster. The first entry is applied and all files are written when this resolves.
///
/// # Errors
/// The address or the data directory cannot be used, or the first log entry is refused or cannot be
/// written. In that case files may remain, but no record.
pub(super) async fn init(
    config: &SwarmConfig,
    store: &MembershipStore,
    channels: &NodeChannels,
    options: InitOptions,
) -> Result<Formed, SwarmError> {
    let listen_addr = options.listen_addr;
    let addr = address::choose(options.advertise_addr, listen_addr)?;
    let tunnel_addr = options.tunnel_addr.map_or(Ok(addr), address::check)?;
    let bound = Bound::bind(listen_addr).map_err(|source| SwarmError::Listen { addr: listen_addr, source })?;
    store.wipe()?;
    let cluster = ClusterId::from_random(crate::host::random());
    let id = NodeId::from_random(crate::host::random());
    let ca = Ca::create()?;
    let kek = Kek::generate()?;
    let unlock_key = options.auto_lock.then(pki::random_unlock_key).transpose()?;
    // Before there are files: no key of a locked manager is ever on the disk in the clear.
    store.set_lock(&ManagerLock { key: unlock_key.clone(), version: 0 })?;
    let request = KeyRequest::generate()?;
    let life = Duration::from_millis(options.spec.cert_expiry_ms);
    let subject = Subject { cluster: &cluster, node: &id, role: Role::Manager, life };
    let cert_pem = ca.sign(request.csr_pem(), subject)?;
    let identity = request.finish(&cert_pem, ca.cert_pem())?;
    let rpc_addr = SocketAddr::new(addr, bound.addr().port());
    let record = Record {
        cluster: cluster.clone(),
        node: id.clone(),
        addr,
        link: None,
        listen_addr: bound.addr(),
        remotes: vec![rpc_addr],
        ca_pem: ca.cert_pem().to_owned(),
        ca_plan: (0, 0),
    };
    let keys = ManagerKeys { raft_id: FIRST_RAFT_ID, kek: kek.clone() };
    store.write_identity(&identity)?;
    store.write_manager_keys(&keys)?;
    let command = InitCluster {
        id: cluster.clone(),
        spec: options.spec,
        tunnel_port: options.tunnel_port,
        ca_cert_pem: ca.cert_pem().to_owned(),
        ca_key_sealed: ca.sealed_key(&cluster, &kek)?,
        worker_secret: pki::random_secret(),
        manager_secret: pki::random_secret(),
        ingress: NetworkId::from_random(crate::host::random()),
        feature_level: FEATURE_LEVEL,
        unlock_key,
        node: JoinNode {
            id: id.clone(),
            hostname: config.hostname.clone(),
            role: Role::Manager,
            addr,
            tunnel_addr,
            rpc_addr,
            availability: options.availability,
            ca_cert_pem: String::new(),
        },
    };
    let context = Context::new(config.clone(), record, identity, channels.clone())?;
    let runtime = start_manager(&context, store, keys, Start::Resume).await?;
    let written = write_first_entry(runtime.manager(), Voter { node: id, rpc_addr }, command).await;
    if let Err(error) = written.and_then(|()| store.write_record(&context.record)) {
        runtime.stop().await;
        return Err(error);
    }
    Ok(Formed { context, bound, runtime })
}

async fn write_first_entry(manager: &Manager, voter: Voter, command: InitCluster) -> Result<(), SwarmError> {
    let failed = |reason: String| SwarmError::Internal { what: "form the swarm", reason };
    manager.initialize_log(BTreeMap::from([(FIRST_RAFT_ID, voter)])).await.map_err(failed)?;
    let (index, outcome) = manager.submit(ProposalId::random(), Command::InitCluster(Box::new(command))).await?;
    outcome.map_err(ProposeError::from)?;
    let applied = manager.wait_for_index(index, Instant::now() + APPLY_TIMEOUT).await;
    if applied { Ok(()) } else { Err(failed(format!("the first change was not applied within {APPLY_TIMEOUT:?}"))) }
}
