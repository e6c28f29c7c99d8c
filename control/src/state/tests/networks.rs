//! Networks: their subnets, VNIs and names, and their removal.

use weft_model::{
    Command, Vni,
    spec::{ClusterSpec, NetworkSpec, SubnetSpec},
};

use super::{check_refused, refusal};
use crate::fixture::{TestCluster, network_spec, parse, service_spec, subnet_spec};

#[test]
fn subnets_from_the_pool_avoid_other_networks_and_routes() {
    let mut cluster = TestCluster::new();
    cluster.node("n2", &["10.0.1.128/25", "0.0.0.0/0"]);
    cluster.add_network(subnet_spec("mine", "10.0.2.0/23"));
    let mut allocate = |name: &str| {
        let id = cluster.add_network(network_spec(name));
        cluster.state.networks[&id].subnets.v4[0].range.to_string()
    };
    assert_eq!(allocate("a"), "10.0.0.0/24");
    assert_eq!(allocate("b"), "10.0.4.0/24");
    assert_eq!(allocate("c"), "10.0.5.0/24");
}

#[test]
fn reports_an_exhausted_pool() {
    let mut cluster = TestCluster::empty();
    let mut init = cluster.init();
    init.spec = ClusterSpec { pools: vec![parse("10.20.0.0/22")], ..ClusterSpec::default() };
    let init_spec = init.spec.clone();
    cluster.ok(Command::InitCluster(Box::new(init)));
    for name in ["a", "b", "c"] {
        cluster.add_network(network_spec(name));
    }
    let refused = refusal(cluster.network(network_spec("d")));
    assert_eq!(
        refused,
        "no subnet left in the address pool 10.20.0.0/22: choose a subnet with --subnet, or add a pool with \
         `weft swarm update --default-addr-pool`"
    );
    // A second pool helps at once.
    let (version, mut spec) = (cluster.state.cluster.as_ref().expect("a cluster").meta.version, init_spec);
    spec.pools.push(parse("10.30.0.0/22"));
    cluster.ok(Command::UpdateCluster { version, spec });
    let d = cluster.add_network(network_spec("d"));
    assert_eq!(cluster.state.networks[&d].subnets.v4[0].range.to_string(), "10.30.0.0/24");
}

#[test]
fn every_network_has_its_own_v6_subnet_and_vni() {
    let mut cluster = TestCluster::new();
    let (a, b) = (cluster.add_network(network_spec("a")), cluster.add_network(network_spec("b")));
    let (a, b) = (&cluster.state.networks[&a], &cluster.state.networks[&b]);
    assert_ne!(a.vni, b.vni);
    assert_ne!(a.subnets.v6, b.subnets.v6);
    let subnet = &a.subnets.v6[0];
    assert_eq!(subnet.range.prefix(), 64);
    assert_eq!(subnet.range.ip().octets()[0], 0xfd);
    assert!(subnet.range.contains(subnet.gateway));
}

#[test]
fn a_vni_is_reused_only_after_all_others() {
    let mut cluster = TestCluster::new();
    let a = cluster.add_network(network_spec("a"));
    let vni = cluster.state.networks[&a].vni;
    cluster.ok(Command::RemoveNetwork { id: a });
    let b = cluster.add_network(network_spec("b"));
    assert!(cluster.state.networks[&b].vni > vni);
    cluster.state.allocated.next_vni = 1 << 24;
    let c = cluster.add_network(network_spec("c"));
    assert_eq!(cluster.state.networks[&c].vni, vni);
}

#[test]
fn refuses_subnets_of_one_network_that_overlap() {
    let mut spec = subnet_spec("app", "10.1.0.0/24");
    spec.v4.push(SubnetSpec::new(parse("10.1.0.128/25")));
    assert_eq!(
        refusal(TestCluster::new().network(spec)),
        "subnets 10.1.0.0/24 and 10.1.0.128/25 of network app overlap: choose others"
    );
}

#[test]
fn a_service_cannot_be_on_networks_of_which_any_subnets_overlap() {
    let mut cluster = TestCluster::new();
    let mut first = subnet_spec("a", "10.1.0.0/24");
    first.v4.push(SubnetSpec::new(parse("10.2.0.0/24")));
    let networks = [cluster.add_network(first), cluster.add_network(subnet_spec("b", "10.2.0.0/25"))];
    let service = service_spec("web", 1, &[&networks[0], &networks[1]]);
    assert_eq!(
        refusal(cluster.service(service)),
        "networks a and b have overlapping subnets: one service cannot be on both"
    );
}

