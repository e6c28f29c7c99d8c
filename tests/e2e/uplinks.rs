//! Links of every kind by which a node can be connected: without an address of their own, as with
//! BGP unnumbered, and without Ethernet, as WireGuard, PPP and tun. They carry published ports and
//! the traffic of tasks to the outside as an ordinary link does, and weft follows their changes.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use weft_lab::{CLIENT, Lab, Task, contract, eventually, http, scaled, tun::TunCable};

use crate::{
    fixtures::{DROP_TIMEOUT, all_answer, service},
    harness::{Group, Shape, tests},
    mesh,
};

/// The node whose links are tested.
const NODE: &str = "n1";
/// The published port of a service without tasks.
const CLOSED_PORT: u16 = 8099;
/// The time in which weft must follow a new or changed link.
const LINK_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn group() -> Group {
    Group {
        name: "uplinks",
        shape: Shape::default(),
        setup,
        tests: tests![
            a_link_without_an_address_carries_published_ports_and_egress,
            a_link_without_ethernet_carries_published_ports_and_egress,
            a_link_that_is_renamed_or_made_anew_is_followed,
            tasks_learn_the_mtu_of_the_link_that_their_packets_leave_by,
        ],
    }
}

/// Three tasks of whoami, one on each node, and a published service without tasks.
pub(crate) fn setup(lab: &Lab) -> Result<()> {
    mesh::setup(lab)?;
    service(lab, "closed", 0, &["-p", "8099:80"], &[crate::fixtures::WHOAMI])?;
    Ok(())
}

/// A link between the node and the client, with addresses that no other link has.
struct Link {
    name: &'static str,
    /// The node's addresses, which are on `lo`, and the client's, which are on the link.
    node: [IpAddr; 2],
    client: [IpAddr; 2],
}

impl Link {
    /// `number` distinguishes the addresses of links.
    fn new(name: &'static str, number: u8) -> Self {
        let v4 = |last: u8| IpAddr::from([198, 51, 100, last]);
        let v6 = |last: u16| IpAddr::from([0x2001, 0xdb8, u16::from(number), 0, 0, 0, 0, last]);
        Self { name, node: [v4(number), v6(1)], client: [v4(100 + number), v6(2)] }
    }

    fn published(&self, port: u16) -> Vec<SocketAddr> {
        self.node.iter().map(|ip| SocketAddr::new(*ip, port)).collect()
    }

    /// Creates a veth pair that connects the two.
    fn plug_veth(&self, lab: &Lab) -> Result<()> {
        let namespace = contract::namespace(NODE);
        ip(lab, CLIENT, &["link", "add", self.name, "type", "veth", "peer", "name", self.name, "netns", &namespace])
    }

    /// Gives both ends their routes. Over IPv6, the gateway is the link-local address of the other
    /// end: no host answers a neighbour solicitation for an address that is on another link.
    fn configure(&self, lab: &Lab, has_ethernet: bool) -> Result<()> {
        let name = self.name;
        let end = |host: &str, last: &str, other_last: &str, remote: &[IpAddr; 2]| -> Result<()> {
            ip(lab, host, &["link", "set", name, "up"])?;
            if has_ethernet {
                ip(lab, host, &["address", "add", &format!("fe80::{last}/64"), "dev", name, "nodad"])?;
            }
            ip(lab, host, &["route", "add", &format!("{}/32", remote[0]), "dev", name])?;
            let destination = format!("{}/128", remote[1]);
            if has_ethernet {
                ip(lab, host, &["route", "add", &destination, "via", &format!("fe80::{other_last}"), "dev", name])
            } else {
                ip(lab, host, &["route", "add", &destination, "dev", name])
            }
        };
        for address in self.client {
            add_address(lab, CLIENT, name, address)?;
        }
        for address in self.node {
            add_address(lab, NODE, "lo", address)?;
        }
        end(NODE, "1", "2", &self.client)?;
        end(CLIENT, "2", "1", &self.node)
    }

    /// Removes the node's addresses. Otherwise they could be the source of packets by other links.
    fn remove_addresses(&self, lab: &Lab) -> Result<()> {
        self.node.iter().try_for_each(|address| ip(lab, NODE, &["address", "delete", &prefix(*address), "dev", "lo"]))
    }

    /// Checks what the link must carry.
    fn check(&self, lab: &Lab) -> Result<()> {
        let tasks = lab.wait_running("n1", "whoami", 3)?;
        all_answer(CLIENT, &self.published(mesh::PORT), &tasks, LINK_TIMEOUT);
        self.check_published(lab)?;
        let task = tasks.iter().find(|task| task.node == NODE).context("a task runs on the node")?;
        self.check_egress(lab, task)
    }

