//! Converts networks: the request to create a network from JSON, and a network to JSON.

mod options;
mod ipam;
mod show;

use bollard_stubs::models;
use serde_json::Value;
use weft_model::{NetworkName, spec::NetworkSpec};

use super::{
    fields, unsupported,
    values::{labels, to_json},
};
use crate::api::{error::ApiError, features};

pub(crate) use show::{show, show_attached};

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
    let options = options::read(&requested.options.unwrap_or_default())?;
    let ipam = ipam::read(requested.ipam.unwrap_or_default())?;
    let ipv6 = requested.enable_ipv6.unwrap_or(false);
    if let (Some(v6), false) = (&ipam.v6, ipv6) {
        return Err(ApiError::Invalid(format!("subnet {} is IPv6: add --ipv6", v6.subnet)));
    }
    let spec = NetworkSpec {
        name: requested.name.parse::<NetworkName>()?,
        labels: requested.labels.unwrap_or_default().into_iter().collect(),
        v4: ipam.v4,
        v6: ipam.v6,
        ipv6,
        internal: requested.internal.unwrap_or(false),
        encrypted: options.encrypted,
        ingress: requested.ingress.unwrap_or(false),
        mtu: options.mtu,
        vni: options.vni,
        ipam_options: ipam.options,
    };
    unsupported::refuse(&body, &write(&spec, &body))?;
    Ok(spec)
}

/// The spec in the form of a request. The subnets have the same order as in `requested`.
fn write(spec: &NetworkSpec, requested: &Value) -> Value {
    let (v4, v6) = (spec.v4.as_ref().map(ipam::write), spec.v6.as_ref().map(ipam::write));
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
        ipam: Some(ipam::ipam(&spec.ipam_options, configs)),
        ingress: Some(spec.ingress),
        options: Some(options::write(spec)),
        labels: Some(labels(&spec.labels)),
        ..Default::default()
    })
}
