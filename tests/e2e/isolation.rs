//! Networks are worlds of their own: what is not on one sees nothing of it, not by name, not by address, not by a lie.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{
    CLIENT, Lab, api, contract,
    dns::{RecordType, ResponseCode},
    http, packets,
};

use crate::{
    fixtures::{HTTP, SILENCE, WHOAMI, network, probe, service, task_of, vip},
    harness::{Shape, Theme, tests},
};

const SUBNET: &str = "10.99.0.0/24";
/// Where a task of the target listens for what must not come.
const LISTEN: u16 = 9999;
/// Where managers listen for each other.
const CONTROL: u16 = 2377;
/// For packets under way to arrive, where they should.
const ARRIVAL: Duration = Duration::from_secs(2);

pub(crate) fn theme() -> Theme {
    Theme {
        name: "isolation",
        shape: Shape::default(),
        setup,
        tests: tests![
            a_service_of_another_network_has_no_name,
            an_address_of_another_network_does_not_answer,
            a_forged_source_is_dropped,
            a_forged_vni_is_dropped,
            tasks_cannot_reach_the_control_port,
            tasks_cannot_reach_the_tunnel,
            a_service_on_two_networks_reaches_both,
            an_internal_network_has_no_way_out,
        ],
    }
}

/// `target` and `friend` on blue, `intruder` on red: the same subnet. `bridge` is on blue and on green.
pub(crate) fn setup(lab: &Lab) -> Result<()> {
    network(lab, "blue", &["--subnet", SUBNET])?;
    network(lab, "red", &["--subnet", SUBNET])?;
    network(lab, "green", &["--subnet", "10.98.0.0/24"])?;
    network(lab, "closed", &["--internal"])?;
    service(lab, "target", 3, &["--network", "blue"], &[WHOAMI])?;
    service(lab, "meadow", 1, &["--network", "green"], &[WHOAMI])?;
    probe(lab, "friend", &["blue"])?;
    probe(lab, "intruder", &["red"])?;
    probe(lab, "bridge", &["blue", "green"])?;
    probe(lab, "prisoner", &["closed"])?;
    Ok(())
}

pub(crate) fn a_service_of_another_network_has_no_name(lab: &Lab) -> Result<()> {
    let intruder = task_of(lab, "intruder")?;
    for name in ["target", "tasks.target", "friend", "meadow"] {
        let answer = lab.ask(&intruder, name, RecordType::A)?;
        ensure!(answer.code == ResponseCode::NXDomain, "{name}: {answer:?}");
    }
    Ok(())
}

pub(crate) fn an_address_of_another_network_does_not_answer(lab: &Lab) -> Result<()> {
    let intruder = task_of(lab, "intruder")?;
    let friend = task_of(lab, "friend")?;
    let targets = lab.wait_running("n1", "target", 3)?;
    let mut addrs: Vec<IpAddr> = targets.iter().flat_map(|task| [task.v4("blue"), task.v6("blue")]).collect();
    addrs.push(vip(lab, &friend, "target")?);
    for addr in addrs {
        let addr = SocketAddr::new(addr, HTTP);
        lab.within_task(&friend, || http::get(addr, "/"))?
            .with_context(|| format!("the friend should reach {addr}"))?;
        // Its own network may have given the same address to somebody else, who does not serve this.
        let reached = lab.within_task(&intruder, || http::connect(addr, SILENCE))?;
        ensure!(reached.is_err(), "the intruder reached {addr}");
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
        IpAddr::V6(_) => anyhow::bail!("{addr} is no IPv4 address"),
    }
}

pub(crate) fn a_forged_source_is_dropped(lab: &Lab) -> Result<()> {
    let friend = task_of(lab, "friend")?;
    let intruder = task_of(lab, "intruder")?;
    for target in lab.wait_running("n1", "target", 3)? {
        let addr = v4(target.v4("blue"))?;
        let to = SocketAddr::from((addr, LISTEN));
        let honest = lab.arrives(&target, LISTEN, ARRIVAL, || lab.send_from(&friend, None, to))?;
        ensure!(honest, "what the friend sends should arrive at {to}");
        // The friend in a neighbour's name, on the very same network; and the intruder in the friend's.
        let lie = packets::neighbour(addr, 250);
        ensure!(
            !lab.arrives(&target, LISTEN, SILENCE, || lab.send_from(&friend, Some(lie), to))?,
            "from {lie} to {to}"
        );
        let lie = v4(friend.v4("blue"))?;
        ensure!(
            !lab.arrives(&target, LISTEN, SILENCE, || lab.send_from(&intruder, Some(lie), to))?,
            "from {lie} to {to}"
        );
    }
    Ok(())
}

