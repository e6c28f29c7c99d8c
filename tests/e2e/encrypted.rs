//! Encrypted networks: what crosses the underlay cannot be read, packets that were not encrypted
//! are dropped, and traffic survives what happens to nodes and keys.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use weft_lab::{
    CLIENT, Lab, Load, Task, api, contract, eventually, http, netns,
    packets::{self, Capture, Frame, VXLAN_PORT},
    scaled, underlay_path,
};

use crate::{
    fixtures::{DROP_TIMEOUT, HTTP, WHOAMI, all_answer, network, probe_on, service, task_of},
    harness::{Group, Shape, tests},
};

/// The published port of `secret`, whose only network is encrypted.
const PORT: u16 = 8095;
/// The published port of `plain`, which is on the ingress network only.
const INGRESS_PORT: u16 = 8096;
/// The UDP port on which tasks listen for markers.
const LISTEN_PORT: u16 = 9999;
/// The time in which every node must have the keys of all others, after the first encrypted network
/// was created.
const KEYS_TIMEOUT: Duration = Duration::from_secs(20);
/// The time in which traffic must continue after a daemon that encrypts was started again, or after
/// a node has another address.
const HEAL_TIMEOUT: Duration = Duration::from_secs(30);
/// The time in which the keys of all nodes must be replaced, once they are due.
const ROTATION_TIMEOUT: Duration = Duration::from_secs(60);
/// The time in which a datagram must arrive, and a captured frame must be read.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than the time between two full reconciles, after which dropped packets are in the log.
const LOG_TIMEOUT: Duration = Duration::from_secs(15);
/// The links of a node's keys.
const WIREGUARD_LINKS: [&str; 2] = ["weft-wg0", "weft-wg1"];

pub(crate) fn group() -> Group {
    Group {
        name: "encrypted",
        shape: Shape::default(),
        setup,
        tests: tests![
            only_markers_of_the_clear_network_are_seen_on_the_underlay,
            published_ports_are_encrypted_between_nodes,
            published_ports_of_services_without_a_network_can_be_encrypted,
            tasks_know_the_smaller_mtu,
            keys_are_replaced_without_a_lost_request,
            forged_frames_in_clear_are_dropped_and_counted,
            forged_addresses_of_keys_are_dropped_and_counted,
            traffic_pauses_without_the_daemon_and_never_goes_in_clear,
            traffic_follows_a_node_that_changes_its_address,
        ],
    }
}

/// `secret` and the probes of `secret-n1` and `secret-n2` are on the encrypted network, `open-n1`
/// and `open-n2` on a clear one.
pub(crate) fn setup(lab: &Lab) -> Result<()> {
    // Also on a slow machine, a node whose daemon a test stops must not be down after a few
    // seconds: its tasks would be replaced.
    lab.weft_ok("n1", &["swarm", "update", "--down-after", "600"])?;
    network(lab, "secret", &["--opt", "encrypted", "--ipv6"])?;
    network(lab, "open", &["--ipv6"])?;
    let port = format!("{PORT}:{HTTP}");
    let tasks = service(lab, "secret", 3, &["--network", "secret", "-p", &port], &[WHOAMI])?;
    for node in ["n1", "n2"] {
        probe_on(lab, node, &format!("secret-{node}"), &["secret"])?;
        probe_on(lab, node, &format!("open-{node}"), &["open"])?;
    }
    // Until every node has the keys of all others, packets wait.
    let probe = task_of(lab, "secret-n1")?;
    for task in tasks {
        let addr = SocketAddr::new(task.v4("secret"), HTTP);
        eventually(KEYS_TIMEOUT, &format!("{addr} on {} answers a probe on n1", task.node), || {
            lab.within_task(&probe, || http::get(addr, "/"))
                .map_err(|error| format!("{error:#}"))?
                .map_err(|error| error.to_string())
        });
    }
    Ok(())
}

/// Sends a datagram from one task to another. Returns whether it arrived within the time.
fn marker_arrives(
    lab: &Lab,
    (from, to): (&Task, &Task),
    addr: IpAddr,
    marker: &[u8],
    timeout: Duration,
) -> Result<bool> {
    let any: IpAddr = if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let listener = lab.within_task(to, || UdpSocket::bind((any, LISTEN_PORT)))??;
    listener.set_read_timeout(Some(scaled(timeout)))?;
    lab.within_task(from, || UdpSocket::bind((any, 0))?.send_to(marker, (addr, LISTEN_PORT)))??;
    let mut received = [0; 256];
    let length = listener.recv(&mut received).unwrap_or_default();
    Ok(&received[..length] == marker)
}

