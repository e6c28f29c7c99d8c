//! Open connections when a task or a daemon is killed.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Task, contract, dns::RecordType, eventually, http, process, scaled, unscaled};

use crate::{
    fixtures::{FOLLOW_TIMEOUT, HTTP, WHOAMI, all_answer, all_answer_within, in_parallel, service, task_of},
    mesh,
};

/// The time in which the connections to a killed task must be reset.
const RESET_TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit for data on a working connection.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How many connections are opened to each address, or more until one reaches the task to be
/// killed.
const MIN_CONNECTIONS: usize = 6;
/// So many connections that every task answers at least one of them.
const MAX_CONNECTIONS: usize = 60;

/// Both VIPs of a service, as its name resolves in a task on a network with IPv6.
fn vips(lab: &Lab, probe: &Task, service: &str) -> Result<Vec<IpAddr>> {
    let mut vips = lab.lookup(probe, service, RecordType::A)?.addrs();
    vips.extend(lab.lookup(probe, service, RecordType::AAAA)?.addrs());
    ensure!(vips.len() == 2, "{service} must have an address of each family: {vips:?}");
    Ok(vips)
}

/// An open connection to a task, for several requests.
pub(crate) struct KeepAlive {
    from: String,
    stream: TcpStream,
    /// The name of the task at the other end.
    task: String,
}

impl KeepAlive {
    pub(crate) fn open(from: &str, addr: SocketAddr) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&addr, scaled(TIMEOUT))?;
        stream.set_read_timeout(Some(scaled(TIMEOUT)))?;
        let task = request(&mut stream)?;
        Ok(Self { from: format!("{from} to {addr}"), stream, task })
    }

    /// Checks that the same task still answers.
    pub(crate) fn check(&mut self) -> Result<()> {
        let task = request(&mut self.stream).with_context(|| self.from.clone())?;
        ensure!(task == self.task, "{}: {task} instead of {}", self.from, self.task);
        Ok(())
    }

    /// Reads data without sending a request first. Returns an error when the connection is reset.
    fn read(&mut self, timeout: Duration) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(scaled(timeout.max(Duration::from_millis(1)))))?;
        self.stream.read(&mut [0; 64])
    }
}

/// The last line of the answer to [`REQUEST`].
const LAST_LINE: &[u8] = b"host: keep-alive\n";
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: keep-alive\r\n\r\n";

