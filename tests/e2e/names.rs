//! Names: inside a task, services and tasks are found by name at 127.0.0.11, and what is found can be talked to.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
};

use anyhow::{Context, Result, ensure};
use weft_lab::{
    Lab, Task, contract,
    dns::{self, Question, RecordType, ResponseCode, Transport},
    eventually, http, packets, resolver,
};

use crate::{
    fixtures::{HTTP, SILENCE, SOON, WHOAMI, network, probe, service, task_names, task_of, v4_of, v6_of, vip},
    harness::{Shape, Theme, tests},
};

pub(crate) fn theme() -> Theme {
    Theme {
        name: "names",
        shape: Shape::default(),
        setup,
        tests: tests![
            a_service_is_reached_by_its_name,
            a_vip_balances_every_port_that_the_tasks_listen_on,
            a_vip_answers_ping,
            a_datagram_to_a_vip_is_answered_by_the_vip,
            a_raw_packet_to_a_vip_is_answered_by_the_vip,
            tasks_dot_a_service_gives_the_tasks_addresses,
            a_tasks_own_name_and_its_reverse_resolve,
            a_task_reaches_its_own_service,
            ipv6_names_exist_where_the_network_has_ipv6,
            a_service_without_a_vip_resolves_to_its_tasks,
            an_unknown_name_and_a_missing_type_are_told_apart,
            long_answers_come_by_edns_or_tcp,
            names_from_outside_resolve_through_the_upstream,
        ],
    }
}

pub(crate) fn setup(lab: &Lab) -> Result<()> {
    network(lab, "app", &[])?;
    service(lab, "whoami", 3, &["--network", "app"], &[WHOAMI])?;
    setup_ipv6(lab)
}

/// A network with IPv6 names beside `app`, and a task on both to ask from.
pub(crate) fn setup_ipv6(lab: &Lab) -> Result<()> {
    network(lab, "six", &["--ipv6"])?;
    service(lab, "dual", 2, &["--network", "six"], &[WHOAMI])?;
    probe(lab, "probe", &["app", "six"]).map(|_| ())
}

/// Both VIPs of `dual`, as the probe learns them.
fn dual_vips(lab: &Lab, probe: &Task) -> Result<[IpAddr; 2]> {
    let v4 = vip(lab, probe, "dual")?;
    let answer = lab.ask(probe, "dual", RecordType::AAAA)?;
    let [v6] = answer.addrs()[..] else { anyhow::bail!("one IPv6 address, not {answer:?}") };
    Ok([v4, v6])
}

pub(crate) fn a_service_is_reached_by_its_name(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    let mut seen = BTreeSet::new();
    // As a program of the task does it: its own resolv.conf, its own socket.
    for _ in 0..12 {
        let body = lab.task_exec_ok(&probe, &["curl", "--silent", "--fail", "--max-time", "5", "http://whoami/"])?;
        let name = body.lines().find_map(|line| line.strip_prefix("name: ")).context("a name in the reply")?;
        seen.insert(name.trim().to_owned());
    }
    ensure!(seen == task_names(&tasks), "answers came from {seen:?}");
    Ok(())
}

pub(crate) fn a_vip_balances_every_port_that_the_tasks_listen_on(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    let vip = vip(lab, &probe, "whoami")?;
    let by_task = lab.within_task(&probe, || http::spread(SocketAddr::new(vip, HTTP), 300))??;
    ensure!(by_task.keys().cloned().collect::<BTreeSet<_>>() == task_names(&tasks), "answers came from {by_task:?}");
    ensure!(by_task.values().all(|count| (80..=120).contains(count)), "uneven: {by_task:?}");
    // Not published, not named in any spec.
    let echo = SocketAddr::new(vip, http::ECHO_PORT);
    let answer = lab.within_task(&probe, || http::tcp_echo(echo, b"over tcp"))??;
    ensure!(answer == b"over tcp", "{answer:?}");
    let answer = lab.within_task(&probe, || http::udp(echo, b"over udp", SILENCE))??;
    ensure!(answer == b"over udp", "{answer:?}");
    Ok(())
}