/// Runs `action`, and returns the frames that crossed the underlay meanwhile.
fn captured(lab: &Lab, action: impl FnOnce() -> Result<()>) -> Result<Vec<Frame>> {
    const LAST: &[u8] = b"the last frame of this capture";
    let capture = netns::within(&underlay_path(), Capture::new)??;
    action()?;
    let to = (contract::v4("n1"), LISTEN_PORT);
    lab.within(CLIENT, || UdpSocket::bind((contract::v4(CLIENT), 0))?.send_to(LAST, to))??;
    Ok(capture.frames_until(LAST, ARRIVAL_TIMEOUT)?)
}

pub(crate) fn only_markers_of_the_clear_network_are_seen_on_the_underlay(lab: &Lab) -> Result<()> {
    for network in ["open", "secret"] {
        let (from, to) = (task_of(lab, &format!("{network}-n1"))?, task_of(lab, &format!("{network}-n2"))?);
        for addr in [to.v4(network), to.v6(network)] {
            let marker = format!("a marker of the network {network} to {addr}");
            let frames = captured(lab, || {
                let arrived = marker_arrives(lab, (&from, &to), addr, marker.as_bytes(), ARRIVAL_TIMEOUT)?;
                ensure!(arrived, "{marker:?} did not arrive");
                Ok(())
            })?;
            let seen = frames.iter().any(|frame| frame.contains(marker.as_bytes()));
            ensure!(seen == (network == "open"), "{marker:?} was seen on the underlay: {seen}");
        }
    }
    Ok(())
}

pub(crate) fn published_ports_are_encrypted_between_nodes(lab: &Lab) -> Result<()> {
    let tasks = lab.wait_running("n1", "secret", 3)?;
    requests_are_encrypted(lab, PORT, &tasks)
}

pub(crate) fn published_ports_of_services_without_a_network_can_be_encrypted(lab: &Lab) -> Result<()> {
    lab.weft_ok("n1", &["network", "rm", "ingress"])?;
    lab.weft_ok("n1", &["network", "create", "--ingress", "--opt", "encrypted", "ingress"])?;
    let tasks = service(lab, "plain", 3, &["-p", &format!("{INGRESS_PORT}:{HTTP}")], &[WHOAMI])?;
    requests_are_encrypted(lab, INGRESS_PORT, &tasks)
}

/// Sends requests from the client to the published port of each node. The tasks are on all nodes.
fn requests_are_encrypted(lab: &Lab, port: u16, tasks: &[Task]) -> Result<()> {
    let frames = captured(lab, || {
        all_answer(CLIENT, &lab.published(port), tasks, KEYS_TIMEOUT);
        Ok(())
    })?;
    // The client's own requests cross the underlay in clear, but not in a tunnel.
    let in_clear = frames.iter().filter(|frame| frame.is_udp_to(VXLAN_PORT) && frame.contains(b"HTTP/1.1")).count();
    ensure!(in_clear == 0, "{in_clear} frames between nodes were in clear");
    ensure!(frames.iter().any(|frame| frame.contains(b"HTTP/1.1")), "the capture saw no request of the client");
    Ok(())
}

pub(crate) fn tasks_know_the_smaller_mtu(lab: &Lab) -> Result<()> {
    // Ethernet 1500; VXLAN over IPv4 takes 50 octets, WireGuard over IPv4 60 and VXLAN over IPv6
    // 70.
    for (service, mtu) in [("open-n1", 1450), ("secret-n1", 1370)] {
        let task = task_of(lab, service)?;
        let link = lab.exec_in_task_netns_ok(&task, &["ip", "-oneline", "link", "show", "dev", "eth0"])?;
        ensure!(link.contains(&format!(" mtu {mtu} ")), "{service}: {link}");
    }
    let (from, to) = (task_of(lab, "secret-n1")?, task_of(lab, "secret-n2")?);
    // The largest datagram that needs no fragments arrives: headers of IPv4 and UDP take 28 octets.
    let whole = vec![b'm'; 1370 - 28];
    let listener = lab.within_task(&to, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, LISTEN_PORT)))??;
    listener.set_read_timeout(Some(scaled(ARRIVAL_TIMEOUT)))?;
    let addr = (to.v4("secret"), LISTEN_PORT);
    lab.within_task(&from, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(&whole, addr))??;
    let mut received = vec![0; 2048];
    ensure!(listener.recv(&mut received)? == whole.len(), "the largest datagram did not arrive whole");
    Ok(())
}

