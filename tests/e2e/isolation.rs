//! Isolation of networks: a task cannot reach the tasks and services of a network that it is not
//! on, neither by name, nor by address, nor with forged packets. Tasks cannot reach the ports of
//! the nodes either.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_ebpf_common::DropReason;
use weft_lab::{
    CLIENT, Lab, Task, api, contract,
    dns::{RecordType, ResponseCode},
    http, packets, scaled,
};

use crate::{
    fixtures::{DROP_TIMEOUT, HTTP, WHOAMI, dropped, network, probe, service, task_of, vip},
    harness::{Group, Shape, tests},
};

const SUBNET: &str = "10.99.0.0/24";
/// The UDP port on which a task listens for forged packets.
const LISTEN_PORT: u16 = 9999;
/// The TCP port on which managers listen.
const CONTROL_PORT: u16 = 2377;
/// The time limit for the arrival of a packet.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) fn group() -> Group {
    Group {
        name: "isolation",
        shape: Shape::default(),
        setup,
        tests: tests![
            names_of_another_network_do_not_resolve,
            addresses_of_another_network_do_not_answer,
            packets_with_a_forged_source_are_dropped,
            frames_with_a_forged_vni_are_dropped,
            tasks_cannot_reach_the_control_port,
            tasks_cannot_reach_the_tunnel_port,
            a_service_on_two_networks_reaches_both,
            tasks_of_an_internal_network_cannot_send_packets_out,
            multicast_and_broadcast_reach_no_task_and_are_counted,
        ],
    }
}

/// `target` and `blue-probe` are on blue, `red-probe` is on red. Blue and red have the same subnet.
/// `both-probe` is on blue and green.
pub(crate) fn setup(lab: &Lab) -> Result<()> {
    network(lab, "blue", &["--subnet", SUBNET, "--ipv6"])?;
    network(lab, "red", &["--subnet", SUBNET, "--ipv6"])?;
    network(lab, "green", &["--subnet", "10.98.0.0/24"])?;
    network(lab, "internal", &["--internal"])?;
    service(lab, "target", 3, &["--network", "blue"], &[WHOAMI])?;
    service(lab, "green-target", 1, &["--network", "green"], &[WHOAMI])?;
    probe(lab, "blue-probe", &["blue"])?;
    probe(lab, "red-probe", &["red"])?;
    probe(lab, "both-probe", &["blue", "green"])?;
    probe(lab, "internal-probe", &["internal"])?;
    Ok(())
}

pub(crate) fn names_of_another_network_do_not_resolve(lab: &Lab) -> Result<()> {
    let red_probe = task_of(lab, "red-probe")?;
    for name in ["target", "tasks.target", "blue-probe", "green-target"] {
        let answer = lab.lookup(&red_probe, name, RecordType::A)?;
        ensure!(answer.code == ResponseCode::NXDomain, "{name}: {answer:?}");
    }
    Ok(())
}

pub(crate) fn addresses_of_another_network_do_not_answer(lab: &Lab) -> Result<()> {
    let red_probe = task_of(lab, "red-probe")?;
    let blue_probe = task_of(lab, "blue-probe")?;
    let targets = lab.wait_running("n1", "target", 3)?;
    let mut addrs: Vec<IpAddr> = targets.iter().flat_map(|task| [task.v4("blue"), task.v6("blue")]).collect();
    addrs.push(vip(lab, &blue_probe, "target")?);
    for addr in addrs {
        let addr = SocketAddr::new(addr, HTTP);
        lab.within_task(&blue_probe, || http::get(addr, "/"))?
            .with_context(|| format!("blue-probe must reach {addr}"))?;
        // On red the same address may belong to a task that has no HTTP server.
        let reached = lab.within_task(&red_probe, || http::connect(addr, DROP_TIMEOUT))?;
        ensure!(reached.is_err(), "red-probe reached {addr}");
    }
    Ok(())
}