pub(crate) fn a_vip_answers_ping(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    for vip in dual_vips(lab, &probe)? {
        let output = lab.exec_beside(&probe, &["ping", "-c", "3", "-i", "0.2", "-W", "1", &vip.to_string()])?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

/// Sockets that never connect.
pub(crate) fn a_datagram_to_a_vip_is_answered_by_the_vip(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    for vip in dual_vips(lab, &probe)? {
        let echo = SocketAddr::new(vip, http::ECHO_PORT);
        let socket = lab.within_task(&probe, || UdpSocket::bind(SocketAddr::new(probe_addr(&probe, vip), 0)))??;
        socket.set_read_timeout(Some(SILENCE))?;
        // More than there are tasks.
        for _ in 0..4 {
            socket.send_to(b"unconnected", echo)?;
            ensure!(received(&socket)? == (b"unconnected".to_vec(), echo), "not from {echo}");
        }
    }
    Ok(())
}

/// Packets that no socket call of the data plane sees: each is rewritten on its way.
pub(crate) fn a_raw_packet_to_a_vip_is_answered_by_the_vip(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    for vip in dual_vips(lab, &probe)? {
        let echo = SocketAddr::new(vip, http::ECHO_PORT);
        let own = SocketAddr::new(probe_addr(&probe, vip), 0);
        let socket = lab.within_task(&probe, || UdpSocket::bind(own))??;
        socket.set_read_timeout(Some(SILENCE))?;
        let own = socket.local_addr()?;
        for _ in 0..4 {
            lab.within_task(&probe, || packets::send_raw_udp(own, echo, b"raw"))??;
            ensure!(received(&socket)? == (b"raw".to_vec(), echo), "not from {echo}");
        }
    }
    Ok(())
}

/// The probe's own address on the network of `dual`, of the same family as `like`.
fn probe_addr(probe: &Task, like: IpAddr) -> IpAddr {
    if like.is_ipv4() { probe.v4("six") } else { probe.v6("six") }
}

fn received(socket: &UdpSocket) -> Result<(Vec<u8>, SocketAddr)> {
    let mut packet = vec![0; 64];
    let (length, from) = socket.recv_from(&mut packet).context("no answer")?;
    packet.truncate(length);
    Ok((packet, from))
}

pub(crate) fn tasks_dot_a_service_gives_the_tasks_addresses(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    let answer = lab.ask(&probe, "tasks.whoami", RecordType::A)?;
    let found: BTreeSet<IpAddr> = answer.addrs().into_iter().collect();
    ensure!(found == v4_of(&tasks, "app"), "{found:?}");
    for addr in found {
        let reply = lab.within_task(&probe, || http::get(SocketAddr::new(addr, HTTP), "/"))?;
        let reply = reply.with_context(|| format!("from {} to the task at {addr}", probe.node))?;
        let peer = reply.peer.context("a peer")?.ip();
        ensure!(peer == probe.v4("app"), "east-west traffic shows {peer} instead of the asking task");
    }
    Ok(())
}

pub(crate) fn a_tasks_own_name_and_its_reverse_resolve(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    for task in lab.wait_running("n1", "whoami", 3)? {
        let (name, IpAddr::V4(addr)) = (task.name(), task.v4("app")) else { continue };
        let answer = lab.ask(&probe, &name, RecordType::A)?;
        ensure!(answer.addrs() == [IpAddr::V4(addr)], "{name}: {answer:?}");
        let [a, b, c, d] = addr.octets();
        let answer = lab.ask(&probe, &format!("{d}.{c}.{b}.{a}.in-addr.arpa"), RecordType::PTR)?;
        ensure!(answer.records.iter().any(|record| record.starts_with(&name)), "{addr}: {answer:?}");
    }
    Ok(())
}

pub(crate) fn a_task_reaches_its_own_service(lab: &Lab) -> Result<()> {
    for (service, count, records) in
        [("whoami", 3, &[RecordType::A][..]), ("dual", 2, &[RecordType::A, RecordType::AAAA])]
    {
        let tasks = lab.wait_running("n1", service, count)?;
        for (task, record) in tasks.iter().flat_map(|task| records.iter().map(move |record| (task, *record))) {
            let who = format!("from {} to {service} by {record}", task.name());
            // By the name that its own resolver knows.
            let answer = lab.ask(task, service, record)?;
            let [vip] = answer.addrs()[..] else { anyhow::bail!("{who}: one address, not {answer:?}") };
            // Itself among those that answer.
            let by_task =
                lab.within_task(task, || http::spread((vip, HTTP).into(), 30))?.with_context(|| who.clone())?;
            let seen: BTreeSet<String> = by_task.into_keys().collect();
            ensure!(seen == task_names(&tasks), "{who} got answers from {seen:?}");
            // Each of them once at least, itself too.
            for _ in 0..2 * count {
                let echo = (vip, http::ECHO_PORT).into();
                let answer = lab.within_task(task, || http::udp(echo, b"itself", SILENCE))?;
                ensure!(answer.with_context(|| who.clone())? == b"itself", "{who}: another answer");
            }
        }
    }
    Ok(())
}

pub(crate) fn ipv6_names_exist_where_the_network_has_ipv6(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let tasks = lab.wait_running("n1", "dual", 2)?;
    let [_, vip] = dual_vips(lab, &probe)?;
    let by_task = lab.within_task(&probe, || http::spread(SocketAddr::new(vip, HTTP), 30))??;
    ensure!(by_task.into_keys().collect::<BTreeSet<_>>() == task_names(&tasks), "not all of them");
    let answer = lab.ask(&probe, "tasks.dual", RecordType::AAAA)?;
    ensure!(answer.addrs().into_iter().collect::<BTreeSet<_>>() == v6_of(&tasks, "six"), "{answer:?}");
    // The other network has IPv6 addresses too, but did not ask for the names.
    let answer = lab.ask(&probe, "whoami", RecordType::AAAA)?;
    ensure!(answer.code == ResponseCode::NoError && answer.records.is_empty(), "{answer:?}");
    Ok(())
}

pub(crate) fn a_service_without_a_vip_resolves_to_its_tasks(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let flags = ["--network", "app", "--endpoint-mode", "dnsrr"];
    let tasks = service(lab, "robin", 2, &flags, &[WHOAMI])?;
    eventually(SOON, "the name gives both addresses", || {
        let answer = lab.ask(&probe, "robin", RecordType::A).map_err(|error| format!("{error:#}"))?;
        let found: BTreeSet<IpAddr> = answer.addrs().into_iter().collect();
        if found == v4_of(&tasks, "app") { Ok(()) } else { Err(format!("{answer:?}")) }
    });
    lab.weft_ok("n1", &["service", "rm", "robin"])?;
    Ok(())
}

pub(crate) fn an_unknown_name_and_a_missing_type_are_told_apart(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    for (name, record, code) in [
        ("whoami", RecordType::MX, ResponseCode::NoError),
        ("whoami", RecordType::AAAA, ResponseCode::NoError),
        ("tasks.whoami", RecordType::TXT, ResponseCode::NoError),
        ("nobody", RecordType::A, ResponseCode::NXDomain),
        ("tasks.nobody", RecordType::A, ResponseCode::NXDomain),
    ] {
        let answer = lab.ask(&probe, name, record)?;
        ensure!(answer.code == code && answer.records.is_empty(), "{name} {record}: {answer:?}");
    }
    Ok(())
}

pub(crate) fn long_answers_come_by_edns_or_tcp(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    // 20 IPv6 addresses are more than the 512 bytes of plain UDP.
    let tasks = service(lab, "many", 20, &["--network", "six"], &["--limit-pids", "16", WHOAMI])?;
    let expected = v6_of(&tasks, "six");
    let question = Question::new("tasks.many", RecordType::AAAA);
    let asked = |question: Question<'_>| lab.within_task(&probe, || dns::ask(dns::IN_TASK, &question))?;
    let by_tcp = Question { transport: Transport::Tcp, ..question.clone() };
    eventually(SOON, "the name gives all addresses", || {
        let answer = asked(by_tcp.clone()).map_err(|error| format!("{error:#}"))?;
        let found: BTreeSet<IpAddr> = answer.addrs().into_iter().collect();
        if found == expected { Ok(()) } else { Err(format!("{} of {}", found.len(), expected.len())) }
    });
    let plain = asked(question.clone())?;
    ensure!(plain.truncated && plain.edns.is_none(), "plain UDP holds no {} addresses: {plain:?}", expected.len());
    let by_edns = asked(Question { edns: Some(1232), ..question })?;
    ensure!(!by_edns.truncated && by_edns.edns.is_some(), "{by_edns:?}");
    ensure!(by_edns.addrs().into_iter().collect::<BTreeSet<_>>() == expected, "{by_edns:?}");
    lab.weft_ok("n1", &["service", "rm", "many"])?;
    Ok(())
}

pub(crate) fn names_from_outside_resolve_through_the_upstream(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let [v4, v6] = resolver::outside_addrs();
    ensure!(lab.ask(&probe, contract::OUTSIDE_NAME, RecordType::A)?.addrs() == [v4], "the address");
    ensure!(lab.ask(&probe, contract::OUTSIDE_NAME, RecordType::AAAA)?.addrs() == [v6], "the IPv6 address");
    let text = lab.ask(&probe, contract::OUTSIDE_NAME, RecordType::TXT)?;
    ensure!(text.records == [contract::OUTSIDE_TEXT], "{text:?}");
    let missing = lab.ask(&probe, "www.example.test", RecordType::A)?;
    ensure!(missing.code == ResponseCode::NXDomain, "{missing:?}");
    // As a program of the task does it.
    let found = lab.task_exec_ok(&probe, &["getent", "ahostsv4", contract::OUTSIDE_NAME])?;
    ensure!(found.contains(&v4.to_string()), "{found}");
    Ok(())
}