/// Replaces the keys of all nodes, under load from outside and between tasks.
pub(crate) fn keys_are_replaced_without_a_lost_request(lab: &Lab) -> Result<()> {
    let addresses = || lab.nodes().map(|node| key_address(lab, &node)).collect::<Result<Vec<_>>>();
    let before = addresses()?;
    let probe = task_of(lab, "secret-n1")?;
    let tasks = lab.wait_running("n1", "secret", 3)?;
    let inside: Vec<SocketAddr> = tasks.iter().map(|task| SocketAddr::new(task.v4("secret"), HTTP)).collect();
    let loads = [
        Load::start(&contract::namespace_path(CLIENT), &lab.published(PORT)),
        Load::start(&lab.task_namespace(&probe)?, &inside),
    ];
    lab.weft_ok("n1", &["swarm", "update", "--key-rotation", "10s"])?;
    eventually(ROTATION_TIMEOUT, "every node has another key, and only that one", || {
        let now = addresses().map_err(|error| format!("{error:#}"))?;
        let replaced = now.iter().zip(&before).filter(|(now, before)| now != before).count();
        if replaced == before.len() { Ok(()) } else { Err(format!("{replaced} nodes have another key")) }
    });
    lab.weft_ok("n1", &["swarm", "update", "--key-rotation", "12h"])?;
    for load in loads {
        load.stop()?.expect_no_errors();
    }
    Ok(())
}

fn v4(addr: IpAddr) -> Result<Ipv4Addr> {
    match addr {
        IpAddr::V4(addr) => Ok(addr),
        IpAddr::V6(_) => bail!("{addr} is not an IPv4 address"),
    }
}

/// A VXLAN frame of the encrypted network, from the task on n1 to the one on n2.
fn forged_frame(lab: &Lab, from: &Task, to: &Task) -> Result<Vec<u8>> {
    let secret = api::get(&contract::socket("n1"), "/networks/secret")?;
    let vni = secret["Options"]["com.docker.network.driver.overlay.vxlanid_list"].as_str();
    let vni: u32 = vni.context("the network has a VNI")?.parse().context("the VNI is a number")?;
    let from = SocketAddrV4::new(v4(from.v4("secret"))?, LISTEN_PORT);
    let to_addr = SocketAddrV4::new(v4(to.v4("secret"))?, LISTEN_PORT);
    Ok(packets::vxlan_udp(vni, lab.mac_of(to)?, from, to_addr, b"forged"))
}

/// Waits until the log of a node counts packets that were dropped for this reason.
fn drops_are_logged(node: &str, reason: &str, already: usize) {
    eventually(LOG_TIMEOUT, &format!("the log of {node} counts {reason}"), || {
        let lines = logged_drops(node, reason);
        if lines > already { Ok(()) } else { Err(format!("{lines} lines")) }
    });
}

fn logged_drops(node: &str, reason: &str) -> usize {
    let text = fs::read_to_string(contract::log(node)).unwrap_or_default();
    let reason = format!("\"{reason}\"");
    text.lines().filter(|line| line.contains("without the encryption") && line.contains(&reason)).count()
}

pub(crate) fn forged_frames_in_clear_are_dropped_and_counted(lab: &Lab) -> Result<()> {
    let (from, to) = (task_of(lab, "secret-n1")?, task_of(lab, "secret-n2")?);
    let forged = forged_frame(lab, &from, &to)?;
    let before = logged_drops("n2", "unencrypted");
    // n1 is a node of the cluster, so n2 trusts its address. On a clear network this frame arrives
    // (`isolation::frames_with_a_forged_vni_are_dropped`).
    for (source, tunnel) in [("n1", contract::addrs("n2")[0]), (CLIENT, contract::addrs("n2")[0])] {
        let arrived = lab.datagram_arrives(&to, LISTEN_PORT, DROP_TIMEOUT, || {
            let send = || UdpSocket::bind((contract::v4(source), 0))?.send_to(&forged, (tunnel, VXLAN_PORT));
            lab.within(source, send)??;
            Ok(())
        })?;
        ensure!(!arrived, "a frame in clear from {source} arrived");
    }
    drops_are_logged("n2", "unencrypted", before);
    Ok(())
}

