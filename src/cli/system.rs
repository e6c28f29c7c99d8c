//! `weft info` and `weft version`: show this node, its cluster, and the versions.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::{
    client::{Client, list, number, text},
    format::human_size,
    output::print_line,
};

#[derive(Debug, Args)]
pub(super) struct Info {
    /// Output format: json prints the daemon's whole answer
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json"])]
    format: Option<String>,
}

pub(super) async fn info(client: &Client, options: Info) -> Result<()> {
    let info = client.get("/info").await?;
    match options.format {
        Some(_) => print_line(info),
        None => lines(&info).into_iter().try_for_each(print_line),
    }
}

fn lines(info: &Value) -> Vec<String> {
    let mut lines = vec![
        format!("Name: {}", text(info, "/Name")),
        format!("Server Version: {}", text(info, "/ServerVersion")),
        format!("Kernel Version: {}", text(info, "/KernelVersion")),
        format!("CPUs: {}", number(info, "/NCPU")),
        format!("Total Memory: {}", human_size(number(info, "/MemTotal"))),
        format!("Swarm: {}", text(info, "/Swarm/LocalNodeState")),
    ];
    if !text(info, "/Swarm/Error").is_empty() {
        lines.push(format!(" Error: {}", text(info, "/Swarm/Error")));
    }
    if text(info, "/Swarm/NodeID").is_empty() {
        return lines;
    }
    let is_manager = info.pointer("/Swarm/ControlAvailable").and_then(Value::as_bool) == Some(true);
    lines.push(format!(" NodeID: {}", text(info, "/Swarm/NodeID")));
    lines.push(format!(" Is Manager: {is_manager}"));
    if is_manager {
        lines.push(format!(" ClusterID: {}", text(info, "/Swarm/Cluster/ID")));
        lines.push(format!(" Managers: {}", number(info, "/Swarm/Managers")));
        lines.push(format!(" Nodes: {}", number(info, "/Swarm/Nodes")));
        if info.pointer("/Swarm/Cluster/RootRotationInProgress").and_then(Value::as_bool) == Some(true) {
            lines.push(" Root Rotation In Progress: true".to_owned());
        }
    }
    lines.push(format!(" Node Address: {}", text(info, "/Swarm/NodeAddr")));
    if !text(info, "/Swarm/Encryption/Path").is_empty() {
        lines.push(format!(" Encryption: {}", text(info, "/Swarm/Encryption/Path")));
        lines.extend(
            list(info, "/Swarm/Encryption/Keys").iter().map(|key| format!("  Key: {}", text(key, "/PublicKey"))),
        );
    }
    lines.push(" Manager Addresses:".to_owned());
    lines.extend(list(info, "/Swarm/RemoteManagers").iter().map(|manager| format!("  {}", text(manager, "/Addr"))));
    lines
}

/// Prints the client's version first, so that it is printed even if the daemon does not answer.
pub(super) async fn version(client: &Client) -> Result<()> {
    print_line(format_args!("Client: weft {}", env!("CARGO_PKG_VERSION")))?;
    let version = client.get("/version").await?;
    print_line(format_args!(
        "Server: weft {} (API {}, oldest {})",
        text(&version, "/Version"),
        text(&version, "/ApiVersion"),
        text(&version, "/MinAPIVersion")
    ))
}
