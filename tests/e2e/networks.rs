//! Options of networks and of the cluster's addresses: several subnets, networks without IPv4,
//! MTU, configuration-only networks, address pools, and the address and port of the tunnels. And
//! networks that come and go leave nothing behind.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use weft_ebpf_common::{Addr, Backend, Endpoint, Forward, NetAddr, Nets, PortKey, PortTarget, Service, SlotKey};
use weft_lab::{
    CLIENT, Lab, Role, Task, api, contract,
    dns::{RecordType, ResponseCode},
    eventually, http,
};

use crate::{
    fixtures::{
        FOLLOW_TIMEOUT, HTTP, WHOAMI, all_answer, all_answer_within, network, only, probe, probe_on, resolves_to,
        rounds_or, service, v6_of, vip,
    },
    harness::{Group, Shape, tests},
    maps,
};

/// The UDP port of the tunnels, as chosen at the initialisation.
const TUNNEL_PORT: u16 = 7789;
/// An MTU in bytes that fits through the tunnel.
const SMALL_MTU: &str = "1300";
/// What fits through a tunnel over IPv6 whose links have an MTU of 1500 bytes: less 70 bytes of
/// headers (RFC 7348, section 5).
const PATH_MTU: &str = "1430";
/// The pools of the cluster: this one has room for the ingress network and two others.
const POOL: &str = "10.60.0.0/22";
const MASK: &str = "24";
/// How often a network is created, used and removed, unless the environment says otherwise.
const ROUNDS: usize = 10;
/// Descriptors that a daemon may have opened more at the end than at the beginning: connections
/// that are being closed.
const MORE_DESCRIPTORS: usize = 8;
/// The time in which all tasks must answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The time in which links and processes of a removed service must be gone.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(20);
/// A connection that must be refused is refused within this time, and is not dropped.
const REFUSE_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) fn group() -> Group {
    Group {
        name: "networks",
        shape: Shape { init: false, ..Shape::default() },
        setup,
        tests: tests![
            tunnels_use_the_chosen_address_and_port,
            task_links_have_the_chosen_mtu,
            tasks_of_several_subnets_reach_each_other,
            a_network_without_ipv4_has_ipv6_only,
            networks_take_their_options_from_a_configuration,
            the_address_pools_change_later,
            networks_that_come_and_go_leave_nothing_behind,
        ],
    }
}

/// Forms a cluster whose control traffic uses IPv4 and whose tunnels use IPv6.
fn setup(lab: &Lab) -> Result<()> {
    let weft = |node: &str, mut arguments: Vec<String>, flags: &[&str]| {
        arguments.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        lab.weft_ok(node, &arguments)
    };
    let addr = |node: &str| contract::v6(node).to_string();
    let port = TUNNEL_PORT.to_string();
    let flags = [
        ["--data-path-addr", &addr("n1")],
        ["--data-path-port", &port],
        ["--default-addr-pool", POOL],
        ["--default-addr-pool-mask-length", MASK],
    ];
    weft("n1", Lab::init_arguments(), &flags.concat())?;
    let token = lab.join_token("n1", Role::Worker)?;
    for node in ["n2", "n3"] {
        weft(node, Lab::join_arguments(node, &token), &["--data-path-addr", &addr(node)])?;
    }
    lab.wait_ready("n1", 3)
}

fn remove(lab: &Lab, services: &[&str], networks: &[&str]) -> Result<()> {
    for service in services {
        lab.weft_ok("n1", &["service", "rm", service])?;
    }
    for network in networks {
        lab.weft_ok("n1", &["network", "rm", network])?;
    }
    Ok(())
}

fn tunnels_use_the_chosen_address_and_port(lab: &Lab) -> Result<()> {
    let tasks = service(lab, "web", 3, &["-p", "8080:80"], &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(8080), &tasks, ANSWER_TIMEOUT);
    for node in lab.nodes() {
        let link = lab.exec_ok(&node, &["ip", "-details", "link", "show", "weft-tun"])?;
        ensure!(link.contains(&format!("dstport {TUNNEL_PORT} ")), "{node}: {link}");
    }
    // The MTU is that of a tunnel over IPv6.
    for task in &tasks {
        ensure!(link_mtu(lab, task, "eth0")? == PATH_MTU, "{}", task.id);
    }
    let refused = lab.weft_refused("n1", &["service", "update", "--publish-add", "7789:7/udp", "web"])?;
    ensure!(refused.contains("port 7789/udp is reserved for the cluster itself"), "{refused}");
    remove(lab, &["web"], &[])
}

