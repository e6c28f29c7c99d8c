//! Nodes: joining and removal, their settings, their status and their description.

use std::net::{IpAddr, SocketAddr};

use weft_model::{
    Applied, ClusterState, NodeId, Rejection,
    command::{Convergence, JoinNode, ObjectKind},
    report::NodeDescription,
    spec::{NodeSpec, Role},
    state::{Lag, Node, NodeKeys, NodeStatus, StateDigest},
};

use super::{attached, check_version, networks, new_meta, node_mut, ports, tasks, updated_meta};

/// The feature level from which each promotion gives a new Raft id.
const NEW_IDS_LEVEL: u32 = 1;

/// Adds a node. A node that is already a member keeps its Raft id and role, and may have changed
/// its addresses.
pub(super) fn join(state: &mut ClusterState, join: JoinNode) -> Result<Applied, Rejection> {
    let id = join.id.clone();
    check_ca(state, &join.ca_cert_pem)?;
    ports::check_control_port(state, join.rpc_addr.port())?;
    if let Some(node) = state.nodes.get_mut(&id) {
        node.hostname = join.hostname;
        node.addr = join.addr;
        node.tunnel_addr = join.tunnel_addr;
        node.rpc_addr = join.rpc_addr;
        return Ok(Applied::Node(id));
    }
    let takes_raft_id = join.role == Role::Manager || state.feature_level < NEW_IDS_LEVEL;
    let node = Node {
        id: join.id,
        meta: new_meta(state),
        raft_id: if takes_raft_id { next_raft_id(state) } else { 0 },
        spec: NodeSpec { name: None, labels: Default::default(), role: join.role, availability: join.availability },
        hostname: join.hostname,
        addr: join.addr,
        tunnel_addr: join.tunnel_addr,
        rpc_addr: join.rpc_addr,
        status: NodeStatus::Unknown,
        message: String::new(),
        lag: None,
        description: None,
        keys: NodeKeys::default(),
        voter: false,
        in_raft_config: join.role == Role::Manager,
        rotated: false,
    };
    state.nodes.insert(id.clone(), node);
    Ok(Applied::Node(id))
}

/// A node that trusts a former CA has no use for a certificate of the current one, and the rotation
/// that replaced the CA did not wait for it.
fn check_ca(state: &ClusterState, trusted: &str) -> Result<(), Rejection> {
    if trusted.is_empty() || state.cluster.as_ref().is_some_and(|cluster| cluster.ca_cert_pem == trusted) {
        return Ok(());
    }
    Err(Rejection::Invalid(
        "the certificate authority of the swarm was replaced, and with it the join tokens: get the current one with \
         \"weft swarm join-token\" on a manager"
            .to_owned(),
    ))
}

/// Joins a member again at another address. Its tunnels end there too, unless the user chose
/// another address for them.
pub fn moved(node: &Node, addr: IpAddr) -> JoinNode {
    JoinNode {
        id: node.id.clone(),
        hostname: node.hostname.clone(),
        role: node.spec.role,
        addr,
        tunnel_addr: if node.tunnel_addr == node.addr { addr } else { node.tunnel_addr },
        rpc_addr: SocketAddr::new(addr, node.rpc_addr.port()),
        availability: node.spec.availability,
        ca_cert_pem: String::new(),
    }
}

/// Changes the address of a node while no log is open.
///
/// # Errors
/// [`Rejection::NotFound`] if the state does not contain the node.
pub fn readdress(state: &mut ClusterState, id: &NodeId, addr: IpAddr) -> Result<(), Rejection> {
    let node = node_mut(state, id)?;
    if node.addr != addr {
        let JoinNode { tunnel_addr, rpc_addr, .. } = moved(node, addr);
        (node.addr, node.tunnel_addr, node.rpc_addr) = (addr, tunnel_addr, rpc_addr);
    }
    Ok(())
}

pub(super) fn next_raft_id(state: &mut ClusterState) -> u64 {
    let id = state.allocated.next_raft_id;
    state.allocated.next_raft_id += 1;
    id
}

