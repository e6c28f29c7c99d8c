//! Converts networks: the request to create a network from JSON, and a network to JSON.

mod show;

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use bollard_stubs::models;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde_json::Value;
use weft_model::{
    NetworkName,
    spec::{NetworkSpec, SubnetSpec},
};

use super::{
    fields, unsupported,
    values::{labels, to_json},
};
use crate::api::{error::ApiError, features};

pub(crate) use show::{show, show_attached};

/// The option of an encrypted network, as in Docker.
const ENCRYPTED: &str = "encrypted";

/// Whether the body asks for a network of the cluster. If not, the request is for the local engine.
pub(crate) fn is_overlay(body: &Value) -> bool {
    fields::values(body, "Driver").any(|driver| driver == "overlay")
        || fields::values(body, "Scope").any(|scope| scope == "swarm")
}

/// Reads the request to create an overlay network.
pub(crate) fn read(mut body: Value) -> Result<NetworkSpec, ApiError> {
    let requested: models::NetworkCreateRequest = fields::read(&mut body)?;
    fields::rename(&mut body, "CheckDuplicate")?;
    if let Some(body) = body.as_object_mut() {
        // Older clients ask for a unique name. In weft, names are always unique.
        body.remove("CheckDuplicate");
    }
    if let Some(driver) = requested.driver.as_deref().filter(|driver| *driver != "overlay") {
        return Err(features::NETWORK_DRIVERS.refusal_of(&format!("the network driver {driver}")));
    }
    if requested.enable_ipv4 == Some(false) {
        return Err(features::IPV6_ONLY.refusal());
    }
    let mut encrypted = false;
    for (key, value) in requested.options.into_iter().flatten().collect::<BTreeMap<_, _>>() {
        match key.as_str() {
            ENCRYPTED => encrypted = read_encrypted(&value)?,
            other => return Err(features::NETWORK_OPTIONS.refusal_of(&format!("the network option {other}"))),
        }
    }
    let (v4, v6) = read_subnets(requested.ipam.unwrap_or_default())?;
    let ipv6 = requested.enable_ipv6.unwrap_or(false);
    if let (Some(v6), false) = (&v6, ipv6) {
        return Err(ApiError::Invalid(format!("subnet {} is IPv6: add --ipv6", v6.subnet)));
    }
    let spec = NetworkSpec {
        name: requested.name.parse::<NetworkName>()?,
        labels: requested.labels.unwrap_or_default().into_iter().collect(),
        v4,
        v6,
        ipv6,
        internal: requested.internal.unwrap_or(false),
        encrypted,
        ingress: requested.ingress.unwrap_or(false),
    };
    unsupported::refuse(&body, &write(&spec, &body))?;
    Ok(spec)
}

/// Docker encrypts if the option is there, whatever its value. A value that says the opposite is
/// refused.
fn read_encrypted(value: &str) -> Result<bool, ApiError> {
    match value {
        "" | "1" | "true" => Ok(true),
        _ => Err(ApiError::Invalid(format!(
            "invalid value {value:?} of the network option {ENCRYPTED}: give none, or leave the option out"
        ))),
    }
}

/// The driver options of a network that the user has given.
pub(super) fn write_options(spec: &NetworkSpec) -> HashMap<String, String> {
    spec.encrypted.then(|| (ENCRYPTED.to_owned(), String::new())).into_iter().collect()
}

type V4 = SubnetSpec<Ipv4Network, Ipv4Addr>;
type V6 = SubnetSpec<Ipv6Network, Ipv6Addr>;

