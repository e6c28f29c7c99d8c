//! The routing mesh: a published port answers everywhere, evenly, and tells the truth about who asked.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Task, contract, http};

use crate::{
    fixtures::{SILENCE, WHOAMI, all_answer, assert_even, network, service},
    harness::{Shape, Theme, tests},
};

pub(crate) const PORT: u16 = 8080;
pub(crate) const UDP_PORT: u16 = 9007;
pub(crate) const TCP_ECHO_PORT: u16 = 9008;
/// New connections to each address.
const CONNECTIONS: usize = 300;
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

pub(crate) fn theme() -> Theme {
    Theme {
        name: "mesh",
        shape: Shape::default(),
        setup,
        tests: tests![
            every_node_answers_evenly_by_ipv4_and_ipv6,
            replies_show_the_clients_own_address,
            each_node_answers_on_localhost_and_on_its_own_addresses,
            udp_reaches_the_tasks_evenly_through_every_node,
            much_data_passes_unchanged_both_ways,
            a_port_that_nobody_published_stays_closed,
            a_service_without_a_network_is_published_too,
            a_port_is_chosen_where_none_is_named,
            tasks_reach_the_outside,
        ],
    }
}

/// The service of the story, with its echo ports published too.
pub(crate) fn setup(lab: &Lab) -> Result<()> {
    network(lab, "app", &[])?;
    setup_service(lab)
}

pub(crate) fn setup_service(lab: &Lab) -> Result<()> {
    let ports = ["-p", "8080:80", "-p", "9007:7/udp", "-p", "9008:7"];
    let tasks = service(lab, "whoami", 3, &[&["--network", "app"], &ports[..]].concat(), &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(PORT), &tasks, Duration::from_secs(5));
    Ok(())
}

pub(crate) fn every_node_answers_evenly_by_ipv4_and_ipv6(lab: &Lab) -> Result<()> {
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    for addr in lab.published(PORT) {
        assert_even(lab, CLIENT, addr, &tasks, CONNECTIONS);
    }
    Ok(())
}

pub(crate) fn replies_show_the_clients_own_address(lab: &Lab) -> Result<()> {
    let own = contract::addrs(CLIENT);
    for addr in lab.published(PORT) {
        // Enough for every task, local and remote, to be among those that answer.
        for _ in 0..12 {
            let reply = lab.get(CLIENT, addr, "/")?;
            let peer = reply.peer.with_context(|| format!("no peer in {reply:?}"))?;
            ensure!(own.contains(&peer.ip()) && peer.is_ipv4() == addr.is_ipv4(), "{addr} showed {peer}");
        }
    }
    Ok(())
}

pub(crate) fn each_node_answers_on_localhost_and_on_its_own_addresses(lab: &Lab) -> Result<()> {
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    for node in lab.nodes() {
        for ip in LOOPBACK.into_iter().chain(contract::addrs(&node)) {
            assert_even(lab, &node, SocketAddr::new(ip, PORT), &tasks, CONNECTIONS);
            let answer = lab.within(&node, || http::udp((ip, UDP_PORT).into(), b"hello", SILENCE))?;
            let answer = answer.with_context(|| format!("UDP from {node} to {ip}"))?;
            ensure!(answer == b"hello", "UDP from {node} to {ip} came back as {answer:?}");
        }
    }
    Ok(())
}

pub(crate) fn udp_reaches_the_tasks_evenly_through_every_node(lab: &Lab) -> Result<()> {
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    for addr in lab.published(UDP_PORT) {
        let before = datagrams(lab, &tasks, addr.is_ipv4())?;
        lab.within(CLIENT, || {
            for number in 0..CONNECTIONS {
                let payload = format!("datagram {number}");
                let answer =
                    http::udp(addr, payload.as_bytes(), SILENCE).with_context(|| format!("{payload} to {addr}"))?;
                ensure!(answer == payload.as_bytes(), "{payload} to {addr} came back as {answer:?}");
            }
            Ok(())
        })??;
        let after = datagrams(lab, &tasks, addr.is_ipv4())?;
        let each: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
        ensure!(each.iter().all(|count| (80..=120).contains(count)), "{each:?} of {CONNECTIONS} datagrams to {addr}");
    }
    Ok(())
}

/// As [`Lab::datagrams`], of each task.
pub(crate) fn datagrams(lab: &Lab, tasks: &[Task], v4: bool) -> Result<Vec<u64>> {
    tasks.iter().map(|task| lab.datagrams(task, v4)).collect()
}

