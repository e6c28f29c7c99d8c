//! Converts the field `IPAM` of a network in both directions: subnets, gateways, address ranges,
//! reserved addresses and options. The request to create a network and the form of a network call
//! it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use bollard_stubs::models;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use weft_model::{
    net::Subnet,
    spec::{Labels, SubnetSpec},
};

use crate::api::{error::ApiError, features};

/// Docker's option for the order of addresses. `true`, the default of Swarm, asks for the order
/// that weft has: a freed address is used again only after all others.
const SERIAL: &str = "com.docker.network.ipam.serial";

type V4 = SubnetSpec<Ipv4Network, Ipv4Addr>;
type V6 = SubnetSpec<Ipv6Network, Ipv6Addr>;

/// The field `IPAM` of one request.
#[derive(Debug, Default)]
pub(super) struct Ipam {
    pub(super) v4: Vec<V4>,
    pub(super) v6: Vec<V6>,
    pub(super) options: Labels,
}

pub(super) fn read(requested: models::Ipam) -> Result<Ipam, ApiError> {
    let mut ipam = Ipam { options: read_options(requested.options.unwrap_or_default())?, ..Ipam::default() };
    for config in requested.config.unwrap_or_default() {
        let texts = Texts::of(config)?;
        match texts.subnet.parse::<IpNetwork>() {
            Ok(IpNetwork::V4(subnet)) => {
                texts.check_host_bits(IpNetwork::V4(subnet))?;
                ipam.v4.push(texts.read(
                    subnet,
                    |address: &Ipv4Addr| subnet.contains(*address),
                    |range| subnet.prefix() <= range.prefix() && range.network() == range.ip(),
                    |range| range.ip(),
                )?);
            }
            Ok(IpNetwork::V6(subnet)) => {
                texts.check_host_bits(IpNetwork::V6(subnet))?;
                ipam.v6.push(texts.read(
                    subnet,
                    |address: &Ipv6Addr| subnet.contains(*address),
                    |range| subnet.prefix() <= range.prefix() && range.network() == range.ip(),
                    Ipv6Network::ip,
                )?);
            }
            Err(_) => {
                return Err(ApiError::Invalid(format!(
                    "invalid subnet {:?}: give an address and a prefix length, such as 10.1.2.0/24",
                    texts.subnet
                )));
            }
        }
    }
    Ok(ipam)
}

/// Options that ask for what weft does in any case are accepted, all others refused by name.
fn read_options(requested: HashMap<String, String>) -> Result<Labels, ApiError> {
    let options: Labels = requested.into_iter().collect();
    let is_accepted = |(key, value): &(&String, &String)| key.as_str() == SERIAL && value.as_str() == "true";
    match options.iter().find(|option| !is_accepted(option)) {
        None => Ok(options),
        Some((key, value)) => Err(features::IPAM_OPTIONS.refusal_of(&format!("the IPAM option {key}={value}"))),
    }
}

/// A subnet with its options, as the request has them.
struct Texts {
    subnet: String,
    gateway: Option<String>,
    ip_range: Option<String>,
    reserved: BTreeMap<String, String>,
}

impl Texts {
    fn of(config: models::IpamConfig) -> Result<Self, ApiError> {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let subnet = some(config.subnet).ok_or_else(|| {
            ApiError::Invalid("a gateway or address range needs its subnet: add --subnet ADDRESS/LENGTH".into())
        })?;
        Ok(Self {
            subnet,
            gateway: some(config.gateway),
            ip_range: some(config.ip_range),
            reserved: config.auxiliary_addresses.unwrap_or_default().into_iter().collect(),
        })
    }

    fn check_host_bits(&self, parsed: IpNetwork) -> Result<(), ApiError> {
        let (subnet, is_clean) = (&self.subnet, parsed.ip() == parsed.network());
        if is_clean && subnet.contains('/') {
            return Ok(());
        }
        Err(ApiError::Invalid(if is_clean {
            format!("invalid subnet {subnet:?}: it has no prefix length, give one such as {subnet}/24")
        } else {
            let network = parsed.network();
            format!("invalid subnet {subnet}: it has host bits set, did you mean {network}/{}?", parsed.prefix())
        }))
    }

    fn read<N: FromStr + Copy, A: FromStr + Copy>(
        &self,
        subnet: N,
        contains: impl Fn(&A) -> bool,
        is_smaller: impl Fn(&N) -> bool,
        first: impl Fn(&N) -> A,
    ) -> Result<SubnetSpec<N, A>, ApiError> {
        let mut reserved = BTreeMap::new();
        for (name, address) in &self.reserved {
            reserved.insert(name.clone(), self.parse(address, &format!("auxiliary address {name}"), &contains)?);
        }
        let gateway = self.gateway.as_ref().map(|text| self.parse(text, "gateway", &contains));
        let is_range = |range: &N| contains(&first(range)) && is_smaller(range);
        let ip_range = self.ip_range.as_ref().map(|text| self.parse(text, "address range", is_range));
        Ok(SubnetSpec { subnet, gateway: gateway.transpose()?, ip_range: ip_range.transpose()?, reserved })
    }

    /// Parses an address or an address range that must be inside of the subnet.
    fn parse<T: FromStr>(&self, text: &str, what: &str, is_inside: impl Fn(&T) -> bool) -> Result<T, ApiError> {
        let subnet = &self.subnet;
        match text.parse::<T>() {
            Ok(value) if is_inside(&value) => Ok(value),
            Ok(_) => {
                Err(ApiError::Invalid(format!("{what} {text} is not inside the subnet {subnet}: choose one that is")))
            }
            Err(_) => Err(ApiError::Invalid(format!(
                "invalid {what} {text:?} of subnet {subnet}: it has another form or another family"
            ))),
        }
    }
}

/// A subnet as the user has chosen it.
pub(super) fn write<N: Display, A: Display>(spec: &SubnetSpec<N, A>) -> models::IpamConfig {
    config(&spec.subnet, spec.gateway.as_ref(), Some(spec))
}

/// A subnet as it is in use. `spec` is `None` if the cluster has chosen the subnet.
fn config<N: Display, A: Display>(
    subnet: &N,
    gateway: Option<&A>,
    spec: Option<&SubnetSpec<N, A>>,
) -> models::IpamConfig {
    let reserved = spec.map(|spec| &spec.reserved).filter(|reserved| !reserved.is_empty());
    models::IpamConfig {
        subnet: Some(subnet.to_string()),
        gateway: gateway.map(ToString::to_string),
        ip_range: spec.and_then(|spec| spec.ip_range.as_ref()).map(ToString::to_string),
        auxiliary_addresses: reserved
            .map(|reserved| reserved.iter().map(|(name, address)| (name.clone(), address.to_string())).collect()),
    }
}

/// The subnets of a family as they are in use. The specs are empty, or in the order of the subnets.
pub(super) fn configs<N: Display, A: Display>(
    subnets: &[Subnet<N, A>],
    specs: &[SubnetSpec<N, A>],
) -> impl Iterator<Item = models::IpamConfig> {
    subnets.iter().enumerate().map(|(nth, subnet)| config(&subnet.range, Some(&subnet.gateway), specs.get(nth)))
}

/// The field `IPAM` with these subnets.
pub(super) fn ipam(options: &Labels, configs: Vec<models::IpamConfig>) -> models::Ipam {
    let options = (!options.is_empty()).then(|| options.clone().into_iter().collect());
    models::Ipam { driver: Some("default".into()), config: Some(configs), options }
}
