//! Every kind of question, answered from one zone.

use hickory_proto::rr::RecordType::{A, AAAA, ANY, AXFR, MX, OPT, PTR, SRV, TXT};
use proptest::prelude::*;
use weft_model::{
    plan::{AttachedName, ServicePlan},
    state::ContainerIdentity,
};

use super::*;
use crate::fixture::{BACK, FAR, FRONT, INGRESS, addr, network, networks, plan, port, service, task};

fn zone() -> Zone {
    let mut plan = plan(vec![
        service(FRONT, "Web", &["www", "shop"], Some(100), &[11, 12, 13], true),
        service(FRONT, "cache", &[], None, &[21, 22], false),
        service(FRONT, "idle", &[], Some(110), &[], false),
        service(FRONT, "asleep", &[], None, &[], false),
        service(FRONT, "other", &["shop", "cache", "www.example.test"], Some(120), &[31], false),
        service(BACK, "web", &[], Some(100), &[41], false),
        service(BACK, "db", &["www"], Some(130), &[42], false),
        service(FAR, "secret", &["hidden"], Some(100), &[51], false),
        service(INGRESS, "web", &["edge"], None, &[61], false),
    ]);
    let hostnames = [(11, "box"), (12, "box"), (21, "Cache-Host"), (31, "web"), (42, "shop")];
    for backend in plan.services.iter_mut().flat_map(|service| &mut service.backends) {
        let hostname = hostnames.iter().find(|(host, _)| backend.task == task(*host));
        backend.hostname = hostname.map(|(_, name)| (*name).to_owned());
    }
    plan.ports = vec![
        port(FRONT, "Web", Protocol::Tcp, 80),
        port(FRONT, "Web", Protocol::Udp, 53),
        port(FRONT, "asleep", Protocol::Tcp, 80),
        port(FRONT, "other", Protocol::Tcp, 443),
    ];
    Zone::from_plan(&plan)
}

fn ask(nets: &[u8], name: &str, record_type: RecordType) -> Answer {
    let name = Name::from_ascii(format!("{name}.")).expect("a name");
    resolve(&zone(), &networks(nets), &name, record_type, 0)
}

#[track_caller]
fn check(nets: &[u8], name: &str, record_type: RecordType, want: &Answer) {
    assert_eq!(ask(nets, name, record_type), *want, "{name} {record_type} from {nets:?}");
}

fn v4(net: u8, hosts: &[u8]) -> Answer {
    Answer::Addresses(hosts.iter().map(|&host| addr(net, host).first()).collect())
}

fn v6(net: u8, hosts: &[u8]) -> Answer {
    Answer::Addresses(hosts.iter().map(|&host| addr(net, host).v6.into()).collect())
}

fn ptr(name: &str) -> Answer {
    Answer::Name(Name::from_labels(name.split('.').map(str::as_bytes)).expect("a name"))
}

#[test]
fn a_service_resolves_to_its_vip() {
    for name in ["web", "WEB", "wEb", "www", "web.front", "www.FRONT"] {
        check(&[FRONT], name, A, &v4(FRONT, &[100]));
        check(&[FRONT], name, AAAA, &v6(FRONT, &[100]));
    }
    check(&[FRONT], "idle", A, &v4(FRONT, &[110]));
}

#[test]
fn a_service_without_vip_resolves_to_its_tasks() {
    check(&[FRONT], "cache", A, &v4(FRONT, &[21, 22]));
    check(&[FRONT], "cache", AAAA, &v6(FRONT, &[21, 22]));
    check(&[FRONT], "asleep", A, &Answer::NoData);
}

#[test]
fn tasks_resolve_by_service_and_by_name_unless_they_drain() {
    check(&[FRONT], "tasks.web", A, &v4(FRONT, &[11, 12]));
    check(&[FRONT], "Tasks.www", A, &v4(FRONT, &[11, 12]));
    check(&[FRONT], "tasks.web.front", AAAA, &v6(FRONT, &[11, 12]));
    check(&[FRONT], "web.1.task11", A, &v4(FRONT, &[11]));
    check(&[FRONT], "web.1.task11.front", A, &v4(FRONT, &[11]));
    check(&[FRONT], "web.3.task13", A, &Answer::Outside);
    check(&[FRONT], "tasks.idle", A, &Answer::NoData);
}

