//! Subnets of networks: checks those that users choose, and allocates the others.

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use sha2::{Digest, Sha256};
use weft_model::{
    ClusterState, NodeName, Rejection, Vni,
    id::ClusterId,
    net::{Subnet, Subnets, overlap},
    spec::{ClusterSpec, NetworkSpec, SubnetSpec},
    wireguard::cluster_range,
};

/// Prefix length of the ingress network in a large pool. All tasks of all services whose spec lists
/// no network have an address in this network, so a /24, as other networks have, would be too
/// small.
const INGRESS_PREFIX: u8 = 16;
/// In a smaller pool the ingress network gets a sixteenth of the pool: this many bits more than the
/// pool's prefix.
const INGRESS_SHARE_BITS: u8 = 4;
/// The longest prefix of an IPv4 network. A longer prefix leaves no addresses for a gateway and a
/// task.
const MAX_V4_PREFIX: u8 = 30;
/// The longest prefix of an IPv6 network, for the same reason.
const MAX_V6_PREFIX: u8 = 126;
/// The first address of ::ffff:0:0/96, which stands for IPv4 addresses in the data plane (RFC 4291,
/// section 2.5.5.2).
const V4_MAPPED: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);

pub(super) fn contains_v4(outer: Ipv4Network, inner: Ipv4Network) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.ip())
}

/// All routes that nodes have reported, with the name of the node. Default routes are left out,
/// because they overlap every subnet.
fn routes(state: &ClusterState) -> impl Iterator<Item = (&NodeName, IpNetwork)> {
    state
        .nodes
        .values()
        .filter_map(|n| n.description.as_ref().map(|d| (&n.hostname, d)))
        .flat_map(|(name, d)| d.routes.iter().map(move |route| (name, *route)))
        .filter(|(_, route)| route.prefix() > 0)
}

pub(super) fn routes_v4(state: &ClusterState) -> impl Iterator<Item = (&NodeName, Ipv4Network)> {
    routes(state).filter_map(|(name, route)| match route {
        IpNetwork::V4(route) => Some((name, route)),
        IpNetwork::V6(_) => None,
    })
}

/// The subnets of a network with this IPv4 subnet, the default IPv6 subnet and the default
/// gateways.
pub(super) fn with_v4(cluster: &ClusterId, vni: Vni, v4: Ipv4Network) -> Subnets {
    Subnets::dual(v4, unique_local(cluster, vni))
}

/// The subnets of a network with this spec. Without an IPv4 subnet in the spec, the subnet comes
/// from a pool. Without an IPv6 subnet in the spec, it is the unique local one.
pub(super) fn from_spec(
    state: &ClusterState,
    cluster: &ClusterId,
    pools: &ClusterSpec,
    spec: &NetworkSpec,
    vni: Vni,
) -> Result<Subnets, Rejection> {
    let mut subnets = check(state, spec)?;
    if subnets.v4.is_empty() && spec.ipv4 {
        let subnet = if spec.ingress { allocate_ingress(state, pools)? } else { allocate_v4(state, pools)? };
        subnets.v4.push(Subnet::v4(subnet));
    }
    if subnets.v6.is_empty() {
        subnets.v6.push(Subnet::v6(unique_local(cluster, vni)));
    }
    Ok(subnets)
}

/// Checks the subnets that a user has chosen, and returns them with their gateways.
pub(super) fn check(state: &ClusterState, spec: &NetworkSpec) -> Result<Subnets, Rejection> {
    let v4 = spec.v4.iter().map(|wanted| Ok(Subnet { range: wanted.subnet, gateway: check_v4(state, wanted)? }));
    let v6 = spec.v6.iter().map(|wanted| Ok(Subnet { range: wanted.subnet, gateway: check_v6(state, wanted)? }));
    let subnets = Subnets { v4: v4.collect::<Result<_, Rejection>>()?, v6: v6.collect::<Result<_, Rejection>>()? };
    let ranges: Vec<IpNetwork> = subnets.iter().map(|(range, _)| range).collect();
    for (nth, range) in ranges.iter().enumerate() {
        if let Some(earlier) = ranges[..nth].iter().find(|earlier| overlap(**earlier, *range)) {
            return Err(Rejection::Invalid(format!(
                "subnets {earlier} and {range} of network {} overlap: choose others",
                spec.name
            )));
        }
    }
    Ok(subnets)
}

/// The unique local /64 of a network (RFC 4193). It is derived from the id of the cluster (32 bits
/// of its hash) and the VNI of the network. So all replicas compute the same subnet, and two
/// networks of a cluster always have different ones.
fn unique_local(cluster: &ClusterId, vni: Vni) -> Ipv6Network {
    let digest = Sha256::digest(cluster.as_str());
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..5].copy_from_slice(&digest[..4]);
    octets[5..8].copy_from_slice(&vni.get().to_be_bytes()[1..]);
    Ipv6Network::new_checked(Ipv6Addr::from(octets), 64).expect("64 is a prefix length")
}