    fn check_published(&self, lab: &Lab) -> Result<()> {
        for addr in self.published(mesh::PORT) {
            // Enough requests that a task on this node and one on another answer.
            for _ in 0..6 {
                let peer = lab.get(CLIENT, addr, "/")?.peer.context("the reply has no peer")?;
                ensure!(self.client.contains(&peer.ip()), "a task behind {addr} saw {peer}");
            }
        }
        let payload: Vec<u8> = (0..1_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for addr in self.published(mesh::TCP_ECHO_PORT) {
            for _ in 0..3 {
                let answer =
                    lab.within(CLIENT, || http::tcp_echo(addr, &payload))?.with_context(|| addr.to_string())?;
                ensure!(answer == payload, "{addr} echoed {} of {} bytes", answer.len(), payload.len());
            }
        }
        for addr in self.published(mesh::UDP_PORT) {
            // The second does not fit one packet, so it arrives as fragments.
            for length in [100, 4000] {
                for _ in 0..6 {
                    let answer = lab.within(CLIENT, || http::udp(addr, &payload[..length], DROP_TIMEOUT))?;
                    let answer = answer.with_context(|| format!("{length} bytes to {addr}"))?;
                    ensure!(answer == payload[..length], "{addr} echoed {} of {length} bytes", answer.len());
                }
            }
        }
        for addr in self.published(CLOSED_PORT) {
            let refused = lab.within(CLIENT, || http::connect(addr, DROP_TIMEOUT))?.map_err(|error| error.kind());
            ensure!(refused == Err(io::ErrorKind::ConnectionRefused), "{addr} has no task: {refused:?}");
        }
        Ok(())
    }

    fn check_egress(&self, lab: &Lab, task: &Task) -> Result<()> {
        for own in self.client {
            for (protocol, peer) in
                [("UDP", mesh::udp_source(lab, task, own)), ("TCP", mesh::tcp_source(lab, task, own))]
            {
                let peer = peer.with_context(|| format!("{protocol} from a task to {own}"))?;
                ensure!(self.node.contains(&peer.ip()), "{protocol} to {own} arrives from {peer}");
            }
            let ping = lab.exec_in_task_netns(task, &["ping", "-c", "1", "-W", "1", &own.to_string()])?;
            ensure!(ping.status.success(), "a task pings {own}: {}", String::from_utf8_lossy(&ping.stdout));
            check_icmp_error(lab, task, own)?;
        }
        Ok(())
    }
}

/// A port without a listener answers a datagram by an ICMP error, which must reach the task.
fn check_icmp_error(lab: &Lab, task: &Task, own: IpAddr) -> Result<()> {
    let closed = lab.within(CLIENT, || UdpSocket::bind((own, 0))?.local_addr())??;
    let refused = lab.within_task(task, || {
        let socket = UdpSocket::bind((unspecified_like(own), 0))?;
        socket.set_read_timeout(Some(scaled(DROP_TIMEOUT)))?;
        socket.connect(closed)?;
        socket.send(b"question")?;
        socket.recv(&mut [0; 8])
    })?;
    ensure!(
        refused.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused),
        "a task that sends to {closed} gets {refused:?}"
    );
    Ok(())
}

fn ip(lab: &Lab, host: &str, arguments: &[&str]) -> Result<()> {
    lab.exec_ok(host, &[&["ip"], arguments].concat()).map(|_| ())
}

fn unspecified_like(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn prefix(address: IpAddr) -> String {
    format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })
}

fn add_address(lab: &Lab, host: &str, device: &str, address: IpAddr) -> Result<()> {
    let address_prefix = prefix(address);
    let mut arguments = vec!["address", "replace", &address_prefix, "dev", device];
    if address.is_ipv6() {
        // Without the check that no other host has the address, which takes a second.
        arguments.push("nodad");
    }
    ip(lab, host, &arguments)
}

pub(crate) fn a_link_without_an_address_carries_published_ports_and_egress(lab: &Lab) -> Result<()> {
    let link = Link::new("bare0", 11);
    link.plug_veth(lab)?;
    link.configure(lab, true)?;
    link.check(lab)?;
    link.remove_addresses(lab)?;
    ip(lab, NODE, &["link", "delete", "bare0"])
}

pub(crate) fn a_link_without_ethernet_carries_published_ports_and_egress(lab: &Lab) -> Result<()> {
    let link = Link::new("tun0", 12);
    let _cable = TunCable::new(link.name, [NODE, CLIENT])?;
    link.configure(lab, false)?;
    link.check(lab)?;
    link.remove_addresses(lab)
}

