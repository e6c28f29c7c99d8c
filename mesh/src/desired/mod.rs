//! What the kernel must hold: the entries of the maps and the attachments, for the node's plan and
//! the facts of this machine. The counterpart of [`crate::actual`].
//!
//! `reconcile` calls [`desired`] and passes the result to [`crate::diff`]. Pure.
//!
//! Invariant: an entry never refers to something that this node does not have yet, such as a task
//! without a link, or a node without an address. The entry is left out until the node has it.

mod encryption;
mod names;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use weft_ebpf_common::{
    Addr, Backend, Config, Endpoint, Forward, HOST_NET, LOOPBACK_IFINDEX, MAX_NETS_PER_TASK, Nets, PortKey, PortTarget,
    RESOLVER, Route, Service, SlotKey, backend_flags, endpoint_flags, forward_flags,
};
use weft_model::{
    DualAddr, NetworkId, NodeId, NodePlan, TaskId, Vni,
    net::Subnets,
    plan::{EndpointPlan, NetworkPlan, ServicePlan},
    spec::Protocol,
};

use self::names::NameTables;
use crate::{
    attachment::{Attachment, Hook, SOCKET_PROGRAMS},
    facts::{LocalEndpoint, LocalFacts},
    tables::{Prefix, Tables, addr, host_addr, net_addr},
};

// Constants that the plan and the programs must agree on.
const _: () = {
    assert!(weft_model::CONTROL_PORT == weft_ebpf_common::CONTROL_PORT);
    assert!(*weft_model::EGRESS_PORTS.start() == weft_ebpf_common::EGRESS_FIRST_PORT);
    assert!(*weft_model::EGRESS_PORTS.end() == u16::MAX);
    assert!(weft_model::FIRST_VNI == weft_ebpf_common::FIRST_NETWORK_VNI);
    assert!(weft_model::MAX_NETWORKS_PER_SERVICE == MAX_NETS_PER_TASK);
    assert!(matches!(weft_model::Mac::ROUTER.0, weft_ebpf_common::ROUTER_MAC));
};

/// The value of an entry in a map that is used as a set.
const PRESENT: u32 = 1;

/// What the kernel must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    pub tables: Tables,
    pub attachments: BTreeSet<Attachment>,
}

/// Computes what the kernel must hold for `plan` on the machine that `facts` describe.
///
/// ```
/// use weft_mesh::{LocalFacts, Uplink, desired::desired};
/// use weft_model::{MeshServiceId, NetworkId, NodeId, NodePlan, ServiceId, Vni};
/// # use weft_model::{net::Subnets, plan::{NetworkPlan, PortPlan, ServicePlan}, spec::Protocol};
///
/// let mut plan = NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into());
/// // A service without backends on the ingress network publishes port 8080.
/// # let network = NetworkId::from_random(1);
/// # plan.networks.push(NetworkPlan {
/// #     id: network.clone(),
/// #     name: "ingress".parse().expect("a name"),
/// #     vni: Vni::new(4096).expect("a VNI"),
/// #     subnets: Subnets::dual(
/// #         "10.0.0.0/24".parse().expect("a subnet"),
/// #         "fd00::/64".parse().expect("a subnet"),
/// #     ),
/// #     ipv6: false,
/// #     internal: false,
/// #     ingress: true,
/// #     encrypted: false,
/// # });
/// # plan.services.push(ServicePlan {
/// #     mesh: MeshServiceId(5),
/// #     service: ServiceId::from_random(5),
/// #     name: "web".parse().expect("a name"),
/// #     aliases: vec![],
/// #     network,
/// #     vip: None,
/// #     removing: false,
/// #     backends: vec![],
/// # });
/// plan.ports.push(PortPlan {
///     port: 8080,
///     protocol: Protocol::Tcp,
///     mesh: MeshServiceId(5),
///     target: 80,
/// });
/// let addresses = vec![[192, 0, 2, 1].into()];
/// let uplink = Uplink { ifindex: 2, ethernet: true, mtu: 1500, addresses };
/// let facts = LocalFacts { uplinks: vec![uplink], tunnel_ifindex: 3, ..LocalFacts::default() };
///
/// let desired = desired(&plan, &facts);
/// assert_eq!(desired.tables.ports.len(), 1);
/// assert_eq!(desired.tables.services[&5].slots, 0, "clients are refused at once");
/// // `uplink_in` on the uplink and on lo, `tunnel_in` on the tunnel, and eight socket programs.
/// assert_eq!(desired.attachments.len(), 3 + 8);
/// ```
pub fn desired(plan: &NodePlan, facts: &LocalFacts) -> Desired {
    let names = NameTables::new(plan, facts);
    let attachments = attachments(facts, &names);
    let mut tables = tables(plan, facts);
    (tables.names, tables.name_scopes) = (names.names, names.scopes);
    Desired { tables, attachments }
}

