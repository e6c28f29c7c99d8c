//! The cluster itself: its birth with the first manager and the ingress network, its settings, its join tokens.

use ipnetwork::IpNetwork;
use weft_model::{
    Applied, ClusterState, INGRESS_NETWORK, Rejection,
    command::{InitCluster, ObjectKind},
    spec::{ClusterSpec, NetworkSpec, Role},
    state::Cluster,
};

use super::{born, check_version, cluster_of, networks, nodes, subnets, touched};

/// Longest prefix that a network may be cut to: a gateway and five more addresses.
const MAX_POOL_PREFIX: u8 = 29;

pub(super) fn init(state: &mut ClusterState, init: InitCluster) -> Result<Applied, Rejection> {
    if state.cluster.is_some() {
        return Err(Rejection::AlreadyInitialised);
    }
    check(state, &init.spec)?;
    let subnet = subnets::cut_ingress(state, &init.spec)?;
    let meta = born(state);
    state.cluster = Some(Cluster {
        id: init.id,
        meta,
        spec: init.spec,
        ca_cert_pem: init.ca_cert_pem,
        ca_key_sealed: init.ca_key_sealed,
        worker_secret: init.worker_secret,
        manager_secret: init.manager_secret,
    });
    let ingress = NetworkSpec {
        name: INGRESS_NETWORK.parse().expect("the ingress network's name is a name"),
        labels: Default::default(),
        v4: None,
        v6: None,
        ipv6: false,
        internal: false,
    };
    networks::insert_ingress(state, init.ingress, ingress, subnet)?;
    let id = init.node.id.clone();
    nodes::join(state, init.node)?;
    nodes::set_voter(state, &id, true)?;
    Ok(Applied::Node(id))
}

pub(super) fn update(state: &mut ClusterState, version: u64, spec: ClusterSpec) -> Result<Applied, Rejection> {
    let cluster = cluster_of(state)?;
    let (id, meta) = (cluster.id.clone(), cluster.meta);
    check_version(ObjectKind::Cluster, &id, meta, version)?;
    check(state, &spec)?;
    let meta = touched(state, meta);
    let cluster = cluster_of(state)?;
    cluster.meta = meta;
    cluster.spec = spec;
    Ok(Applied::Done)
}

pub(super) fn rotate_token(state: &mut ClusterState, role: Role, secret: String) -> Result<Applied, Rejection> {
    let meta = cluster_of(state)?.meta;
    let meta = touched(state, meta);
    let cluster = cluster_of(state)?;
    cluster.meta = meta;
    match role {
        Role::Worker => cluster.worker_secret = secret,
        Role::Manager => cluster.manager_secret = secret,
    }
    Ok(Applied::Done)
}

/// Settings that the cluster could not live with.
fn check(state: &ClusterState, spec: &ClusterSpec) -> Result<(), Rejection> {
    let invalid = |why: String| Err(Rejection::Invalid(why));
    if spec.heartbeat_ms == 0 || spec.heartbeat_misses == 0 {
        return invalid("the heartbeat period and the number of missed heartbeats must be greater than 0".to_owned());
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
    // A pool that only touches a route is fine: what is cut from it goes around.
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