/// Changes the settings of a node. A node that becomes a manager gets a new Raft id, because it
/// starts with an empty log: with an id that voted before, it could vote again in an old term, or
/// elect itself with the first entries of the log. A node that is promoted before the Raft
/// membership has dropped it keeps its log, and so its id.
pub(super) fn update(
    state: &mut ClusterState,
    id: &NodeId,
    version: u64,
    spec: NodeSpec,
) -> Result<Applied, Rejection> {
    let node = node_mut(state, id)?;
    check_version(ObjectKind::Node, id, node.meta, version)?;
    let demoted = node.is_manager() && spec.role == Role::Worker;
    let meta = node.meta;
    if demoted && state.nodes.values().filter(|n| n.is_manager()).count() == 1 {
        return Err(Rejection::LastManager { id: id.to_string() });
    }
    let meta = updated_meta(state, meta);
    let promoted = spec.role == Role::Manager && !node_mut(state, id)?.in_raft_config;
    let raft_id = (promoted && state.feature_level >= NEW_IDS_LEVEL).then(|| next_raft_id(state));
    let node = node_mut(state, id)?;
    node.meta = meta;
    node.raft_id = raft_id.unwrap_or(node.raft_id);
    node.in_raft_config |= spec.role == Role::Manager;
    node.spec = spec;
    Ok(Applied::Done)
}

/// Removes a node. Its tasks become orphans, like the tasks of a node that is down. Its other
/// containers lose their addresses.
pub(super) fn remove(state: &mut ClusterState, id: &NodeId, force: bool) -> Result<Applied, Rejection> {
    let node = node_mut(state, id)?;
    if node.in_raft_config {
        return Err(Rejection::NodeIsManager { id: id.to_string() });
    }
    if !force && node.status != NodeStatus::Down {
        return Err(Rejection::NodeNotDown { id: id.to_string() });
    }
    let tasks: Vec<_> = state.tasks_on(id).map(|t| t.id.clone()).collect();
    for task in tasks {
        tasks::orphan(state, &task)?;
    }
    attached::remove_all(state, id);
    state.nodes.remove(id);
    state.digests.remove(id);
    Ok(Applied::Done)
}

pub(super) fn set_status(
    state: &mut ClusterState,
    id: &NodeId,
    status: NodeStatus,
    message: String,
) -> Result<Applied, Rejection> {
    let node = node_mut(state, id)?;
    node.status = status;
    node.message = message;
    Ok(Applied::Done)
}

pub(super) fn set_convergence(
    state: &mut ClusterState,
    id: &NodeId,
    convergence: Convergence,
) -> Result<Applied, Rejection> {
    let index = state.index;
    let node = node_mut(state, id)?;
    node.lag = match convergence {
        Convergence::Lagging { mut reason } => {
            tasks::truncate(&mut reason);
            Some(Lag { reason, index, catching_up: false })
        }
        Convergence::CatchingUp => node.lag.take().map(|lag| Lag { index, catching_up: true, ..lag }),
        Convergence::Converged => None,
    };
    Ok(Applied::Done)
}

pub(super) fn set_voter(state: &mut ClusterState, id: &NodeId, voter: bool) -> Result<Applied, Rejection> {
    node_mut(state, id)?.voter = voter;
    Ok(Applied::Done)
}

/// Ends the Raft id of a manager whose log is lost, and gives it another one. The leader removes
/// the former id from the Raft membership.
pub(super) fn replace_raft_id(state: &mut ClusterState, id: &NodeId, raft_id: u64) -> Result<Applied, Rejection> {
    let node = node_mut(state, id)?;
    if node.is_manager() && node.raft_id == raft_id {
        let next = next_raft_id(state);
        let node = node_mut(state, id)?;
        node.raft_id = next;
        node.voter = false;
    }
    Ok(Applied::Done)
}

/// Ends the Raft id of a node that is no longer a manager. The node then removes its log.
pub(super) fn clear_raft_config(state: &mut ClusterState, id: &NodeId) -> Result<Applied, Rejection> {
    let ends_id = state.feature_level >= NEW_IDS_LEVEL;
    let node = node_mut(state, id)?;
    node.in_raft_config = node.is_manager();
    if ends_id && !node.in_raft_config {
        node.raft_id = 0;
    }
    Ok(Applied::Done)
}

/// An older digest than the known one has no effect.
pub(super) fn report_digest(state: &mut ClusterState, id: &NodeId, digest: StateDigest) -> Result<Applied, Rejection> {
    node_mut(state, id)?;
    let known = state.digests.entry(id.clone()).or_insert(digest);
    if known.index < digest.index {
        *known = digest;
    }
    Ok(Applied::Done)
}

pub(super) fn describe(
    state: &mut ClusterState,
    id: &NodeId,
    description: NodeDescription,
) -> Result<Applied, Rejection> {
    node_mut(state, id)?.description = Some(description);
    networks::move_ingress(state);
    Ok(Applied::Done)
}
