//! Tests that compare the tables and attachments for one plan with the expected ones.

use std::net::{IpAddr, Ipv4Addr};

use weft_ebpf_common::{CONTAINER_RESOLVER, Node, node_flags};
use weft_model::{
    BackendId, DualAddr, Mac, MeshServiceId,
    net::{Subnet, Subnets},
    plan::{AttachmentPlan, BackendPlan, Expanded, PeerPlan, PortPlan, TaskGoal, TaskPlan},
    spec::{ContainerSpec, Labels, Resources},
    wireguard::{self, EncryptedPeer, EncryptionPlan, NodeKey, PublicKey},
};

use super::*;
use crate::facts::{HostRoute, LocalNetns, LocalWireGuard, Uplink};

const APP: u32 = 4097;
const INGRESS: u32 = 4096;

fn node(number: u128) -> NodeId {
    NodeId::from_random(number)
}

fn node_addr(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))
}

fn network(vni: u32) -> NetworkId {
    NetworkId::from_random(vni.into())
}

fn task(number: u128) -> TaskId {
    TaskId::from_random(number)
}

fn dual(subnet: u8, host: u8) -> DualAddr {
    DualAddr {
        v4: Some(Ipv4Addr::new(10, 0, subnet, host)),
        v6: format!("fd00:{subnet:x}::{host:x}").parse().expect("a valid address"),
    }
}

fn subnets(subnet: u8) -> Subnets {
    Subnets::dual(
        format!("10.0.{subnet}.0/24").parse().expect("a valid network"),
        format!("fd00:{subnet:x}::/64").parse().expect("a valid network"),
    )
}

fn network_plan(vni: u32, subnet: u8) -> NetworkPlan {
    NetworkPlan {
        id: network(vni),
        name: format!("net{vni}").parse().expect("a valid name"),
        vni: Vni::new(vni).expect("a valid VNI"),
        subnets: subnets(subnet),
        ipv6: false,
        internal: false,
        ingress: vni == INGRESS,
        encrypted: false,
    }
}

fn endpoint(number: u128, on: u128, vni: u32, addr: DualAddr) -> EndpointPlan {
    EndpointPlan { network: network(vni), task: task(number), node: node(on), addr, mac: Mac::of_task(addr) }
}

fn backend(number: u128, on: u128, addr: DualAddr, draining: bool) -> BackendPlan {
    BackendPlan {
        id: BackendId(number as u64),
        task: task(number),
        task_name: format!("whoami.{number}"),
        hostname: None,
        node: node(on),
        addr,
        draining,
    }
}

fn local(number: u128, vni: u32, ifindex: u32) -> LocalEndpoint {
    LocalEndpoint {
        task: task(number),
        network: network(vni),
        ifindex,
        netns: Some(LocalNetns {
            cookie: 1000 + number as u64,
            path: format!("/run/netns/{number}").into(),
            resolver: Ipv4Addr::new(127, 0, 0, 11),
        }),
    }
}

/// The plan of node 1 of two nodes. Task 11 is on node 1 and task 12 on node 2. Both belong to one
/// service on the network `app` that publishes port 8080.
fn plan() -> NodePlan {
    NodePlan {
        generation: 7,
        peers: vec![PeerPlan { node: node(2), addr: node_addr(2) }],
        networks: vec![network_plan(INGRESS, 200), network_plan(APP, 1)],
        services: vec![ServicePlan {
            mesh: MeshServiceId(5),
            service: weft_model::ServiceId::from_random(5),
            name: "whoami".parse().expect("a valid name"),
            aliases: Vec::new(),
            network: network(APP),
            vip: Some(dual(1, 2)),
            removing: false,
            backends: vec![backend(11, 1, dual(1, 11), false), backend(12, 2, dual(1, 12), false)],
        }],
        ports: vec![PortPlan { port: 8080, protocol: Protocol::Tcp, mesh: MeshServiceId(5), target: 80 }],
        endpoints: vec![endpoint(11, 1, APP, dual(1, 11)), endpoint(12, 2, APP, dual(1, 12))],
        ..NodePlan::empty(node(1), node_addr(1))
    }
}

