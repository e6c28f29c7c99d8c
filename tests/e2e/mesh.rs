//! The routing mesh: published ports answer on every node, connections are spread evenly, and tasks
//! see the client's own address.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Task, contract, eventually, http, scaled};

use crate::{
    fixtures::{DROP_TIMEOUT, FOLLOW_TIMEOUT, WHOAMI, all_answer, assert_even, network, only, service},
    harness::{Group, Shape, tests},
    maps,
};

pub(crate) const PORT: u16 = 8080;
pub(crate) const UDP_PORT: u16 = 9007;
pub(crate) const TCP_ECHO_PORT: u16 = 9008;
/// How many new connections are opened to each address.
const CONNECTIONS: usize = 300;
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

pub(crate) fn group() -> Group {
    Group {
        name: "mesh",
        shape: Shape::default(),
        setup,
        tests: tests![
            every_node_spreads_connections_evenly_over_ipv4_and_ipv6,
            tasks_see_the_clients_own_address,
            a_client_uses_a_port_again_for_other_nodes_while_a_task_remembers_its_old_connection,
            connecting_is_fast_when_only_the_tasks_remember_old_connections_of_the_port,
            each_node_answers_on_localhost_and_on_its_own_addresses,
            every_node_spreads_datagrams_evenly,
            large_transfers_arrive_unchanged_in_both_directions,
            an_unpublished_port_is_closed,
            a_service_without_a_network_can_publish_a_port,
            a_published_port_is_chosen_when_none_is_given,
            tasks_reach_hosts_outside_of_the_cluster,
            a_half_closed_connection_keeps_its_port_while_data_flows,
        ],
    }
}

/// The network `app`, and the service `whoami` on it.
pub(crate) fn setup(lab: &Lab) -> Result<()> {
    network(lab, "app", &[])?;
    setup_service(lab)
}

/// Three tasks of whoami, with their HTTP and echo ports published.
pub(crate) fn setup_service(lab: &Lab) -> Result<()> {
    let ports = ["-p", "8080:80", "-p", "9007:7/udp", "-p", "9008:7"];
    let tasks = service(lab, "whoami", 3, &[&["--network", "app"], &ports[..]].concat(), &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(PORT), &tasks, Duration::from_secs(5));
    Ok(())
}

pub(crate) fn every_node_spreads_connections_evenly_over_ipv4_and_ipv6(lab: &Lab) -> Result<()> {
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    for addr in lab.published(PORT) {
        assert_even(lab, CLIENT, addr, &tasks, CONNECTIONS);
    }
    Ok(())
}

pub(crate) fn tasks_see_the_clients_own_address(lab: &Lab) -> Result<()> {
    let own = contract::addrs(CLIENT);
    for addr in lab.published(PORT) {
        // Enough requests that every task answers one, on this node and on others.
        for _ in 0..12 {
            let reply = lab.get(CLIENT, addr, "/")?;
            let peer = reply.peer.with_context(|| format!("the reply has no peer: {reply:?}"))?;
            ensure!(own.contains(&peer.ip()) && peer.is_ipv4() == addr.is_ipv4(), "a task behind {addr} saw {peer}");
        }
    }
    Ok(())
}

/// So many ports that a test fails if a connection that uses one again works half of the time.
const REUSED_PORTS: std::ops::Range<u16> = 20_000..20_010;

pub(crate) fn a_client_uses_a_port_again_for_other_nodes_while_a_task_remembers_its_old_connection(
    lab: &Lab,
) -> Result<()> {
    let tasks = service(lab, "remembers", 1, &["-p", "8086:80"], &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(8086), &tasks, FOLLOW_TIMEOUT);
    let task = only(tasks)?;
    let targets = lab.published(8086);
    for own in contract::addrs(CLIENT) {
        for port in REUSED_PORTS {
            for target in targets.iter().filter(|target| target.is_ipv4() == own.is_ipv4()) {
                lab.within(CLIENT, || http::get_from((own, port).into(), *target))?
                    .with_context(|| format!("from port {port} to {target}"))?;
                let refused = lab.outdated_segments(&task)?;
                ensure!(refused == 0, "the task took a SYN from port {port} to {target} for an old one");
                wait_for_time_wait(lab, &task, port);
                for node in lab.nodes() {
                    maps::age_closed_flows(&node, 30)?;
                }
            }
        }
    }
    lab.weft_ok("n1", &["service", "rm", "remembers"])?;
    Ok(())
}

