//! Every kind of question, asked of one zone.

use hickory_proto::rr::RecordType::{A, AAAA, ANY, MX, PTR, TXT};
use weft_model::plan::ServicePlan;

use super::*;
use crate::sample::{BACK, FAR, FRONT, INGRESS, addr, plan, service, view};

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

fn ask(nets: &[u8], name: &str, kind: RecordType) -> Answer {
    let name = Name::from_ascii(format!("{name}.")).expect("a name");
    resolve(&zone(), &view(nets), &name, kind, 0)
}

#[track_caller]
fn check(nets: &[u8], name: &str, kind: RecordType, want: &Answer) {
    assert_eq!(ask(nets, name, kind), *want, "{name} {kind} from {nets:?}");
}

fn v4(net: u8, hosts: &[u8]) -> Answer {
    Answer::Addresses(hosts.iter().map(|&host| addr(net, host).v4.into()).collect())
}

fn v6(net: u8, hosts: &[u8]) -> Answer {
    Answer::Addresses(hosts.iter().map(|&host| addr(net, host).v6.into()).collect())
}

fn named(name: &str) -> Answer {
    Answer::Name(Name::from_labels(name.split('.').map(str::as_bytes)).expect("a name"))
}

#[test]
fn a_service_is_its_virtual_address() {
    for name in ["web", "WEB", "wEb", "www", "web.front", "www.FRONT"] {
        check(&[FRONT], name, A, &v4(FRONT, &[100]));
        check(&[FRONT], name, AAAA, &v6(FRONT, &[100]));
    }
    check(&[FRONT], "idle", A, &v4(FRONT, &[110]));
}

#[test]
fn a_service_without_virtual_address_is_its_tasks() {
    check(&[FRONT], "cache", A, &v4(FRONT, &[21, 22]));
    check(&[FRONT], "cache", AAAA, &v6(FRONT, &[21, 22]));
    check(&[FRONT], "asleep", A, &Answer::NoData);
}

#[test]
fn tasks_are_found_by_service_and_by_name_unless_they_drain() {
    check(&[FRONT], "tasks.web", A, &v4(FRONT, &[11, 12]));
    check(&[FRONT], "Tasks.www", A, &v4(FRONT, &[11, 12]));
    check(&[FRONT], "tasks.web.front", AAAA, &v6(FRONT, &[11, 12]));
    check(&[FRONT], "web.1.task11", A, &v4(FRONT, &[11]));
    check(&[FRONT], "web.1.task11.front", A, &v4(FRONT, &[11]));
    check(&[FRONT], "web.3.task13", A, &Answer::Forward);
    check(&[FRONT], "tasks.idle", A, &Answer::NoData);
}

#[test]
fn the_first_network_that_knows_a_name_decides() {
    check(&[FRONT, BACK], "web", A, &v4(FRONT, &[100]));
    check(&[BACK, FRONT], "web", A, &v4(BACK, &[100]));
    check(&[FRONT, BACK], "www", A, &v4(FRONT, &[100]));
    check(&[BACK, FRONT], "www", A, &v4(BACK, &[130]));
    check(&[FRONT, BACK], "db", A, &v4(BACK, &[130]));
    check(&[FRONT, BACK], "web.stack.back", A, &v4(BACK, &[100]));
    check(&[BACK, FRONT], "web.front", A, &v4(FRONT, &[100]));
}

#[test]
fn an_alias_may_be_shared_but_never_takes_a_services_name() {
    check(&[FRONT], "shop", A, &v4(FRONT, &[100, 120]));
    check(&[FRONT], "cache", A, &v4(FRONT, &[21, 22]));
    check(&[FRONT], "www.example.test", A, &v4(FRONT, &[120]));
}

#[test]
fn other_networks_names_are_like_unknown_ones() {
    for name in ["secret", "hidden", "tasks.secret", "secret.far", "secret.1.task51", "nobody", "example.test", "edge"]
    {
        for kind in [A, AAAA, MX, ANY] {
            check(&[FRONT, BACK, INGRESS], name, kind, &Answer::Forward);
        }
    }
    check(&[], "web", A, &Answer::Forward);
    check(&[INGRESS], "web", A, &Answer::Forward);
}