fn facts() -> LocalFacts {
    LocalFacts {
        netns_cookie: 99,
        tunnel_ifindex: 3,
        task_mtu: 1430,
        encrypted_mtu: 1370,
        wireguard: Vec::new(),
        uplinks: vec![Uplink {
            ifindex: 2,
            ethernet: true,
            mtu: 1500,
            addresses: vec![node_addr(1), "2001:db8::1".parse().expect("an address")],
        }],
        addresses: vec![node_addr(1), "2001:db8::1".parse().expect("an address")],
        routes: vec![HostRoute {
            destination: "0.0.0.0/0".parse().expect("a network"),
            ifindex: 2,
            source: node_addr(1),
        }],
        endpoints: vec![local(11, APP, 21)],
        names: Vec::new(),
    }
}

fn host(addr: &str) -> weft_ebpf_common::NetAddr {
    host_addr(addr.parse().expect("an address"))
}

/// The desired tables, without the attachments.
fn tables_of(plan: &NodePlan, facts: &LocalFacts) -> Tables {
    desired(plan, facts).tables
}

#[test]
fn programs_are_attached_to_uplinks_lo_the_tunnel_and_tasks() {
    let mut facts = facts();
    facts.uplinks.push(Uplink { ifindex: 5, ethernet: false, mtu: 1420, addresses: Vec::new() });
    let attachments = desired(&plan(), &facts).attachments;
    let links: Vec<_> = attachments
        .iter()
        .filter_map(|attachment| match attachment {
            Attachment::Link { hook, ifindex } => Some((*hook, *ifindex)),
            Attachment::Cgroup(_) | Attachment::Names { .. } => None,
        })
        .collect();
    let want = [
        (Hook::UplinkIn, LOOPBACK_IFINDEX),
        (Hook::UplinkIn, 2),
        (Hook::UplinkInL3, 5),
        (Hook::TunnelIn, 3),
        (Hook::TaskOut, 21),
    ];
    assert_eq!(links, want);
    assert_eq!(attachments.len(), want.len() + SOCKET_PROGRAMS.len());
}

#[test]
fn a_service_has_local_and_remote_backends() {
    let tables = tables_of(&plan(), &facts());
    assert_eq!(tables.services[&5], Service { slots: 2 });
    assert_eq!(tables.slots.values().copied().collect::<Vec<_>>(), [11, 12]);
    let (local, remote) = (tables.backends[&11], tables.backends[&12]);
    assert_eq!((local.ifindex, local.node), (21, Addr::UNSPECIFIED));
    assert_eq!((remote.ifindex, remote.node), (0, addr(node_addr(2))));
    assert_eq!((local.net, local.service, local.v4), (APP, 5, addr(dual(1, 11).first())));
    for vip in dual(1, 2).ips() {
        assert_eq!(tables.vips[&net_addr(APP, vip)], 5);
    }
    let (key, target) = tables.ports.iter().next().expect("a port");
    assert_eq!((key.port_be, key.proto, key.addr), (8080_u16.to_be(), 6, Addr::UNSPECIFIED));
    assert_eq!((target.service, target.port_be), (5, 80_u16.to_be()));
}

#[test]
fn a_draining_backend_has_an_entry_but_no_slot() {
    let mut plan = plan();
    plan.services[0].backends[0].draining = true;
    let tables = tables_of(&plan, &facts());
    assert_eq!(tables.services[&5], Service { slots: 1 });
    assert_eq!(tables.slots.values().copied().collect::<Vec<_>>(), [12]);
    assert_eq!(tables.backends[&11].flags, backend_flags::DRAINING);
}

#[test]
fn no_entry_refers_to_a_task_without_a_link() {
    let facts = LocalFacts { endpoints: Vec::new(), ..facts() };
    let tables = tables_of(&plan(), &facts);
    assert!(!tables.backends.contains_key(&11));
    assert_eq!(tables.slots.values().copied().collect::<Vec<_>>(), [12]);
    assert!(!tables.forward.contains_key(&net_addr(APP, dual(1, 11).first())));
}