fn read_subnets(ipam: models::Ipam) -> Result<(Option<V4>, Option<V6>), ApiError> {
    let (mut v4, mut v6) = (None, None);
    for config in ipam.config.unwrap_or_default() {
        let some = |text: Option<String>| text.filter(|text| !text.is_empty());
        let (gateway, ip_range) = (some(config.gateway), some(config.ip_range));
        let subnet = some(config.subnet).ok_or_else(|| {
            ApiError::Invalid("a gateway or address range needs its subnet: add --subnet ADDRESS/LENGTH".into())
        })?;
        let twice = |family| features::TWO_SUBNETS.refusal_of(&format!("two {family} subnets on one network"));
        match subnet.parse::<IpNetwork>() {
            Ok(IpNetwork::V4(parsed)) if v4.is_none() => {
                check_host_bits(&subnet, parsed.ip() == parsed.network(), parsed.network(), parsed.prefix())?;
                v4 = Some(SubnetSpec {
                    subnet: parsed,
                    gateway: parse_inside(gateway, "gateway", &subnet, |g: &Ipv4Addr| parsed.contains(*g))?,
                    ip_range: parse_inside(ip_range, "address range", &subnet, |r: &Ipv4Network| {
                        parsed.contains(r.network()) && parsed.prefix() <= r.prefix() && r.network() == r.ip()
                    })?,
                });
            }
            Ok(IpNetwork::V6(parsed)) if v6.is_none() => {
                check_host_bits(&subnet, parsed.ip() == parsed.network(), parsed.network(), parsed.prefix())?;
                v6 = Some(SubnetSpec {
                    subnet: parsed,
                    gateway: parse_inside(gateway, "gateway", &subnet, |g: &Ipv6Addr| parsed.contains(*g))?,
                    ip_range: parse_inside(ip_range, "address range", &subnet, |r: &Ipv6Network| {
                        parsed.contains(r.network()) && parsed.prefix() <= r.prefix() && r.network() == r.ip()
                    })?,
                });
            }
            Ok(IpNetwork::V4(_)) => return Err(twice("IPv4")),
            Ok(IpNetwork::V6(_)) => return Err(twice("IPv6")),
            Err(_) => {
                return Err(ApiError::Invalid(format!(
                    "invalid subnet {subnet:?}: give an address and a prefix length, such as 10.1.2.0/24"
                )));
            }
        }
    }
    Ok((v4, v6))
}

fn check_host_bits(subnet: &str, clean: bool, network: impl Display, prefix: u8) -> Result<(), ApiError> {
    if clean && subnet.contains('/') {
        return Ok(());
    }
    Err(ApiError::Invalid(if clean {
        format!("invalid subnet {subnet:?}: it has no prefix length, give one such as {subnet}/24")
    } else {
        format!("invalid subnet {subnet}: it has host bits set, did you mean {network}/{prefix}?")
    }))
}

/// Parses an address or an address range that must be inside `subnet`.
fn parse_inside<T: FromStr>(
    text: Option<String>,
    what: &str,
    subnet: &str,
    fits: impl Fn(&T) -> bool,
) -> Result<Option<T>, ApiError> {
    let Some(text) = text else { return Ok(None) };
    match text.parse::<T>() {
        Ok(value) if fits(&value) => Ok(Some(value)),
        Ok(_) => Err(ApiError::Invalid(format!("{what} {text} is not inside the subnet {subnet}: choose one that is"))),
        Err(_) => Err(ApiError::Invalid(format!(
            "invalid {what} {text:?} of subnet {subnet}: it has another form or another family"
        ))),
    }
}

/// The spec in the form of a request. The subnets have the same order as in `requested`.
fn write(spec: &NetworkSpec, requested: &Value) -> Value {
    let v4 = spec.v4.as_ref().map(|s| ipam_config(&s.subnet, s.gateway.as_ref(), s.ip_range.as_ref()));
    let v6 = spec.v6.as_ref().map(|s| ipam_config(&s.subnet, s.gateway.as_ref(), s.ip_range.as_ref()));
    let mut configs: Vec<_> = v4.into_iter().chain(v6).collect();
    let first = requested.pointer("/IPAM/Config/0/Subnet").and_then(Value::as_str);
    if configs.len() == 2 && configs[0].subnet.as_deref() != first {
        configs.swap(0, 1);
    }
    to_json(models::NetworkCreateRequest {
        name: spec.name.to_string(),
        driver: Some("overlay".into()),
        scope: Some("swarm".into()),
        internal: Some(spec.internal),
        attachable: Some(false),
        enable_ipv4: Some(true),
        enable_ipv6: Some(spec.ipv6),
        ipam: Some(models::Ipam { driver: Some("default".into()), config: Some(configs), options: None }),
        ingress: Some(spec.ingress),
        options: Some(write_options(spec)),
        labels: Some(labels(&spec.labels)),
        ..Default::default()
    })
}

fn ipam_config(
    subnet: &impl Display,
    gateway: Option<&impl Display>,
    ip_range: Option<&impl Display>,
) -> models::IpamConfig {
    models::IpamConfig {
        subnet: Some(subnet.to_string()),
        gateway: gateway.map(ToString::to_string),
        ip_range: ip_range.map(ToString::to_string),
        auxiliary_addresses: None,
    }
}
