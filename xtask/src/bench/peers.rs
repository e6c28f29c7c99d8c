//! The namespaces of everything that weft is compared with: a client and a server with one link between them, and
//! two-node paths over an underlay of the lab's shape, each with a first node of its own, so that no case pays for another.
//!
//! ```text
//! client ─┬─ server                                    raw
//!         └─ switch ─┬─ routed   ─┐
//!                    ├─ nftables ─┤ VXLAN              the first nodes
//!                    ├─ haproxy  ─┘
//!                    └─ n2: VXLAN ─ bridge ─ task      the second
//! ```
//!
//! It owns every namespace whose name starts with [`PREFIX`], and what runs inside.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{netns, process};

use super::{
    case::{Answer, Case, Target},
    programs::{HERE, Server, configure},
};

const PREFIX: &str = "wbench-";
const NETNS: &str = "/run/netns";

const CLIENT: &str = "client";
const SERVER: &str = "server";
const SWITCH: &str = "ul";
const SECOND: &str = "n2";
const TASK: &str = "task";

/// The raw pair's own network (RFC 5737, TEST-NET-2).
const RAW_CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const RAW_SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The underlay (TEST-NET-1), as the lab has it.
const UNDERLAY_CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const UNDERLAY_SECOND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The overlay on VXLAN.
const OVERLAY: &str = "10.88.0.0/24";
const OVERLAY_TASK: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 100);
const TASK_MAC: &str = "02:00:0a:58:00:64";
const VNI: u32 = 4242;
const VXLAN_PORT: u16 = 4789;
/// The underlay's 1500 without VXLAN's 50.
const OVERLAY_MTU: u32 = 1450;

/// The port that the first nodes publish for the task's HTTP server.
const PUBLISHED: u16 = 8080;
const HTTP: u16 = 80;
/// As many ports as a client may use: a connection more for each request would soon run out of the default's 28,232.
const ALL_PORTS: &str = "1024 65535";

/// A first node: the case that it serves, its place on both networks, and its own iperf3 server at the task.
#[derive(Debug, Clone, Copy)]
struct First {
    case: Case,
    underlay: Ipv4Addr,
    overlay: Ipv4Addr,
    mac: &'static str,
    stream: u16,
}

const FIRST: [First; 3] = [
    First {
        case: Case::Routed,
        underlay: Ipv4Addr::new(192, 0, 2, 11),
        overlay: Ipv4Addr::new(10, 88, 0, 11),
        mac: "02:00:0a:58:00:0b",
        stream: 5201,
    },
    First {
        case: Case::Nftables,
        underlay: Ipv4Addr::new(192, 0, 2, 12),
        overlay: Ipv4Addr::new(10, 88, 0, 12),
        mac: "02:00:0a:58:00:0c",
        stream: 5202,
    },
    First {
        case: Case::Haproxy,
        underlay: Ipv4Addr::new(192, 0, 2, 13),
        overlay: Ipv4Addr::new(10, 88, 0, 13),
        mac: "02:00:0a:58:00:0d",
        stream: 5203,
    },
];

/// The peers, up. Their servers end with this value; their namespaces stay until [`remove`].
#[derive(Debug)]
pub(super) struct Peers {
    _servers: Vec<Server>,
}

impl Peers {
    /// Makes all of it. `weft` serves HTTP for every case.
    pub(super) fn up(weft: &Path) -> Result<Self> {
        namespaces()?;
        raw_pair()?;
        underlay()?;
        second_node()?;
        FIRST.iter().try_for_each(first_node)?;
        Ok(Self { _servers: servers(weft)? })
    }

    /// How the client reaches each.
    pub(super) fn targets() -> Vec<Target> {
        let raw = Target {
            case: Case::Raw,
            client: netns_path(CLIENT),
            http: (RAW_SERVER, HTTP).into(),
            stream: (RAW_SERVER, FIRST[0].stream).into(),
            answers: Answer::Task(task_name(SERVER)),
        };
        let first = FIRST.iter().map(|first| {
            // Without translation the client asks the task itself.
            let (addr, port) =
                if first.case == Case::Routed { (OVERLAY_TASK, HTTP) } else { (first.underlay, PUBLISHED) };
            Target {
                case: first.case,
                client: netns_path(CLIENT),
                http: (addr, port).into(),
                stream: (addr, first.stream).into(),
                answers: Answer::Task(task_name(TASK)),
            }
        });
        [raw].into_iter().chain(first).collect()
    }
}

/// Removes every namespace of this benchmark and what runs in it, whoever left it.
pub(super) fn remove() -> Result<()> {
    for name in names() {
        let said = Command::new("ip").args(["netns", "pids", &name]).output().context("cannot run ip")?;
        for pid in String::from_utf8_lossy(&said.stdout).split_whitespace().filter_map(|pid| pid.parse().ok()) {
            process::kill(pid)?;
        }
        ip(None, &[format!("netns delete {name}")])?;
    }
    Ok(())
}