pub(crate) fn much_data_passes_unchanged_both_ways(lab: &Lab) -> Result<()> {
    // Longer than any window, of bytes that no shift leaves alike.
    let payload: Vec<u8> = (0..4_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for addr in lab.published(TCP_ECHO_PORT) {
        // Each backend in turn, local and remote.
        for _ in 0..3 {
            let answer =
                lab.within(CLIENT, || http::tcp_echo(addr, &payload))?.with_context(|| format!("to {addr}"))?;
            ensure!(answer == payload, "{} of {} bytes came back from {addr}, or others", answer.len(), payload.len());
        }
    }
    Ok(())
}

pub(crate) fn a_port_that_nobody_published_stays_closed(lab: &Lab) -> Result<()> {
    for addr in lab.published(PORT + 1000) {
        let error = lab.within(CLIENT, || http::connect(addr, SILENCE))?.err();
        let refused = error.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        ensure!(refused, "{addr} should refuse, but: {error:?}");
    }
    Ok(())
}

pub(crate) fn a_service_without_a_network_is_published_too(lab: &Lab) -> Result<()> {
    let tasks = service(lab, "plain", 2, &["-p", "8081:80"], &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(8081), &tasks, Duration::from_secs(2));
    lab.weft_ok("n1", &["service", "rm", "plain"])?;
    Ok(())
}

pub(crate) fn a_port_is_chosen_where_none_is_named(lab: &Lab) -> Result<()> {
    let tasks = service(lab, "anywhere", 1, &["-p", "80"], &[WHOAMI])?;
    let inspected = crate::fixtures::inspect("n1", "anywhere")?;
    let port = inspected["Endpoint"]["Ports"][0]["PublishedPort"].as_u64().context("a published port")?;
    ensure!((30_000..=32_767).contains(&port), "{port} is outside of 30000 to 32767");
    all_answer(CLIENT, &lab.published(port.try_into()?), &tasks, Duration::from_secs(2));
    lab.weft_ok("n1", &["service", "rm", "anywhere"])?;
    Ok(())
}

/// Servers of the outside world, which see the node's address and not the task's.
pub(crate) fn tasks_reach_the_outside(lab: &Lab) -> Result<()> {
    for task in lab.wait_running("n1", "whoami", 3)? {
        for own in contract::addrs(CLIENT) {
            for (how, peer) in [("UDP", by_udp(lab, &task, own)), ("TCP", by_tcp(lab, &task, own))] {
                let peer = peer.with_context(|| format!("by {how} from {} to {own}", task.node))?;
                ensure!(
                    contract::addrs(&task.node).contains(&peer.ip()),
                    "by {how} {} shows itself as {peer}",
                    task.node
                );
            }
            let ping = lab.exec_beside(&task, &["ping", "-c", "1", "-W", "1", &own.to_string()])?;
            ensure!(ping.status.success(), "{} pings {own}: {}", task.node, String::from_utf8_lossy(&ping.stdout));
        }
    }
    Ok(())
}

/// A question and its answer; whom the server saw.
fn by_udp(lab: &Lab, task: &Task, own: IpAddr) -> Result<SocketAddr> {
    let server = lab.within(CLIENT, || UdpSocket::bind((own, 0)))??;
    server.set_read_timeout(Some(SILENCE))?;
    let addr = server.local_addr()?;
    let socket = lab.within_task(task, || {
        let socket = UdpSocket::bind((if own.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
        socket.set_read_timeout(Some(SILENCE))?;
        socket.send_to(b"question", addr)?;
        io::Result::Ok(socket)
    })??;
    let mut packet = [0; 64];
    let (_, peer) = server.recv_from(&mut packet).context("the question")?;
    server.send_to(b"answer", peer)?;
    let (length, from) = socket.recv_from(&mut packet).context("the answer")?;
    ensure!(&packet[..length] == b"answer" && from == addr, "another answer, from {from}");
    Ok(peer)
}

/// As [`by_udp`], over a connection.
fn by_tcp(lab: &Lab, task: &Task, own: IpAddr) -> Result<SocketAddr> {
    let server = lab.within(CLIENT, || TcpListener::bind((own, 0)))??;
    let addr = server.local_addr()?;
    let mut socket = lab.within_task(task, || TcpStream::connect_timeout(&addr, SILENCE))??;
    let (mut accepted, peer) = server.accept()?;
    accepted.set_read_timeout(Some(SILENCE))?;
    socket.set_read_timeout(Some(SILENCE))?;
    socket.write_all(b"question")?;
    accepted.read_exact(&mut [0; 8]).context("the question")?;
    accepted.write_all(b"answer")?;
    socket.read_exact(&mut [0; 6]).context("the answer")?;
    Ok(peer)
}
