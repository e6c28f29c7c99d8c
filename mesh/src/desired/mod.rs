//! Plan and facts → tables. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use weft_ebpf_common::{
    Addr, Backend, Config, Endpoint, Forward, HOST_NET, LOOPBACK_IFINDEX, MAX_NETS_PER_TASK, Nets, PortKey, PortTarget,
    Route, Service, SlotKey, backend_flags, endpoint_flags,
};
use weft_model::{
    NetworkId, NodeId, NodePlan, TaskId, Vni,
    plan::{EndpointPlan, NetworkPlan, ServicePlan},
    spec::Protocol,
};

use crate::{
    facts::{LocalEndpoint, LocalFacts},
    tables::{Prefix, Tables, addr, host_addr, mask, net_addr},
};

// What the plan and the programs both know by heart.
const _: () = {
    assert!(weft_model::TUNNEL_PORT == weft_ebpf_common::TUNNEL_PORT);
    assert!(weft_model::CONTROL_PORT == weft_ebpf_common::CONTROL_PORT);
    assert!(*weft_model::EGRESS_PORTS.start() == weft_ebpf_common::EGRESS_FIRST_PORT);
    assert!(*weft_model::EGRESS_PORTS.end() == u16::MAX);
    assert!(weft_model::FIRST_VNI == weft_ebpf_common::FIRST_NETWORK_VNI);
    assert!(weft_model::MAX_NETWORKS_PER_SERVICE == MAX_NETS_PER_TASK);
    assert!(matches!(weft_model::Mac::ROUTER.0, weft_ebpf_common::ROUTER_MAC));
};

/// Presence is all that the value of a set's entry says.
const PRESENT: u32 = 1;

/// What the kernel shall hold. Whatever the plan names and this node does not have yet (a task without its link, a node
/// without an address) is left out: nothing may point at what is not there.
pub(crate) fn desired(plan: &NodePlan, facts: &LocalFacts) -> Tables {
    let known = Known::new(plan, facts);
    let mut tables = Tables {
        config: config(plan, facts),
        nodes: plan.peers.iter().map(|peer| (host_addr(peer.addr), PRESENT)).collect(),
        ports: plan.ports.iter().map(|port| port_entry(port.port, port.protocol, port.target, port.mesh.0)).collect(),
        ..Tables::default()
    };
    own_addresses(facts, &mut tables);
    for endpoint in &plan.endpoints {
        forward(&known, endpoint, &mut tables);
    }
    for endpoint in &facts.endpoints {
        local_endpoint(&known, endpoint, &mut tables);
    }
    for service in &plan.services {
        balanced(&known, service, &mut tables);
    }
    // A port of a service that this node knows nothing of would only be refused more slowly.
    tables.ports.retain(|_, target| tables.services.contains_key(&target.service));
    tables.counted_services = tables.services.keys().copied().collect();
    tables.counted_backends = tables.backends.keys().copied().collect();
    tables
}

/// The plan's lists by what they are looked up by.
struct Known<'a> {
    this: &'a NodeId,
    networks: BTreeMap<&'a NetworkId, &'a NetworkPlan>,
    nodes: BTreeMap<&'a NodeId, IpAddr>,
    links: BTreeMap<(&'a TaskId, &'a NetworkId), &'a LocalEndpoint>,
    endpoints: BTreeMap<(&'a TaskId, &'a NetworkId), &'a EndpointPlan>,
    /// The network of each task's first interface.
    first: BTreeMap<&'a TaskId, &'a NetworkId>,
}

impl<'a> Known<'a> {
    fn new(plan: &'a NodePlan, facts: &'a LocalFacts) -> Self {
        Self {
            this: &plan.node,
            networks: plan.networks.iter().map(|network| (&network.id, network)).collect(),
            nodes: plan.peers.iter().map(|peer| (&peer.node, peer.addr)).collect(),
            links: facts.endpoints.iter().map(|link| ((&link.task, &link.network), link)).collect(),
            endpoints: plan.endpoints.iter().map(|endpoint| ((&endpoint.task, &endpoint.network), endpoint)).collect(),
            first: plan.tasks.iter().filter_map(|task| Some((&task.id, &task.attachments.first()?.network))).collect(),
        }
    }

    /// Where a node's task is: the ifindex of its link here, or the other node's address.
    fn place(&self, node: &NodeId, task: &TaskId, network: &NetworkId) -> Option<(u32, Addr)> {
        if node == self.this {
            Some((self.links.get(&(task, network))?.ifindex, Addr::UNSPECIFIED))
        } else {
            Some((0, addr(*self.nodes.get(node)?)))
        }
    }
}

fn config(plan: &NodePlan, facts: &LocalFacts) -> Config {
    Config {
        netns_cookie: facts.netns_cookie,
        tunnel_addr: addr(plan.addr),
        advertise_v4: advertised(plan.addr, facts, IpAddr::is_ipv4),
        advertise_v6: advertised(plan.addr, facts, IpAddr::is_ipv6),
        tunnel_ifindex: facts.tunnel_ifindex,
        // IPv4 may fragment the tunnel's own packets; the source of an IPv6 packet alone may, and the tunnel does not.
        tunnel_mtu: if plan.addr.is_ipv4() { 0 } else { facts.task_mtu },
    }
}

