//! `weft network`: create, list, inspect and remove networks.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use hyper::StatusCode;
use serde_json::{Value, json};

use super::{
    client::{Client, DaemonError, filters, list, percent_encode, text},
    flags::Listing,
    for_each_name,
    format::Truncation,
    output::{print, print_line},
    table::Table,
    values::pairs,
};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create a network
    Create(Create),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show all details of networks
    Inspect(Inspect),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// Name of the network
    name: String,
    /// Driver of the network; weft has only overlay
    #[arg(short, long, value_name = "DRIVER", default_value = "overlay")]
    driver: String,
    /// Subnet as ADDRESS/PREFIX: one of IPv4, and with --ipv6 one of IPv6; by default the cluster
    /// chooses
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    subnet: Vec<String>,
    /// Address of the subnet's gateway; by default the first address of the subnet
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    gateway: Vec<String>,
    /// Part of the subnet that tasks get addresses from, as ADDRESS/PREFIX
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    ip_range: Vec<String>,
    /// Let the names on this network also resolve to IPv6 addresses
    #[arg(long)]
    ipv6: bool,
    /// Do not connect the network to the outside
    #[arg(long)]
    internal: bool,
    /// Create the network of services without --network; the cluster has one at a time, so remove
    /// the old one first
    #[arg(long)]
    ingress: bool,
    /// Label of the network; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// Option of the driver; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    opt: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    #[command(flatten)]
    listing: Listing,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Names or ids of networks
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// Also show the services on each network
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Debug, Args)]
pub(super) struct Rm {
    /// Names or ids of networks
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// Do not fail if a network does not exist
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn run(client: &Client, command: Command) -> Result<()> {
    match command {
        Command::Create(options) => create(client, &options).await,
        Command::Ls(options) => ls(client, &options).await,
        Command::Inspect(options) => inspect(client, &options).await,
        Command::Rm(options) => rm(client, &options).await,
    }
}

async fn inspect(client: &Client, options: &Inspect) -> Result<()> {
    let mut found = Vec::new();
    for network in &options.networks {
        found.push(client.get(&format!("/networks/{}?verbose={}", percent_encode(network), options.verbose)).await?);
    }
    print_line(serde_json::to_string_pretty(&found)?)
}

async fn rm(client: &Client, options: &Rm) -> Result<()> {
    let is_missing = |error: &anyhow::Error| {
        error.downcast_ref::<DaemonError>().is_some_and(|error| error.status == StatusCode::NOT_FOUND)
    };
    for_each_name(&options.networks, async |network| {
        match client.delete(&format!("/networks/{}", percent_encode(network))).await {
            Err(error) if options.force && is_missing(&error) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => print_line(network),
        }
    })
    .await
}

async fn create(client: &Client, options: &Create) -> Result<()> {
    let body = json!({
        "Name": options.name,
        "Driver": options.driver,
        "Scope": "swarm",
        "Internal": options.internal,
        "Ingress": options.ingress,
        "EnableIPv6": options.ipv6,
        "IPAM": { "Driver": "default", "Config": ipam(options)? },
        "Options": pairs(&options.opt),
        "Labels": pairs(&options.label),
    });
    let created = client.post("/networks/create", &body).await?;
    print_line(text(&created, "/Id"))
}

/// The subnets, each with the gateway and the address range of its family.
///
/// # Errors
///
/// If a gateway or a range has no subnet of its family.
fn ipam(options: &Create) -> Result<Vec<Value>> {
    let mut config: Vec<Value> = options.subnet.iter().map(|subnet| json!({ "Subnet": subnet })).collect();
    let flags = [("--gateway", "Gateway", &options.gateway), ("--ip-range", "IPRange", &options.ip_range)];
    for (flag, field, values) in flags {
        for value in values {
            let is_ipv6 = value.contains(':');
            let subnet =
                config.iter_mut().find(|c| text(c, "/Subnet").contains(':') == is_ipv6 && c.get(field).is_none());
            match subnet {
                Some(subnet) => subnet[field] = value.as_str().into(),
                None => bail!("{flag} {value} has no subnet: give its --subnet too"),
            }
        }
    }
    Ok(config)
}

async fn ls(client: &Client, options: &Ls) -> Result<()> {
    let Ls { listing, no_trunc } = options;
    let networks = client.get(&format!("/networks?{}", filters(&listing.filter)?)).await?;
    let id = |network: &Value| Truncation::new(*no_trunc).id(text(network, "/Id"));
    let mut networks: Vec<&Value> = list(&networks, "").iter().collect();
    networks.sort_by(|a, b| text(a, "/Name").cmp(text(b, "/Name")));
    if listing.quiet {
        return networks.iter().try_for_each(|network| print_line(id(network)));
    }
    let row = |network: &&Value| {
        vec![
            id(network),
            text(network, "/Name").to_owned(),
            text(network, "/Driver").to_owned(),
            text(network, "/Scope").to_owned(),
        ]
    };
    let table = Table {
        columns: vec![("NETWORK ID", "ID"), ("NAME", "Name"), ("DRIVER", "Driver"), ("SCOPE", "Scope")],
        rows: networks.iter().map(row).collect(),
    };
    print(table.render(listing.format.as_deref())?)
}
