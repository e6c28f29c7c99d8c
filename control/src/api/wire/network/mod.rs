//! Converts networks: the request to create a network from JSON, and a network to JSON.

mod options;
mod ipam;
mod show;
pub(crate) mod predefined;

use bollard_stubs::models;
use serde_json::Value;
use weft_model::{NetworkName, spec::NetworkSpec};

use super::{
    fields::{self, Ignored},
    unsupported,
    values::{labels, to_json},
};
use crate::api::{error::ApiError, features};

pub(crate) use show::{
    ingress_of, show, show_attached, show_configuration, show_planned, shown_addresses, with_prefix,
};

/// Whether the body asks for a network of the cluster. If not, the request is for the local engine.
pub(crate) fn is_overlay(body: &Value) -> bool {
    fields::values(body, "Driver").any(|driver| driver == "overlay")
        || fields::values(body, "Scope").any(|scope| scope == "swarm")
}

/// Reads the request to create an overlay network. Adds the fields that have no effect to
/// `ignored`.
pub(crate) fn read(mut body: Value, ignored: &mut Ignored) -> Result<NetworkSpec, ApiError> {
    let requested: models::NetworkCreateRequest = fields::read_known(&mut body, ignored)?;
    if let Some(body) = body.as_object_mut() {
        // Older clients ask for a unique name. In weft, names are always unique.
        body.remove("CheckDuplicate");
    }
    if let Some(driver) = requested.driver.as_deref().filter(|driver| *driver != "overlay") {
        return Err(features::NETWORK_DRIVERS.refusal_of(&format!("the network driver {driver}")));
    }
    if predefined::is_reserved(&requested.name) {
        return Err(ApiError::Forbidden(format!(
            "operation is not permitted on predefined {} network: choose another name",
            requested.name
        )));
    }
    let options = options::read(&requested.options.unwrap_or_default())?;
    let ipam = ipam::read(requested.ipam.unwrap_or_default())?;
    let ipv6 = requested.enable_ipv6.unwrap_or(false);
    let ipv4 = requested.enable_ipv4.unwrap_or(true);
    if let (Some(v6), false) = (ipam.v6.first(), ipv6) {
        return Err(ApiError::Invalid(format!("subnet {} is IPv6: add --ipv6", v6.subnet)));
    }
    if let (Some(v4), false) = (ipam.v4.first(), ipv4) {
        return Err(ApiError::Invalid(format!("subnet {} is IPv4: leave --ipv4=false out", v4.subnet)));
    }
    if !ipv4 && !ipv6 {
        return Err(ApiError::Invalid("a network needs IPv4 or IPv6: add --ipv6, or leave --ipv4=false out".into()));
    }
    let spec = NetworkSpec {
        name: requested.name.parse::<NetworkName>()?,
        labels: requested.labels.unwrap_or_default().into_iter().collect(),
        ipv4,
        v4: ipam.v4,
        v6: ipam.v6,
        ipv6,
        internal: requested.internal.unwrap_or(false),
        encrypted: options.encrypted,
        ingress: requested.ingress.unwrap_or(false),
        mtu: options.mtu,
        vni: options.vni,
        config_only: requested.config_only.unwrap_or(false),
        config_from: match requested.config_from.and_then(|from| from.network).as_deref() {
            None | Some("") => None,
            Some(name) => Some(name.parse()?),
        },
        ipam_options: ipam.options,
        attachable: requested.attachable.unwrap_or(false),
    };
    unsupported::refuse(&body, &write(&spec, &body))?;
    Ok(spec)
}

/// The spec in the form of a request. The families alternate as in `requested`.
fn write(spec: &NetworkSpec, requested: &Value) -> Value {
    let (mut v4, mut v6) = (spec.v4.iter().map(ipam::write), spec.v6.iter().map(ipam::write));
    let requested = requested.pointer("/IPAM/Config").and_then(Value::as_array);
    let is_v6 = |config: &Value| config["Subnet"].as_str().is_some_and(|subnet| subnet.contains(':'));
    let configs = requested.into_iter().flatten();
    let configs = configs.filter_map(|config| if is_v6(config) { v6.next() } else { v4.next() }).collect();
    to_json(models::NetworkCreateRequest {
        name: spec.name.to_string(),
        driver: Some("overlay".into()),
        scope: Some("swarm".into()),
        internal: Some(spec.internal),
        attachable: Some(spec.attachable),
        enable_ipv4: Some(spec.ipv4),
        enable_ipv6: Some(spec.ipv6),
        ipam: Some(ipam::ipam(&spec.ipam_options, configs)),
        ingress: Some(spec.ingress),
        options: Some(options::write(spec)),
        labels: Some(labels(&spec.labels)),
        config_only: Some(spec.config_only),
        config_from: Some(models::ConfigReference { network: spec.config_from.as_ref().map(ToString::to_string) }),
    })
}