#[test]
fn no_entry_refers_to_a_node_without_an_address() {
    let mut plan = plan();
    plan.peers.clear();
    let tables = tables_of(&plan, &facts());
    assert!(!tables.backends.contains_key(&12));
    assert_eq!(tables.services[&5], Service { slots: 1 });
}

#[test]
fn a_service_without_backends_keeps_its_port() {
    let mut plan = plan();
    plan.services[0].backends.clear();
    let tables = tables_of(&plan, &facts());
    assert_eq!((tables.ports.len(), tables.services[&5]), (1, Service { slots: 0 }));
    plan.services.clear();
    assert_eq!(tables_of(&plan, &facts()).ports.len(), 0);
}

#[test]
fn the_ingress_network_connects_no_tasks() {
    let mut plan = plan();
    plan.services[0].network = network(INGRESS);
    plan.endpoints = vec![endpoint(11, 1, INGRESS, dual(200, 11)), endpoint(12, 2, INGRESS, dual(200, 12))];
    let facts = LocalFacts { endpoints: vec![local(11, INGRESS, 21)], ..facts() };
    let tables = tables_of(&plan, &facts);
    assert_eq!(tables.endpoints[&21].flags, endpoint_flags::ISOLATED);
    assert!(tables.vips.is_empty());
    assert!(tables.forward.contains_key(&net_addr(INGRESS, dual(200, 11).first())));
    assert!(!tables.forward.contains_key(&net_addr(INGRESS, dual(200, 12).first())));
    assert_eq!(tables.netns[&1011], Nets::default());
    assert_eq!(tables.services[&5], Service { slots: 2 });
}

#[test]
fn an_endpoint_on_an_internal_network_is_marked_internal() {
    let mut plan = plan();
    plan.networks[1].internal = true;
    assert_eq!(tables_of(&plan, &facts()).endpoints[&21].flags, endpoint_flags::INTERNAL);
}

#[test]
fn packets_to_free_addresses_of_any_subnet_stay_in_the_network() {
    let mut plan = plan();
    let app = &mut plan.networks[1];
    assert_eq!(app.vni.get(), APP);
    app.subnets.v4.push(Subnet::v4("10.77.0.0/16".parse().expect("a valid network")));
    let tables = tables_of(&plan, &facts());
    let of_app: Vec<_> = tables.routes.iter().filter(|(prefix, _)| prefix.addr.net == APP).collect();
    let gateways = [(152, "10.0.1.1"), (144, "10.77.0.1"), (96, "fd00:1::1")]
        .map(|(bits, gateway)| (bits, Route { source: addr(gateway.parse().expect("a valid address")), ifindex: 0 }));
    // The last address of each IPv4 subnet has an entry of its own.
    let broadcast = |ip: [u8; 4]| tables.routes[&Prefix { bits: 160, addr: net_addr(APP, ip.into()) }].source;
    assert!([[10, 0, 1, 255], [10, 77, 255, 255]].into_iter().all(|ip| broadcast(ip).is_unspecified()));
    assert_eq!(of_app.len(), gateways.len() + 2);
    for (bits, route) in gateways {
        assert!(of_app.iter().any(|(prefix, found)| prefix.bits == bits && **found == route), "{of_app:?}");
    }
    let other = tables.routes.keys().any(|prefix| prefix.addr.net == 4098);
    assert!(!other, "no task of this node is on another network");
}

