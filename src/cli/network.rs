//! `weft network`: create, list, look at, remove.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use hyper::StatusCode;
use serde_json::{Value, json};

use super::{
    client::{Client, DaemonError, filters, list, percent_encode, text},
    each,
    flags::Listing,
    output::{Cut, Table, out, out_line},
    values::pairs,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Create a network
    Create(Create),
    /// List networks
    #[command(visible_alias = "list")]
    Ls(Ls),
    /// Show networks whole
    Inspect(Inspect),
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm(Rm),
}

#[derive(Debug, Args)]
pub(super) struct Create {
    /// The network's name
    name: String,
    /// Only overlay networks span the cluster
    #[arg(short, long, value_name = "DRIVER", default_value = "overlay")]
    driver: String,
    /// Its subnet as ADDRESS/PREFIX: one IPv4, and with --ipv6 one IPv6; chosen by the cluster where absent
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    subnet: Vec<String>,
    /// Address of the subnet's router: its first address where absent
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    gateway: Vec<String>,
    /// Part of the subnet that addresses are given out from, as ADDRESS/PREFIX
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    ip_range: Vec<String>,
    /// Names on this network have IPv6 addresses too
    #[arg(long)]
    ipv6: bool,
    /// No way to the outside
    #[arg(long)]
    internal: bool,
    /// A label of the network; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// An option of the driver; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE")]
    opt: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    #[command(flatten)]
    listing: Listing,
    /// Show ids whole
    #[arg(long)]
    no_trunc: bool,
}

#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// Names or ids of networks
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// With the services on them
    #[arg(short, long)]
    verbose: bool,
}

#[derive(Debug, Args)]
pub(super) struct Rm {
    /// Names or ids of networks
    #[arg(required = true, value_name = "NETWORK")]
    networks: Vec<String>,
    /// A network that is not there is no error
    #[arg(short, long)]
    force: bool,
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create(options) => create(client, &options).await,
        Verb::Ls(options) => ls(client, &options).await,
        Verb::Inspect(options) => inspect(client, &options).await,
        Verb::Rm(options) => rm(client, &options).await,
    }
}

async fn inspect(client: &Client, options: &Inspect) -> Result<()> {
    let mut found = Vec::new();
    for network in &options.networks {
        found.push(client.get(&format!("/networks/{}?verbose={}", percent_encode(network), options.verbose)).await?);
    }
    out_line(serde_json::to_string_pretty(&found)?)
}

async fn rm(client: &Client, options: &Rm) -> Result<()> {
    let is_missing = |error: &anyhow::Error| {
        error.downcast_ref::<DaemonError>().is_some_and(|error| error.status == StatusCode::NOT_FOUND)
    };
    each(&options.networks, async |network| {
        match client.delete(&format!("/networks/{}", percent_encode(network))).await {
            Err(error) if options.force && is_missing(&error) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => out_line(network),
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
        "EnableIPv6": options.ipv6,
        "IPAM": { "Driver": "default", "Config": ipam(options)? },
        "Options": pairs(&options.opt),
        "Labels": pairs(&options.label),
    });
    let created = client.post("/networks/create", &body).await?;
    out_line(text(&created, "/Id"))
}

/// Gives every gateway and range to the subnet of its family.
fn ipam(options: &Create) -> Result<Vec<Value>> {
    let mut config: Vec<Value> = options.subnet.iter().map(|subnet| json!({ "Subnet": subnet })).collect();
    let flags = [("--gateway", "Gateway", &options.gateway), ("--ip-range", "IPRange", &options.ip_range)];
    for (flag, field, values) in flags {
        for value in values {
            let is_v6 = value.contains(':');
            let subnet =
                config.iter_mut().find(|c| text(c, "/Subnet").contains(':') == is_v6 && c.get(field).is_none());
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
    let id = |network: &Value| Cut::unless(*no_trunc).id(text(network, "/Id"));
    let mut networks: Vec<&Value> = list(&networks, "").iter().collect();
    networks.sort_by(|a, b| text(a, "/Name").cmp(text(b, "/Name")));
    if listing.quiet {
        return networks.iter().try_for_each(|network| out_line(id(network)));
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
    out(table.render(listing.format.as_deref())?)
}
