//! Every kind of question, answered from one zone.

use hickory_proto::rr::RecordType::{A, AAAA, ANY, MX, PTR, TXT};
use weft_model::plan::ServicePlan;

use super::*;
use crate::fixture::{BACK, FAR, FRONT, INGRESS, addr, networks, plan, service};

fn zone() -> Zone {
    Zone::from_plan(&plan(vec![
        service(FRONT, "Web", &["www", "shop"], Some(100), &[11, 12, 13], true),
        service(FRONT, "cache", &[], None, &[21, 22], false),
        service(FRONT, "idle", &[], Some(110), &[], false),
        service(FRONT, "asleep", &[], None, &[], false),
        service(FRONT, "other", &["shop", "cache", "www.example.test"], Some(120), &[31], false),
        service(BACK, "web", &[], Some(100), &[41], false),
        service(BACK, "db", &["www"], Some(130), &[42], false),
        service(FAR, "secret", &["hidden"], Some(100), &[51], false),
        service(INGRESS, "web", &["edge"], None, &[61], false),
    ]))
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
    Answer::Addresses(hosts.iter().map(|&host| addr(net, host).v4.into()).collect())
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
    check(&[FRONT], "web.3.task13", A, &Answer::Forward);
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
fn names_of_other_networks_are_forwarded_like_unknown_names() {
    for name in ["secret", "hidden", "tasks.secret", "secret.far", "secret.1.task51", "nobody", "example.test", "edge"]
    {
        for record_type in [A, AAAA, MX, ANY] {
            check(&[FRONT, BACK, INGRESS], name, record_type, &Answer::Forward);
        }
    }
    check(&[], "web", A, &Answer::Forward);
    check(&[INGRESS], "web", A, &Answer::Forward);
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
fn a_question_of_type_any_gets_both_families() {
    let both = |net, host| Answer::Addresses(vec![addr(net, host).v4.into(), addr(net, host).v6.into()]);
    check(&[FRONT], "web", ANY, &both(FRONT, 100));
    check(&[BACK], "db", ANY, &v4(BACK, &[130]));
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
        check(&[FRONT], name, PTR, &Answer::Forward);
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
    assert_eq!(firsts, [21, 22, 21, 22].map(|host| IpAddr::V4(addr(FRONT, host).v4)));
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
    assert_eq!(ask("www.", A), Answer::Forward);
    assert_eq!(ask("100.1.0.10.in-addr.arpa.", PTR), ptr("web.front"), "its flows continue");
}

#[test]
fn names_with_unusual_octets_are_forwarded() {
    let zone = zone();
    let labels: [&[&[u8]]; 4] = [&[], &[b"web.front"], &[b"w\0b"], &["wéb".as_bytes()]];
    for labels in labels {
        let name = Name::from_labels(labels.iter().copied()).expect("a name");
        assert_eq!(resolve(&zone, &networks(&[FRONT]), &name, A, 0), Answer::Forward, "{name}");
    }
}