fn attachments(facts: &LocalFacts, names: &NameTables) -> BTreeSet<Attachment> {
    let link = |hook, ifindex| Attachment::Link { hook, ifindex };
    let uplink_hook = |ethernet| if ethernet { Hook::UplinkIn } else { Hook::UplinkInL3 };
    let uplinks = facts.uplinks.iter().map(|uplink| link(uplink_hook(uplink.ethernet), uplink.ifindex));
    let tasks = facts.endpoints.iter().map(|endpoint| link(Hook::TaskOut, endpoint.ifindex));
    let wireguard = facts.wireguard.iter().map(|wireguard| link(Hook::WireGuardIn, wireguard.ifindex));
    let node = [link(Hook::UplinkIn, LOOPBACK_IFINDEX), link(Hook::TunnelIn, facts.tunnel_ifindex)];
    let answered = names.tasks.iter().map(|(&netns_cookie, &class)| Attachment::Names { netns_cookie, class });
    let node = node.into_iter().chain(SOCKET_PROGRAMS.map(Attachment::Cgroup));
    uplinks.chain(tasks).chain(wireguard).chain(node).chain(answered).collect()
}

fn tables(plan: &NodePlan, facts: &LocalFacts) -> Tables {
    let index = PlanIndex::new(plan, facts);
    let mut tables = Tables {
        config: config(plan, facts),
        nodes: encryption::nodes(plan),
        ports: plan.ports.iter().map(|port| port_entry(port.port, port.protocol, port.target, port.mesh.0)).collect(),
        ..Tables::default()
    };
    add_routes(facts, &mut tables);
    tables.routes.extend(encryption::unreachable_keys(plan));
    add_own_addresses(facts, &mut tables);
    for endpoint in &plan.endpoints {
        add_forward(&index, endpoint, &mut tables);
    }
    for endpoint in &facts.endpoints {
        add_endpoint(&index, endpoint, &mut tables);
    }
    for service in &plan.services {
        add_service(&index, service, &mut tables);
    }
    // A port without a service has no entry: `uplink_in` then passes the packet to the node's own
    // stack, which refuses it.
    tables.ports.retain(|_, target| tables.services.contains_key(&target.service));
    tables.counted_services = tables.services.keys().copied().collect();
    tables
}

/// The plan and the facts, indexed by the keys of the lookups below.
struct PlanIndex<'a> {
    node: &'a NodeId,
    networks: BTreeMap<&'a NetworkId, &'a NetworkPlan>,
    peers: BTreeMap<&'a NodeId, IpAddr>,
    links: BTreeMap<(&'a TaskId, &'a NetworkId), &'a LocalEndpoint>,
    endpoints: BTreeMap<(&'a TaskId, &'a NetworkId), &'a EndpointPlan>,
    /// The network of each task's `eth0`.
    primary_networks: BTreeMap<&'a TaskId, &'a NetworkId>,
}

impl<'a> PlanIndex<'a> {
    fn new(plan: &'a NodePlan, facts: &'a LocalFacts) -> Self {
        Self {
            node: &plan.node,
            networks: plan.networks.iter().map(|network| (&network.id, network)).collect(),
            peers: plan.peers.iter().map(|peer| (&peer.node, peer.addr)).collect(),
            links: facts.endpoints.iter().map(|link| ((&link.task, &link.network), link)).collect(),
            endpoints: plan.endpoints.iter().map(|endpoint| ((&endpoint.task, &endpoint.network), endpoint)).collect(),
            primary_networks: plan
                .local()
                .filter_map(|local| Some((local.id, &local.links.first()?.1.network)))
                .collect(),
        }
    }

    /// Where a task is: the index of its link on this node, or the address of its node. `None` if
    /// this node does not have the link yet, or if the other node is no peer in the plan.
    fn locate(&self, node: &NodeId, task: &TaskId, network: &NetworkId) -> Option<(u32, Addr)> {
        if node == self.node {
            Some((self.links.get(&(task, network))?.ifindex, Addr::UNSPECIFIED))
        } else {
            Some((0, addr(*self.peers.get(node)?)))
        }
    }
}