/// The lowest subnet of the first pool with a subnet that does not overlap a network or a route.
fn allocate_v4(state: &ClusterState, spec: &ClusterSpec) -> Result<Ipv4Network, Rejection> {
    let of_networks = state.networks.values().flat_map(|n| n.subnets.v4.iter().map(|subnet| subnet.range));
    let mut taken: Vec<_> = of_networks.chain(routes_v4(state).map(|(_, route)| route)).collect();
    taken.sort_unstable_by_key(|range| (range.network(), range.prefix()));
    let free = |pool: &Ipv4Network| lowest_free(*pool, spec.pool_prefix, &taken);
    spec.pools.iter().find_map(free).ok_or_else(|| pool_exhausted(spec))
}

/// The lowest subnet of the pool with this prefix length that overlaps none of `taken`, which is
/// sorted by first address.
fn lowest_free(pool: Ipv4Network, prefix: u8, taken: &[Ipv4Network]) -> Option<Ipv4Network> {
    let size = 1_u64 << (32 - prefix);
    let end = u64::from(u32::from(pool.broadcast())) + 1;
    let mut base = u64::from(u32::from(pool.network()));
    for other in taken {
        if base + size <= u64::from(u32::from(other.network())) {
            break;
        }
        // Continue after this range, at the next multiple of the subnet's size.
        let next = (u64::from(u32::from(other.broadcast())) + 1).next_multiple_of(size);
        base = base.max(next);
    }
    (base + size <= end).then(|| network_v4(base, prefix))
}

/// The subnet of the ingress network: the highest one of the largest pool that does not overlap a
/// network or a route. Other networks get their subnets from the beginning of the pools.
///
/// If every subnet of all pools overlaps a network or a route, the highest one of the largest pool
/// is used. Then published ports work. Only traffic from tasks on the ingress network to the
/// overlapped routes fails.
pub(super) fn allocate_ingress(state: &ClusterState, spec: &ClusterSpec) -> Result<Ipv4Network, Rejection> {
    let mut pools = spec.pools.clone();
    pools.sort_by_key(|pool| pool.prefix());
    let candidates = || pools.iter().flat_map(|pool| ingress_candidates(*pool, spec.pool_prefix));
    let free = |subnet: &Ipv4Network| {
        !routes_v4(state).any(|(_, route)| subnet.overlaps(route))
            && !state
                .networks
                .values()
                .any(|n| !n.spec.ingress && n.subnets.v4.iter().any(|other| subnet.overlaps(other.range)))
    };
    candidates().find(free).or_else(|| candidates().next()).ok_or_else(|| pool_exhausted(spec))
}

/// The subnets of a pool for the ingress network, the highest first.
fn ingress_candidates(pool: Ipv4Network, pool_prefix: u8) -> impl Iterator<Item = Ipv4Network> {
    let prefix = pool_prefix.min(INGRESS_PREFIX.max(pool.prefix() + INGRESS_SHARE_BITS));
    let size = 1_u64 << (32 - prefix);
    let first = u64::from(u32::from(pool.network()));
    let end = u64::from(u32::from(pool.broadcast())) + 1;
    (1..=(end - first) / size).map(move |nth| network_v4(end - nth * size, prefix))
}

fn pool_exhausted(spec: &ClusterSpec) -> Rejection {
    let pools: Vec<_> = spec.pools.iter().map(ToString::to_string).collect();
    Rejection::PoolExhausted { pools: pools.join(", ") }
}

/// Checks a subnet that a user has chosen, and returns its gateway.
fn check_v4(state: &ClusterState, wanted: &SubnetSpec<Ipv4Network, Ipv4Addr>) -> Result<Ipv4Addr, Rejection> {
    let subnet = wanted.subnet;
    let (prefix, address, first, last) = (subnet.prefix(), subnet.ip(), subnet.network(), subnet.broadcast());
    check_shape(address == first, prefix, MAX_V4_PREFIX, IpNetwork::V4(subnet))?;
    if address.is_loopback()
        || address.is_multicast()
        || address.is_link_local()
        || address.octets()[0] == 0
        || last.is_broadcast()
    {
        return Err(unusable(IpNetwork::V4(subnet)));
    }
    if let Some(range) = wanted.ip_range.filter(|range| !contains_v4(subnet, *range)) {
        return Err(Rejection::Invalid(format!("ip-range {range} is not inside subnet {subnet}")));
    }
    let gateway = wanted.gateway.unwrap_or_else(|| Subnet::v4(subnet).gateway);
    if !subnet.contains(gateway) || gateway == first || gateway == last {
        return Err(Rejection::Invalid(format!("gateway {gateway} is not a usable address of subnet {subnet}")));
    }
    check_reserved(&wanted.reserved, gateway, IpNetwork::V4(subnet), |address| {
        subnet.contains(*address) && *address != first && *address != last
    })?;
    match routes_v4(state).find(|(_, route)| subnet.overlaps(*route)) {
        None => Ok(gateway),
        Some((node, route)) => Err(Rejection::SubnetOverlapsRoute {
            subnet: IpNetwork::V4(subnet),
            route: IpNetwork::V4(route),
            node: node.to_string(),
        }),
    }
}