fn names() -> Vec<String> {
    let entries = fs::read_dir(NETNS).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(PREFIX)).collect()
}

fn netns_name(host: &str) -> String {
    format!("{PREFIX}{host}")
}

fn netns_path(host: &str) -> PathBuf {
    Path::new(NETNS).join(netns_name(host))
}

/// As long as the names that weft gives to tasks, so that answers have one length.
fn task_name(host: &str) -> String {
    format!("{host:0<34}")
}

fn namespaces() -> Result<()> {
    let hosts = [CLIENT, SERVER, SWITCH, SECOND, TASK].into_iter().map(str::to_owned);
    let hosts: Vec<String> = hosts.chain(FIRST.iter().map(|first| first.case.name())).collect();
    ip(None, &hosts.iter().map(|host| format!("netns add {}", netns_name(host))).collect::<Vec<_>>())?;
    for host in &hosts {
        ip(Some(host), &["link set lo up".to_owned()])?;
        widen_ports(&netns_path(host))?;
        for scope in ["all", "default"] {
            sysctl(&netns_path(host), &format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        }
    }
    Ok(())
}

fn raw_pair() -> Result<()> {
    ip(
        Some(CLIENT),
        &[
            format!("link add raw type veth peer name eth0 netns {}", netns_name(SERVER)),
            "link set raw up".to_owned(),
            format!("address add {RAW_CLIENT}/24 dev raw"),
        ],
    )?;
    ip(Some(SERVER), &["link set eth0 up".to_owned(), format!("address add {RAW_SERVER}/24 dev eth0")])
}

/// A bridge with a port for the client and for each node.
fn underlay() -> Result<()> {
    unfiltered(&netns_path(SWITCH))?;
    ip(Some(SWITCH), &["link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned()])?;
    let first = FIRST.iter().map(|first| (first.case.name(), first.underlay));
    let fixed = [(CLIENT.to_owned(), UNDERLAY_CLIENT), (SECOND.to_owned(), UNDERLAY_SECOND)];
    for (host, addr) in fixed.into_iter().chain(first) {
        ip(
            Some(SWITCH),
            &[
                format!("link add {host} type veth peer name eth0 netns {}", netns_name(&host)),
                format!("link set {host} master br0 up"),
            ],
        )?;
        ip(Some(&host), &["link set eth0 up".to_owned(), format!("address add {addr}/24 dev eth0")])?;
    }
    ip(Some(SWITCH), &["link set br0 up".to_owned()])
}

/// VXLAN without flooding or learning: every address is known beforehand, as overlay networks of containers have it.
fn vxlan() -> String {
    format!("link add vx0 mtu {OVERLAY_MTU} type vxlan id {VNI} dstport {VXLAN_PORT} dev eth0 nolearning")
}

fn second_node() -> Result<()> {
    unfiltered(&netns_path(SECOND))?;
    ip(
        Some(SECOND),
        &[
            vxlan(),
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
            format!("link add {TASK} mtu {OVERLAY_MTU} type veth peer name eth0 netns {}", netns_name(TASK)),
            "link set vx0 master br0 up".to_owned(),
            format!("link set {TASK} master br0 up"),
            "link set br0 up".to_owned(),
        ],
    )?;
    ip(
        Some(TASK),
        &[
            format!("link set eth0 mtu {OVERLAY_MTU} address {TASK_MAC} up"),
            format!("address add {OVERLAY_TASK}/24 dev eth0"),
            // The client's address, where nothing translates it.
            format!("route add default via {}", FIRST[0].overlay),
        ],
    )?;
    for First { underlay, overlay, mac, .. } in FIRST {
        bridge(
            SECOND,
            &[
                format!("fdb append {mac} dev vx0 dst {underlay} self permanent"),
                format!("fdb replace {mac} dev vx0 master static"),
            ],
        )?;
        ip(Some(TASK), &[format!("neighbour replace {overlay} lladdr {mac} dev eth0 nud permanent")])?;
    }
    Ok(())
}

fn first_node(first: &First) -> Result<()> {
    let First { case, underlay, overlay, mac, .. } = *first;
    let host = case.name();
    ip(
        Some(&host),
        &[
            vxlan(),
            format!("link set vx0 address {mac} up"),
            format!("address add {overlay}/24 dev vx0"),
            format!("neighbour replace {OVERLAY_TASK} lladdr {TASK_MAC} dev vx0 nud permanent"),
        ],
    )?;
    bridge(&host, &[format!("fdb append {TASK_MAC} dev vx0 dst {UNDERLAY_SECOND} self permanent")])?;
    match case {
        Case::Routed => {
            sysctl(&netns_path(&host), "ipv4/ip_forward", "1")?;
            ip(Some(CLIENT), &[format!("route add {OVERLAY} via {underlay}")])
        }
        Case::Nftables => {
            room_for_connections()?;
            sysctl(&netns_path(&host), "ipv4/ip_forward", "1")?;
            configure(&netns_path(&host), Command::new("nft").args(["-f", "-"]), &ruleset(first))
        }
        // A proxy uses a port at both ends of each connection. Reusing those in TIME_WAIT is what its manual asks for.
        _ => sysctl(&netns_path(&host), "ipv4/tcp_tw_reuse", "1"),
    }
}

/// A client's connections that ended are remembered for two minutes: with less room than this, new ones would be dropped.
fn room_for_connections() -> Result<()> {
    const NEEDED: u64 = 1 << 17;
    let path = Path::new("/proc/sys/net/netfilter/nf_conntrack_max");
    // Absent until something needs it.
    let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
    let limit: u64 = text.trim().parse().context("nf_conntrack_max is no number")?;
    ensure!(
        limit >= NEEDED,
        "net.netfilter.nf_conntrack_max is {limit}, which would slow nftables down: raise it to {NEEDED} or more, or name \
         the cases to measure by --case"
    );
    Ok(())
}

/// Two rules: what a published port behind masquerade takes.
fn ruleset(first: &First) -> String {
    let First { underlay, stream, .. } = first;
    format!(
        "table ip bench {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                ip daddr {underlay} dnat to tcp dport map {{
                    {PUBLISHED} : {OVERLAY_TASK} . {HTTP}, {stream} : {OVERLAY_TASK} . {stream}
                }}
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat;
                oifname vx0 masquerade
            }}
        }}\n"
    )
}