fn config(plan: &NodePlan, facts: &LocalFacts) -> Config {
    Config {
        netns_cookie: facts.netns_cookie,
        tunnel_addr: tunnel_source(plan.addr, facts),
        advertise_v4: advertised_addr(plan.addr, facts, IpAddr::is_ipv4),
        advertise_v6: advertised_addr(plan.addr, facts, IpAddr::is_ipv6),
        tunnel_ifindex: facts.tunnel_ifindex,
        tunnel_port_be: plan.tunnel_port.to_be(),
        _pad: 0,
        // Routers may fragment the tunnel's packets over IPv4. Over IPv6 only the sender may
        // fragment (RFC 8200, section 4.5), and the kernel does not do it for a tunnel.
        tunnel_mtu: if plan.addr.is_ipv4() { 0 } else { facts.task_mtu },
        encrypted_mtu: facts.encrypted_mtu,
        active_key: encryption::own_active_key(plan, facts),
        key_prefix_be: encryption::key_prefix_be(plan),
        wireguard_ifindexes: encryption::links(facts, |link| link.ifindex),
        wireguard_ports_be: encryption::links(facts, |link| link.key.port.to_be()),
        uplink_mtu: facts.uplinks.iter().map(|uplink| uplink.mtu).min().unwrap_or_default(),
    }
}

/// The source of the tunnel's packets. If no link has the address of the node, for example because
/// a router in front of the machine has it, the kernel chooses the source by the route to the peer:
/// it sends no packet from an address that the machine does not have.
fn tunnel_source(tunnel_addr: IpAddr, facts: &LocalFacts) -> Addr {
    if is_own(tunnel_addr, facts) { addr(tunnel_addr) } else { Addr::UNSPECIFIED }
}

/// Whether the machine has the address, as far as other machines can reach it.
fn is_own(ip: IpAddr, facts: &LocalFacts) -> bool {
    facts.uplinks.iter().flat_map(|uplink| &uplink.addresses).chain(&facts.addresses).any(|own| *own == ip)
}

/// Returns the node's cluster address if it belongs to the family and to this machine. Otherwise
/// returns an address of the same link, or, if there is none, any address of the family.
fn advertised_addr(cluster_addr: IpAddr, facts: &LocalFacts, is_family: fn(&IpAddr) -> bool) -> Addr {
    if is_family(&cluster_addr) && is_own(cluster_addr, facts) {
        return addr(cluster_addr);
    }
    let same_link = facts.uplinks.iter().filter(|uplink| uplink.addresses.contains(&cluster_addr));
    same_link
        .chain(&facts.uplinks)
        .flat_map(|uplink| &uplink.addresses)
        .find(|ip| is_family(ip))
        .map_or(Addr::UNSPECIFIED, |ip| addr(*ip))
}

fn add_routes(facts: &LocalFacts, tables: &mut Tables) {
    for route in &facts.routes {
        let value = if facts.uplinks.iter().any(|uplink| uplink.ifindex == route.ifindex) {
            Route { source: addr(route.source), ifindex: route.ifindex }
        } else if route.destination.prefix() == 0 {
            // No entry is needed: a packet without an entry has no route either.
            continue;
        } else {
            unreachable_route(route.destination)
        };
        tables.routes.insert(Prefix::of_host(route.destination), value);
    }
}

fn add_own_addresses(facts: &LocalFacts, tables: &mut Tables) {
    let of_uplinks = facts.uplinks.iter().flat_map(|uplink| &uplink.addresses);
    for ip in of_uplinks.chain(&facts.addresses) {
        tables.own.insert(host_addr(*ip), PRESENT);
        // Packets of tasks to the node itself go to the node's own stack.
        let value = Route { source: addr(*ip), ifindex: LOOPBACK_IFINDEX };
        tables.routes.insert(Prefix::of_host(IpNetwork::from(*ip)), value);
    }
}

/// A route that no packet can use, because its source address is of the other family. It must
/// exist: without it, a less specific route would match, and packets for a private link would leave
/// through a public one.
fn unreachable_route(destination: IpNetwork) -> Route {
    let other_family = if destination.is_ipv4() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    Route { source: addr(other_family), ifindex: 0 }
}

fn port_entry(port: u16, protocol: Protocol, target: u16, service: u32) -> (PortKey, PortTarget) {
    let proto = match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    };
    (
        PortKey { net: HOST_NET, port_be: port.to_be(), proto, _pad: 0, addr: Addr::UNSPECIFIED },
        PortTarget { service, port_be: target.to_be(), _pad: 0 },
    )
}

