//! Networks: creation with subnets and a VNI, and removal.

use ipnetwork::Ipv4Network;
use weft_model::{
    Applied, ClusterState, FIRST_VNI, NetworkId, Rejection, Vni,
    command::ObjectKind,
    spec::{NETWORK_MTU, NetworkSpec},
    state::Network,
};

use super::{addresses, attached, cluster_mut, configurations, keys, network_by_id, new_meta, subnets};

pub(super) fn create(state: &mut ClusterState, id: NetworkId, spec: NetworkSpec) -> Result<Applied, Rejection> {
    if state.networks.contains_key(&id) || state.configurations.contains_key(&id) {
        return Err(in_use(&id, &id));
    }
    let name = spec.name.as_str();
    let other = state.network_by_name(name).map(|n| &n.id);
    if let Some(other) = other.or_else(|| state.configuration_by_name(name).map(|n| &n.id)) {
        return Err(Rejection::NameInUse { kind: ObjectKind::Network, name: name.to_owned(), by: other.to_string() });
    }
    if let Some(other) = state.networks.values().find(|n| spec.ingress && n.spec.ingress) {
        return Err(Rejection::Invalid(format!(
            "the cluster has the ingress network {name} already: remove it first with \"weft network rm {name}\"",
            name = other.spec.name
        )));
    }
    if spec.ingress && spec.attachable {
        return Err(Rejection::Invalid(format!(
            "ingress network cannot be attachable: create {name} without one of both"
        )));
    }
    check_mtu(&spec)?;
    if spec.config_only {
        subnets::check(state, &spec)?;
        return configurations::create(state, id, spec);
    }
    let spec = configurations::resolve(state, spec)?;
    let cluster = cluster_mut(state)?.clone();
    let vni = match spec.vni {
        Some(chosen) => check_vni(state, chosen)?,
        None => free_vni(state)?,
    };
    let subnets = subnets::from_spec(state, &cluster.id, &cluster.spec, &spec, vni)?;
    insert(state, Network { id: id.clone(), meta: new_meta(state), spec, vni, subnets });
    Ok(Applied::Network(id))
}

/// Creates the first ingress network when the cluster is initialised.
pub(super) fn insert_ingress(
    state: &mut ClusterState,
    id: NetworkId,
    spec: NetworkSpec,
    v4: Ipv4Network,
) -> Result<(), Rejection> {
    let vni = free_vni(state)?;
    let subnets = subnets::with_v4(&cluster_mut(state)?.id, vni, v4);
    insert(state, Network { id, meta: new_meta(state), spec, vni, subnets });
    Ok(())
}

fn insert(state: &mut ClusterState, network: Network) {
    if network.spec.vni.is_none() {
        state.allocated.next_vni = network.vni.get() + 1;
    }
    state.allocated.addresses.insert(network.id.clone(), addresses::of_new_network(&network));
    state.networks.insert(network.id.clone(), network);
}

/// Refused while a service, a task or an attached container uses the network.
pub(super) fn remove(state: &mut ClusterState, id: &NetworkId) -> Result<Applied, Rejection> {
    if state.configurations.contains_key(id) {
        return configurations::remove(state, id);
    }
    let network = network_by_id(state, id)?;
    if let Some(by) = find_user(state, id) {
        return Err(in_use(&network.spec.name, &by));
    }
    state.networks.remove(id);
    state.allocated.addresses.remove(id);
    state.allocated.quarantine.retain(|freed| freed.network != *id);
    if !state.has_encrypted_network() {
        keys::clear(state);
    }
    Ok(Applied::Network(id.clone()))
}

fn in_use(id: &impl ToString, by: &impl ToString) -> Rejection {
    Rejection::InUse { kind: ObjectKind::Network, id: id.to_string(), by: by.to_string() }
}

/// A service, a task or an attached container that uses the network, described for the user.
fn find_user(state: &ClusterState, id: &NetworkId) -> Option<String> {
    let service = state.services.values().find(|s| s.endpoints.iter().any(|e| e.network == *id));
    let task = || state.tasks.values().find(|t| t.attachments.iter().any(|a| a.network == *id));
    let attached = || state.attached.values().find(|c| c.links.iter().any(|link| link.network == *id));
    service
        .map(|s| format!("service {}", s.spec.name))
        .or_else(|| task().map(|t| format!("task {}", t.name)))
        .or_else(|| attached().map(|c| attached::describe(state, c)))
}

fn check_mtu(spec: &NetworkSpec) -> Result<(), Rejection> {
    match spec.mtu.filter(|mtu| !NETWORK_MTU.contains(mtu)) {
        None => Ok(()),
        Some(mtu) => Err(Rejection::Invalid(format!(
            "network {} cannot have an MTU of {mtu}: IPv6 needs at least {}, and a link carries at most {}",
            spec.name,
            NETWORK_MTU.start(),
            NETWORK_MTU.end()
        ))),
    }
}

/// Checks that no network has the VNI that the user has chosen.
fn check_vni(state: &ClusterState, chosen: Vni) -> Result<Vni, Rejection> {
    match state.networks.values().find(|n| n.vni == chosen) {
        None => Ok(chosen),
        Some(other) => Err(Rejection::VniInUse { vni: chosen, by: other.spec.name.to_string() }),
    }
}

/// The next VNI that no network has. The VNI of a removed network is reused only after all other
/// VNIs have been used.
fn free_vni(state: &ClusterState) -> Result<Vni, Rejection> {
    let next = state.allocated.next_vni;
    let free = |vni: &Vni| !state.networks.values().any(|n| n.vni == *vni);
    let ahead = (next..).map_while(Vni::new).find(free);
    ahead
        .or_else(|| (FIRST_VNI..next).filter_map(Vni::new).find(free))
        .ok_or_else(|| Rejection::Invalid("no VXLAN network identifier left: remove networks".to_owned()))
}

/// Gives the ingress network another subnet if a node's route overlaps the current one, the user
/// has not chosen it, and no service or task uses the network yet. The nodes report their routes
/// only after the cluster has been initialised, so the first subnet is chosen without them.
pub(super) fn move_ingress(state: &mut ClusterState) {
    let Some(cluster) = &state.cluster else { return };
    let Some(ingress) = state.networks.values().find(|n| n.spec.ingress && n.spec.ipv4 && n.spec.v4.is_empty()) else {
        return;
    };
    let (id, vni) = (ingress.id.clone(), ingress.vni);
    let overlaps = subnets::routes_v4(state)
        .any(|(_, route)| ingress.subnets.v4.iter().any(|subnet| subnet.range.overlaps(route)));
    if !overlaps || find_user(state, &id).is_some() {
        return;
    }
    let Ok(v4) = subnets::allocate_ingress(state, &cluster.spec) else { return };
    let moved = subnets::with_v4(&cluster.id, vni, v4);
    if let Some(ingress) = state.networks.get_mut(&id) {
        ingress.subnets.v4 = moved.v4;
        state.allocated.addresses.insert(id.clone(), addresses::of_new_network(ingress));
        state.allocated.quarantine.retain(|freed| freed.network != id);
    }
}