fn link_mtu(lab: &Lab, task: &Task, link: &str) -> Result<String> {
    let text = lab.exec_in_task_netns_ok(task, &["ip", "-oneline", "link", "show", link])?;
    let mtu = text.split_whitespace().skip_while(|word| *word != "mtu").nth(1);
    mtu.map(str::to_owned).with_context(|| format!("no MTU in {text:?}"))
}

fn task_links_have_the_chosen_mtu(lab: &Lab) -> Result<()> {
    let option = |mtu: &str| format!("com.docker.network.driver.mtu={mtu}");
    network(lab, "small", &["--opt", &option(SMALL_MTU), "--subnet", "10.71.0.0/24"])?;
    network(lab, "large", &["--opt", &option("9000"), "--subnet", "10.72.0.0/24"])?;
    let task = only(service(lab, "web", 1, &["--network", "small", "--network", "large"], &[WHOAMI])?)?;
    let mtus = (link_mtu(lab, &task, "eth0")?, link_mtu(lab, &task, "eth1")?);
    ensure!(mtus == (SMALL_MTU.to_owned(), PATH_MTU.to_owned()), "{mtus:?}");
    let log = fs::read_to_string(contract::log(&task.node))?;
    ensure!(log.contains("MTU of the network does not fit through the tunnel"), "the node must say why");
    remove(lab, &["web"], &["small", "large"])
}

fn tasks_of_several_subnets_reach_each_other(lab: &Lab) -> Result<()> {
    let subnets = ["10.81.0.0/29", "10.82.0.0/24", "fd00:81::/125", "fd00:82::/64"];
    let flags: Vec<&str> = subnets.iter().flat_map(|subnet| ["--subnet", *subnet]).chain(["--ipv6"]).collect();
    network(lab, "wide", &flags)?;
    network(lab, "other", &["--subnet", "10.83.0.0/24"])?;
    // The first task of the network, on eth0. The other probe has the network on eth1.
    let first = probe(lab, "first-probe", &["wide"])?;
    let second = probe_on(lab, &first.node, "second-probe", &["other", "wide"])?;
    let tasks = service(lab, "web", 6, &["--network", "wide"], &[WHOAMI])?;
    let subnet_of = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => u64::from(addr.octets()[1]),
        IpAddr::V6(addr) => u64::from(addr.segments()[1]),
    };
    let used = |addr: fn(&Task) -> IpAddr| tasks.iter().map(|task| subnet_of(addr(task))).collect::<BTreeSet<_>>();
    ensure!(used(|task| task.v4("wide")).contains(&82), "the first IPv4 subnet has room for five addresses: {tasks:?}");
    ensure!(used(|task| task.v6("wide")).contains(&0x82), "the same for IPv6: {tasks:?}");
    ensure!(subnet_of(first.v4("wide")) == 81, "{first:?}");
    let addrs = |task: &Task| [task.v4("wide"), task.v6("wide")].map(|addr| SocketAddr::new(addr, HTTP));
    for task in &tasks {
        for from in [&first, &second] {
            all_answer_within(
                &lab.task_namespace(from)?,
                &from.service,
                &addrs(task),
                std::slice::from_ref(task),
                ANSWER_TIMEOUT,
            );
        }
    }
    let vip = vip(lab, &second, "web")?;
    all_answer_within(&lab.task_namespace(&second)?, "second-probe", &[(vip, HTTP).into()], &tasks, ANSWER_TIMEOUT);
    // Addresses of either subnet that no task has are refused, and packets to them do not leave.
    for free in [IpAddr::from([10, 82, 0, 200]), "fd00:82::200".parse().expect("an address")] {
        for from in [&first, &second] {
            check_refused(lab, from, SocketAddr::new(free, HTTP))?;
        }
    }
    // A gateway of each subnet answers.
    for gateway in ["10.81.0.1", "10.82.0.1", "fd00:82::1"] {
        lab.task_exec_ok(&second, &["ping", "-c", "1", "-W", "2", gateway])?;
    }
    remove(lab, &["web", "first-probe", "second-probe"], &["wide", "other"])
}

/// The connection must be refused at once, with a reset or an ICMP error.
fn check_refused(lab: &Lab, from: &Task, to: SocketAddr) -> Result<()> {
    match lab.within_task(from, || http::connect(to, REFUSE_TIMEOUT))? {
        Ok(_) => bail!("{} reached {to}", from.service),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => bail!("{to} dropped the connection"),
        Err(_) => Ok(()),
    }
}

