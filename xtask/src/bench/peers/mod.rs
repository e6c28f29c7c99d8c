//! Everything that weft is compared with: a client and a server with one link between them, and
//! paths over two nodes. Each path has its own first node, so that a case cannot slow down another
//! case.
//!
//! ```text
//! client ─┬─ server                                    raw
//!         └─ switch ─┬─ routed   ─┐
//!                    ├─ nftables ─┤ VXLAN              the first nodes
//!                    ├─ haproxy  ─┘
//!                    └─ n2: VXLAN ─ bridge ─ task      the second node
//! ```
//!
//! It owns all namespaces whose names start with [`PREFIX`], and the processes inside of them.

pub(super) mod network;
mod servers;

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use weft_lab::process;

use super::{
    case::{Case, ExpectedServer, Target},
    programs,
};

const PREFIX: &str = "wbench-";
const NETNS: &str = "/run/netns";

const CLIENT: &str = "client";
const SERVER: &str = "server";
const SWITCH: &str = "ul";
const SECOND: &str = "n2";
const TASK: &str = "task";

/// The network of the raw pair (RFC 5737, TEST-NET-2).
const RAW_CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const RAW_SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
/// The task's address on the overlay.
const OVERLAY_TASK: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 100);

/// The port that the first nodes publish for the task's HTTP server.
const PUBLISHED: u16 = 8080;
const HTTP: u16 = 80;

/// A first node: its case, its addresses on both networks, and the port of its own iperf3 server in
/// the task.
#[derive(Debug, Clone, Copy)]
struct FirstNode {
    case: Case,
    underlay: Ipv4Addr,
    overlay: Ipv4Addr,
    mac: &'static str,
    stream: u16,
}

const FIRST_NODES: [FirstNode; 3] = [
    FirstNode {
        case: Case::Routed,
        underlay: Ipv4Addr::new(192, 0, 2, 11),
        overlay: Ipv4Addr::new(10, 88, 0, 11),
        mac: "02:00:0a:58:00:0b",
        stream: 5201,
    },
    FirstNode {
        case: Case::Nftables,
        underlay: Ipv4Addr::new(192, 0, 2, 12),
        overlay: Ipv4Addr::new(10, 88, 0, 12),
        mac: "02:00:0a:58:00:0c",
        stream: 5202,
    },
    FirstNode {
        case: Case::Haproxy,
        underlay: Ipv4Addr::new(192, 0, 2, 13),
        overlay: Ipv4Addr::new(10, 88, 0, 13),
        mac: "02:00:0a:58:00:0d",
        stream: 5203,
    },
];

/// The running servers of all cases. Dropping the value ends them; the namespaces stay until
/// [`remove`].
#[derive(Debug)]
pub(super) struct Peers {
    _servers: Vec<programs::Server>,
}

impl Peers {
    /// Creates everything. `weft` is the HTTP server of every case.
    pub(super) fn up(weft: &Path) -> Result<Self> {
        network::create()?;
        Ok(Self { _servers: servers::start(weft)? })
    }

    /// How the client reaches each case.
    pub(super) fn targets() -> Vec<Target<Case>> {
        let raw = Target {
            case: Case::Raw,
            client: netns_path(CLIENT),
            http: (RAW_SERVER, HTTP).into(),
            stream: (RAW_SERVER, FIRST_NODES[0].stream).into(),
            server: ExpectedServer::Task(task_name(SERVER)),
        };
        let first = FIRST_NODES.iter().map(|first| {
            // Without translation the client connects to the task's own address.
            let (addr, port) =
                if first.case == Case::Routed { (OVERLAY_TASK, HTTP) } else { (first.underlay, PUBLISHED) };
            Target {
                case: first.case,
                client: netns_path(CLIENT),
                http: (addr, port).into(),
                stream: (addr, first.stream).into(),
                server: ExpectedServer::Task(task_name(TASK)),
            }
        });
        [raw].into_iter().chain(first).collect()
    }
}

/// Removes every namespace of this benchmark and the processes inside, including those that an
/// earlier run left.
pub(super) fn remove() -> Result<()> {
    for name in netns_names() {
        let output = Command::new("ip").args(["netns", "pids", &name]).output().context("cannot run ip")?;
        for pid in String::from_utf8_lossy(&output.stdout).split_whitespace().filter_map(|pid| pid.parse().ok()) {
            process::kill(pid)?;
        }
        network::ip(None, &[format!("netns delete {name}")])?;
    }
    Ok(())
}

fn netns_names() -> Vec<String> {
    let entries = fs::read_dir(NETNS).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(PREFIX)).collect()
}

pub(super) fn netns_name(host: &str) -> String {
    format!("{PREFIX}{host}")
}

pub(super) fn netns_path(host: &str) -> PathBuf {
    Path::new(NETNS).join(netns_name(host))
}

/// A name as long as those that weft gives to tasks, so that all answers have the same length.
pub(super) fn task_name(host: &str) -> String {
    format!("{host:0<34}")
}