/// Checks an IPv6 subnet that a user has chosen, and returns its gateway.
fn check_v6(state: &ClusterState, wanted: &SubnetSpec<Ipv6Network, Ipv6Addr>) -> Result<Ipv6Addr, Rejection> {
    let subnet = wanted.subnet;
    let (address, first) = (subnet.ip(), subnet.network());
    check_shape(address == first, subnet.prefix(), MAX_V6_PREFIX, IpNetwork::V6(subnet))?;
    let is_v4_mapped = subnet.overlaps(Ipv6Network::new_checked(V4_MAPPED, 96).expect("96 is a prefix length"));
    if address.is_loopback()
        || address.is_multicast()
        || address.is_unspecified()
        || address.is_unicast_link_local()
        || is_v4_mapped
    {
        return Err(unusable(IpNetwork::V6(subnet)));
    }
    if let Some(range) = wanted.ip_range.filter(|r| r.prefix() < subnet.prefix() || !subnet.contains(r.network())) {
        return Err(Rejection::Invalid(format!("ip-range {range} is not inside subnet {subnet}")));
    }
    let gateway = wanted.gateway.unwrap_or_else(|| Subnet::v6(subnet).gateway);
    if !subnet.contains(gateway) || gateway == first {
        return Err(Rejection::Invalid(format!("gateway {gateway} is not a usable address of subnet {subnet}")));
    }
    if let Some(cluster) = &state.cluster {
        let keys = cluster_range(&cluster.id);
        if subnet.overlaps(keys) {
            return Err(Rejection::Invalid(format!(
                "subnet {subnet} overlaps with {keys}, which this cluster uses for encrypted networks: choose another subnet"
            )));
        }
    }
    check_reserved(&wanted.reserved, gateway, IpNetwork::V6(subnet), |address| {
        subnet.contains(*address) && *address != first
    })?;
    let overlapping = routes(state).find_map(|(node, route)| match route {
        IpNetwork::V6(v6) if subnet.overlaps(v6) => Some((node, route)),
        _ => None,
    });
    match overlapping {
        None => Ok(gateway),
        Some((node, route)) => {
            Err(Rejection::SubnetOverlapsRoute { subnet: IpNetwork::V6(subnet), route, node: node.to_string() })
        }
    }
}

/// Checks the addresses that the user has reserved in a subnet.
fn check_reserved<A: Copy + Ord + Display>(
    reserved: &BTreeMap<String, A>,
    gateway: A,
    subnet: IpNetwork,
    is_usable: impl Fn(&A) -> bool,
) -> Result<(), Rejection> {
    let mut names = BTreeMap::from([(gateway, "the gateway")]);
    for (name, address) in reserved {
        if !is_usable(address) {
            return Err(Rejection::Invalid(format!(
                "auxiliary address {name}={address} is not a usable address of subnet {subnet}"
            )));
        }
        if let Some(other) = names.insert(*address, name) {
            return Err(Rejection::Invalid(format!(
                "auxiliary address {name}={address} is also the address of {other}: give each address once"
            )));
        }
    }
    Ok(())
}

fn check_shape(canonical: bool, prefix: u8, max: u8, subnet: IpNetwork) -> Result<(), Rejection> {
    if !canonical {
        let network = subnet.network();
        return Err(Rejection::Invalid(format!("subnet {subnet} has host bits set: use {network}/{prefix}")));
    }
    if prefix == 0 || prefix > max {
        return Err(Rejection::Invalid(format!("subnet {subnet} cannot be used: use a prefix length from 1 to {max}")));
    }
    Ok(())
}

fn unusable(subnet: IpNetwork) -> Rejection {
    Rejection::Invalid(format!("subnet {subnet} is reserved and cannot be used: choose a private one"))
}

fn network_v4(base: u64, prefix: u8) -> Ipv4Network {
    let base = u32::try_from(base).expect("below the pool's last address");
    Ipv4Network::new_checked(Ipv4Addr::from(base), prefix).expect("prefix of at most 32")
}
