//! Connections that stand: what happens to them when a task or a daemon dies.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Task, contract, dns::RecordType, eventually, http, process};

use crate::{
    fixtures::{HTTP, SOON, WHOAMI, all_answer, all_answer_within, at_once, service, task_of},
    mesh,
};

/// For the end of a task to show on its connections.
const TOLD: Duration = Duration::from_secs(2);
/// For bytes on a connection that is well.
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections to each address, at least; more until the victim is at the other end of one.
const EACH: usize = 6;
/// As many must reach every backend.
const ENOUGH: usize = 60;

/// Both VIPs of a service, as a task on an IPv6 network learns them.
fn vips(lab: &Lab, probe: &Task, service: &str) -> Result<Vec<IpAddr>> {
    let mut vips = lab.ask(probe, service, RecordType::A)?.addrs();
    vips.extend(lab.ask(probe, service, RecordType::AAAA)?.addrs());
    ensure!(vips.len() == 2, "{service} should have an address of each family: {vips:?}");
    Ok(vips)
}

/// A connection to a task that is kept for more requests.
struct KeptAlive {
    from: String,
    stream: TcpStream,
    /// The task at its other end.
    task: String,
}

impl KeptAlive {
    fn open(from: &str, addr: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let task = ask_on(&mut stream)?;
        Ok(Self { from: format!("{from} to {addr}"), stream, task })
    }

    /// What is read from it within this time: an error, where the kernel knows that nobody is left.
    fn read(&mut self, patience: Duration) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(patience.max(Duration::from_millis(1))))?;
        self.stream.read(&mut [0; 64])
    }
}

/// The last line of an answer to [`REQUEST`].
const LAST_LINE: &[u8] = b"host: kept\n";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: kept\r\n\r\n";