pub(crate) fn connecting_is_fast_when_only_the_tasks_remember_old_connections_of_the_port(lab: &Lab) -> Result<()> {
    let targets = lab.published(PORT);
    for own in contract::addrs(CLIENT) {
        for port in REUSED_PORTS {
            // Each of the three tasks remembers a connection after the first round.
            for target in targets.iter().filter(|target| target.is_ipv4() == own.is_ipv4()).cycle().take(9) {
                let connected = lab
                    .within(CLIENT, || http::get_from((own, port).into(), *target))?
                    .with_context(|| format!("from port {port} to {target}"))?;
                ensure!(
                    connected < http::MAX_CONNECT_TIME,
                    "connecting from port {port} to {target} took {connected:?}"
                );
                // With its flow, the acknowledgement of the client's FIN would be lost.
                wait_until_closed(lab, port);
                for node in lab.nodes() {
                    maps::forget_closed_flows(&node)?;
                }
            }
        }
    }
    Ok(())
}

/// Waits until the task remembers the connection that it closed.
fn wait_for_time_wait(lab: &Lab, task: &Task, client_port: u16) {
    let client = format!(":{client_port}");
    let filter = ["ss", "--no-header", "--tcp", "--numeric", "state", "time-wait", "dport", "=", &client];
    eventually(DROP_TIMEOUT, &format!("the connection from port {client_port} is in TIME_WAIT"), || {
        let sockets = lab.exec_in_task_netns_ok(task, &filter).map_err(|error| format!("{error:#}"))?;
        if sockets.trim().is_empty() { Err(sockets) } else { Ok(()) }
    });
}

/// Waits until the client's kernel has no socket with this port. The task closes each connection
/// first, so the client keeps none in TIME_WAIT.
fn wait_until_closed(lab: &Lab, port: u16) {
    let filter = ["ss", "--no-header", "--tcp", "--all", "--numeric", "sport", "=", &format!(":{port}")];
    eventually(DROP_TIMEOUT, &format!("the connections from port {port} are closed"), || {
        let sockets = lab.exec_ok(CLIENT, &filter).map_err(|error| format!("{error:#}"))?;
        if sockets.trim().is_empty() { Ok(()) } else { Err(sockets) }
    });
}

pub(crate) fn each_node_answers_on_localhost_and_on_its_own_addresses(lab: &Lab) -> Result<()> {
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    for node in lab.nodes() {
        for ip in LOOPBACK.into_iter().chain(contract::addrs(&node)) {
            assert_even(lab, &node, SocketAddr::new(ip, PORT), &tasks, CONNECTIONS);
            let answer = lab.within(&node, || http::udp((ip, UDP_PORT).into(), b"hello", DROP_TIMEOUT))?;
            let answer = answer.with_context(|| format!("UDP from {node} to {ip}"))?;
            ensure!(answer == b"hello", "{ip} echoed {answer:?} to {node}");
        }
    }
    Ok(())
}