#[test]
fn a_backend_without_ipv4_has_no_ipv4_entries() {
    let mut plan = plan();
    for endpoint in &mut plan.endpoints {
        endpoint.addr.v4 = None;
    }
    for service in &mut plan.services {
        service.vip = service.vip.map(|vip| DualAddr { v4: None, ..vip });
        service.backends.iter_mut().for_each(|backend| backend.addr.v4 = None);
    }
    let tables = tables_of(&plan, &facts());
    assert!(tables.backends.values().all(|backend| backend.v4 == Addr::UNSPECIFIED && backend.v6 != Addr::UNSPECIFIED));
    assert!(tables.endpoints.values().all(|endpoint| endpoint.v4 == Addr::UNSPECIFIED));
    assert!(!tables.forward.is_empty() && tables.forward.keys().all(|key| !key.addr.is_v4()));
    assert!(!tables.vips.is_empty() && tables.vips.keys().all(|key| !key.addr.is_v4()));
}

#[test]
fn eth0_is_the_primary_link_of_a_task_on_two_networks() {
    let mut plan = plan();
    plan.networks.push(network_plan(4098, 3));
    plan.endpoints.push(endpoint(11, 1, 4098, dual(3, 11)));
    let attachment = |vni: u32, subnet: u8| AttachmentPlan {
        network: network(vni),
        vni: Vni::new(vni).expect("a valid VNI"),
        mtu: None,
        subnets: subnets(subnet),
        addr: dual(subnet, 11),
        mac: Mac::of_task(dual(subnet, 11)),
    };
    plan.tasks.push(TaskPlan {
        id: task(11),
        service: weft_model::ServiceId::from_random(5),
        service_name: "whoami".parse().expect("a valid name"),
        name: "whoami.1".to_owned(),
        container: ContainerSpec::new("weft/whoami").into(),
        resources: Resources::default(),
        labels: Labels::new(),
        attachments: vec![attachment(APP, 1), attachment(4098, 3)],
        desired: TaskGoal::Run,
        expanded: Expanded::default(),
        container_at: None,
        registry_auth: None,
        node_network: None,
        has_run: false,
    });
    let facts = LocalFacts { endpoints: vec![local(11, APP, 21), local(11, 4098, 22)], ..facts() };
    let tables = tables_of(&plan, &facts);
    assert_eq!((tables.endpoints[&21].primary, tables.endpoints[&22].primary), (21, 21));
    assert_eq!(tables.netns[&1011].vnis[..3], [APP, 4098, 0]);
}

#[test]
fn only_a_resolver_at_another_address_has_an_entry() {
    let facts = facts();
    assert!(tables_of(&plan(), &facts).resolvers.is_empty());
    let elsewhere = |netns: LocalNetns| LocalNetns { resolver: Ipv4Addr::new(127, 0, 0, 12), ..netns };
    let moved = |link: &LocalEndpoint| LocalEndpoint { netns: link.netns.clone().map(elsewhere), ..link.clone() };
    let endpoints: Vec<_> = facts.endpoints.iter().map(moved).collect();
    let tables = tables_of(&plan(), &LocalFacts { endpoints, ..facts.clone() });
    assert_eq!(tables.resolvers, [(1011, CONTAINER_RESOLVER)].into());
    // The task is not in the plan any more.
    let empty = NodePlan { endpoints: Vec::new(), ..plan() };
    let endpoints = facts.endpoints.iter().map(moved).collect();
    assert!(tables_of(&empty, &LocalFacts { endpoints, ..facts }).resolvers.is_empty());
}

#[test]
fn packets_never_come_from_an_address_that_the_machine_does_not_have() {
    // A router in front of the machine has the address that the node advertises.
    let behind_router = NodePlan { addr: node_addr(99), ..plan() };
    let config = tables_of(&behind_router, &facts()).config;
    assert_eq!(config.tunnel_addr, Addr::UNSPECIFIED, "the kernel chooses");
    assert_eq!((config.advertise_v4, config.advertise_v6), (addr(node_addr(1)), host("2001:db8::1").addr));
}

