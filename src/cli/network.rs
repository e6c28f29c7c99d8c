//! `weft network`: create, list, inspect and remove networks.

use anyhow::{Context as _, Result, bail, ensure};
use clap::{ArgAction, Args, Subcommand};
use hyper::StatusCode;
use ipnetwork::IpNetwork;
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
    Create(Box<Create>),
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
    /// Subnet as ADDRESS/PREFIX; may be repeated; by default the cluster chooses
    #[arg(long, value_name = "SUBNET", value_delimiter = ',')]
    subnet: Vec<String>,
    /// Address of the subnet's gateway; by default the first address of the subnet
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    gateway: Vec<String>,
    /// Part of the subnet that tasks get addresses from, as ADDRESS/PREFIX
    #[arg(long, value_name = "RANGE", value_delimiter = ',')]
    ip_range: Vec<String>,
    /// Address that no task gets, as NAME=ADDRESS; may be repeated
    #[arg(long, value_name = "NAME=ADDRESS")]
    aux_address: Vec<String>,
    /// Driver that allocates addresses; weft has only default
    #[arg(long, value_name = "DRIVER", default_value = "default")]
    ipam_driver: String,
    /// Option of the driver that allocates addresses; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    ipam_opt: Vec<String>,
    /// Where the network is available; weft has only swarm
    #[arg(long, value_name = "SCOPE", default_value = "swarm")]
    scope: String,
    /// Whether tasks have IPv4 addresses on this network; false needs --ipv6
    #[arg(long, action = ArgAction::Set, default_value_t = true)]
    ipv4: bool,
    /// Let the names on this network also resolve to IPv6 addresses
    #[arg(long)]
    ipv6: bool,
    /// Create no network, but options that other networks take with --config-from
    #[arg(long)]
    config_only: bool,
    /// Name of the configuration-only network from which the options come
    #[arg(long, value_name = "NETWORK", default_value = "")]
    config_from: String,
    /// Let containers that are no tasks use the network too
    #[arg(long)]
    attachable: bool,
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
        "Scope": options.scope,
        "Internal": options.internal,
        "Attachable": options.attachable,
        "Ingress": options.ingress,
        "ConfigOnly": options.config_only,
        "ConfigFrom": { "Network": options.config_from },
        "EnableIPv4": options.ipv4,
        "EnableIPv6": options.ipv6,
        "IPAM": {
            "Driver": options.ipam_driver,
            "Config": ipam(options)?,
            "Options": pairs(&options.ipam_opt),
        },
        "Options": pairs(&options.opt),
        "Labels": pairs(&options.label),
    });
    let created = client.post("/networks/create", &body).await?;
    print_line(text(&created, "/Id"))
}

/// The subnets, each with the gateway, the address range and the reserved addresses that are inside
/// of it.
///
/// # Errors
///
/// If one of these is in no subnet, or a subnet has two gateways or two address ranges.
fn ipam(options: &Create) -> Result<Vec<Value>> {
    let mut config: Vec<Value> = options.subnet.iter().map(|subnet| json!({ "Subnet": subnet })).collect();
    let flags = [("--gateway", "Gateway", &options.gateway), ("--ip-range", "IPRange", &options.ip_range)];
    for (flag, field, values) in flags {
        for value in values {
            let subnet = subnet_of(&mut config, flag, value, value)?;
            ensure!(subnet.get(field).is_none(), "{flag} {value}: its subnet has another {flag} already: give one");
            subnet[field] = value.as_str().into();
        }
    }
    for (name, address) in pairs(&options.aux_address) {
        let subnet = subnet_of(&mut config, "--aux-address", &format!("{name}={address}"), &address)?;
        subnet["AuxiliaryAddresses"][name] = address.into();
    }
    Ok(config)
}

/// The subnet that contains `address`: an address, or a range of addresses with a prefix length.
fn subnet_of<'a>(config: &'a mut [Value], flag: &str, value: &str, address: &str) -> Result<&'a mut Value> {
    let Ok(address) = address.parse::<IpNetwork>() else {
        bail!("{flag} {value} is not an address: give one such as 10.1.2.3");
    };
    let contains = |subnet: &&mut Value| {
        text(subnet, "/Subnet").parse::<IpNetwork>().is_ok_and(|subnet| subnet.contains(address.ip()))
    };
    config
        .iter_mut()
        .find(contains)
        .with_context(|| format!("{flag} {value} is in none of the subnets: give its --subnet too"))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn options(subnets: &[&str], gateways: &[&str], ranges: &[&str], reserved: &[&str]) -> Create {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Create {
            name: "app".to_owned(),
            driver: "overlay".to_owned(),
            subnet: texts(subnets),
            gateway: texts(gateways),
            ip_range: texts(ranges),
            aux_address: texts(reserved),
            ipam_driver: "default".to_owned(),
            ipam_opt: vec![],
            scope: "swarm".to_owned(),
            ipv4: true,
            ipv6: true,
            config_only: false,
            config_from: String::new(),
            attachable: false,
            internal: false,
            ingress: false,
            label: vec![],
            opt: vec![],
        }
    }

    #[test]
    fn each_option_belongs_to_the_subnet_that_contains_it() {
        let options = options(
            &["10.1.0.0/24", "10.2.0.0/24", "fd00:1::/64"],
            &["fd00:1::9", "10.2.0.9"],
            &["10.1.0.128/25"],
            &["a=10.2.0.7", "b=fd00:1::7", "c=10.2.0.8"],
        );
        let expected = json!([
            {"Subnet": "10.1.0.0/24", "IPRange": "10.1.0.128/25"},
            {"Subnet": "10.2.0.0/24", "Gateway": "10.2.0.9", "AuxiliaryAddresses": {"a": "10.2.0.7", "c": "10.2.0.8"}},
            {"Subnet": "fd00:1::/64", "Gateway": "fd00:1::9", "AuxiliaryAddresses": {"b": "fd00:1::7"}},
        ]);
        assert_eq!(Value::from(ipam(&options).expect("each has a subnet")), expected);
    }

    #[test]
    fn refuses_an_option_without_a_subnet() {
        let check = |options: Create, expected: &str| {
            assert_eq!(ipam(&options).expect_err("no subnet").to_string(), expected);
        };
        let subnet = &["10.1.0.0/24"];
        check(
            options(&[], &["10.1.0.1"], &[], &[]),
            "--gateway 10.1.0.1 is in none of the subnets: give its --subnet too",
        );
        check(
            options(subnet, &[], &[], &["a=10.2.0.1"]),
            "--aux-address a=10.2.0.1 is in none of the subnets: give its --subnet too",
        );
        check(options(subnet, &[], &["x"], &[]), "--ip-range x is not an address: give one such as 10.1.2.3");
        check(
            options(subnet, &["10.1.0.1", "10.1.0.2"], &[], &[]),
            "--gateway 10.1.0.2: its subnet has another --gateway already: give one",
        );
    }
}