/// The address of a key of this node.
fn key_address(lab: &Lab, node: &str) -> Result<Ipv6Addr> {
    for link in WIREGUARD_LINKS {
        let output = lab.exec(node, &["ip", "-6", "-oneline", "address", "show", "dev", link, "scope", "global"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if let Some(address) = text.split("inet6 ").nth(1).and_then(|after| after.split('/').next()) {
            return address.parse().with_context(|| format!("{address:?} is no address"));
        }
    }
    bail!("{node} has no WireGuard link with an address")
}

pub(crate) fn forged_addresses_of_keys_are_dropped_and_counted(lab: &Lab) -> Result<()> {
    let (from, to) = (task_of(lab, "secret-n1")?, task_of(lab, "secret-n2")?);
    let forged = forged_frame(lab, &from, &to)?;
    let (source, target) = (key_address(lab, "n1")?, key_address(lab, "n2")?);
    let before = logged_drops("n2", "key-address");
    // The client takes the address of n1's key, and sends to that of n2 by the underlay.
    let (address, route, via) = (format!("{source}/128"), format!("{target}/128"), contract::v6("n2").to_string());
    lab.exec_ok(CLIENT, &["ip", "-6", "address", "add", &address, "dev", "lo"])?;
    lab.exec_ok(CLIENT, &["ip", "-6", "route", "add", &route, "via", &via])?;
    let arrived = lab.datagram_arrives(&to, LISTEN_PORT, DROP_TIMEOUT, || {
        lab.within(CLIENT, || UdpSocket::bind((source, 0))?.send_to(&forged, (target, VXLAN_PORT)))??;
        Ok(())
    });
    lab.exec_ok(CLIENT, &["ip", "-6", "address", "del", &address, "dev", "lo"])?;
    lab.exec_ok(CLIENT, &["ip", "-6", "route", "del", &route, "via", &via])?;
    ensure!(!arrived?, "a frame with the address of a key arrived by the underlay");
    drops_are_logged("n2", "key-address", before);
    Ok(())
}

/// Waits until a datagram crosses the encrypted network from n1 to n2 and back.
fn traffic_heals(lab: &Lab, from: &Task, to: &Task) {
    // The node that was away sends first: WireGuard learns a changed address from its packets.
    for (from, to) in [(to, from), (from, to)] {
        eventually(
            HEAL_TIMEOUT,
            &format!("datagrams from {} to {} arrive", from.node, to.node),
            || match marker_arrives(lab, (from, to), to.v4("secret"), b"healed", ARRIVAL_TIMEOUT) {
                Ok(true) => Ok(()),
                Ok(false) => Err("it did not arrive".to_owned()),
                Err(error) => Err(format!("{error:#}")),
            },
        );
    }
}

/// Whether the node encrypts in its daemon, and not in the kernel.
fn is_user_space(lab: &Lab, node: &str) -> Result<bool> {
    let links = lab.exec_ok(node, &["ip", "-details", "-oneline", "link", "show"])?;
    Ok(links.lines().any(|link| link.contains("weft-wg") && link.contains(" tun ")))
}

pub(crate) fn traffic_pauses_without_the_daemon_and_never_goes_in_clear(lab: &Lab) -> Result<()> {
    let (from, to) = (task_of(lab, "secret-n1")?, task_of(lab, "secret-n2")?);
    let user_space = is_user_space(lab, "n2")?;
    let marker = b"a marker while a daemon is down";
    lab.kill_daemon("n2")?;
    let frames = captured(lab, || {
        for (from, to) in [(&from, &to), (&to, &from)] {
            let arrived = marker_arrives(lab, (from, to), to.v4("secret"), marker, DROP_TIMEOUT)?;
            // The kernel's WireGuard needs no daemon.
            ensure!(arrived != user_space, "from {} to {}: {arrived}", from.node, to.node);
        }
        Ok(())
    });
    lab.start("n2")?;
    let frames = frames?;
    ensure!(!frames.iter().any(|frame| frame.contains(marker)), "a packet was sent in clear");
    traffic_heals(lab, &from, &to);
    lab.wait_ready("n1", 3)
}

pub(crate) fn traffic_follows_a_node_that_changes_its_address(lab: &Lab) -> Result<()> {
    let (from, to) = (task_of(lab, "secret-n1")?, task_of(lab, "secret-n2")?);
    let old = format!("{}/24", contract::v4("n2"));
    let new = format!("{}/24", packets::with_last_octet(contract::v4("n2"), 77));
    let change = |add: &str, remove: &str| -> Result<()> {
        // In this order: with its first address, a link loses all others of the same subnet.
        lab.exec_ok("n2", &["ip", "address", "del", remove, "dev", "eth0"])?;
        lab.exec_ok("n2", &["ip", "address", "add", add, "dev", "eth0"]).map(|_| ())
    };
    change(&new, &old)?;
    traffic_heals(lab, &from, &to);
    change(&old, &new)?;
    traffic_heals(lab, &from, &to);
    lab.wait_ready("n1", 3)
}