#[test]
fn the_nodes_own_addresses_are_routed_to_loopback() {
    let tables = tables_of(&plan(), &facts());
    assert!(tables.own.contains_key(&host("192.0.2.1")) && tables.own.contains_key(&host("2001:db8::1")));
    let own = tables.routes[&Prefix { bits: 160, addr: host("192.0.2.1") }];
    assert_eq!((own.ifindex, own.source), (LOOPBACK_IFINDEX, addr(node_addr(1))));
    let default = tables.routes[&Prefix { bits: 128, addr: host("0.0.0.0") }];
    assert_eq!((default.ifindex, default.source), (2, addr(node_addr(1))));
    assert_eq!(tables.config.advertise_v4, addr(node_addr(1)));
    assert_eq!(tables.config.advertise_v6, host("2001:db8::1").addr);
    assert_eq!(tables.config.tunnel_addr, addr(node_addr(1)));
    assert_eq!((tables.config.netns_cookie, tables.config.tunnel_ifindex), (99, 3));
}

#[test]
fn only_a_tunnel_over_ipv6_limits_the_packet_size() {
    let mut plan = plan();
    assert_eq!(tables_of(&plan, &facts()).config.tunnel_mtu, 0);
    plan.addr = "2001:db8::1".parse().expect("an address");
    assert_eq!(tables_of(&plan, &facts()).config.tunnel_mtu, 1430);
}

#[test]
fn packets_that_fit_every_uplink_are_not_checked() {
    let mut facts = facts();
    assert_eq!(tables_of(&plan(), &facts).config.uplink_mtu, 1500);
    facts.uplinks.push(Uplink { ifindex: 5, ethernet: false, mtu: 1420, addresses: Vec::new() });
    assert_eq!(tables_of(&plan(), &facts).config.uplink_mtu, 1420);
}

#[test]
fn only_other_nodes_are_trusted_tunnel_endpoints() {
    let tables = tables_of(&plan(), &facts());
    assert_eq!(tables.nodes.keys().copied().collect::<Vec<_>>(), [host("192.0.2.2")]);
}

#[test]
fn addresses_of_other_links_also_belong_to_the_node() {
    let facts = LocalFacts { addresses: vec!["198.51.100.7".parse().expect("an address")], ..facts() };
    let tables = tables_of(&plan(), &facts);
    for own in ["192.0.2.1", "2001:db8::1", "198.51.100.7"] {
        assert!(tables.own.contains_key(&host(own)), "{own}");
    }
    assert_eq!(tables.routes[&Prefix { bits: 160, addr: host("198.51.100.7") }].ifindex, LOOPBACK_IFINDEX);
}

#[test]
fn a_route_through_a_link_without_a_program_is_unreachable() {
    let route = |destination: &str, source: &str| HostRoute {
        destination: destination.parse().expect("a network"),
        ifindex: 7,
        source: source.parse().expect("an address"),
    };
    let mut facts = facts();
    facts.routes.extend([route("10.99.0.0/16", "10.99.0.1"), route("fd99::/16", "fd99::1"), route("::/0", "fd99::1")]);
    let tables = tables_of(&plan(), &facts);
    let v4 = tables.routes[&Prefix { bits: 144, addr: host("10.99.0.0") }];
    let v6 = tables.routes[&Prefix { bits: 48, addr: host("fd99::") }];
    assert!(!v4.source.is_v4() && v6.source.is_v4());
    assert_eq!((v4.ifindex, v6.ifindex), (0, 0));
    assert!(!tables.routes.contains_key(&Prefix { bits: 32, addr: host("::") }));
}

fn key(number: u8) -> PublicKey {
    PublicKey([number; 32])
}

/// The address of a key, as a map key.
fn key_addr(number: u8) -> weft_ebpf_common::NetAddr {
    host_addr(wireguard::key_address(&plan().cluster, &key(number)).into())
}

fn node_key(number: u8, port: u16) -> NodeKey {
    NodeKey { public_key: key(number), port }
}

/// The same plan with the network `app` encrypted. Node 1 has the keys 1 and 3, node 2 has 2 and 4.
/// Both use their older key.
fn encrypted_plan() -> NodePlan {
    let mut plan = plan();
    plan.networks[1].encrypted = true;
    plan.encryption = Some(EncryptionPlan {
        epoch: 2,
        own: vec![key(1), key(3)],
        active: Some(key(1)),
        peers: vec![EncryptedPeer {
            node: node(2),
            addr: node_addr(2),
            keys: vec![node_key(2, 51820), node_key(4, 51821)],
            active: Some(key(2)),
        }],
    });
    plan
}