/// The node's address in the cluster if it is of the family, else an address of the same link, else any.
fn advertised(in_cluster: IpAddr, facts: &LocalFacts, family: fn(&IpAddr) -> bool) -> Addr {
    if family(&in_cluster) {
        return addr(in_cluster);
    }
    let same_link = facts.uplinks.iter().filter(|uplink| uplink.addresses.contains(&in_cluster));
    same_link
        .chain(&facts.uplinks)
        .flat_map(|uplink| &uplink.addresses)
        .find(|ip| family(ip))
        .map_or(Addr::UNSPECIFIED, |ip| addr(*ip))
}

fn own_addresses(facts: &LocalFacts, tables: &mut Tables) {
    for route in &facts.routes {
        let value = if facts.uplinks.iter().any(|uplink| uplink.ifindex == route.ifindex) {
            Route { source: addr(route.source), ifindex: route.ifindex }
        } else if route.destination.prefix() == 0 {
            // None is wider.
            continue;
        } else {
            nowhere(route.destination)
        };
        tables.routes.insert(Prefix::of_host(route.destination), value);
    }
    let of_uplinks = facts.uplinks.iter().flat_map(|uplink| &uplink.addresses);
    for ip in of_uplinks.chain(&facts.addresses) {
        tables.own.insert(host_addr(*ip), PRESENT);
        // What tasks send to the node itself goes up its stack.
        let value = Route { source: addr(*ip), ifindex: LOOPBACK_IFINDEX };
        tables.routes.insert(Prefix::of_host(IpNetwork::from(*ip)), value);
    }
}

/// A route that no packet can take, for its source is of the other family. It must be there: without it a wider route
/// would match, and packets for a private link would leave by a public one.
fn nowhere(destination: IpNetwork) -> Route {
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

fn forward(known: &Known<'_>, endpoint: &EndpointPlan, tables: &mut Tables) {
    let Some(network) = known.networks.get(&endpoint.network) else { return };
    let Some((ifindex, node)) = known.place(&endpoint.node, &endpoint.task, &endpoint.network) else { return };
    if network.ingress && ifindex == 0 {
        // Its tasks cannot reach each other, so none need know where the others are.
        return;
    }
    let value = Forward { node, ifindex, mac: endpoint.mac.0, _pad: 0 };
    let vni = network.vni.get();
    tables.forward.insert(net_addr(vni, endpoint.addr.v4.into()), value);
    tables.forward.insert(net_addr(vni, endpoint.addr.v6.into()), value);
}

fn local_endpoint(known: &Known<'_>, link: &LocalEndpoint, tables: &mut Tables) {
    let Some(network) = known.networks.get(&link.network) else { return };
    let Some(endpoint) = known.endpoints.get(&(&link.task, &link.network)) else { return };
    let internal = if network.internal { endpoint_flags::INTERNAL } else { 0 };
    let isolated = if network.ingress { endpoint_flags::ISOLATED } else { 0 };
    let primary = known.first.get(&link.task).and_then(|first| known.links.get(&(&link.task, *first)));
    let subnets = &network.subnets;
    let (v4, v6) = (IpNetwork::V4(subnets.v4), IpNetwork::V6(subnets.v6));
    tables.endpoints.insert(
        link.ifindex,
        Endpoint {
            net: network.vni.get(),
            primary: primary.map_or(link.ifindex, |primary| primary.ifindex),
            flags: internal | isolated,
            mac: endpoint.mac.0,
            v4: addr(endpoint.addr.v4.into()),
            v6: addr(endpoint.addr.v6.into()),
            v4_subnet: addr(v4.network()),
            v4_mask: mask(v4),
            v6_subnet: addr(v6.network()),
            v6_mask: mask(v6),
            v4_gateway: addr(subnets.v4_gateway.into()),
            v6_gateway: addr(subnets.v6_gateway.into()),
        },
    );
    let nets = tables.netns.entry(link.netns_cookie).or_default();
    if !network.ingress {
        add_net(nets, network.vni);
    }
}

/// More networks than fit are refused when the service is made; the rest would reach their VIPs packet by packet.
fn add_net(nets: &mut Nets, vni: Vni) {
    if let Some(place) = nets.vnis.iter_mut().take(MAX_NETS_PER_TASK).find(|place| **place == 0) {
        *place = vni.get();
    }
}

fn balanced(known: &Known<'_>, service: &ServicePlan, tables: &mut Tables) {
    let Some(network) = known.networks.get(&service.network) else { return };
    let (id, vni) = (service.mesh.0, network.vni.get());
    let mut active = BTreeSet::new();
    for backend in &service.backends {
        let Some((ifindex, node)) = known.place(&backend.node, &backend.task, &service.network) else { continue };
        let endpoint = known.endpoints.get(&(&backend.task, &service.network));
        let mac = endpoint.map_or_else(|| weft_model::Mac::of_task(backend.addr.v4), |endpoint| endpoint.mac);
        let value = Backend {
            net: vni,
            service: id,
            ifindex,
            mac: mac.0,
            flags: if backend.draining { backend_flags::DRAINING } else { 0 },
            _pad: 0,
            v4: addr(backend.addr.v4.into()),
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
        tables.vips.insert(net_addr(vni, vip.v4.into()), id);
        tables.vips.insert(net_addr(vni, vip.v6.into()), id);
    }
}

#[cfg(test)]
mod tests;