#[test]
fn the_first_network_that_has_a_name_answers() {
    check(&[FRONT, BACK], "web", A, &v4(FRONT, &[100]));
    check(&[BACK, FRONT], "web", A, &v4(BACK, &[100]));
    check(&[FRONT, BACK], "www", A, &v4(FRONT, &[100]));
    check(&[BACK, FRONT], "www", A, &v4(BACK, &[130]));
    check(&[FRONT, BACK], "db", A, &v4(BACK, &[130]));
    check(&[FRONT, BACK], "web.stack.back", A, &v4(BACK, &[100]));
    check(&[BACK, FRONT], "web.front", A, &v4(FRONT, &[100]));
}

#[test]
fn services_can_share_an_alias_but_no_alias_replaces_the_name_of_a_service() {
    check(&[FRONT], "shop", A, &v4(FRONT, &[100, 120]));
    check(&[FRONT], "cache", A, &v4(FRONT, &[21, 22]));
    check(&[FRONT], "www.example.test", A, &v4(FRONT, &[120]));
}

#[test]
fn names_of_other_networks_are_asked_for_outside_like_unknown_names() {
    for name in ["secret", "hidden", "tasks.secret", "secret.far", "secret.1.task51", "missing", "example.test", "edge"]
    {
        for record_type in [A, AAAA, MX, ANY] {
            check(&[FRONT, BACK, INGRESS], name, record_type, &Answer::Outside);
        }
    }
    check(&[], "web", A, &Answer::Outside);
    check(&[INGRESS], "web", A, &Answer::Outside);
}

#[test]
fn a_name_without_a_record_of_the_type_has_no_data() {
    check(&[BACK], "web", AAAA, &Answer::NoData);
    check(&[BACK, FRONT], "web", AAAA, &Answer::NoData);
    for record_type in [MX, TXT, PTR] {
        check(&[FRONT], "web", record_type, &Answer::NoData);
    }
}

#[test]
fn a_question_of_type_any_gets_the_records_of_one_type() {
    check(&[FRONT], "web", ANY, &v4(FRONT, &[100]));
    check(&[FRONT], "asleep", ANY, &Answer::NoData);
    check(&[FRONT], "100.1.0.10.in-addr.arpa", ANY, &ptr("Web.front"));
}

#[test]
fn a_task_has_its_short_id_and_its_host_name() {
    let short_id = |host| task(host).as_str()[..12].to_owned();
    check(&[FRONT], &short_id(11), A, &v4(FRONT, &[11]));
    check(&[FRONT], &short_id(11).to_uppercase(), AAAA, &v6(FRONT, &[11]));
    check(&[FRONT], &format!("{}.front", short_id(12)), A, &v4(FRONT, &[12]));
    check(&[FRONT], &short_id(13), A, &Answer::Outside);
    check(&[FRONT], &short_id(51), A, &Answer::Outside);
    check(&[FRONT], "box", A, &v4(FRONT, &[11, 12]));
    check(&[FRONT], "cache-host", A, &v4(FRONT, &[21]));
    check(&[FRONT], "web", A, &v4(FRONT, &[100]));
    check(&[BACK], "shop", A, &v4(BACK, &[42]));
}

fn endpoints(names: &[(u16, &str, u8)]) -> Answer {
    let endpoint = |&(port, name, host): &(u16, &str, u8)| {
        let Answer::Name(target) = ptr(name) else { unreachable!("a name") };
        Endpoint { port, target, addresses: addr(FRONT, host).ips().collect() }
    };
    Answer::Endpoints(names.iter().map(endpoint).collect())
}