fn encrypted_facts() -> LocalFacts {
    let link = |ifindex, number, port| LocalWireGuard { ifindex, key: node_key(number, port) };
    LocalFacts { wireguard: vec![link(31, 1, 51820), link(32, 3, 51821)], ..facts() }
}

#[test]
fn every_entry_that_leads_to_an_encrypted_network_says_so() {
    let encrypted = |tables: &Tables| {
        let backends = [11, 12].map(|id| tables.backends[&id].is_encrypted());
        let tasks = [11, 12].map(|host| tables.forward[&net_addr(APP, dual(1, host).v6.into())].is_encrypted());
        [backends, tasks].concat()
    };
    assert_eq!(encrypted(&tables_of(&encrypted_plan(), &encrypted_facts())), [true; 4]);
    assert_eq!(encrypted(&tables_of(&plan(), &facts())), [false; 4]);
    // Without a key nothing can be sent. The entries still say that it must be encrypted.
    let without_keys = NodePlan { encryption: None, ..encrypted_plan() };
    assert_eq!(encrypted(&tables_of(&without_keys, &facts())), [true; 4]);
}

#[test]
fn a_node_is_known_by_its_address_and_by_all_its_keys() {
    let tables = tables_of(&encrypted_plan(), &encrypted_facts());
    let wireguard_ports_be = [51820_u16.to_be(), 51821_u16.to_be()];
    let node = Node { addr: addr(node_addr(2)), active_key: key_addr(2).addr, wireguard_ports_be, flags: 0 };
    let of_key = Node { flags: node_flags::KEY, ..node };
    assert_eq!(tables.nodes, [(host("192.0.2.2"), node), (key_addr(2), of_key), (key_addr(4), of_key)].into());
}

#[test]
fn a_peer_without_an_active_key_gets_no_address_to_send_to() {
    let mut plan = encrypted_plan();
    let encryption = plan.encryption.as_mut().expect("an encrypted plan");
    encryption.peers[0].active = None;
    let tables = tables_of(&plan, &encrypted_facts());
    assert!(tables.nodes.values().all(|node| node.active_key.is_unspecified()));
    // A node that is no peer any more is not trusted by its keys either.
    plan.peers.clear();
    assert!(tables_of(&plan, &encrypted_facts()).nodes.is_empty());
}

#[test]
fn the_node_sends_from_its_active_key_only_if_that_key_has_a_link() {
    let config = tables_of(&encrypted_plan(), &encrypted_facts()).config;
    assert_eq!((config.active_key, config.wireguard_ifindexes), (key_addr(1).addr, [31, 32]));
    assert_eq!((config.encrypted_mtu, config.wireguard_ports_be[1]), (1370, 51821_u16.to_be()));
    assert!(config.is_key_address(&key_addr(4).addr) && !config.is_key_address(&host("2001:db8::1").addr));
    let without_link = LocalFacts { wireguard: Vec::new(), ..encrypted_facts() };
    let config = tables_of(&encrypted_plan(), &without_link).config;
    assert!(config.active_key.is_unspecified());
    assert!(config.is_key_address(&key_addr(1).addr), "forged packets are dropped all the time");
    assert_eq!(tables_of(&plan(), &facts()).config.key_prefix_be, [0; 2]);
}

#[test]
fn wireguard_links_get_their_program_and_tasks_no_route_to_keys() {
    let desired = desired(&encrypted_plan(), &encrypted_facts());
    for ifindex in [31, 32] {
        assert!(desired.attachments.contains(&Attachment::Link { hook: Hook::WireGuardIn, ifindex }));
    }
    let range = Prefix::of_host(IpNetwork::V6(wireguard::cluster_range(&plan().cluster)));
    assert!(desired.tables.routes[&range].source.is_v4(), "no IPv6 packet can use the route");
}
