//! The cluster itself: its initialisation with the first manager and the ingress network, its
//! settings and its join tokens.

use ipnetwork::IpNetwork;
use weft_model::{
    Applied, ClusterState, INGRESS_NETWORK, Rejection,
    command::{InitCluster, ObjectKind},
    spec::{ClusterSpec, NetworkSpec, Role},
    state::Cluster,
};

use super::{check_version, cluster_mut, networks, new_meta, nodes, subnets, updated_meta};

/// The longest prefix of subnets from the pool. A /29 has room for a gateway and five more
/// addresses.
const MAX_POOL_PREFIX: u8 = 29;

/// The shortest period after which keys are replaced. A replacement takes several round trips
/// between the leader and all nodes.
const MIN_KEY_ROTATION_MS: u64 = 10_000;

pub(super) fn init(state: &mut ClusterState, init: InitCluster) -> Result<Applied, Rejection> {
    if state.cluster.is_some() {
        return Err(Rejection::AlreadyInitialised);
    }
    check(state, &init.spec)?;
    let subnet = subnets::allocate_ingress(state, &init.spec)?;
    let meta = new_meta(state);
    state.cluster = Some(Cluster {
        id: init.id,
        meta,
        spec: init.spec,
        ca_cert_pem: init.ca_cert_pem,
        ca_key_sealed: init.ca_key_sealed,
        worker_secret: init.worker_secret,
        manager_secret: init.manager_secret,
    });
    let name = INGRESS_NETWORK.parse().expect("\"ingress\" is a valid network name");
    let ingress = NetworkSpec { ingress: true, ..NetworkSpec::new(name) };
    networks::insert_ingress(state, init.ingress, ingress, subnet)?;
    let id = init.node.id.clone();
    nodes::join(state, init.node)?;
    nodes::set_voter(state, &id, true)?;
    Ok(Applied::Node(id))
}

pub(super) fn update(state: &mut ClusterState, version: u64, spec: ClusterSpec) -> Result<Applied, Rejection> {
    let cluster = cluster_mut(state)?;
    let (id, meta) = (cluster.id.clone(), cluster.meta);
    check_version(ObjectKind::Cluster, &id, meta, version)?;
    check(state, &spec)?;
    let meta = updated_meta(state, meta);
    let cluster = cluster_mut(state)?;
    cluster.meta = meta;
    cluster.spec = spec;
    Ok(Applied::Done)
}

pub(super) fn rotate_token(state: &mut ClusterState, role: Role, secret: String) -> Result<Applied, Rejection> {
    let meta = cluster_mut(state)?.meta;
    let meta = updated_meta(state, meta);
    let cluster = cluster_mut(state)?;
    cluster.meta = meta;
    match role {
        Role::Worker => cluster.worker_secret = secret,
        Role::Manager => cluster.manager_secret = secret,
    }
    Ok(Applied::Done)
}

/// Refuses settings with which the cluster could not work.
fn check(state: &ClusterState, spec: &ClusterSpec) -> Result<(), Rejection> {
    let invalid = |why: String| Err(Rejection::Invalid(why));
    if spec.heartbeat_ms == 0 || spec.heartbeat_misses == 0 {
        return invalid("the heartbeat period and the number of missed heartbeats must be greater than 0".to_owned());
    }
    if spec.key_rotation_ms < MIN_KEY_ROTATION_MS {
        let seconds = MIN_KEY_ROTATION_MS / 1000;
        return invalid(format!(
            "the rotation period of encryption keys must be {seconds}s or longer (--key-rotation)"
        ));
    }
    let (pool, prefix) = (spec.pool, spec.pool_prefix);
    if pool.network() != pool.ip() {
        let network = pool.network();
        return invalid(format!("address pool {pool} has host bits set: use {network}/{}", pool.prefix()));
    }
    if !(pool.prefix()..=MAX_POOL_PREFIX).contains(&prefix) {
        return invalid(format!(
            "address pool {pool} cannot be cut into /{prefix}: use a mask length of {} to {MAX_POOL_PREFIX}",
            pool.prefix()
        ));
    }
    // A pool that contains a route is accepted: subnets from the pool avoid the route.
    for (node, route) in subnets::routes_v4(state) {
        if subnets::contains_v4(route, pool) {
            return Err(Rejection::SubnetOverlapsRoute {
                subnet: IpNetwork::V4(pool),
                route: IpNetwork::V4(route),
                node: node.to_string(),
            });
        }
    }
    Ok(())
}