fn servers(weft: &Path) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for host in [SERVER, TASK] {
        let mut whoami = Command::new(weft);
        whoami.arg("__whoami").env("WEFT_TASK_NAME", task_name(host)).env("WEFT_NODE", SECOND);
        servers.push(Server::start(&netns_path(host), whoami, "")?);
    }
    servers.push(iperf3(SERVER, FIRST[0].stream)?);
    for first in FIRST {
        servers.push(iperf3(TASK, first.stream)?);
    }
    let [_, _, first] = FIRST;
    let mut haproxy = Command::new("haproxy");
    haproxy.args(["-db", "-f", "/dev/stdin"]);
    servers.push(Server::start(&netns_path(&first.case.name()), haproxy, &proxy_config(&first))?);
    Ok(servers)
}

/// One server for each case: it serves one client at a time, and takes a moment between two.
fn iperf3(host: &str, port: u16) -> Result<Server> {
    let mut command = Command::new("iperf3");
    command.args(["--server", "--port", &port.to_string()]);
    Server::start(&netns_path(host), command, "")
}

/// A thread for each core, no logs, and buffers larger than the default's 16 KiB, which make streams faster and requests no
/// slower. Splicing and a fixed source address were tried, and changed nothing.
fn proxy_config(first: &First) -> String {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let stream = first.stream;
    format!(
        "global
    nbthread {cores}
    maxconn 4000
    tune.bufsize 65536
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
listen http
    bind :{PUBLISHED}
    server task {OVERLAY_TASK}:{HTTP}
listen stream
    bind :{stream}
    server task {OVERLAY_TASK}:{stream}
"
    )
}

/// Runs lines of `ip` on a host, or on this machine.
fn ip(host: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(host) = host {
        command.args(["-n", &netns_name(host)]);
    }
    // Where it is run does not matter: `-n` moves it.
    configure(Path::new(HERE), command.args(["-batch", "-"]), &(lines.join("\n") + "\n"))
}

fn bridge(host: &str, lines: &[String]) -> Result<()> {
    let mut command = Command::new("bridge");
    configure(&netns_path(host), command.args(["-batch", "-"]), &(lines.join("\n") + "\n"))
}

/// Lets a client use as many ports as there are.
pub(super) fn widen_ports(netns: &Path) -> Result<()> {
    sysctl(netns, "ipv4/ip_local_port_range", ALL_PORTS)
}

/// Keeps netfilter away from frames that bridges of this namespace forward, where the kernel would show them to it.
pub(super) fn unfiltered(netns: &Path) -> Result<()> {
    const KEYS: [&str; 3] = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"];
    let present = |key: &&str| Path::new("/proc/sys/net/bridge").join(key).exists();
    KEYS.iter().filter(|key| present(key)).try_for_each(|key| sysctl(netns, &format!("bridge/{key}"), "0"))
}

/// Writes a setting of a network namespace.
fn sysctl(netns: &Path, key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(key);
    netns::within(netns, || fs::write(&path, value))?.with_context(|| format!("cannot write {}", path.display()))
}