fn a_network_without_ipv4_has_ipv6_only(lab: &Lab) -> Result<()> {
    network(lab, "six", &["--ipv4=false", "--ipv6"])?;
    let tasks = service(lab, "web", 3, &["--network", "six", "-p", "8090:80"], &[WHOAMI])?;
    let probe = probe(lab, "six-probe", &["six"])?;
    for task in &tasks {
        let addresses = lab.exec_in_task_netns_ok(task, &["ip", "-4", "-oneline", "address", "show", "dev", "eth0"])?;
        ensure!(addresses.is_empty(), "{addresses}");
    }
    let expected = v6_of(&tasks, "six");
    resolves_to(lab, &probe, "tasks.web", &expected, FOLLOW_TIMEOUT);
    let none = lab.lookup(&probe, "web", RecordType::A)?;
    ensure!(none.code == ResponseCode::NoError && none.records.is_empty(), "no IPv4 address: {none:?}");
    let vip = lab.lookup(&probe, "web", RecordType::AAAA)?.addrs();
    let inside: Vec<_> = vip.into_iter().chain(expected).map(|addr| SocketAddr::new(addr, HTTP)).collect();
    let netns = lab.task_namespace(&probe)?;
    all_answer_within(&netns, "six-probe", &inside[..1], &tasks, ANSWER_TIMEOUT);
    for addr in &inside[1..] {
        lab.within_task(&probe, || http::get(*addr, "/"))?.with_context(|| format!("six-probe must reach {addr}"))?;
    }
    let (v4, v6): (Vec<_>, Vec<_>) = lab.published(8090).into_iter().partition(SocketAddr::is_ipv4);
    all_answer(CLIENT, &v6, &tasks, ANSWER_TIMEOUT);
    for addr in v4 {
        let refused = lab.within(CLIENT, || http::connect(addr, REFUSE_TIMEOUT))?;
        let kind = refused.err().map(|error| error.kind());
        ensure!(kind == Some(io::ErrorKind::ConnectionRefused), "{addr}: {kind:?}");
    }
    remove(lab, &["web", "six-probe"], &["six"])
}

fn networks_take_their_options_from_a_configuration(lab: &Lab) -> Result<()> {
    network(lab, "options", &["--config-only", "--subnet", "10.84.0.0/24", "--aux-address", "router=10.84.0.2"])?;
    network(lab, "copy", &["--config-from", "options"])?;
    let task = only(service(lab, "web", 1, &["--network", "copy", "--endpoint-mode", "dnsrr"], &[WHOAMI])?)?;
    // The gateway has .1, and .2 is reserved.
    ensure!(task.v4("copy") == IpAddr::from([10, 84, 0, 3]), "{task:?}");
    let shown = api::get(&contract::socket("n1"), "/networks/copy")?;
    ensure!(shown["ConfigFrom"]["Network"] == "options", "{shown}");
    let refused = lab.weft_refused("n1", &["network", "rm", "options"])?;
    ensure!(refused.contains("in use by network copy"), "{refused}");
    remove(lab, &["web"], &["copy", "options"])
}

fn the_address_pools_change_later(lab: &Lab) -> Result<()> {
    for name in ["a", "b", "c"] {
        network(lab, name, &[])?;
    }
    let refused = lab.weft_refused("n1", &["network", "create", "d"])?;
    ensure!(refused.contains(&format!("no subnet left in the address pool {POOL}")), "{refused}");
    // The lab's underlay is 192.0.2.0/24.
    let update = |pool| ["swarm", "update", "--default-addr-pool", POOL, "--default-addr-pool", pool];
    let refused = lab.weft_refused("n1", &update("192.0.2.0/24"))?;
    ensure!(refused.contains("overlaps with route 192.0.2.0/24 on node n"), "{refused}");
    lab.weft_ok("n1", &update("10.61.0.0/24"))?;
    network(lab, "d", &[])?;
    let shown = api::get(&contract::socket("n1"), "/networks/d")?;
    ensure!(shown["IPAM"]["Config"][0]["Subnet"] == "10.61.0.0/24", "{shown}");
    remove(lab, &[], &["a", "b", "c", "d"])
}

/// The names of the links of a node.
fn links(lab: &Lab, node: &str) -> Result<BTreeSet<String>> {
    let shown = lab.exec_ok(node, &["ip", "-oneline", "link", "show"])?;
    Ok(shown.lines().filter_map(|line| Some(line.split(": ").nth(1)?.to_owned())).collect())
}

