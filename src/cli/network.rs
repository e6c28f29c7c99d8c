//! `weft network`: create, list, look at, remove.

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    client::{Client, escape, filters, list, text},
    each,
    flags::pairs,
    output::Table,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Create a network
    Create(Create),
    /// List networks
    #[command(visible_alias = "list")]
    Ls {
        #[arg(short, long)]
        quiet: bool,
        /// KEY=VALUE, such as driver=overlay
        #[arg(short, long)]
        filter: Vec<String>,
        #[arg(long)]
        format: Option<String>,
        /// Ids whole
        #[arg(long)]
        no_trunc: bool,
    },
    /// Show networks whole
    Inspect {
        #[arg(required = true)]
        networks: Vec<String>,
        /// With the services on them
        #[arg(short, long)]
        verbose: bool,
    },
    /// Remove networks
    #[command(visible_alias = "remove")]
    Rm {
        #[arg(required = true)]
        networks: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct Create {
    name: String,
    /// Only overlay networks span the cluster
    #[arg(short, long, default_value = "overlay")]
    driver: String,
    /// As ADDRESS/PREFIX: one IPv4, and with --ipv6 one IPv6; chosen by the cluster where absent
    #[arg(long)]
    subnet: Vec<String>,
    /// Address of the subnet's router: its first address where absent
    #[arg(long)]
    gateway: Vec<String>,
    /// Part of the subnet that addresses are given out from
    #[arg(long, value_name = "RANGE")]
    ip_range: Vec<String>,
    /// Names on this network have IPv6 addresses too
    #[arg(long)]
    ipv6: bool,
    /// No way to the outside
    #[arg(long)]
    internal: bool,
    /// Let containers outside services join
    #[arg(long)]
    attachable: bool,
    #[arg(long, value_name = "KEY=VALUE")]
    label: Vec<String>,
    /// An option of the driver, as KEY=VALUE
    #[arg(short, long, value_name = "KEY=VALUE")]
    opt: Vec<String>,
}

pub(super) async fn run(client: &Client, verb: Verb) -> Result<()> {
    match verb {
        Verb::Create(options) => create(client, &options).await,
        Verb::Ls { quiet, filter, format, no_trunc } => ls(client, quiet, &filter, format.as_deref(), no_trunc).await,
        Verb::Inspect { networks, verbose } => {
            let mut found = Vec::new();
            for network in &networks {
                found.push(client.get(&format!("/networks/{}?verbose={verbose}", escape(network))).await?);
            }
            println!("{}", serde_json::to_string_pretty(&found)?);
            Ok(())
        }
        Verb::Rm { networks } => {
            each(&networks, async |network| {
                client.delete(&format!("/networks/{}", escape(network))).await?;
                println!("{network}");
                Ok(())
            })
            .await
        }
    }
}

async fn create(client: &Client, options: &Create) -> Result<()> {
    let body = json!({
        "Name": options.name,
        "Driver": options.driver,
        "Scope": "swarm",
        "Internal": options.internal,
        "Attachable": options.attachable,
        "EnableIPv6": options.ipv6,
        "IPAM": { "Driver": "default", "Config": ipam(options)? },
        "Options": pairs(&options.opt),
        "Labels": pairs(&options.label),
    });
    let created = client.post("/networks/create", &body).await?;
    println!("{}", text(&created, "/Id"));
    Ok(())
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

async fn ls(client: &Client, quiet: bool, filter: &[String], format: Option<&str>, no_trunc: bool) -> Result<()> {
    let networks = client.get(&format!("/networks?{}", filters(filter)?)).await?;
    let id = |network: &Value| {
        let id = text(network, "/Id");
        if no_trunc { id.to_owned() } else { id.chars().take(12).collect() }
    };
    let mut networks: Vec<&Value> = list(&networks, "").iter().collect();
    networks.sort_by(|a, b| text(a, "/Name").cmp(text(b, "/Name")));
    if quiet {
        networks.iter().for_each(|network| println!("{}", id(network)));
        return Ok(());
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
    print!("{}", table.render(format)?);
    Ok(())
}
