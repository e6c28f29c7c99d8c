//! A small plan for the tests, with the networks `front` (with IPv6), `back`, `far` and `ingress`.

use weft_model::{
    BackendId, DualAddr, MeshServiceId, NetworkId, NodeId, NodePlan, ServiceId, TaskId, Vni,
    net::Subnets,
    plan::{BackendPlan, NetworkPlan, PortPlan, ServicePlan},
    spec::Protocol,
};

pub(crate) const FRONT: u8 = 1;
pub(crate) const BACK: u8 = 2;
pub(crate) const FAR: u8 = 3;
pub(crate) const INGRESS: u8 = 4;

pub(crate) fn network(net: u8) -> NetworkId {
    NetworkId::from_random(net.into())
}

pub(crate) fn networks(nets: &[u8]) -> Vec<NetworkId> {
    nets.iter().copied().map(network).collect()
}

/// The addresses 10.0.`net`.`host` and fd00:`net`::`host`.
pub(crate) fn addr(net: u8, host: u8) -> DualAddr {
    DualAddr { v4: Some([10, 0, net, host].into()), v6: [0xfd00, net.into(), 0, 0, 0, 0, 0, host.into()].into() }
}

fn network_plan(net: u8, name: &str) -> NetworkPlan {
    NetworkPlan {
        id: network(net),
        name: name.parse().expect("a name"),
        vni: Vni::new(4096 + u32::from(net)).expect("a VNI"),
        subnets: Subnets::dual(
            format!("10.0.{net}.0/24").parse().expect("a subnet"),
            format!("fd00:{net}::/64").parse().expect("a subnet"),
        ),
        ipv6: net == FRONT,
        internal: false,
        ingress: net == INGRESS,
        encrypted: false,
    }
}

/// The task at an address with the last octet `host`. Its short id differs from that of others.
pub(crate) fn task(host: u8) -> TaskId {
    TaskId::from_random(u128::from(host) << 120)
}

/// A service with the VIP `vip`, if any, and a task at each of `hosts`. If `draining`, the last
/// task is draining.
pub(crate) fn service(
    net: u8,
    name: &str,
    aliases: &[&str],
    vip: Option<u8>,
    hosts: &[u8],
    draining: bool,
) -> ServicePlan {
    let backends = hosts.iter().enumerate().map(|(index, &host)| BackendPlan {
        id: BackendId(host.into()),
        task: task(host),
        task_name: format!("{name}.{}.task{host}", index + 1),
        hostname: None,
        node: NodeId::from_random(1),
        addr: addr(net, host),
        draining: draining && index + 1 == hosts.len(),
    });
    ServicePlan {
        mesh: MeshServiceId(number(net, name)),
        service: ServiceId::from_random(number(0, name).into()),
        name: name.parse().expect("a name"),
        aliases: aliases.iter().map(|&alias| alias.to_owned()).collect(),
        network: network(net),
        vip: vip.map(|host| addr(net, host)),
        removing: false,
        backends: backends.collect(),
    }
}

/// A number for each name on each network. Equal names on different networks are of one service,
/// but have different mesh ids.
fn number(net: u8, name: &str) -> u32 {
    name.bytes().fold(u32::from(net), |number, octet| number.wrapping_mul(31).wrapping_add(octet.into()))
}

/// A published port of a service on `net`.
pub(crate) fn port(net: u8, name: &str, protocol: Protocol, target: u16) -> PortPlan {
    PortPlan { port: target + 8000, protocol, mesh: MeshServiceId(number(net, name)), target }
}

pub(crate) fn plan(services: Vec<ServicePlan>) -> NodePlan {
    NodePlan {
        networks: vec![
            network_plan(FRONT, "Front"),
            network_plan(BACK, "stack.back"),
            network_plan(FAR, "far"),
            network_plan(INGRESS, "ingress"),
        ],
        services,
        ..NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into())
    }
}
