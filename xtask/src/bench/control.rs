//! `bench control`: the control plane. Two parts:
//!
//! - A /16 is created, filled with 10,000 tasks, emptied and removed: `control/examples/scale.rs`,
//!   the pure core without processes.
//! - In a lab of three nodes, a network with a service is created, used once and removed, many
//!   times. The time from the first command to the first packet between two tasks, to the first
//!   answers, and what the daemons have accumulated at the end.
//!
//! The first packet between two tasks is sent and answered by sockets of the benchmark in their
//! network namespaces, which exist before the tasks' programs start. So its time includes links,
//! maps and all steps of the cluster, and not the start of a container.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use weft_lab::{CLIENT, Lab, LabOptions, Runtime, Task, api, contract, http, netns};

use super::{Args, programs::Runner, steps};
use crate::{cargo, machine, setup, ui::Ui};

const BENCH: &str = "control";
/// The published port of the service.
const PORT: u16 = 8080;
/// The time in which a new service must answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause between two attempts to reach a new service. It bounds the error of the measurement.
const POLL: Duration = Duration::from_millis(1);
/// The UDP port of the first packet between two tasks.
const PACKET_PORT: u16 = 9;
/// How long a datagram is waited for before another one is sent.
const RESEND: Duration = Duration::from_millis(2);
/// The port of the service inside of its tasks.
const HTTP: u16 = 80;
/// The share of the rounds after which the daemons have allocated what they keep. What they use
/// then is compared with the end.
const WARM_UP_PERCENT: u64 = 10;

pub(super) fn run(args: &Args) -> Result<()> {
    let ui = Ui::new();
    setup::lab(&ui)?;
    let weft = match &args.weft {
        Some(weft) => weft.clone(),
        None => build(&ui)?,
    };
    if !machine::is_root() {
        return machine::become_root_with(&[("--weft", &weft)]);
    }
    let mut lines = ui.step("create, fill and remove a /16", |_| scale(&weft))?;
    let _lock = Lab::lock()?;
    let runner = Runner::new()?;
    let name = format!("create, use and remove a network {} times", args.count);
    let measured = ui.step(&name, |_| rounds(&weft, &runner, args.count));
    let cleaned = ui.step("remove the lab", |_| Lab::remove());
    lines.extend(measured?);
    cleaned?;
    steps::report(BENCH, &lines, args.json)
}

/// Builds weft and the program of the first part. Returns the path of weft.
fn build(ui: &Ui) -> Result<PathBuf> {
    let weft = cargo::build_release(ui, "weft", "bin", "weft")?;
    cargo::build_release(ui, "weft-control", "example", "scale")?;
    Ok(weft)
}

