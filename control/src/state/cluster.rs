//! The cluster itself: its initialisation with the first manager and the ingress network, its
//! settings and its join tokens.

use std::ops::RangeInclusive;

use ipnetwork::{IpNetwork, Ipv4Network};
use weft_model::{
    Applied, ClusterState, INGRESS_NETWORK, Rejection, UnlockKey,
    command::{InitCluster, ObjectKind},
    spec::{ClusterSpec, NetworkSpec, Role},
    state::{Cluster, EarlierTimeout, ManagerLock, RootRotation},
};

use super::{check_version, cluster_mut, networks, new_meta, nodes, subnets, updated_meta};

/// The longest prefix of subnets from the pool. A /29 has room for a gateway and five more
/// addresses.
const MAX_POOL_PREFIX: u8 = 29;
/// The UDP ports that tunnels may use: the registered ports (RFC 6335, section 6), as in Swarm.
const TUNNEL_PORTS: RangeInclusive<u16> = 1024..=49151;
/// The largest number of address pools. It bounds the time of an allocation.
const MAX_POOLS: usize = 64;

/// The shortest period after which keys are replaced. A replacement takes several round trips
/// between the leader and all nodes.
const MIN_KEY_ROTATION_MS: u64 = 10_000;

/// The feature level from which on the cluster state has the earlier heartbeat timeout.
const EARLIER_TIMEOUT_LEVEL: u32 = 1;

pub(super) fn init(state: &mut ClusterState, init: InitCluster) -> Result<Applied, Rejection> {
    if state.cluster.is_some() {
        return Err(Rejection::AlreadyInitialised);
    }
    check(&init.spec)?;
    check_tunnel_port(init.tunnel_port)?;
    let subnet = subnets::allocate_ingress(state, &init.spec)?;
    let meta = new_meta(state);
    let version = if init.unlock_key.is_some() { state.index } else { 0 };
    state.cluster = Some(Cluster {
        id: init.id,
        meta,
        spec: init.spec,
        tunnel_port: init.tunnel_port,
        ca_cert_pem: init.ca_cert_pem,
        ca_key_sealed: init.ca_key_sealed,
        worker_secret: init.worker_secret,
        manager_secret: init.manager_secret,
        earlier_timeout: None,
        root_rotation: None,
        lock: ManagerLock { key: init.unlock_key, version },
    });
    state.feature_level = init.feature_level;
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
    let (id, meta, pools) = (cluster.id.clone(), cluster.meta, cluster.spec.pools.clone());
    check_version(ObjectKind::Cluster, &id, meta, version)?;
    check(&spec)?;
    // A route that a node got later must not prevent the change of another setting.
    let new_pools: Vec<_> = spec.pools.iter().filter(|pool| !pools.contains(pool)).copied().collect();
    check_routes(state, &new_pools)?;
    let meta = updated_meta(state, meta);
    let (index, level) = (state.index, state.feature_level);
    let cluster = cluster_mut(state)?;
    // A node that has not acknowledged this change may still have the timeout of an earlier one.
    let longest_ms = cluster.heartbeat_timeout_ms(0);
    if spec.heartbeat_timeout_ms() < longest_ms && level >= EARLIER_TIMEOUT_LEVEL {
        cluster.earlier_timeout = Some(EarlierTimeout { timeout_ms: longest_ms, index });
    }
    cluster.meta = meta;
    cluster.spec = spec;
    Ok(Applied::Done)
}

/// Changes the settings and begins to replace the CA.
pub(super) fn rotate_root(
    state: &mut ClusterState,
    version: u64,
    spec: ClusterSpec,
    rotation: RootRotation,
) -> Result<Applied, Rejection> {
    if cluster_mut(state)?.ca_cert_pem == rotation.ca_cert_pem {
        return Err(Rejection::Invalid("the given certificate authority is the current one".to_owned()));
    }
    update(state, version, spec)?;
    cluster_mut(state)?.root_rotation = Some(rotation);
    state.nodes.values_mut().for_each(|node| node.rotated = false);
    Ok(Applied::Done)
}

/// Changes the settings, and the key that managers need after a restart.
pub(super) fn set_unlock_key(
    state: &mut ClusterState,
    version: u64,
    spec: ClusterSpec,
    key: Option<UnlockKey>,
) -> Result<Applied, Rejection> {
    update(state, version, spec)?;
    let version = state.index;
    cluster_mut(state)?.lock = ManagerLock { key, version };
    Ok(Applied::Done)
}

/// A lower level than the current one has no effect.
pub(super) fn set_feature_level(state: &mut ClusterState, level: u32) -> Result<Applied, Rejection> {
    state.feature_level = state.feature_level.max(level);
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
fn check(spec: &ClusterSpec) -> Result<(), Rejection> {
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
    check_pools(spec)
}

/// Refuses a port that programs of the nodes use, or that egress translation chooses as a source.
fn check_tunnel_port(port: u16) -> Result<(), Rejection> {
    if TUNNEL_PORTS.contains(&port) {
        return Ok(());
    }
    Err(Rejection::Invalid(format!(
        "the tunnels cannot use UDP port {port}: choose one from {} to {} (--data-path-port)",
        TUNNEL_PORTS.start(),
        TUNNEL_PORTS.end()
    )))
}

/// Checks the shape of the address pools.
fn check_pools(spec: &ClusterSpec) -> Result<(), Rejection> {
    let invalid = |why: String| Err(Rejection::Invalid(why));
    if !(1..=MAX_POOLS).contains(&spec.pools.len()) {
        return invalid(format!(
            "the cluster needs 1 to {MAX_POOLS} address pools, and {} are given",
            spec.pools.len()
        ));
    }
    let prefix = spec.pool_prefix;
    for (nth, pool) in spec.pools.iter().enumerate() {
        let (network, pool_prefix) = (pool.network(), pool.prefix());
        if network != pool.ip() {
            return invalid(format!("address pool {pool} has host bits set: use {network}/{pool_prefix}"));
        }
        if !(pool_prefix..=MAX_POOL_PREFIX).contains(&prefix) {
            return invalid(format!(
                "address pool {pool} cannot be cut into /{prefix}: use a mask length of {pool_prefix} to \
                 {MAX_POOL_PREFIX}"
            ));
        }
        if let Some(other) = spec.pools[..nth].iter().find(|other| other.overlaps(*pool)) {
            return invalid(format!("address pools {other} and {pool} overlap: give only one of them"));
        }
    }
    Ok(())
}

/// Refuses a pool that a route of a node contains: no subnet of it could be used. A pool that
/// contains a route is accepted, because subnets from the pool avoid the route.
fn check_routes(state: &ClusterState, pools: &[Ipv4Network]) -> Result<(), Rejection> {
    for (node, route) in subnets::routes_v4(state) {
        if let Some(pool) = pools.iter().find(|pool| subnets::contains_v4(route, **pool)) {
            return Err(Rejection::SubnetOverlapsRoute {
                subnet: IpNetwork::V4(*pool),
                route: IpNetwork::V4(route),
                node: node.to_string(),
            });
        }
    }
    Ok(())
}