/// The unspecified address of the same family.
fn any_like(addr: IpAddr) -> IpAddr {
    if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn v4(addr: IpAddr) -> Result<Ipv4Addr> {
    match addr {
        IpAddr::V4(addr) => Ok(addr),
        IpAddr::V6(_) => anyhow::bail!("{addr} is not an IPv4 address"),
    }
}

pub(crate) fn packets_with_a_forged_source_are_dropped(lab: &Lab) -> Result<()> {
    let blue_probe = task_of(lab, "blue-probe")?;
    let red_probe = task_of(lab, "red-probe")?;
    for target in lab.wait_running("n1", "target", 3)? {
        let addr = v4(target.v4("blue"))?;
        let to = SocketAddr::from((addr, LISTEN_PORT));
        let honest =
            lab.datagram_arrives(&target, LISTEN_PORT, ARRIVAL_TIMEOUT, || lab.send_datagram(&blue_probe, None, to))?;
        ensure!(honest, "a datagram of blue-probe to {to} must arrive");
        // blue-probe sends with the address of another host of its own network, and red-probe with
        // the address of blue-probe.
        let forged = packets::with_last_octet(addr, 250);
        ensure!(
            !lab.datagram_arrives(&target, LISTEN_PORT, DROP_TIMEOUT, || lab.send_datagram(
                &blue_probe,
                Some(forged),
                to
            ))?,
            "a datagram from {forged} to {to} arrived"
        );
        let forged = v4(blue_probe.v4("blue"))?;
        ensure!(
            !lab.datagram_arrives(&target, LISTEN_PORT, DROP_TIMEOUT, || lab.send_datagram(
                &red_probe,
                Some(forged),
                to
            ))?,
            "a datagram from {forged} to {to} arrived"
        );
    }
    Ok(())
}

pub(crate) fn frames_with_a_forged_vni_are_dropped(lab: &Lab) -> Result<()> {
    let blue = api::get(&contract::socket("n1"), "/networks/blue")?;
    let vni =
        blue["Options"]["com.docker.network.driver.overlay.vxlanid_list"].as_str().context("the network has a VNI")?;
    let vni: u32 = vni.parse().context("the VNI is a number")?;
    let blue_probe = task_of(lab, "blue-probe")?;
    let red_probe = task_of(lab, "red-probe")?;
    for target in lab.wait_running("n1", "target", 3)? {
        let to = SocketAddrV4::new(v4(target.v4("blue"))?, LISTEN_PORT);
        let from = SocketAddrV4::new(v4(blue_probe.v4("blue"))?, LISTEN_PORT);
        let forged = packets::vxlan_udp(vni, lab.mac_of(&target)?, from, to, b"forged");
        // The same bytes from a node arrive. So the drops below are because of the sender.
        let tunnel = SocketAddr::from((contract::v4(&target.node), packets::VXLAN_PORT));
        let peer = lab.nodes().find(|node| *node != target.node).context("the lab has another node")?;
        let arrived = lab.datagram_arrives(&target, LISTEN_PORT, ARRIVAL_TIMEOUT, || {
            lab.within(&peer, || UdpSocket::bind((contract::v4(&peer), 0))?.send_to(&forged, tunnel))??;
            Ok(())
        })?;
        ensure!(arrived, "a frame of {peer} must reach {to} through {tunnel}");
        for node in contract::addrs(&target.node) {
            let tunnel = SocketAddr::new(node, packets::VXLAN_PORT);
            let send = || UdpSocket::bind((any_like(node), 0))?.send_to(&forged, tunnel);
            // Senders that are not nodes: the client, and a task.
            let arrived = lab.datagram_arrives(&target, LISTEN_PORT, DROP_TIMEOUT, || {
                lab.within(CLIENT, send)?.map(|_| ()).map_err(Into::into)
            })?;
            ensure!(!arrived, "a frame of the client reached {to} through {tunnel}");
            // The kernel may also refuse to send it.
            let arrived = lab.datagram_arrives(&target, LISTEN_PORT, DROP_TIMEOUT, || {
                lab.within_task(&red_probe, send).map(|_| ())
            })?;
            ensure!(!arrived, "a frame of red-probe reached {to} through {tunnel}");
        }
    }
    Ok(())
}

/// The payload of datagrams to a node's ports.
const PAYLOAD: &[u8] = b"to a port of a node";
/// Ports next to the nodes' own. Tasks reach them, and no program listens on them.
const NEXT_TO_CONTROL: u16 = 2378;
const NEXT_TO_TUNNEL: u16 = 4790;

pub(crate) fn tasks_cannot_reach_the_control_port(lab: &Lab) -> Result<()> {
    let red_probe = task_of(lab, "red-probe")?;
    for node in lab.nodes() {
        // The advertised address, on which the managers listen.
        let addr = contract::v4(&node);
        let connect = |port| lab.within_task(&red_probe, || http::connect((addr, port).into(), DROP_TIMEOUT));
        // A node refuses connections to a port without a listener. A dropped SYN has no answer.
        for (port, expected) in
            [(NEXT_TO_CONTROL, io::ErrorKind::ConnectionRefused), (CONTROL_PORT, io::ErrorKind::TimedOut)]
        {
            let kind = connect(port)?.map_err(|error| error.kind());
            ensure!(kind == Err(expected), "from a task to {node} at {addr} port {port}: {kind:?}");
        }
    }
    Ok(())
}

pub(crate) fn tasks_cannot_reach_the_tunnel_port(lab: &Lab) -> Result<()> {
    let red_probe = task_of(lab, "red-probe")?;
    for node in lab.nodes() {
        for addr in contract::addrs(&node) {
            let sniffer = lab.within(&node, || packets::Sniffer::new(addr))??;
            let send = |port| UdpSocket::bind((any_like(addr), 0))?.send_to(PAYLOAD, (addr, port));
            let (tunnel, next) = (packets::VXLAN_PORT, NEXT_TO_TUNNEL);
            // First show that the sniffer works: it sees the client's datagrams to the tunnel's
            // port, so it would also see those of a task.
            lab.within(CLIENT, || send(tunnel).and(send(next)))??;
            let found =
                sniffer.ports_until(next, PAYLOAD, ARRIVAL_TIMEOUT).with_context(|| format!("{CLIENT} to {addr}"))?;
            ensure!(found == [tunnel, next], "from {CLIENT} to {node} at {addr}: {found:?}");
            // The kernel may also refuse to send it.
            lab.within_task(&red_probe, || send(tunnel).or(Ok(0)).and(send(next)))??;
            let found =
                sniffer.ports_until(next, PAYLOAD, ARRIVAL_TIMEOUT).with_context(|| format!("a task to {addr}"))?;
            ensure!(found == [next], "from a task to {node} at {addr}: {found:?}");
        }
    }
    Ok(())
}

pub(crate) fn a_service_on_two_networks_reaches_both(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "both-probe")?;
    for name in ["target", "green-target"] {
        let addr = SocketAddr::new(vip(lab, &probe, name)?, HTTP);
        let reply = lab.within_task(&probe, || http::get(addr, "/"))?.with_context(|| format!("{name} at {addr}"))?;
        ensure!(reply.name.starts_with(name), "{name} at {addr} answered as {}", reply.name);
    }
    Ok(())
}