/// Runs the first part. Returns its lines.
fn scale(weft: &Path) -> Result<Vec<Value>> {
    let program = weft.with_file_name("examples").join("scale");
    let output = Command::new(&program).output().with_context(|| format!("cannot run {}", program.display()))?;
    ensure!(output.status.success(), "{}: {}", program.display(), String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("the output is not text")?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

/// What the daemon of a node uses.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Usage {
    descriptors: usize,
    memory_kib: u64,
    links: usize,
}

fn usage(lab: &Lab, node: &str) -> Result<Usage> {
    let process = PathBuf::from("/proc").join(lab.daemon_pid(node)?.to_string());
    let status = fs::read_to_string(process.join("status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    Ok(Usage {
        descriptors: fs::read_dir(process.join("fd"))?.count(),
        memory_kib: memory.context("the process has no VmRSS")?,
        links: lab.exec_ok(node, &["ip", "-oneline", "link", "show"])?.lines().count(),
    })
}

fn rounds(weft: &Path, runner: &Runner, count: u64) -> Result<Vec<Value>> {
    Lab::remove_previous()?;
    let options = LabOptions { nodes: 3, managers: 1, runtime: Runtime::Process, init: true, weft: weft.to_owned() };
    let lab = Lab::up(options)?;
    let mut times = BTreeMap::<&str, Vec<f64>>::new();
    let warm_up = (count * WARM_UP_PERCENT).div_ceil(100);
    let links: Vec<usize> = usages(&lab)?.iter().map(|(_, usage)| usage.links).collect();
    let mut before = None;
    for round in 0..count {
        runner.check()?;
        if round == warm_up {
            before = Some(settled_usages(&lab, runner, &links)?);
        }
        for (name, duration) in one_round(&lab, runner).with_context(|| format!("round {round}"))? {
            times.entry(name).or_default().push(duration.as_secs_f64() * 1e3);
        }
    }
    let mut lines: Vec<Value> =
        times.into_iter().filter_map(|(name, values)| steps::summary(BENCH, name, values)).collect();
    if let Some(before) = before {
        let after = settled_usages(&lab, runner, &links)?;
        for ((node, before), (_, after)) in before.into_iter().zip(after) {
            lines.push(json!({
                "bench": BENCH,
                "case": format!("{node} after {} rounds", count - warm_up),
                "descriptors": [before.descriptors, after.descriptors],
                "memory_kib": [before.memory_kib, after.memory_kib],
                "links": [before.links, after.links],
            }));
        }
    }
    lab.down()?;
    Ok(lines)
}

fn usages(lab: &Lab) -> Result<Vec<(String, Usage)>> {
    lab.nodes().map(|node| Ok((node.clone(), usage(lab, &node)?))).collect()
}

/// Waits until each node has as many links as given: the links of removed tasks are gone. Returns
/// what the daemons then use.
fn settled_usages(lab: &Lab, runner: &Runner, links: &[usize]) -> Result<Vec<(String, Usage)>> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        let usages = usages(lab)?;
        if usages.iter().map(|(_, usage)| usage.links).eq(links.iter().copied()) {
            return Ok(usages);
        }
        ensure!(Instant::now() < deadline, "links were left behind: {usages:?} instead of {links:?}");
        runner.pause(POLL)?;
    }
}

/// Creates a network and a service with a task on each node, uses them, and removes both. Returns
/// how long each part took.
fn one_round(lab: &Lab, runner: &Runner) -> Result<[(&'static str, Duration); 8]> {
    let reading = Instant::now();
    lab.weft_ok("n1", &["network", "ls"])?;
    let command = reading.elapsed();
    let start = Instant::now();
    lab.weft_ok("n1", &["network", "create", "app"])?;
    let network = start.elapsed();
    let port = format!("{PORT}:80");
    let mut service = vec!["service", "create", "--detach", "--quiet", "--name", "web", "--mode", "global"];
    service.extend(["--network", "app", "-p", &port, "weft/whoami"]);
    lab.weft_ok("n1", &service)?;
    let created = start.elapsed();
    let tasks = placed_tasks(lab, runner)?;
    let placed = start.elapsed();
    let [from, to, ..] = tasks.as_slice() else { bail!("two nodes must have tasks: {tasks:?}") };
    wait_for_packet(runner, from, to)?;
    let packet = start.elapsed();
    let addr: SocketAddr = lab.published(PORT).into_iter().next().context("a node has an address")?;
    wait_for_answer(runner, &contract::namespace_path(CLIENT), addr)?;
    let answered = start.elapsed();
    let vip = vip()?;
    wait_for_answer(runner, &contract::task_namespace(&from.node, &from.id), SocketAddr::new(vip, HTTP))?;
    let vip_answered = start.elapsed();
    let removing = Instant::now();
    lab.weft_ok("n1", &["service", "rm", "web"])?;
    lab.weft_ok("n1", &["network", "rm", "app"])?;
    Ok([
        ("a command that reads (network ls)", command),
        ("network create, with its command", network),
        ("from network create: service created", created),
        ("from network create: tasks placed", placed),
        ("from network create: first packet between two tasks", packet),
        ("from network create: first answer of the published port", answered),
        ("from network create: then first answer of the VIP", vip_answered),
        ("service rm and network rm", removing.elapsed()),
    ])
}

/// Waits until each node has a task with an address.
fn placed_tasks(lab: &Lab, runner: &Runner) -> Result<Vec<Task>> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        let tasks = lab.tasks("n1", "web")?;
        if tasks.iter().filter(|task| !task.addrs.is_empty()).count() == lab.nodes().count() {
            return Ok(tasks);
        }
        ensure!(Instant::now() < deadline, "not all nodes have a task within {ANSWER_TIMEOUT:?}: {tasks:?}");
        runner.pause(POLL)?;
    }
}