#[test]
fn published_ports_have_srv_records() {
    for name in ["_80._tcp.web", "_80._TCP.www", "_80._tcp.Web.front"] {
        check(&[FRONT], name, SRV, &endpoints(&[(80, "Web.front", 100)]));
    }
    check(&[FRONT], "_53._udp.web", ANY, &endpoints(&[(53, "Web.front", 100)]));
    let tasks = [(80, "Web.1.task11.front", 11), (80, "Web.2.task12.front", 12)];
    check(&[FRONT], "_80._tcp.tasks.web", SRV, &endpoints(&tasks));
    check(&[FRONT], "_443._tcp.shop", SRV, &endpoints(&[(443, "other.front", 120)]));
    for record_type in [A, AAAA, TXT] {
        check(&[FRONT], "_80._tcp.web", record_type, &Answer::NoData);
    }
    check(&[FRONT], "_80._tcp.asleep", SRV, &Answer::NoData);
    for unknown in ["_81._tcp.web", "_80._udp.web", "_80._tcp.cache"] {
        check(&[FRONT], unknown, SRV, &Answer::NxDomain);
    }
    for outside in
        ["_80._tcp.missing", "_80._tcp.secret", "_http._tcp.web", "_080._tcp.web", "_80._sctp.web", "_80.web"]
    {
        check(&[FRONT], outside, SRV, &Answer::Outside);
    }
}

#[test]
fn requests_that_are_no_records_are_refused() {
    for record_type in [AXFR, OPT, 249.into(), 253.into()] {
        for name in ["web", "missing", "100.1.0.10.in-addr.arpa"] {
            check(&[FRONT], name, record_type, &Answer::Refused);
        }
    }
}

proptest! {
    /// Whatever the type, a name of the zone is never asked for outside.
    #[test]
    fn names_of_the_zone_stay_inside(record_type in any::<u16>(), name in 0..6_usize, rotation in any::<usize>()) {
        let name = ["web", "tasks.cache", "asleep", "_80._tcp.web", "_1._tcp.web", "9.1.0.10.in-addr.arpa"][name];
        let name = Name::from_ascii(format!("{name}.")).expect("a name");
        let answer = resolve(&zone(), &networks(&[FRONT]), &name, record_type.into(), rotation);
        prop_assert_ne!(answer, Answer::Outside);
    }

    #[test]
    fn every_name_has_an_answer(labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..20), 0..8)) {
        let name = Name::from_labels(labels.iter().map(Vec::as_slice)).expect("a name");
        for record_type in [A, PTR, SRV] {
            resolve(&zone(), &networks(&[FRONT, BACK]), &name, record_type, 0);
        }
    }
}

#[test]
fn addresses_on_the_networks_of_the_task_have_names() {
    let nets = [FRONT, BACK, INGRESS];
    check(&nets, "100.1.0.10.in-addr.arpa", PTR, &ptr("Web.front"));
    check(&nets, "11.1.0.10.IN-ADDR.ARPA", PTR, &ptr("Web.1.task11.front"));
    check(&nets, "13.1.0.10.in-addr.arpa", PTR, &ptr("Web.3.task13.front"));
    check(&nets, "130.2.0.10.in-addr.arpa", ANY, &ptr("db.stack.back"));
    let v6 = Name::from(IpAddr::from(addr(FRONT, 11).v6)).to_ascii();
    check(&nets, v6.trim_end_matches('.'), PTR, &ptr("Web.1.task11.front"));
    check(&nets, "100.1.0.10.in-addr.arpa", A, &Answer::NoData);
}

#[test]
fn unused_addresses_have_no_name() {
    check(&[FRONT], "99.1.0.10.in-addr.arpa", PTR, &Answer::NxDomain);
    check(&[FRONT], "1.1.0.10.in-addr.arpa", PTR, &Answer::NxDomain);
    check(&[FRONT, INGRESS], "61.4.0.10.in-addr.arpa", PTR, &Answer::NxDomain);
    check(&[FRONT], "99.1.0.10.in-addr.arpa", A, &Answer::NxDomain);
}