#[test]
fn a_user_may_choose_a_free_vni() {
    let mut cluster = TestCluster::new();
    let vni = Vni::new(5000).expect("a VNI");
    let chosen = || NetworkSpec { vni: Some(vni), ..network_spec("mine") };
    let first = cluster.add_network(network_spec("a"));
    let mine = cluster.add_network(chosen());
    assert_eq!(cluster.state.networks[&mine].vni, vni);
    // The choice does not change which VNI the next network gets.
    let next = cluster.add_network(network_spec("b"));
    assert_eq!(cluster.state.networks[&next].vni.get(), cluster.state.networks[&first].vni.get() + 1);
    assert_eq!(
        refusal(cluster.network(NetworkSpec { vni: Some(vni), ..network_spec("c") })),
        "VNI 5000 is in use by network mine: choose another, or none to let the cluster choose"
    );
    cluster.ok(Command::RemoveNetwork { id: mine });
    cluster.add_network(chosen());
    cluster.state.allocated.next_vni = 5000;
    let after = cluster.add_network(network_spec("d"));
    assert_eq!(cluster.state.networks[&after].vni.get(), 5001);
}

#[test]
fn refuses_an_mtu_that_no_link_can_have() {
    let mut cluster = TestCluster::new();
    for (mtu, accepted) in [(1279, false), (1280, true), (9000, true), (65_535, true), (65_536, false)] {
        let spec = NetworkSpec { mtu: Some(mtu), ..network_spec(&format!("mtu{mtu}")) };
        assert_eq!(cluster.network(spec).is_ok(), accepted, "{mtu}");
    }
}

#[test]
fn refuses_auxiliary_addresses_that_cannot_be_reserved() {
    let check = |reserved: &[(&str, &str)], expected: &str| {
        let mut spec = subnet_spec("app", "10.1.0.0/24");
        let reserved = reserved.iter().map(|(name, address)| ((*name).to_owned(), parse(address)));
        spec.v4[0].reserved = reserved.collect();
        assert_eq!(refusal(TestCluster::new().network(spec)), expected);
    };
    for bad in ["10.1.1.1", "10.1.0.0", "10.1.0.255"] {
        check(
            &[("router", bad)],
            &format!("auxiliary address router={bad} is not a usable address of subnet 10.1.0.0/24"),
        );
    }
    check(
        &[("a", "10.1.0.1")],
        "auxiliary address a=10.1.0.1 is also the address of the gateway: give each address once",
    );
    check(
        &[("a", "10.1.0.9"), ("b", "10.1.0.9")],
        "auxiliary address b=10.1.0.9 is also the address of a: give each address once",
    );
}

#[test]
fn two_networks_may_have_the_same_subnet() {
    let mut cluster = TestCluster::new();
    cluster.add_network(subnet_spec("a", "10.1.0.0/24"));
    cluster.add_network(subnet_spec("b", "10.1.0.0/24"));
}

#[test]
fn names_are_unique_regardless_of_case() {
    let mut cluster = TestCluster::new();
    let app = cluster.add_network(network_spec("app"));
    let refused = refusal(cluster.network(network_spec("App")));
    assert_eq!(refused, format!("network name App is in use by {app}: choose another or remove that one"));
    assert!(refusal(cluster.network(network_spec("ingress"))).starts_with("network name ingress is in use"));
}

#[test]
fn refuses_subnets_that_cannot_work() {
    let check = |subnet: &str, expected: &str| {
        assert_eq!(refusal(TestCluster::new().network(subnet_spec("app", subnet))), expected);
    };
    check("10.1.0.5/24", "subnet 10.1.0.5/24 has host bits set: use 10.1.0.0/24");
    check("10.1.0.0/31", "subnet 10.1.0.0/31 cannot be used: use a prefix length from 1 to 30");
    for reserved in ["127.0.0.0/24", "169.254.0.0/16", "224.0.0.0/8", "0.0.0.0/8", "255.255.255.0/24"] {
        check(reserved, &format!("subnet {reserved} is reserved and cannot be used: choose a private one"));
    }
    let check_v6 = |subnet: &str, expected: &str| {
        let mut spec = network_spec("app");
        spec.v6 = vec![SubnetSpec::new(parse(subnet))];
        assert_eq!(refusal(TestCluster::new().network(spec)), expected);
    };
    check_v6("fd00::1/64", "subnet fd00::1/64 has host bits set: use fd00::/64");
    check_v6("fd00::/127", "subnet fd00::/127 cannot be used: use a prefix length from 1 to 126");
    for reserved in ["fe80::/64", "ff00::/8", "::/96", "::ffff:10.0.0.0/104"] {
        check_v6(reserved, &format!("subnet {reserved} is reserved and cannot be used: choose a private one"));
    }
}