pub(crate) fn every_node_spreads_datagrams_evenly(lab: &Lab) -> Result<()> {
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    for addr in lab.published(UDP_PORT) {
        let before = datagrams(lab, &tasks, addr.is_ipv4())?;
        lab.within(CLIENT, || {
            for number in 0..CONNECTIONS {
                let payload = format!("datagram {number}");
                let answer = http::udp(addr, payload.as_bytes(), DROP_TIMEOUT)
                    .with_context(|| format!("{payload} to {addr}"))?;
                ensure!(answer == payload.as_bytes(), "{addr} echoed {answer:?} instead of {payload}");
            }
            Ok(())
        })??;
        let after = datagrams(lab, &tasks, addr.is_ipv4())?;
        let each: Vec<u64> = after.iter().zip(&before).map(|(after, before)| after - before).collect();
        ensure!(each.iter().all(|count| (80..=120).contains(count)), "{each:?} of {CONNECTIONS} datagrams to {addr}");
    }
    Ok(())
}

/// Like [`Lab::received_datagrams`], for each task.
pub(crate) fn datagrams(lab: &Lab, tasks: &[Task], v4: bool) -> Result<Vec<u64>> {
    tasks.iter().map(|task| lab.received_datagrams(task, v4)).collect()
}

pub(crate) fn large_transfers_arrive_unchanged_in_both_directions(lab: &Lab) -> Result<()> {
    // Larger than any TCP window. No part of it is like another, so that misplaced data is
    // detected.
    let payload: Vec<u8> = (0..4_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for addr in lab.published(TCP_ECHO_PORT) {
        // Enough for each backend, on this node and on others.
        for _ in 0..3 {
            let answer =
                lab.within(CLIENT, || http::tcp_echo(addr, &payload))?.with_context(|| format!("to {addr}"))?;
            ensure!(answer == payload, "{addr} echoed {} of {} bytes, or other bytes", answer.len(), payload.len());
        }
    }
    Ok(())
}

pub(crate) fn an_unpublished_port_is_closed(lab: &Lab) -> Result<()> {
    for addr in lab.published(PORT + 1000) {
        let error = lab.within(CLIENT, || http::connect(addr, DROP_TIMEOUT))?.err();
        let refused = error.as_ref().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        ensure!(refused, "{addr} must refuse the connection: {error:?}");
    }
    Ok(())
}

pub(crate) fn a_service_without_a_network_can_publish_a_port(lab: &Lab) -> Result<()> {
    let tasks = service(lab, "plain", 2, &["-p", "8081:80"], &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(8081), &tasks, Duration::from_secs(2));
    lab.weft_ok("n1", &["service", "rm", "plain"])?;
    Ok(())
}

pub(crate) fn a_published_port_is_chosen_when_none_is_given(lab: &Lab) -> Result<()> {
    let tasks = service(lab, "any-port", 1, &["-p", "80"], &[WHOAMI])?;
    let inspected = crate::fixtures::inspect("n1", "any-port")?;
    let port =
        inspected["Endpoint"]["Ports"][0]["PublishedPort"].as_u64().context("the service has a published port")?;
    ensure!((30_000..=32_767).contains(&port), "{port} is not between 30000 and 32767");
    all_answer(CLIENT, &lab.published(port.try_into()?), &tasks, Duration::from_secs(2));
    lab.weft_ok("n1", &["service", "rm", "any-port"])?;
    Ok(())
}

/// The servers see the address of the task's node as the client's address.
pub(crate) fn tasks_reach_hosts_outside_of_the_cluster(lab: &Lab) -> Result<()> {
    for task in lab.wait_running("n1", "whoami", 3)? {
        for own in contract::addrs(CLIENT) {
            for (protocol, peer) in [("UDP", udp_source(lab, &task, own)), ("TCP", tcp_source(lab, &task, own))] {
                let peer = peer.with_context(|| format!("{protocol} from {} to {own}", task.node))?;
                ensure!(
                    contract::addrs(&task.node).contains(&peer.ip()),
                    "{protocol} from {} arrives from {peer}",
                    task.node
                );
            }
            let ping = lab.exec_in_task_netns(&task, &["ping", "-c", "1", "-W", "1", &own.to_string()])?;
            ensure!(ping.status.success(), "{} pings {own}: {}", task.node, String::from_utf8_lossy(&ping.stdout));
        }
    }
    Ok(())
}

pub(crate) fn a_half_closed_connection_keeps_its_port_while_data_flows(lab: &Lab) -> Result<()> {
    let task = lab.wait_running("n1", "whoami", 3)?.into_iter().next().context("whoami has a task")?;
    for own in contract::addrs(CLIENT) {
        let server = lab.within(CLIENT, || TcpListener::bind((own, 0)))??;
        let addr = server.local_addr()?;
        let mut inside = lab.within_task(&task, || TcpStream::connect_timeout(&addr, scaled(DROP_TIMEOUT)))??;
        let (mut outside, _) = server.accept()?;
        for stream in [&inside, &outside] {
            stream.set_read_timeout(Some(scaled(DROP_TIMEOUT)))?;
        }
        outside.shutdown(Shutdown::Write)?;
        ensure!(inside.read(&mut [0; 1])? == 0, "the task has not seen the end of the client's data");
        // A kernel that has just started can age a flow by its own age only.
        let before = maps::last_packets_after_fin(&task.node, addr.port())?;
        maps::age_closed_flows(&task.node, 100)?;
        let aged = maps::last_packets_after_fin(&task.node, addr.port())?;
        ensure!(before.len() == 1 && aged.len() == 1 && aged[0] < before[0], "{before:?} became {aged:?}");
        inside.write_all(b"data")?;
        outside.read_exact(&mut [0; 4])?;
        // The client's kernel may delay its acknowledgement.
        eventually(DROP_TIMEOUT, &format!("the flow from {addr} is in use again"), || {
            let now = maps::last_packets_after_fin(&task.node, addr.port()).map_err(|error| format!("{error:#}"))?;
            let used = now.len() == 1 && now[0] >= before[0];
            if used { Ok(()) } else { Err(format!("{aged:?} became {now:?}")) }
        });
    }
    Ok(())
}

/// Exchanges two datagrams between a task and the client. Returns the address that the client saw.
pub(crate) fn udp_source(lab: &Lab, task: &Task, own: IpAddr) -> Result<SocketAddr> {
    let server = lab.within(CLIENT, || UdpSocket::bind((own, 0)))??;
    server.set_read_timeout(Some(scaled(DROP_TIMEOUT)))?;
    let addr = server.local_addr()?;
    let socket = lab.within_task(task, || {
        let socket = UdpSocket::bind((if own.is_ipv4() { "0.0.0.0" } else { "::" }, 0))?;
        socket.set_read_timeout(Some(scaled(DROP_TIMEOUT)))?;
        socket.send_to(b"question", addr)?;
        io::Result::Ok(socket)
    })??;
    let mut packet = [0; 64];
    let (_, peer) = server.recv_from(&mut packet).context("receive the question")?;
    server.send_to(b"answer", peer)?;
    let (length, from) = socket.recv_from(&mut packet).context("receive the answer")?;
    ensure!(&packet[..length] == b"answer" && from == addr, "received another answer from {from}");
    Ok(peer)
}

/// Like [`udp_source`], over a TCP connection.
pub(crate) fn tcp_source(lab: &Lab, task: &Task, own: IpAddr) -> Result<SocketAddr> {
    let server = lab.within(CLIENT, || TcpListener::bind((own, 0)))??;
    let addr = server.local_addr()?;
    let mut socket = lab.within_task(task, || TcpStream::connect_timeout(&addr, scaled(DROP_TIMEOUT)))??;
    let (mut accepted, peer) = server.accept()?;
    accepted.set_read_timeout(Some(scaled(DROP_TIMEOUT)))?;
    socket.set_read_timeout(Some(scaled(DROP_TIMEOUT)))?;
    socket.write_all(b"question")?;
    accepted.read_exact(&mut [0; 8]).context("receive the question")?;
    accepted.write_all(b"answer")?;
    socket.read_exact(&mut [0; 6]).context("receive the answer")?;
    Ok(peer)
}