fn add_forward(index: &PlanIndex<'_>, endpoint: &EndpointPlan, tables: &mut Tables) {
    let Some(network) = index.networks.get(&endpoint.network) else { return };
    let Some((ifindex, node)) = index.locate(&endpoint.node, &endpoint.task, &endpoint.network) else { return };
    if network.ingress && ifindex == 0 {
        // Tasks on the ingress network cannot reach each other, so entries for remote tasks are not
        // needed.
        return;
    }
    let flags = if network.encrypted { forward_flags::ENCRYPTED } else { 0 };
    let value = Forward { node, ifindex, mac: endpoint.mac.0, flags };
    let vni = network.vni.get();
    tables.forward.extend(endpoint.addr.ips().map(|ip| (net_addr(vni, ip), value)));
}

fn add_endpoint(index: &PlanIndex<'_>, link: &LocalEndpoint, tables: &mut Tables) {
    let Some(network) = index.networks.get(&link.network) else { return };
    let Some(endpoint) = index.endpoints.get(&(&link.task, &link.network)) else { return };
    let internal = if network.internal { endpoint_flags::INTERNAL } else { 0 };
    let isolated = if network.ingress { endpoint_flags::ISOLATED } else { 0 };
    let primary = index.primary_networks.get(&link.task).and_then(|first| index.links.get(&(&link.task, *first)));
    let vni = network.vni.get();
    tables.endpoints.insert(
        link.ifindex,
        Endpoint {
            net: vni,
            primary: primary.map_or(link.ifindex, |primary| primary.ifindex),
            flags: internal | isolated,
            mac: endpoint.mac.0,
            v4: v4_addr(endpoint.addr),
            v6: addr(endpoint.addr.v6.into()),
        },
    );
    add_subnets(vni, &network.subnets, tables);
    let Some(netns) = &link.netns else { return };
    let nets = tables.netns.entry(netns.cookie).or_default();
    if !network.ingress {
        add_network(nets, network.vni);
    }
    let resolver = addr(netns.resolver.into());
    if resolver != RESOLVER {
        tables.resolvers.insert(netns.cookie, resolver);
    }
}

/// A packet to an address of the network that no task has must not leave the network. A packet to
/// the broadcast address of a subnet gets no answer.
fn add_subnets(vni: u32, subnets: &Subnets, tables: &mut Tables) {
    for (range, gateway) in subnets.iter() {
        tables.routes.insert(Prefix::of_network(vni, range), Route { source: addr(gateway), ifindex: 0 });
        if range.is_ipv4() {
            let broadcast = Prefix::of_network(vni, IpNetwork::from(range.broadcast()));
            tables.routes.insert(broadcast, Route { source: Addr::UNSPECIFIED, ifindex: 0 });
        }
    }
}

/// Adds a network to those whose VIPs the socket programs translate. The manager refuses a service
/// on more networks than fit. If there were more, their VIPs would be translated packet by packet.
fn add_network(nets: &mut Nets, vni: Vni) {
    if let Some(free) = nets.vnis.iter_mut().take(MAX_NETS_PER_TASK).find(|free| **free == 0) {
        *free = vni.get();
    }
}

fn add_service(index: &PlanIndex<'_>, service: &ServicePlan, tables: &mut Tables) {
    let Some(network) = index.networks.get(&service.network) else { return };
    let (id, vni) = (service.mesh.0, network.vni.get());
    let encrypted = if network.encrypted { backend_flags::ENCRYPTED } else { 0 };
    let mut active = BTreeSet::new();
    for backend in &service.backends {
        let Some((ifindex, node)) = index.locate(&backend.node, &backend.task, &service.network) else { continue };
        let endpoint = index.endpoints.get(&(&backend.task, &service.network));
        let mac = endpoint.map_or_else(|| weft_model::Mac::of_task(backend.addr), |endpoint| endpoint.mac);
        let value = Backend {
            net: vni,
            service: id,
            ifindex,
            mac: mac.0,
            flags: encrypted | if backend.draining { backend_flags::DRAINING } else { 0 },
            _pad: 0,
            v4: v4_addr(backend.addr),
            v6: addr(backend.addr.v6.into()),
            node,
        };
        tables.backends.insert(backend.id.0, value);
        if !backend.draining {
            active.insert(backend.id.0);
        }
    }
    let slots = u32::try_from(active.len()).unwrap_or(u32::MAX);
    tables.services.insert(id, Service { slots });
    tables.slots.extend((0..slots).map(|slot| SlotKey { service: id, slot }).zip(active));
    if let Some(vip) = service.vip
        && !network.ingress
    {
        tables.vips.extend(vip.ips().map(|ip| (net_addr(vni, ip), id)));
    }
}

/// The IPv4 address in the form of the maps. Unspecified if there is none.
fn v4_addr(dual: DualAddr) -> Addr {
    dual.v4.map_or(Addr::UNSPECIFIED, |v4| addr(v4.into()))
}

#[cfg(test)]
mod tests;
