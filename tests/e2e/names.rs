//! Names: the resolver at 127.0.0.11 in each task resolves services and tasks, and the addresses
//! can be reached.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use anyhow::{Context, Result, ensure};
use weft_lab::{
    Lab, Task, contract,
    dns::{self, Question, RecordType, ResponseCode, Transport},
    eventually, http, packets, resolver, scaled,
};

use crate::{
    fixtures::{
        DROP_TIMEOUT, FOLLOW_TIMEOUT, HTTP, WHOAMI, network, probe, resolves_to, service, task_names, task_of, v4_of,
        v6_of, vip,
    },
    harness::{Group, Shape, tests},
    kernel_names, lookups, resolver_address, unbound,
};

pub(crate) fn group() -> Group {
    Group {
        name: "names",
        shape: Shape::default(),
        setup,
        tests: tests![
            a_service_is_reached_by_its_name,
            a_vip_balances_all_ports_of_its_tasks,
            a_vip_answers_ping,
            datagrams_to_a_vip_are_answered_from_its_address,
            raw_packets_to_a_vip_are_answered_from_its_address,
            tasks_dot_service_resolves_to_the_addresses_of_the_tasks,
            the_name_and_the_address_of_a_task_resolve,
            a_task_resolves_by_its_short_id_and_its_host_name,
            published_ports_have_srv_records,
            a_task_reaches_its_own_service,
            names_have_ipv6_addresses_only_on_networks_with_ipv6,
            a_service_without_a_vip_resolves_to_its_tasks,
            unknown_names_and_missing_record_types_have_different_answers,
            long_answers_use_edns_or_tcp,
            external_names_resolve_through_the_upstream,
            lookups::the_user_chooses_how_tasks_look_up_names,
            unbound::replies_differ_from_those_of_unbound_only_as_listed,
            kernel_names::the_kernel_and_the_resolver_give_the_same_replies,
            kernel_names::names_resolve_while_the_daemon_is_down,
            kernel_names::a_stopped_task_is_in_no_reply,
            resolver_address::a_resolver_at_another_address_is_reached_where_processes_ask,
        ],
    }
}

pub(crate) fn setup(lab: &Lab) -> Result<()> {
    network(lab, "app", &[])?;
    service(lab, "whoami", 3, &["--network", "app"], &[WHOAMI])?;
    setup_ipv6(lab)
}

/// A second network, with IPv6, and a probe task on both networks that sends the requests.
pub(crate) fn setup_ipv6(lab: &Lab) -> Result<()> {
    network(lab, "six", &["--ipv6"])?;
    service(lab, "dual", 2, &["--network", "six"], &[WHOAMI])?;
    probe(lab, "probe", &["app", "six"]).map(|_| ())
}

/// Both VIPs of `dual`, as its name resolves in the probe.
fn dual_vips(lab: &Lab, probe: &Task) -> Result<[IpAddr; 2]> {
    let v4 = vip(lab, probe, "dual")?;
    let answer = lab.lookup(probe, "dual", RecordType::AAAA)?;
    let [v6] = answer.addrs()[..] else { anyhow::bail!("dual must have one IPv6 address: {answer:?}") };
    Ok([v4, v6])
}

pub(crate) fn a_service_is_reached_by_its_name(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    let mut found = BTreeSet::new();
    // curl uses the task's own resolv.conf and its own sockets.
    for _ in 0..12 {
        let body = lab.task_exec_ok(&probe, &["curl", "--silent", "--fail", "--max-time", "5", "http://whoami/"])?;
        let name = body.lines().find_map(|line| line.strip_prefix("name: ")).context("the reply has a name")?;
        found.insert(name.trim().to_owned());
    }
    ensure!(found == task_names(&tasks), "answers came from {found:?}");
    Ok(())
}

