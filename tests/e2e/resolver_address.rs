//! A resolver that listens at another address of a task than its processes ask. The tests are in
//! the group of [`crate::names`].
//!
//! No task of the lab has such a resolver. So the test opens one in the namespace of a task, and
//! writes the entry that the daemon would write. The daemon is stopped by SIGSTOP meanwhile: it
//! would delete the entry.

use std::{
    collections::BTreeSet,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use weft_ebpf_common::{Addr, CONTAINER_RESOLVER, Nets};
use weft_lab::{Lab, Task, dns, dns::RecordType, eventually, scaled};

use crate::{
    fixtures::{FOLLOW_TIMEOUT, probe_on, vip},
    kernel_names::{NODE, while_paused},
    maps::{self, RawMap},
};

/// Where the resolver of the test listens.
const LISTENS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 12)), 53);
const TIMEOUT: Duration = Duration::from_secs(5);
/// No question of DNS, so that the program for names leaves it to the resolver.
const DATA: &[u8] = b"anything";

type Resolvers = RawMap<{ size_of::<u64>() }, { size_of::<Addr>() }>;

pub(crate) fn a_resolver_at_another_address_is_reached_where_processes_ask(lab: &Lab) -> Result<()> {
    let other = probe_on(lab, NODE, "other", &["app", "six"])?;
    let before = cookies()?;
    let task = probe_on(lab, NODE, "moved", &["app", "six"])?;
    let new: Vec<_> = cookies()?.difference(&before).copied().collect();
    let [cookie] = new[..] else { anyhow::bail!("one namespace was added: {new:?}") };
    let whoami = eventually(FOLLOW_TIMEOUT, "the name resolves", || {
        vip(lab, &task, "whoami").map_err(|error| format!("{error:#}"))
    });
    let mut resolvers: Resolvers = maps::open(NODE, "RESOLVERS")?;
    ensure!(resolvers.keys().next().is_none(), "the resolvers of the process runtime listen at {}", dns::IN_TASK);
    while_paused(lab, || {
        resolvers.insert(cookie, CONTAINER_RESOLVER.octets(), 0)?;
        let checked = check_task(lab, &task, whoami).and_then(|()| check_other_task(lab, &other));
        resolvers.remove(&cookie)?;
        checked
    })??;
    lab.weft_ok("n1", &["service", "rm", "moved", "other"])?;
    Ok(())
}

/// The cookies of the namespaces of all tasks of the node.
fn cookies() -> Result<BTreeSet<[u8; 8]>> {
    let namespaces = maps::open::<8, { size_of::<Nets>() }>(NODE, "NETNS")?;
    Ok(namespaces.keys().collect::<Result<_, _>>()?)
}

/// Every check fails if the data does not go through the sockets of the test: the task's own
/// resolver belongs to the daemon, which is stopped.
fn check_task(lab: &Lab, task: &Task, whoami: IpAddr) -> Result<()> {
    lab.within_task(task, || {
        let udp = UdpSocket::bind(LISTENS)?;
        udp.set_read_timeout(Some(scaled(TIMEOUT)))?;
        let tcp = listen()?;
        let mapped = SocketAddr::new(Ipv4Addr::new(127, 0, 0, 11).to_ipv6_mapped().into(), dns::IN_TASK.port());
        for (local, asked) in [("127.0.0.1:0", dns::IN_TASK), ("[::]:0", mapped)] {
            check_unconnected_udp(&udp, local, asked).with_context(|| format!("unconnected UDP to {asked}"))?;
            check_connected_udp(&udp, local, asked).with_context(|| format!("connected UDP to {asked}"))?;
            check_tcp(&tcp, asked).with_context(|| format!("TCP to {asked}"))?;
        }
        check_other_port()?;
        // The kernel replies from the address that the question has after the exchange.
        let answer = dns::lookup(dns::IN_TASK, "whoami", RecordType::A)?;
        ensure!(answer.addrs() == [whoami], "{answer:?} instead of {whoami}");
        Ok(())
    })?
}

/// A listener whose `accept` ends with an error after the timeout.
fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind(LISTENS)?;
    set_socket_timeout(&listener, Timeout::Recv, Some(scaled(TIMEOUT)))?;
    Ok(listener)
}