pub(crate) fn a_link_that_is_renamed_or_made_anew_is_followed(lab: &Lab) -> Result<()> {
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    let mut link = Link::new("old0", 13);
    link.plug_veth(lab)?;
    link.configure(lab, true)?;
    all_answer(CLIENT, &link.published(mesh::PORT), &tasks, LINK_TIMEOUT);

    ip(lab, NODE, &["link", "set", "old0", "name", "new0"])?;
    all_answer(CLIENT, &link.published(mesh::PORT), &tasks, LINK_TIMEOUT);

    ip(lab, NODE, &["link", "delete", "new0"])?;
    link.name = "third0";
    link.plug_veth(lab)?;
    link.configure(lab, true)?;
    all_answer(CLIENT, &link.published(mesh::PORT), &tasks, LINK_TIMEOUT);

    // The node also gets an address on the link itself.
    ip(lab, NODE, &["address", "add", "198.51.100.213/32", "dev", "third0"])?;
    ip(lab, CLIENT, &["route", "add", "198.51.100.213/32", "dev", "third0"])?;
    let added: SocketAddr = ([198, 51, 100, 213], mesh::PORT).into();
    all_answer(CLIENT, &[added], &tasks, LINK_TIMEOUT);
    link.remove_addresses(lab)?;
    ip(lab, NODE, &["link", "delete", "third0"])
}

/// Smaller than the links of tasks. IPv6 needs 1280.
const SMALL_MTU: usize = 1300;

pub(crate) fn tasks_learn_the_mtu_of_the_link_that_their_packets_leave_by(lab: &Lab) -> Result<()> {
    let link = Link::new("small0", 14);
    // The client's end takes larger packets, so its connections do not limit those of the tasks.
    let cable = TunCable::new(link.name, [NODE, CLIENT])?;
    ip(lab, NODE, &["link", "set", link.name, "mtu", &SMALL_MTU.to_string()])?;
    link.configure(lab, false)?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    all_answer(CLIENT, &link.published(mesh::PORT), &tasks, LINK_TIMEOUT);
    let payload: Vec<u8> = (0..1_u32 << 18).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for addr in link.published(mesh::TCP_ECHO_PORT) {
        // Enough for each backend, on this node and on others.
        for _ in 0..3 {
            let answer = lab.within(CLIENT, || http::tcp_echo(addr, &payload))?.with_context(|| addr.to_string())?;
            ensure!(answer == payload, "{addr} echoed {} of {} bytes", answer.len(), payload.len());
        }
    }
    for addr in link.published(mesh::UDP_PORT) {
        for _ in 0..3 {
            check_large_datagram(lab, addr, &payload[..1400])?;
        }
    }
    let task = tasks.iter().find(|task| task.node == NODE).context("a task runs on the node")?;
    for own in link.client {
        let received = send_from_task(lab, task, own, &payload)?;
        ensure!(received == payload, "a task sent {} bytes to {own}, and other bytes arrived", payload.len());
    }
    let largest = cable.largest_from_first();
    ensure!(largest <= SMALL_MTU, "the node sent a packet of {largest} bytes by a link with MTU {SMALL_MTU}");
    link.remove_addresses(lab)
}

/// The first answer of a task is lost. Then the task knows the MTU.
fn check_large_datagram(lab: &Lab, addr: SocketAddr, datagram: &[u8]) -> Result<()> {
    let socket = lab.within(CLIENT, || UdpSocket::bind((unspecified_like(addr.ip()), 0)))??;
    socket.connect(addr)?;
    socket.set_read_timeout(Some(scaled(DROP_TIMEOUT)))?;
    eventually(LINK_TIMEOUT, &format!("{addr} echoes {} bytes", datagram.len()), || {
        socket.send(datagram).map_err(|error| error.to_string())?;
        let mut answer = [0; 2048];
        let length = socket.recv(&mut answer).map_err(|error| error.to_string())?;
        if answer[..length] == *datagram { Ok(()) } else { Err(format!("{length} other bytes")) }
    });
    Ok(())
}

/// Sends a payload over a TCP connection from a task to the client, and returns what arrives.
fn send_from_task(lab: &Lab, task: &Task, own: IpAddr, payload: &[u8]) -> Result<Vec<u8>> {
    let server = lab.within(CLIENT, || TcpListener::bind((own, 0)))??;
    let addr = server.local_addr()?;
    let mut sender = lab.within_task(task, || TcpStream::connect_timeout(&addr, scaled(DROP_TIMEOUT)))??;
    let (mut receiver, _) = server.accept()?;
    receiver.set_read_timeout(Some(scaled(LINK_TIMEOUT)))?;
    let mut received = vec![0; payload.len()];
    thread::scope(|scope| {
        let sent = scope.spawn(|| sender.write_all(payload));
        receiver.read_exact(&mut received).with_context(|| format!("from a task to {addr}"))?;
        sent.join().map_err(|_| anyhow!("the sender panicked"))?.context("send")
    })?;
    Ok(received)
}