pub(crate) fn a_vip_balances_all_ports_of_its_tasks(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    let vip = vip(lab, &probe, "whoami")?;
    let by_task = lab.within_task(&probe, || http::answers_by_task(SocketAddr::new(vip, HTTP), 300))??;
    ensure!(by_task.keys().cloned().collect::<BTreeSet<_>>() == task_names(&tasks), "answers came from {by_task:?}");
    ensure!(by_task.values().all(|count| (80..=120).contains(count)), "uneven: {by_task:?}");
    // The echo port is neither published nor in the service's spec.
    let echo = SocketAddr::new(vip, http::ECHO_PORT);
    let answer = lab.within_task(&probe, || http::tcp_echo(echo, b"over tcp"))??;
    ensure!(answer == b"over tcp", "{answer:?}");
    let answer = lab.within_task(&probe, || http::udp(echo, b"over udp", DROP_TIMEOUT))??;
    ensure!(answer == b"over udp", "{answer:?}");
    Ok(())
}

pub(crate) fn a_vip_answers_ping(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    for vip in dual_vips(lab, &probe)? {
        let output = lab.exec_in_task_netns(&probe, &["ping", "-c", "3", "-i", "0.2", "-W", "1", &vip.to_string()])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

/// Uses sockets that are not connected.
pub(crate) fn datagrams_to_a_vip_are_answered_from_its_address(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    for vip in dual_vips(lab, &probe)? {
        let echo = SocketAddr::new(vip, http::ECHO_PORT);
        let socket = lab.within_task(&probe, || UdpSocket::bind(SocketAddr::new(probe_addr(&probe, vip), 0)))??;
        socket.set_read_timeout(Some(scaled(DROP_TIMEOUT)))?;
        // More datagrams than there are tasks.
        for _ in 0..4 {
            socket.send_to(b"unconnected", echo)?;
            ensure!(receive(&socket)? == (b"unconnected".to_vec(), echo), "the reply is not from {echo}");
        }
    }
    Ok(())
}

/// The programs on socket calls do not see raw packets: each packet is translated when it is sent.
pub(crate) fn raw_packets_to_a_vip_are_answered_from_its_address(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    for vip in dual_vips(lab, &probe)? {
        let echo = SocketAddr::new(vip, http::ECHO_PORT);
        let own = SocketAddr::new(probe_addr(&probe, vip), 0);
        let socket = lab.within_task(&probe, || UdpSocket::bind(own))??;
        socket.set_read_timeout(Some(scaled(DROP_TIMEOUT)))?;
        let own = socket.local_addr()?;
        for _ in 0..4 {
            lab.within_task(&probe, || packets::send_raw_udp(own, echo, b"raw"))??;
            ensure!(receive(&socket)? == (b"raw".to_vec(), echo), "the reply is not from {echo}");
        }
    }
    Ok(())
}

/// The probe's own address on the network of `dual`, of the same family as `like`.
fn probe_addr(probe: &Task, like: IpAddr) -> IpAddr {
    if like.is_ipv4() { probe.v4("six") } else { probe.v6("six") }
}

fn receive(socket: &UdpSocket) -> Result<(Vec<u8>, SocketAddr)> {
    let mut packet = vec![0; 64];
    let (length, from) = socket.recv_from(&mut packet).context("receive the reply")?;
    packet.truncate(length);
    Ok((packet, from))
}

pub(crate) fn tasks_dot_service_resolves_to_the_addresses_of_the_tasks(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    let answer = lab.lookup(&probe, "tasks.whoami", RecordType::A)?;
    let found: BTreeSet<IpAddr> = answer.addrs().into_iter().collect();
    ensure!(found == v4_of(&tasks, "app"), "{found:?}");
    for addr in found {
        let reply = lab.within_task(&probe, || http::get(SocketAddr::new(addr, HTTP), "/"))?;
        let reply = reply.with_context(|| format!("from {} to the task at {addr}", probe.node))?;
        let peer = reply.peer.context("the reply has a peer")?.ip();
        ensure!(peer == probe.v4("app"), "the task saw {peer} instead of the address of the probe");
    }
    Ok(())
}

pub(crate) fn the_name_and_the_address_of_a_task_resolve(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    for task in lab.wait_running("n1", "whoami", 3)? {
        let (name, IpAddr::V4(addr)) = (task.name(), task.v4("app")) else { continue };
        let answer = lab.lookup(&probe, &name, RecordType::A)?;
        ensure!(answer.addrs() == [IpAddr::V4(addr)], "{name}: {answer:?}");
        let [a, b, c, d] = addr.octets();
        let answer = lab.lookup(&probe, &format!("{d}.{c}.{b}.{a}.in-addr.arpa"), RecordType::PTR)?;
        ensure!(answer.records.iter().any(|record| record.starts_with(&name)), "{addr}: {answer:?}");
    }
    Ok(())
}

pub(crate) fn a_task_resolves_by_its_short_id_and_its_host_name(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let flags = ["--network", "six", "--hostname", "box-{{.Task.Slot}}"];
    let tasks = service(lab, "named", 2, &flags, &[WHOAMI])?;
    for task in &tasks {
        for name in [&task.id[..12], &format!("box-{}", task.slot)] {
            resolves_to(lab, &probe, name, &[task.v4("six")].into(), FOLLOW_TIMEOUT);
            let answer = lab.lookup(&probe, name, RecordType::AAAA)?;
            ensure!(answer.addrs() == [task.v6("six")], "{name}: {answer:?}");
        }
    }
    lab.weft_ok("n1", &["service", "rm", "named"])?;
    Ok(())
}

pub(crate) fn published_ports_have_srv_records(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    service(lab, "ported", 1, &["--network", "app", "--publish", "8099:80"], &[WHOAMI])?;
    let answer = lab.lookup(&probe, "_80._tcp.ported", RecordType::SRV)?;
    ensure!(answer.records == ["0 0 80 ported.app."], "{answer:?}");
    let missing = lab.lookup(&probe, "_81._tcp.ported", RecordType::SRV)?;
    ensure!(missing.code == ResponseCode::NXDomain, "{missing:?}");
    lab.weft_ok("n1", &["service", "rm", "ported"])?;
    Ok(())
}

pub(crate) fn a_task_reaches_its_own_service(lab: &Lab) -> Result<()> {
    for (service, count, records) in
        [("whoami", 3, &[RecordType::A][..]), ("dual", 2, &[RecordType::A, RecordType::AAAA])]
    {
        let tasks = lab.wait_running("n1", service, count)?;
        for (task, record) in tasks.iter().flat_map(|task| records.iter().map(move |record| (task, *record))) {
            let what = format!("from {} to {service} by {record}", task.name());
            // The name resolves in the task itself.
            let answer = lab.lookup(task, service, record)?;
            let [vip] = answer.addrs()[..] else { anyhow::bail!("{what}: the name must have one address: {answer:?}") };
            // The task itself is among those that answer.
            let by_task = lab
                .within_task(task, || http::answers_by_task((vip, HTTP).into(), 30))?
                .with_context(|| what.clone())?;
            let found: BTreeSet<String> = by_task.into_keys().collect();
            ensure!(found == task_names(&tasks), "{what}: answers came from {found:?}");
            // So many datagrams reach each task at least once, also the task itself.
            for _ in 0..2 * count {
                let echo = (vip, http::ECHO_PORT).into();
                let answer = lab.within_task(task, || http::udp(echo, b"itself", DROP_TIMEOUT))?;
                ensure!(answer.with_context(|| what.clone())? == b"itself", "{what}: another echo");
            }
        }
    }
    Ok(())
}

pub(crate) fn names_have_ipv6_addresses_only_on_networks_with_ipv6(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let tasks = lab.wait_running("n1", "dual", 2)?;
    let [_, vip] = dual_vips(lab, &probe)?;
    let by_task = lab.within_task(&probe, || http::answers_by_task(SocketAddr::new(vip, HTTP), 30))??;
    ensure!(by_task.into_keys().collect::<BTreeSet<_>>() == task_names(&tasks), "not all tasks answered");
    let answer = lab.lookup(&probe, "tasks.dual", RecordType::AAAA)?;
    ensure!(answer.addrs().into_iter().collect::<BTreeSet<_>>() == v6_of(&tasks, "six"), "{answer:?}");
    // Tasks have IPv6 addresses on the other network as well, but it was created without --ipv6.
    let answer = lab.lookup(&probe, "whoami", RecordType::AAAA)?;
    ensure!(answer.code == ResponseCode::NoError && answer.records.is_empty(), "{answer:?}");
    Ok(())
}

pub(crate) fn a_service_without_a_vip_resolves_to_its_tasks(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let flags = ["--network", "app", "--endpoint-mode", "dnsrr"];
    let tasks = service(lab, "dnsrr", 2, &flags, &[WHOAMI])?;
    resolves_to(lab, &probe, "dnsrr", &v4_of(&tasks, "app"), FOLLOW_TIMEOUT);
    lab.weft_ok("n1", &["service", "rm", "dnsrr"])?;
    Ok(())
}

pub(crate) fn unknown_names_and_missing_record_types_have_different_answers(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    for (name, record, code) in [
        ("whoami", RecordType::MX, ResponseCode::NoError),
        ("whoami", RecordType::AAAA, ResponseCode::NoError),
        ("tasks.whoami", RecordType::TXT, ResponseCode::NoError),
        ("missing", RecordType::A, ResponseCode::NXDomain),
        ("tasks.missing", RecordType::A, ResponseCode::NXDomain),
    ] {
        let answer = lab.lookup(&probe, name, record)?;
        ensure!(answer.code == code && answer.records.is_empty(), "{name} {record}: {answer:?}");
    }
    Ok(())
}

pub(crate) fn long_answers_use_edns_or_tcp(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    // 20 IPv6 addresses need more than the 512 bytes of UDP without EDNS.
    let tasks = service(lab, "many", 20, &["--network", "six"], &["--limit-pids", "16", WHOAMI])?;
    let expected = v6_of(&tasks, "six");
    let question = Question::new("tasks.many", RecordType::AAAA);
    let query = |question: Question<'_>| lab.within_task(&probe, || dns::query(dns::IN_TASK, &question))?;
    let by_tcp = Question { transport: Transport::Tcp, ..question.clone() };
    eventually(FOLLOW_TIMEOUT, "the name resolves to all addresses", || {
        let answer = query(by_tcp.clone()).map_err(|error| format!("{error:#}"))?;
        let found: BTreeSet<IpAddr> = answer.addrs().into_iter().collect();
        if found == expected { Ok(()) } else { Err(format!("{} of {}", found.len(), expected.len())) }
    });
    let plain = query(question.clone())?;
    ensure!(
        plain.truncated && plain.edns.is_none(),
        "an answer with {} addresses must be truncated: {plain:?}",
        expected.len()
    );
    let by_edns = query(Question { edns: Some(1232), ..question })?;
    ensure!(!by_edns.truncated && by_edns.edns.is_some(), "{by_edns:?}");
    ensure!(by_edns.addrs().into_iter().collect::<BTreeSet<_>>() == expected, "{by_edns:?}");
    lab.weft_ok("n1", &["service", "rm", "many"])?;
    Ok(())
}

pub(crate) fn external_names_resolve_through_the_upstream(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let [v4, v6] = resolver::external_addrs();
    ensure!(lab.lookup(&probe, contract::EXTERNAL_NAME, RecordType::A)?.addrs() == [v4], "another IPv4 address");
    ensure!(lab.lookup(&probe, contract::EXTERNAL_NAME, RecordType::AAAA)?.addrs() == [v6], "another IPv6 address");
    let text = lab.lookup(&probe, contract::EXTERNAL_NAME, RecordType::TXT)?;
    ensure!(text.records == [contract::EXTERNAL_TEXT], "{text:?}");
    let missing = lab.lookup(&probe, "www.example.test", RecordType::A)?;
    ensure!(missing.code == ResponseCode::NXDomain, "{missing:?}");
    // getent uses the task's own resolv.conf.
    let found = lab.task_exec_ok(&probe, &["getent", "ahostsv4", contract::EXTERNAL_NAME])?;
    ensure!(found.contains(&v4.to_string()), "{found}");
    Ok(())
}
