//! The servers of the peers: whoami and iperf3 in the task and in the raw server, HAProxy on its
//! first node.

use std::{path::Path, process::Command, thread};

use anyhow::Result;

use super::{FIRST_NODES, FirstNode, HTTP, OVERLAY_TASK, PUBLISHED, SECOND, SERVER, TASK, netns_path, task_name};
use crate::bench::{case::Label, programs::Server};

pub(super) fn start(weft: &Path) -> Result<Vec<Server>> {
    let mut servers = Vec::new();
    for host in [SERVER, TASK] {
        let mut whoami = Command::new(weft);
        whoami.arg("__whoami").env("WEFT_TASK_NAME", task_name(host)).env("WEFT_NODE", SECOND);
        servers.push(Server::start(&netns_path(host), whoami, "")?);
    }
    servers.push(start_iperf3(SERVER, FIRST_NODES[0].stream)?);
    for first in FIRST_NODES {
        servers.push(start_iperf3(TASK, first.stream)?);
    }
    let [_, _, first] = FIRST_NODES;
    let mut haproxy = Command::new("haproxy");
    haproxy.args(["-db", "-f", "/dev/stdin"]);
    servers.push(Server::start(&netns_path(&first.case.name()), haproxy, &haproxy_config(&first))?);
    Ok(servers)
}

/// Each case has its own iperf3 server, because a server accepts one client at a time and needs a
/// moment between two clients.
fn start_iperf3(host: &str, port: u16) -> Result<Server> {
    let mut command = Command::new("iperf3");
    command.args(["--server", "--port", &port.to_string()]);
    Server::start(&netns_path(host), command, "")
}

/// One thread for each core, no logs, and larger buffers than the default of 16 KiB: these make
/// streams faster and requests no slower. Splicing and a fixed source address changed nothing.
fn haproxy_config(first: &FirstNode) -> String {
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