#[test]
fn addresses_of_other_networks_are_forwarded() {
    for name in ["51.3.0.10.in-addr.arpa", "7.113.0.203.in-addr.arpa", "1.0.10.in-addr.arpa", "in-addr.arpa", "arpa"] {
        check(&[FRONT], name, PTR, &Answer::Outside);
    }
}

#[test]
fn the_rotation_selects_the_first_address() {
    let name = Name::from_ascii("cache.").expect("a name");
    let first = |rotation| match resolve(&zone(), &networks(&[FRONT]), &name, A, rotation) {
        Answer::Addresses(addresses) => addresses[0],
        other => panic!("{other:?}"),
    };
    let firsts: Vec<_> = (0..4).map(first).collect();
    assert_eq!(firsts, [21, 22, 21, 22].map(|host| addr(FRONT, host).first()));
}

#[test]
fn a_service_that_is_being_removed_keeps_only_its_reverse_names() {
    let old = ServicePlan { removing: true, ..service(FRONT, "web", &["www"], Some(100), &[11], true) };
    let new = service(FRONT, "web", &[], Some(101), &[12], false);
    let zone = Zone::from_plan(&plan(vec![old, new]));
    let ask = |name: &str, record_type| {
        resolve(&zone, &networks(&[FRONT]), &Name::from_ascii(name).expect("a name"), record_type, 0)
    };
    assert_eq!(ask("web.", A), v4(FRONT, &[101]));
    assert_eq!(ask("tasks.web.", A), v4(FRONT, &[12]));
    assert_eq!(ask("www.", A), Answer::Outside);
    assert_eq!(ask("100.1.0.10.in-addr.arpa.", PTR), ptr("web.front"), "its flows continue");
}

#[test]
fn names_with_unusual_octets_are_asked_for_outside() {
    let zone = zone();
    let labels: [&[&[u8]]; 4] = [&[], &[b"web.front"], &[b"w\0b"], &["wéb".as_bytes()]];
    for labels in labels {
        let name = Name::from_labels(labels.iter().copied()).expect("a name");
        assert_eq!(resolve(&zone, &networks(&[FRONT]), &name, A, 0), Answer::Outside, "{name}");
    }
}

#[test]
fn a_container_that_is_no_task_has_its_names_on_its_network() {
    let mut plan = plan(vec![service(FRONT, "web", &["www"], Some(100), &[11], false)]);
    let container = |net, name: &str, host| AttachedName {
        network: network(net),
        addr: addr(net, host),
        identity: ContainerIdentity { container: "c0ffee".repeat(10), name: name.to_owned() },
        aliases: vec!["db".to_owned(), "www".to_owned()],
    };
    plan.attached_names = vec![container(FRONT, "Shell", 71), container(FRONT, "web", 72), container(BACK, "far", 73)];
    let zone = Zone::from_plan(&plan);
    let check = |nets: &[u8], name: &str, record_type, want: &Answer| {
        let question = Name::from_ascii(format!("{name}.")).expect("a name");
        assert_eq!(resolve(&zone, &networks(nets), &question, record_type, 0), *want, "{name}");
    };
    for name in ["shell", "SHELL.front"] {
        check(&[FRONT], name, A, &v4(FRONT, &[71]));
        check(&[FRONT], name, AAAA, &v6(FRONT, &[71]));
    }
    check(&[FRONT], "c0ffeec0ffee", A, &v4(FRONT, &[71, 72]));
    check(&[FRONT], "db", A, &v4(FRONT, &[71, 72]));
    check(&[FRONT], "www", A, &v4(FRONT, &[100, 71, 72]));
    check(&[FRONT], "web", A, &v4(FRONT, &[100]));
    check(&[FRONT], "far", A, &Answer::Outside);
    check(&[BACK], "shell", A, &Answer::Outside);
    check(&[FRONT], "71.1.0.10.in-addr.arpa", PTR, &ptr("Shell.front"));
}