fn check_unconnected_udp(resolver: &UdpSocket, local: &str, asked: SocketAddr) -> Result<()> {
    let client = UdpSocket::bind(local)?;
    client.set_read_timeout(Some(scaled(TIMEOUT)))?;
    // The second datagram goes the same way.
    for _ in 0..2 {
        client.send_to(DATA, asked)?;
        echo(resolver)?;
        let mut reply = [0; 64];
        let (len, from) = client.recv_from(&mut reply)?;
        ensure!((&reply[..len], from) == (DATA, asked), "{:?} from {from}", &reply[..len]);
    }
    Ok(())
}

fn check_connected_udp(resolver: &UdpSocket, local: &str, asked: SocketAddr) -> Result<()> {
    let client = UdpSocket::bind(local)?;
    client.set_read_timeout(Some(scaled(TIMEOUT)))?;
    client.connect(asked)?;
    ensure!(client.peer_addr()? == asked, "connected to {}", client.peer_addr()?);
    client.send(DATA)?;
    echo(resolver)?;
    let mut reply = [0; 64];
    let (len, from) = client.recv_from(&mut reply)?;
    ensure!((&reply[..len], from) == (DATA, asked), "{:?} from {from}", &reply[..len]);
    Ok(())
}

fn echo(resolver: &UdpSocket) -> Result<()> {
    let mut request = [0; 64];
    let (len, from) = resolver.recv_from(&mut request).context("the resolver gets nothing")?;
    resolver.send_to(&request[..len], from)?;
    Ok(())
}

fn check_tcp(resolver: &TcpListener, asked: SocketAddr) -> Result<()> {
    let mut client = TcpStream::connect(asked)?;
    client.set_read_timeout(Some(scaled(TIMEOUT)))?;
    ensure!(client.peer_addr()? == asked, "connected to {}", client.peer_addr()?);
    let mut accepted = resolver.accept().context("the resolver gets no connection")?.0;
    accepted.write_all(DATA)?;
    let mut received = [0; DATA.len()];
    client.read_exact(&mut received)?;
    ensure!(received == DATA, "{received:?}");
    Ok(())
}

/// A server of the task itself at another port of the address that is exchanged.
fn check_other_port() -> Result<()> {
    let server = UdpSocket::bind(SocketAddr::new(dns::IN_TASK.ip(), 0))?;
    server.set_read_timeout(Some(scaled(TIMEOUT)))?;
    let (addr, client) = (server.local_addr()?, UdpSocket::bind("127.0.0.1:0")?);
    client.set_read_timeout(Some(scaled(TIMEOUT)))?;
    client.send_to(DATA, addr)?;
    echo(&server).context("another port")?;
    let from = client.recv_from(&mut [0; 64])?.1;
    ensure!(from == addr, "a datagram from {from} instead of {addr}");
    Ok(())
}

/// In a task without an entry both addresses are what they are.
fn check_other_task(lab: &Lab, other: &Task) -> Result<()> {
    lab.within_task(other, || {
        let server = UdpSocket::bind(LISTENS)?;
        server.set_read_timeout(Some(scaled(TIMEOUT)))?;
        let client = UdpSocket::bind("127.0.0.1:0")?;
        client.set_read_timeout(Some(scaled(TIMEOUT)))?;
        // The daemon's resolver, which is stopped, gets the first one.
        client.send_to(b"not for this server", dns::IN_TASK)?;
        client.send_to(DATA, LISTENS)?;
        echo(&server)?;
        let mut reply = [0; 64];
        let (len, from) = client.recv_from(&mut reply)?;
        ensure!((&reply[..len], from) == (DATA, LISTENS), "{:?} from {from}", &reply[..len]);
        let server = listen()?;
        // The kernel completes the first one for the daemon's resolver.
        let clients = [dns::IN_TASK, LISTENS].map(TcpStream::connect);
        let [first, second] = clients.map(|client| client.and_then(|client| Ok((client.peer_addr()?, client))));
        let ((first_peer, _first), (second_peer, second)) = (first?, second?);
        ensure!((first_peer, second_peer) == (dns::IN_TASK, LISTENS), "connected to {first_peer} and {second_peer}");
        ensure!(server.accept()?.1 == second.local_addr()?, "the server gets the connection to {}", dns::IN_TASK);
        Ok(())
    })?
}