#[test]
fn a_known_name_without_the_type_has_no_data() {
    check(&[BACK], "web", AAAA, &Answer::NoData);
    check(&[BACK, FRONT], "web", AAAA, &Answer::NoData);
    for kind in [MX, TXT, PTR] {
        check(&[FRONT], "web", kind, &Answer::NoData);
    }
}

#[test]
fn any_asks_for_both_families() {
    let both = |net, host| Answer::Addresses(vec![addr(net, host).v4.into(), addr(net, host).v6.into()]);
    check(&[FRONT], "web", ANY, &both(FRONT, 100));
    check(&[BACK], "db", ANY, &v4(BACK, &[130]));
}

#[test]
fn addresses_of_the_view_have_names() {
    let nets = [FRONT, BACK, INGRESS];
    check(&nets, "100.1.0.10.in-addr.arpa", PTR, &named("Web.front"));
    check(&nets, "11.1.0.10.IN-ADDR.ARPA", PTR, &named("Web.1.task11.front"));
    check(&nets, "13.1.0.10.in-addr.arpa", PTR, &named("Web.3.task13.front"));
    check(&nets, "130.2.0.10.in-addr.arpa", ANY, &named("db.stack.back"));
    let v6 = Name::from(IpAddr::from(addr(FRONT, 11).v6)).to_ascii();
    check(&nets, v6.trim_end_matches('.'), PTR, &named("Web.1.task11.front"));
    check(&nets, "100.1.0.10.in-addr.arpa", A, &Answer::NoData);
}

#[test]
fn addresses_that_nobody_has_have_no_name() {
    check(&[FRONT], "99.1.0.10.in-addr.arpa", PTR, &Answer::NxDomain);
    check(&[FRONT], "1.1.0.10.in-addr.arpa", PTR, &Answer::NxDomain);
    check(&[FRONT, INGRESS], "61.4.0.10.in-addr.arpa", PTR, &Answer::NxDomain);
    check(&[FRONT], "99.1.0.10.in-addr.arpa", A, &Answer::NxDomain);
}

#[test]
fn addresses_outside_the_view_are_asked_outside() {
    for name in ["51.3.0.10.in-addr.arpa", "7.113.0.203.in-addr.arpa", "1.0.10.in-addr.arpa", "in-addr.arpa", "arpa"] {
        check(&[FRONT], name, PTR, &Answer::Forward);
    }
}

#[test]
fn several_addresses_take_turns() {
    let name = Name::from_ascii("cache.").expect("a name");
    let first = |turn| match resolve(&zone(), &view(&[FRONT]), &name, A, turn) {
        Answer::Addresses(addresses) => addresses[0],
        other => panic!("{other:?}"),
    };
    let firsts: Vec<_> = (0..4).map(first).collect();
    assert_eq!(firsts, [21, 22, 21, 22].map(|host| IpAddr::V4(addr(FRONT, host).v4)));
}

#[test]
fn a_service_that_is_being_removed_gives_its_names_away() {
    let old = ServicePlan { removing: true, ..service(FRONT, "web", &["www"], Some(100), &[11], true) };
    let new = service(FRONT, "web", &[], Some(101), &[12], false);
    let zone = Zone::from_plan(&plan(vec![old, new]));
    let ask = |name: &str, kind| resolve(&zone, &view(&[FRONT]), &Name::from_ascii(name).expect("a name"), kind, 0);
    assert_eq!(ask("web.", A), v4(FRONT, &[101]));
    assert_eq!(ask("tasks.web.", A), v4(FRONT, &[12]));
    assert_eq!(ask("www.", A), Answer::Forward);
    assert_eq!(ask("100.1.0.10.in-addr.arpa.", PTR), named("web.front"), "its flows go on");
}

#[test]
fn strange_names_are_nobodys() {
    let zone = zone();
    let labels: [&[&[u8]]; 4] = [&[], &[b"web.front"], &[b"w\0b"], &["wéb".as_bytes()]];
    for labels in labels {
        let name = Name::from_labels(labels.iter().copied()).expect("a name");
        assert_eq!(resolve(&zone, &view(&[FRONT]), &name, A, 0), Answer::Forward, "{name}");
    }
}