/// Sends a request, and leaves the connection open. Returns the name of the task that answered.
fn request(stream: &mut TcpStream) -> io::Result<String> {
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

/// Kills a task whose kernel cannot send a FIN or RST any more, so that weft must reset the
/// connections. Its routes lead nowhere: a link that is down would soon be up again.
fn kill_without_packets(lab: &Lab, task: &Task) -> Result<()> {
    for family in ["-4", "-6"] {
        lab.exec_in_task_netns_ok(task, &["ip", family, "rule", "add", "pref", "1", "blackhole"])?;
    }
    process::kill(task.pid.context("the task has a process")?)
}

pub(crate) fn connections_to_a_killed_task_are_reset_and_others_continue(lab: &Lab) -> Result<()> {
    let flags = ["-p", "8095:80", "-p", "9095:7/udp", "--network", "app", "--restart-condition", "none"];
    let tasks = service(lab, "one-killed", 3, &flags, &[WHOAMI])?;
    let probe = task_of(lab, "probe")?;
    let vips: Vec<SocketAddr> = vips(lab, &probe, "one-killed")?.into_iter().map(|vip| (vip, HTTP).into()).collect();
    let victim = tasks.first().context("the service has a task")?;
    let name = victim.name();
    let open = |from: &str, addrs: &[SocketAddr]| -> Result<Vec<KeepAlive>> {
        let mut all = Vec::new();
        for addr in addrs {
            let mut reached = false;
            for nth in 0..MAX_CONNECTIONS {
                if nth >= MIN_CONNECTIONS && reached {
                    break;
                }
                let connection = KeepAlive::open(from, *addr).with_context(|| format!("{from} to {addr}"))?;
                reached |= connection.task == name;
                all.push(connection);
            }
            ensure!(reached, "none of {MAX_CONNECTIONS} connections to {addr} reached {name}");
        }
        Ok(all)
    };
    all_answer(CLIENT, &lab.published(8095), &tasks, FOLLOW_TIMEOUT);
    all_answer_within(&lab.task_namespace(&probe)?, "the probe", &vips, &tasks, FOLLOW_TIMEOUT);
    // Connections that reach the task through every address, by TCP and by UDP.
    let published = lab.within(CLIENT, || open("the client", &lab.published(8095)))??;
    let inside = lab.within_task(&probe, || open("the probe", &vips))??;
    let datagrams = connected_datagrams(lab, victim)?;

    kill_without_packets(lab, victim)?;
    let killed = Instant::now();
    let (to_killed, mut to_others): (Vec<_>, Vec<_>) = inside.into_iter().partition(|c| c.task == name);
    for mut connection in to_killed {
        // No data is sent before the reset.
        let end =
            connection.read(RESET_TIMEOUT.saturating_sub(unscaled(killed.elapsed()))).map_err(|error| error.kind());
        let is_reset = matches!(end, Err(io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset));
        ensure!(is_reset, "{} read {end:?}", connection.from);
    }
    let (to_killed, others): (Vec<_>, Vec<_>) = published.into_iter().partition(|c| c.task == name);
    to_others.extend(others);
    for mut connection in to_killed {
        connection.stream.write_all(REQUEST)?;
        let end = connection.read(RESET_TIMEOUT).map_err(|error| error.kind());
        ensure!(end == Err(io::ErrorKind::ConnectionReset), "{} read {end:?} after a write", connection.from);
    }
    in_parallel(&datagrams, |(addr, socket)| {
        eventually(RESET_TIMEOUT, &format!("another task answers the client at {addr}"), || {
            echo_once(socket).map_err(|error| error.to_string())
        });
    });
    for mut connection in to_others {
        connection.check()?;
    }
    // The restart condition is none.
    ensure!(lab.tasks("n1", "one-killed")?.len() == tasks.len(), "the killed task was restarted");
    lab.weft_ok("n1", &["service", "rm", "one-killed"])?;
    Ok(())
}

/// Connected UDP sockets of the client to every address. At each address some of the sockets reach
/// this task.
fn connected_datagrams(lab: &Lab, victim: &Task) -> Result<Vec<(SocketAddr, UdpSocket)>> {
    let mut sockets = Vec::new();
    for addr in lab.published(9095) {
        let before = lab.received_datagrams(victim, addr.is_ipv4())?;
        for nth in 0..MAX_CONNECTIONS {
            if nth >= MIN_CONNECTIONS && lab.received_datagrams(victim, addr.is_ipv4())? > before {
                break;
            }
            let socket =
                lab.within(CLIENT, || UdpSocket::bind((if addr.is_ipv4() { "0.0.0.0" } else { "::" }, 0)))??;
            socket.connect(addr)?;
            socket.set_read_timeout(Some(scaled(Duration::from_millis(200))))?;
            echo_once(&socket).with_context(|| format!("to {addr}"))?;
            sockets.push((addr, socket));
        }
        let after = lab.received_datagrams(victim, addr.is_ipv4())?;
        ensure!(after > before, "no datagram to {addr} reached {}", victim.name());
    }
    Ok(sockets)
}

fn echo_once(socket: &UdpSocket) -> io::Result<()> {
    socket.send(b"hello")?;
    let mut answer = [0; 16];
    let length = socket.recv(&mut answer)?;
    if &answer[..length] == b"hello" { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// One direction of a connection, or a connection to an echo server: data that is written to one
/// end is read at the other end.
struct Pipe {
    name: String,
    write: TcpStream,
    read: TcpStream,
}

impl Pipe {
    fn new(name: &str, write: &TcpStream, read: &TcpStream) -> io::Result<Self> {
        read.set_read_timeout(Some(scaled(TIMEOUT)))?;
        Ok(Self { name: name.to_owned(), write: write.try_clone()?, read: read.try_clone()? })
    }

    fn check(&mut self, data: &[u8]) -> Result<()> {
        self.write.write_all(data).with_context(|| self.name.clone())?;
        let mut answer = vec![0; data.len()];
        self.read.read_exact(&mut answer).with_context(|| self.name.clone())?;
        ensure!(answer == data, "{}: {answer:?} instead of {data:?}", self.name);
        Ok(())
    }
}

fn echo_pipe(from: &str, addr: SocketAddr) -> io::Result<Pipe> {
    let stream = TcpStream::connect_timeout(&addr, scaled(TIMEOUT))?;
    Pipe::new(&format!("{from} to {addr}"), &stream, &stream)
}

/// From the client to every node, from a task to the VIPs, and both directions between a task and
/// the client.
fn open_pipes(lab: &Lab) -> Result<Vec<Pipe>> {
    let probe = task_of(lab, "probe")?;
    let published = lab.published(mesh::TCP_ECHO_PORT);
    let mut pipes: Vec<Pipe> =
        lab.within(CLIENT, || published.iter().map(|addr| echo_pipe("the client", *addr)).collect::<io::Result<_>>())??;
    for vip in vips(lab, &probe, "whoami")? {
        pipes.push(lab.within_task(&probe, || echo_pipe("a task", (vip, http::ECHO_PORT).into()))??);
    }
    for own in contract::addrs(CLIENT) {
        let server = lab.within(CLIENT, || TcpListener::bind((own, 0)))??;
        let addr = server.local_addr()?;
        let inside = lab.within_task(&probe, || TcpStream::connect_timeout(&addr, scaled(TIMEOUT)))??;
        let (outside, _) = server.accept()?;
        pipes.push(Pipe::new(&format!("a task to the client at {addr}"), &inside, &outside)?);
        pipes.push(Pipe::new(&format!("the client at {addr} to a task"), &outside, &inside)?);
    }
    Ok(pipes)
}

pub(crate) fn connections_survive_the_restart_of_every_daemon(lab: &Lab) -> Result<()> {
    let mut pipes = open_pipes(lab)?;
    let mut check_all = |data: &str| pipes.iter_mut().try_for_each(|pipe| pipe.check(data.as_bytes()));
    check_all("before")?;
    for node in lab.nodes() {
        lab.kill_daemon(&node)?;
    }
    check_all("without any daemon")?;
    for node in lab.nodes() {
        lab.start(&node)?;
        check_all("while they start")?;
    }
    lab.wait_ready("n1", lab.options().nodes)?;
    check_all("after")?;
    // Names resolve again.
    let probe = task_of(lab, "probe")?;
    eventually(Duration::from_secs(5), "whoami resolves in the probe", || {
        vips(lab, &probe, "whoami").map(|_| ()).map_err(|error| format!("{error:#}"))
    });
    Ok(())
}
