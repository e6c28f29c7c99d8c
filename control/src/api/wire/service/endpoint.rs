//! Converts the endpoint of a service: its mode and its published ports.

use bollard_stubs::models;
use weft_model::spec::{EndpointMode, EndpointSpec, PortSpec, Protocol};

use crate::api::{error::ApiError, features};

pub(super) fn read(spec: Option<models::EndpointSpec>) -> Result<EndpointSpec, ApiError> {
    let spec = spec.unwrap_or_default();
    let mode = match spec.mode {
        Some(models::EndpointSpecModeEnum::DNSRR) => EndpointMode::Dnsrr,
        None | Some(models::EndpointSpecModeEnum::EMPTY | models::EndpointSpecModeEnum::VIP) => EndpointMode::Vip,
    };
    let ports: Vec<PortSpec> = spec
        .ports
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .map(|(i, config)| read_port(i, &config))
        .collect::<Result<_, _>>()?;
    for (i, port) in ports.iter().enumerate() {
        let twice = |other: &PortSpec| other.published == port.published && other.protocol == port.protocol;
        if let Some(published) = port.published
            && ports[..i].iter().any(twice)
        {
            return Err(ApiError::Invalid(format!(
                "port {published}/{} is published twice in this service: publish it once",
                port.protocol.as_str()
            )));
        }
    }
    Ok(EndpointSpec { mode, ports })
}

fn read_port(i: usize, config: &models::EndpointPortConfig) -> Result<PortSpec, ApiError> {
    use models::EndpointPortConfigProtocolEnum as P;
    let protocol = match config.protocol {
        None | Some(P::EMPTY | P::TCP) => Protocol::Tcp,
        Some(P::UDP) => Protocol::Udp,
        Some(P::SCTP) => {
            return Err(features::SCTP_PORTS.refusal());
        }
    };
    let target = port_number(&format!("EndpointSpec.Ports[{i}].TargetPort"), config.target_port.unwrap_or(0))?
        .ok_or_else(|| {
            ApiError::Invalid(format!(
                "EndpointSpec.Ports[{i}].TargetPort is 0: give the port that the task listens on, 1 to 65535"
            ))
        })?;
    let published = port_number(&format!("EndpointSpec.Ports[{i}].PublishedPort"), config.published_port.unwrap_or(0))?;
    Ok(PortSpec { protocol, target, published })
}

/// Checks the range of a port. Returns `None` for zero, which means that no port is given.
fn port_number(field: &str, port: i64) -> Result<Option<u16>, ApiError> {
    u16::try_from(port)
        .map(|port| (port != 0).then_some(port))
        .map_err(|_| ApiError::Invalid(format!("{field} is {port}: a port is a number from 1 to 65535")))
}

pub(super) fn write_port(spec: &PortSpec, published: Option<u16>) -> models::EndpointPortConfig {
    models::EndpointPortConfig {
        name: None,
        protocol: Some(match spec.protocol {
            Protocol::Tcp => models::EndpointPortConfigProtocolEnum::TCP,
            Protocol::Udp => models::EndpointPortConfigProtocolEnum::UDP,
        }),
        target_port: Some(i64::from(spec.target)),
        published_port: published.map(i64::from),
        publish_mode: Some(models::EndpointPortConfigPublishModeEnum::INGRESS),
    }
}

pub(super) fn write(spec: &EndpointSpec) -> models::EndpointSpec {
    models::EndpointSpec {
        mode: Some(match spec.mode {
            EndpointMode::Vip => models::EndpointSpecModeEnum::VIP,
            EndpointMode::Dnsrr => models::EndpointSpecModeEnum::DNSRR,
        }),
        ports: (!spec.ports.is_empty()).then(|| spec.ports.iter().map(|p| write_port(p, p.published)).collect()),
    }
}