/// One request on a connection that goes on; the name of the task that answered.
fn ask_on(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(REQUEST)?;
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    while !answer.ends_with(LAST_LINE) {
        match stream.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => answer.extend_from_slice(&part[..length]),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let name = answer.lines().find_map(|line| line.strip_prefix("name: "));
    name.map(str::to_owned).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The task is cut off before it is killed, so that no farewell of its kernel tells anybody: that is left to weft.
fn kill_silently(lab: &Lab, task: &Task) -> Result<()> {
    let cut = lab.exec_beside(task, &["ip", "link", "set", "eth0", "down"])?;
    ensure!(cut.status.success(), "{}", String::from_utf8_lossy(&cut.stderr));
    process::kill(task.pid.context("a process")?)
}

pub(crate) fn connections_to_a_dead_task_end_and_others_go_on(lab: &Lab) -> Result<()> {
    let flags = ["-p", "8095:80", "-p", "9095:7/udp", "--network", "app", "--restart-condition", "none"];
    let tasks = service(lab, "fragile", 3, &flags, &[WHOAMI])?;
    let probe = task_of(lab, "probe")?;
    let vips: Vec<SocketAddr> = vips(lab, &probe, "fragile")?.into_iter().map(|vip| (vip, HTTP).into()).collect();
    let victim = tasks.first().context("a task")?;
    let name = victim.name();
    let open = |from: &str, addrs: &[SocketAddr]| -> Result<Vec<KeptAlive>> {
        let mut all = Vec::new();
        for addr in addrs {
            let mut reached = false;
            for nth in 0..ENOUGH {
                if nth >= EACH && reached {
                    break;
                }
                let connection = KeptAlive::open(from, *addr).with_context(|| format!("{from} to {addr}"))?;
                reached |= connection.task == name;
                all.push(connection);
            }
            ensure!(reached, "none of {ENOUGH} connections to {addr} reached {name}");
        }
        Ok(all)
    };
    all_answer(CLIENT, &lab.published(8095), &tasks, SOON);
    all_answer_within(&lab.task_namespace(&probe)?, "the probe", &vips, &tasks, SOON);
    // What reaches it through every address, by TCP and by UDP.
    let published = lab.within(CLIENT, || open("the client", &lab.published(8095)))??;
    let east_west = lab.within_task(&probe, || open("the probe", &vips))??;
    let datagrams = connected_datagrams(lab, victim)?;

    kill_silently(lab, victim)?;
    let killed = Instant::now();
    let (dead, mut living): (Vec<_>, Vec<_>) = east_west.into_iter().partition(|c| c.task == name);
    for mut connection in dead {
        // Without a byte sent.
        let end = connection.read(TOLD.saturating_sub(killed.elapsed())).map_err(|error| error.kind());
        let told = matches!(end, Err(io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset));
        ensure!(told, "{} read {end:?}", connection.from);
    }
    let (dead, others): (Vec<_>, Vec<_>) = published.into_iter().partition(|c| c.task == name);
    living.extend(others);
    for mut connection in dead {
        connection.stream.write_all(REQUEST)?;
        let end = connection.read(TOLD).map_err(|error| error.kind());
        ensure!(end == Err(io::ErrorKind::ConnectionReset), "{} read {end:?} after a write", connection.from);
    }
    at_once(&datagrams, |(addr, socket)| {
        eventually(TOLD, &format!("another task answers the client at {addr}"), || {
            echo_once(socket).map_err(|error| error.to_string())
        });
    });
    for mut connection in living {
        let task = ask_on(&mut connection.stream).with_context(|| connection.from.clone())?;
        ensure!(task == connection.task, "{}: {task} instead of {}", connection.from, connection.task);
    }
    // Nobody was asked to start it again.
    ensure!(lab.tasks("n1", "fragile")?.len() == tasks.len(), "another task took its place");
    lab.weft_ok("n1", &["service", "rm", "fragile"])?;
    Ok(())
}

/// Connected sockets of the client to every address, some of which have this task at their other end.
fn connected_datagrams(lab: &Lab, victim: &Task) -> Result<Vec<(SocketAddr, UdpSocket)>> {
    let mut sockets = Vec::new();
    for addr in lab.published(9095) {
        let before = lab.datagrams(victim, addr.is_ipv4())?;
        for nth in 0..ENOUGH {
            if nth >= EACH && lab.datagrams(victim, addr.is_ipv4())? > before {
                break;
            }
            let socket =
                lab.within(CLIENT, || UdpSocket::bind((if addr.is_ipv4() { "0.0.0.0" } else { "::" }, 0)))??;
            socket.connect(addr)?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            echo_once(&socket).with_context(|| format!("to {addr}"))?;
            sockets.push((addr, socket));
        }
        let after = lab.datagrams(victim, addr.is_ipv4())?;
        ensure!(after > before, "no datagram to {addr} reached {}", victim.name());
    }
    Ok(sockets)
}

fn echo_once(socket: &UdpSocket) -> io::Result<()> {
    socket.send(b"anybody")?;
    let mut answer = [0; 16];
    let length = socket.recv(&mut answer)?;
    if &answer[..length] == b"anybody" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// One direction of a connection, or a connection to an echo: what is written at one end is read at the other.
struct Wire {
    what: String,
    write: TcpStream,
    read: TcpStream,
}

impl Wire {
    fn new(what: &str, write: &TcpStream, read: &TcpStream) -> io::Result<Self> {
        read.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { what: what.to_owned(), write: write.try_clone()?, read: read.try_clone()? })
    }

    fn carries(&mut self, word: &[u8]) -> Result<()> {
        self.write.write_all(word).with_context(|| self.what.clone())?;
        let mut answer = vec![0; word.len()];
        self.read.read_exact(&mut answer).with_context(|| self.what.clone())?;
        ensure!(answer == word, "{}: {answer:?} instead of {word:?}", self.what);
        Ok(())
    }
}

fn echo_wire(what: &str, addr: SocketAddr) -> io::Result<Wire> {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    Wire::new(&format!("{what} to {addr}"), &stream, &stream)
}

/// Client to every node, a task to the VIP, a task to the outside and back.
fn wires(lab: &Lab) -> Result<Vec<Wire>> {
    let probe = task_of(lab, "probe")?;
    let published = lab.published(mesh::TCP_ECHO_PORT);
    let mut wires: Vec<Wire> =
        lab.within(CLIENT, || published.iter().map(|addr| echo_wire("the client", *addr)).collect::<io::Result<_>>())??;
    for vip in vips(lab, &probe, "whoami")? {
        wires.push(lab.within_task(&probe, || echo_wire("a task", (vip, http::ECHO_PORT).into()))??);
    }
    for own in contract::addrs(CLIENT) {
        let server = lab.within(CLIENT, || TcpListener::bind((own, 0)))??;
        let addr = server.local_addr()?;
        let inside = lab.within_task(&probe, || TcpStream::connect_timeout(&addr, PATIENCE))??;
        let (outside, _) = server.accept()?;
        wires.push(Wire::new(&format!("a task to the outside at {addr}"), &inside, &outside)?);
        wires.push(Wire::new(&format!("the outside at {addr} to a task"), &outside, &inside)?);
    }
    Ok(wires)
}

pub(crate) fn connections_outlive_every_daemon(lab: &Lab) -> Result<()> {
    let mut wires = wires(lab)?;
    let mut all_carry = |word: &str| wires.iter_mut().try_for_each(|wire| wire.carries(word.as_bytes()));
    all_carry("before")?;
    for node in lab.nodes() {
        lab.kill_daemon(&node)?;
    }
    all_carry("without any daemon")?;
    for node in lab.nodes() {
        lab.start(&node)?;
        all_carry("while they start")?;
    }
    lab.wait_ready("n1", lab.options().nodes)?;
    all_carry("after")?;
    // And names are back.
    let probe = task_of(lab, "probe")?;
    eventually(Duration::from_secs(5), "the probe's resolver answers", || {
        vips(lab, &probe, "whoami").map(|_| ()).map_err(|error| format!("{error:#}"))
    });
    Ok(())
}
