//! `weft info` and `weft version`.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::client::{Client, list, number, text};

#[derive(Debug, Args)]
pub(super) struct Info {
    /// `json` for everything
    #[arg(short, long, value_parser = ["json"])]
    format: Option<String>,
}

pub(super) async fn info(client: &Client, options: Info) -> Result<()> {
    let info = client.get("/info").await?;
    if options.format.is_some() {
        println!("{info}");
        return Ok(());
    }
    println!("Name: {}", text(&info, "/Name"));
    println!("Server Version: {}", text(&info, "/ServerVersion"));
    println!("Kernel Version: {}", text(&info, "/KernelVersion"));
    println!("CPUs: {}", number(&info, "/NCPU"));
    println!("Total Memory: {}", super::output::size(number(&info, "/MemTotal")));
    println!("Swarm: {}", text(&info, "/Swarm/LocalNodeState"));
    if !text(&info, "/Swarm/Error").is_empty() {
        println!(" Error: {}", text(&info, "/Swarm/Error"));
    }
    if text(&info, "/Swarm/NodeID").is_empty() {
        return Ok(());
    }
    let manager = info.pointer("/Swarm/ControlAvailable").and_then(Value::as_bool) == Some(true);
    println!(" NodeID: {}", text(&info, "/Swarm/NodeID"));
    println!(" Is Manager: {manager}");
    if manager {
        println!(" ClusterID: {}", text(&info, "/Swarm/Cluster/ID"));
        println!(" Managers: {}", number(&info, "/Swarm/Managers"));
        println!(" Nodes: {}", number(&info, "/Swarm/Nodes"));
    }
    println!(" Node Address: {}", text(&info, "/Swarm/NodeAddr"));
    println!(" Manager Addresses:");
    list(&info, "/Swarm/RemoteManagers").iter().for_each(|manager| println!("  {}", text(manager, "/Addr")));
    Ok(())
}

pub(super) async fn version(client: &Client) -> Result<()> {
    println!("Client: weft {}", env!("CARGO_PKG_VERSION"));
    let version = client.get("/version").await?;
    println!(
        "Server: weft {} (API {}, oldest {})",
        text(&version, "/Version"),
        text(&version, "/ApiVersion"),
        text(&version, "/MinAPIVersion")
    );
    Ok(())
}