pub(crate) fn tasks_of_an_internal_network_cannot_send_packets_out(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "internal-probe")?;
    let server = lab.within(CLIENT, || UdpSocket::bind((contract::v4(CLIENT), 0)))??;
    server.set_read_timeout(Some(scaled(DROP_TIMEOUT)))?;
    let addr = server.local_addr()?;
    // The kernel may also refuse to send it.
    let _sent = lab.within_task(&probe, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"hello", addr))?;
    ensure!(server.recv(&mut [0; 8]).is_err(), "a packet of the internal network arrived at the client");
    Ok(())
}

/// Names by multicast (RFC 6762), an application's own group, all hosts, and the hosts of the
/// subnet. Then the same over IPv6, where a group replaces the broadcast.
const GROUPS_V4: [&str; 4] = ["224.0.0.251", "239.1.2.3", "255.255.255.255", "10.99.0.255"];
const GROUPS_V6: [&str; 3] = ["ff02::1", "ff02::fb", "ff05::1:3"];

/// A socket of a task that is a member of all groups.
fn member(lab: &Lab, task: &Task) -> Result<UdpSocket> {
    let (v4, v6) = (v4(task.v4("blue"))?, task.v6("blue"));
    let socket = lab.within_task(task, || {
        let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, LISTEN_PORT))?;
        socket.set_read_timeout(Some(scaled(ARRIVAL_TIMEOUT)))?;
        for group in ["224.0.0.251", "239.1.2.3"] {
            let group: Ipv4Addr = group.parse().map_err(io::Error::other)?;
            rustix::net::sockopt::set_ip_add_membership(&socket, &group, &v4)?;
        }
        let device = rustix::net::netdevice::name_to_index(&socket, "eth0")?;
        for group in ["ff02::fb", "ff05::1:3"] {
            socket.join_multicast_v6(&group.parse().map_err(io::Error::other)?, device)?;
        }
        io::Result::Ok(socket)
    })?;
    socket.with_context(|| format!("{} at {v4} and {v6} joins the groups", task.name()))
}

pub(crate) fn multicast_and_broadcast_reach_no_task_and_are_counted(lab: &Lab) -> Result<()> {
    let sender = task_of(lab, "blue-probe")?;
    let targets = lab.wait_running("n1", "target", 3)?;
    let members: Vec<UdpSocket> = targets.iter().map(|task| member(lab, task)).collect::<Result<_>>()?;
    let before = dropped(&sender.node, DropReason::Multicast)?;
    lab.within_task(&sender, || {
        let v4 = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        v4.set_broadcast(true)?;
        for group in GROUPS_V4 {
            v4.send_to(b"to a group", (group, LISTEN_PORT))?;
        }
        let v6 = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?;
        let device = rustix::net::netdevice::name_to_index(&v6, "eth0")?;
        for group in GROUPS_V6 {
            let group: Ipv6Addr = group.parse().map_err(io::Error::other)?;
            v6.send_to(b"to a group", SocketAddrV6::new(group, LISTEN_PORT, 0, device))?;
        }
        // These leave after the others, and arrive.
        for target in &targets {
            v4.send_to(b"to one host", (target.v4("blue"), LISTEN_PORT))?;
            v6.send_to(b"to one host", (target.v6("blue"), LISTEN_PORT))?;
        }
        io::Result::Ok(())
    })??;
    for (member, target) in members.iter().zip(&targets) {
        for _ in 0..2 {
            let mut packet = [0; 64];
            let (length, from) = member.recv_from(&mut packet).with_context(|| target.name())?;
            ensure!(&packet[..length] == b"to one host", "a packet to a group came from {from} to {}", target.name());
        }
    }
    let counted = dropped(&sender.node, DropReason::Multicast)? - before;
    let sent = u64::try_from(GROUPS_V4.len() + GROUPS_V6.len())?;
    ensure!(counted >= sent, "{counted} of {sent} packets were counted");
    Ok(())
}