/// Waits until a datagram has gone from one task to another, and its answer back. Both sockets are
/// of this process: what the tasks run does not matter. An answer of the kernel, for a closed port,
/// would be no measure: the kernel limits these to one in a second for each destination
/// (`icmp_ratelimit`, Documentation/networking/ip-sysctl.rst).
fn wait_for_packet(runner: &Runner, from: &Task, to: &Task) -> Result<()> {
    let addrs = [from, to].map(|task| task.v4("app"));
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    let mut sockets = [None, None];
    loop {
        for (socket, (task, peer)) in sockets.iter_mut().zip([(from, addrs[1]), (to, addrs[0])]) {
            if socket.is_none() {
                *socket = socket_of(task, peer)?;
            }
        }
        if let [Some(from), Some(to)] = &sockets
            && round_trip(from, to).is_ok()
        {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no packet from {} to {} within {ANSWER_TIMEOUT:?}", from.node, to.node);
        runner.pause(POLL)?;
    }
}

/// A socket in the namespace of a task, connected with `peer`. `None` while the task has no
/// namespace, or no route to the peer.
///
/// The namespace gets the MAC address of the peer. If the kernel asked for it before the program
/// that answers is attached, it would repeat the question after 20 ms, and the measurement would
/// include this time. The program of a task does not meet it: it starts later.
fn socket_of(task: &Task, peer: IpAddr) -> Result<Option<UdpSocket>> {
    let connect = || {
        let socket = UdpSocket::bind(("0.0.0.0", PACKET_PORT))?;
        socket.connect((peer, PACKET_PORT))?;
        socket.set_read_timeout(Some(RESEND))?;
        let neighbour =
            ["neigh", "replace", &peer.to_string(), "lladdr", &mac(peer)?, "dev", "eth0", "nud", "permanent"];
        Ok((socket, Command::new("ip").args(neighbour).output()?))
    };
    let connected: io::Result<_> = match netns::within(&contract::task_namespace(&task.node, &task.id), connect) {
        Ok(connected) => connected,
        Err(_) => return Ok(None),
    };
    match connected {
        Ok((socket, output)) => {
            ensure!(output.status.success(), "ip neigh replace: {}", String::from_utf8_lossy(&output.stderr));
            Ok(Some(socket))
        }
        Err(error) if error.kind() == io::ErrorKind::NetworkUnreachable => Ok(None),
        Err(error) => Err(error).context("cannot open a socket in the namespace of a task"),
    }
}

/// The MAC address of a task, which follows from its IPv4 address as in Docker.
fn mac(task: IpAddr) -> io::Result<String> {
    match task {
        IpAddr::V4(v4) => Ok(v4.octets().iter().fold("02:42".to_owned(), |mac, octet| format!("{mac}:{octet:02x}"))),
        IpAddr::V6(_) => Err(io::Error::other("the task has no IPv4 address")),
    }
}

fn round_trip(from: &UdpSocket, to: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 16];
    from.send(b"first packet")?;
    to.recv(&mut buffer)?;
    to.send(b"its answer")?;
    from.recv(&mut buffer).map(drop)
}

/// The IPv4 address of the service.
fn vip() -> Result<IpAddr> {
    let service = api::get(&contract::socket("n1"), "/services/web")?;
    let vips = service["Endpoint"]["VirtualIPs"].as_array().context("the service has virtual addresses")?;
    let addrs = vips.iter().filter_map(|vip| vip["Addr"].as_str()?.split('/').next()?.parse().ok());
    let mut v4 = addrs.filter(IpAddr::is_ipv4);
    v4.next().with_context(|| format!("no IPv4 address in {vips:?}"))
}

fn wait_for_answer(runner: &Runner, namespace: &Path, addr: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + ANSWER_TIMEOUT;
    loop {
        match netns::within(namespace, || http::get(addr, "/"))? {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).context(format!("{addr} does not answer within {ANSWER_TIMEOUT:?}"));
            }
            Err(_) => runner.pause(POLL)?,
        }
    }
}