pub(crate) fn a_forged_vni_is_dropped(lab: &Lab) -> Result<()> {
    let blue = api::get(&contract::socket("n1"), "/networks/blue")?;
    let vni =
        blue["Options"]["com.docker.network.driver.overlay.vxlanid_list"].as_str().context("the network's VNI")?;
    let vni: u32 = vni.parse().context("a number")?;
    let friend = task_of(lab, "friend")?;
    let intruder = task_of(lab, "intruder")?;
    for target in lab.wait_running("n1", "target", 3)? {
        let to = SocketAddrV4::new(v4(target.v4("blue"))?, LISTEN);
        let from = SocketAddrV4::new(v4(friend.v4("blue"))?, LISTEN);
        let forged = packets::vxlan_udp(vni, lab.mac_of(&target)?, from, to, b"forged");
        // The very same bytes, from a node: what follows is dropped for who sends it, not for how it looks.
        let tunnel = SocketAddr::from((contract::v4(&target.node), packets::VXLAN_PORT));
        let peer = lab.nodes().find(|node| *node != target.node).context("a second node")?;
        let arrived = lab.arrives(&target, LISTEN, ARRIVAL, || {
            lab.within(&peer, || UdpSocket::bind((contract::v4(&peer), 0))?.send_to(&forged, tunnel))??;
            Ok(())
        })?;
        ensure!(arrived, "{peer}'s frame should reach {to} through {tunnel}");
        for node in contract::addrs(&target.node) {
            let tunnel = SocketAddr::new(node, packets::VXLAN_PORT);
            let send = || UdpSocket::bind((any_like(node), 0))?.send_to(&forged, tunnel);
            // A host that is no node, and a task.
            let arrived =
                lab.arrives(&target, LISTEN, SILENCE, || lab.within(CLIENT, send)?.map(|_| ()).map_err(Into::into))?;
            ensure!(!arrived, "the client's frame reached {to} through {tunnel}");
            // An error of the sender is as good as a drop.
            let arrived = lab.arrives(&target, LISTEN, SILENCE, || lab.within_task(&intruder, send).map(|_| ()))?;
            ensure!(!arrived, "the intruder's frame reached {to} through {tunnel}");
        }
    }
    Ok(())
}

/// What the tests send to a node's ports.
const MARK: &[u8] = b"is anybody there?";
/// Ports beside the nodes' own: a task reaches them as anybody does, and nobody listens.
const BESIDE_CONTROL: u16 = 2378;
const BESIDE_TUNNEL: u16 = 4790;

pub(crate) fn tasks_cannot_reach_the_control_port(lab: &Lab) -> Result<()> {
    let intruder = task_of(lab, "intruder")?;
    for node in lab.nodes() {
        // The address by which the nodes know each other, and where they listen.
        let addr = contract::v4(&node);
        let connect = |port| lab.within_task(&intruder, || http::connect((addr, port).into(), SILENCE));
        // The node itself refuses what reaches it, where nobody listens. What is dropped on the way has no answer.
        for (port, expected) in [(BESIDE_CONTROL, io::ErrorKind::ConnectionRefused), (CONTROL, io::ErrorKind::TimedOut)]
        {
            let kind = connect(port)?.map_err(|error| error.kind());
            ensure!(kind == Err(expected), "from a task to {node} at {addr} port {port}: {kind:?}");
        }
    }
    Ok(())
}

pub(crate) fn tasks_cannot_reach_the_tunnel(lab: &Lab) -> Result<()> {
    let intruder = task_of(lab, "intruder")?;
    for node in lab.nodes() {
        for addr in contract::addrs(&node) {
            let sniffer = lab.within(&node, || packets::Sniffer::new(addr))??;
            let send = |port| UdpSocket::bind((any_like(addr), 0))?.send_to(MARK, (addr, port));
            let (tunnel, beside) = (packets::VXLAN_PORT, BESIDE_TUNNEL);
            // What anybody else sends to the tunnel's port does get there: the sniffer would see the task's, too.
            lab.within(CLIENT, || send(tunnel).and(send(beside)))??;
            let seen = sniffer.ports_until(beside, MARK, ARRIVAL).with_context(|| format!("{CLIENT} to {addr}"))?;
            ensure!(seen == [tunnel, beside], "from {CLIENT} to {node} at {addr}: {seen:?}");
            // An error of the sender is as good as a drop.
            lab.within_task(&intruder, || send(tunnel).or(Ok(0)).and(send(beside)))??;
            let seen = sniffer.ports_until(beside, MARK, ARRIVAL).with_context(|| format!("a task to {addr}"))?;
            ensure!(seen == [beside], "from a task to {node} at {addr}: {seen:?}");
        }
    }
    Ok(())
}

pub(crate) fn a_service_on_two_networks_reaches_both(lab: &Lab) -> Result<()> {
    let bridge = task_of(lab, "bridge")?;
    for name in ["target", "meadow"] {
        let addr = SocketAddr::new(vip(lab, &bridge, name)?, HTTP);
        let reply = lab.within_task(&bridge, || http::get(addr, "/"))?.with_context(|| format!("{name} at {addr}"))?;
        ensure!(reply.name.starts_with(name), "{name} at {addr} is {}", reply.name);
    }
    Ok(())
}

pub(crate) fn an_internal_network_has_no_way_out(lab: &Lab) -> Result<()> {
    let prisoner = task_of(lab, "prisoner")?;
    let server = lab.within(CLIENT, || UdpSocket::bind((contract::v4(CLIENT), 0)))??;
    server.set_read_timeout(Some(SILENCE))?;
    let addr = server.local_addr()?;
    // An error of the sender is as good as a drop.
    let _sent = lab.within_task(&prisoner, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(b"out", addr))?;
    ensure!(server.recv(&mut [0; 8]).is_err(), "a packet came out");
    Ok(())
}