/// The directories of the tasks that a node has.
fn task_dirs(node: &str) -> io::Result<Vec<String>> {
    let entries = fs::read_dir(contract::run_dir(node).join("tasks"))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// What a node keeps of its networks and services.
#[derive(Debug, PartialEq, Eq)]
struct Kept {
    links: BTreeSet<String>,
    /// Directories of tasks.
    tasks: Vec<String>,
    /// The number of entries of maps that are filled from the plan.
    entries: BTreeMap<&'static str, usize>,
}

fn kept(lab: &Lab, node: &str) -> Result<Kept> {
    const ADDR: usize = size_of::<NetAddr>();
    let entries = [
        ("OWN", entries::<ADDR, 4>(node, "OWN")?),
        ("PORTS", entries::<{ size_of::<PortKey>() }, { size_of::<PortTarget>() }>(node, "PORTS")?),
        ("VIPS", entries::<ADDR, 4>(node, "VIPS")?),
        ("SERVICES", entries::<4, { size_of::<Service>() }>(node, "SERVICES")?),
        ("SLOTS", entries::<{ size_of::<SlotKey>() }, 8>(node, "SLOTS")?),
        ("BACKENDS", entries::<8, { size_of::<Backend>() }>(node, "BACKENDS")?),
        ("ENDPOINTS", entries::<4, { size_of::<Endpoint>() }>(node, "ENDPOINTS")?),
        ("FORWARD", entries::<ADDR, { size_of::<Forward>() }>(node, "FORWARD")?),
        ("NETNS", entries::<8, { size_of::<Nets>() }>(node, "NETNS")?),
        ("RESOLVERS", entries::<8, { size_of::<Addr>() }>(node, "RESOLVERS")?),
    ];
    Ok(Kept { links: links(lab, node)?, tasks: task_dirs(node)?, entries: entries.into() })
}

/// The number of entries of a map whose keys and values have these sizes in octets.
fn entries<const KEY: usize, const VALUE: usize>(node: &str, name: &str) -> Result<usize> {
    let map = maps::open::<KEY, VALUE>(node, name)?;
    let mut count = 0;
    for key in map.keys() {
        key?;
        count += 1;
    }
    Ok(count)
}

/// The open descriptors of a node's daemon, and its memory in KiB (proc_pid_status(5), VmRSS).
fn usage(lab: &Lab, node: &str) -> Result<(usize, u64)> {
    let process = Path::new("/proc").join(lab.daemon_pid(node)?.to_string());
    let status = fs::read_to_string(process.join("status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok());
    Ok((fs::read_dir(process.join("fd"))?.count(), memory.context("the process has no VmRSS")?))
}

fn networks_that_come_and_go_leave_nothing_behind(lab: &Lab) -> Result<()> {
    let nodes: Vec<String> = lab.nodes().collect();
    let rounds = rounds_or(ROUNDS)?;
    let before: Vec<_> = nodes.iter().map(|node| kept(lab, node)).collect::<Result<_>>()?;
    // In the first rounds the daemons allocate what they keep.
    let mut used = Vec::new();
    for round in 0..rounds {
        if round == rounds / 10 {
            used = nodes.iter().map(|node| usage(lab, node)).collect::<Result<_>>()?;
        }
        network(lab, "brief", &["--ipv6"])?;
        let tasks = service(lab, "web", 3, &["--network", "brief", "-p", "8095:80"], &[WHOAMI])?;
        all_answer(CLIENT, &lab.published(8095), &tasks, ANSWER_TIMEOUT);
        remove(lab, &["web"], &["brief"]).with_context(|| format!("round {round}"))?;
    }
    let listed = api::get(&contract::socket("n1"), "/networks")?;
    ensure!(listed.as_array().is_some_and(|networks| networks.len() == 1), "only ingress is left: {listed}");
    for ((node, before), (descriptors, memory)) in nodes.iter().zip(before).zip(used) {
        eventually(REMOVE_TIMEOUT, &format!("{node} keeps no link, task or map entry"), || {
            let now = kept(lab, node).map_err(|error| format!("{error:#}"))?;
            if now == before { Ok(()) } else { Err(format!("{now:?} instead of {before:?}")) }
        });
        let (now, memory_now) = usage(lab, node)?;
        println!(
            "{node}, {rounds} rounds: descriptors {descriptors} -> {now}, KiB {memory} -> {memory_now}, {before:?}"
        );
        ensure!(now <= descriptors + MORE_DESCRIPTORS, "{node} had {descriptors} descriptors, and has {now}");
    }
    // The node refuses the port at once, because nothing of the service is left in its maps.
    for addr in lab.published(8095) {
        let refused = lab.within(CLIENT, || http::connect(addr, REFUSE_TIMEOUT))?;
        let kind = refused.err().map(|error| error.kind());
        ensure!(kind == Some(io::ErrorKind::ConnectionRefused), "{addr}: {kind:?}");
    }
    Ok(())
}