#[test]
fn refuses_a_gateway_or_range_outside_of_the_subnet() {
    let check = |gateway: Option<&str>, range: Option<&str>, expected: &str| {
        let v4 = SubnetSpec {
            gateway: gateway.map(parse),
            ip_range: range.map(parse),
            ..SubnetSpec::new(parse("10.1.0.0/24"))
        };
        let mut spec = network_spec("app");
        spec.v4 = vec![v4];
        assert_eq!(refusal(TestCluster::new().network(spec)), expected);
    };
    for bad in ["10.1.1.1", "10.1.0.0", "10.1.0.255"] {
        check(Some(bad), None, &format!("gateway {bad} is not a usable address of subnet 10.1.0.0/24"));
    }
    check(None, Some("10.1.1.0/25"), "ip-range 10.1.1.0/25 is not inside subnet 10.1.0.0/24");
    check(None, Some("10.1.0.0/16"), "ip-range 10.1.0.0/16 is not inside subnet 10.1.0.0/24");
}

#[test]
fn refuses_a_subnet_that_overlaps_a_route_and_names_the_node() {
    let mut cluster = TestCluster::new();
    cluster.node("n2", &["10.1.0.0/16", "2001:db8::/64"]);
    assert_eq!(
        refusal(cluster.network(subnet_spec("app", "10.1.7.0/24"))),
        "subnet 10.1.7.0/24 overlaps with route 10.1.0.0/16 on node n2: choose another subnet"
    );
    let mut spec = network_spec("app");
    spec.v6 = vec![SubnetSpec::new(parse("2001:db8::/48"))];
    assert_eq!(
        refusal(cluster.network(spec)),
        "subnet 2001:db8::/48 overlaps with route 2001:db8::/64 on node n2: choose another subnet"
    );
}

#[test]
fn refuses_to_remove_a_network_in_use() {
    let mut cluster = TestCluster::new();
    let network = cluster.add_network(network_spec("app"));
    let service = cluster.add_service(service_spec("web", 1, &[&network]));
    let remove = Command::RemoveNetwork { id: network.clone() };
    check_refused(&mut cluster, remove.clone(), "network app is in use by service web: remove that first");
    cluster.ok(Command::RemoveService { id: service.clone() });
    cluster.ok(Command::ForgetService { id: service });
    cluster.ok(remove);
    assert!(cluster.state.allocated.quarantine.is_empty() && cluster.state.allocated.addresses.len() == 1);
}

#[test]
fn the_ingress_network_can_be_replaced_and_its_chosen_subnet_stays() {
    let mut cluster = TestCluster::new();
    let ingress = |spec: NetworkSpec| NetworkSpec { ingress: true, ..spec };
    let refused = refusal(cluster.network(ingress(network_spec("other"))));
    assert_eq!(
        refused,
        "the cluster has the ingress network ingress already: remove it first with \"weft network rm ingress\""
    );
    let old = cluster.ingress().clone();
    cluster.ok(Command::RemoveNetwork { id: old.id });
    let other = cluster.add_network(ingress(network_spec("other")));
    assert_eq!(cluster.state.networks[&other].subnets.v4, old.subnets.v4);
    assert_ne!(cluster.state.networks[&other].vni, old.vni);
    cluster.ok(Command::RemoveNetwork { id: other });
    let chosen = cluster.add_network(ingress(subnet_spec("chosen", "10.250.0.0/16")));
    cluster.node("n2", &["10.250.1.0/24"]);
    assert_eq!(cluster.state.networks[&chosen].subnets.v4[0].range.to_string(), "10.250.0.0/16");
}
