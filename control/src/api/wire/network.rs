//! Networks: the request to make one, and a network as the API shows it.

use std::{
    collections::BTreeMap,
    fmt::Display,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use bollard_stubs::models as wire;
use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde_json::{Map, Value, json};
use weft_model::{
    ClusterState, NetworkName,
    spec::{NetworkSpec, SubnetSpec},
    state::{Network, Service, Task},
};

use super::{date, fields, json as to_json, service::labels, set, unsupported};
use crate::api::{error::ApiError, features};

/// The overlay driver's option that names a network's VNI, as Docker shows it.
const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// Whether the request is for a network of the cluster, not for one of the local engine.
pub(crate) fn is_overlay(body: &Value) -> bool {
    fields::values(body, "Driver").any(|driver| driver == "overlay")
        || fields::values(body, "Scope").any(|scope| scope == "swarm")
}

/// Reads a request for an overlay network.
pub(crate) fn read(mut body: Value) -> Result<NetworkSpec, ApiError> {
    let asked: wire::NetworkCreateRequest = fields::read(&mut body)?;
    fields::rename(&mut body, "CheckDuplicate")?;
    if let Some(body) = body.as_object_mut() {
        // Names are always unique; older clients ask for it.
        body.remove("CheckDuplicate");
    }
    if let Some(driver) = asked.driver.as_deref().filter(|driver| *driver != "overlay") {
        return Err(features::NETWORK_DRIVERS.refusal_of(&format!("the network driver {driver}")));
    }
    if asked.enable_ipv4 == Some(false) {
        return Err(features::IPV6_ONLY.refusal());
    }
    if let Some(option) = asked.options.iter().flatten().map(|(key, _)| key.as_str()).min() {
        return Err(match option {
            "encrypted" => features::ENCRYPTED_NETWORKS.refusal(),
            other => features::NETWORK_OPTIONS.refusal_of(&format!("the network option {other}")),
        });
    }
    let (v4, v6) = subnets(asked.ipam.unwrap_or_default())?;
    let ipv6 = asked.enable_ipv6.unwrap_or(false);
    if let (Some(v6), false) = (&v6, ipv6) {
        return Err(ApiError::Invalid(format!("subnet {} is IPv6: add --ipv6", v6.subnet)));
    }
    let spec = NetworkSpec {
        name: asked.name.parse::<NetworkName>()?,
        labels: asked.labels.unwrap_or_default().into_iter().collect(),
        v4,
        v6,
        ipv6,
        internal: asked.internal.unwrap_or(false),
    };
    unsupported::refuse(&body, &write(&spec, &body))?;
    Ok(spec)
}

type V4 = SubnetSpec<Ipv4Network, Ipv4Addr>;
type V6 = SubnetSpec<Ipv6Network, Ipv6Addr>;

fn subnets(ipam: wire::Ipam) -> Result<(Option<V4>, Option<V6>), ApiError> {
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
                    gateway: inside(gateway, "gateway", &subnet, |g: &Ipv4Addr| parsed.contains(*g))?,
                    ip_range: inside(ip_range, "address range", &subnet, |r: &Ipv4Network| {
                        parsed.contains(r.network()) && parsed.prefix() <= r.prefix() && r.network() == r.ip()
                    })?,
                });
            }
            Ok(IpNetwork::V6(parsed)) if v6.is_none() => {
                check_host_bits(&subnet, parsed.ip() == parsed.network(), parsed.network(), parsed.prefix())?;
                v6 = Some(SubnetSpec {
                    subnet: parsed,
                    gateway: inside(gateway, "gateway", &subnet, |g: &Ipv6Addr| parsed.contains(*g))?,
                    ip_range: inside(ip_range, "address range", &subnet, |r: &Ipv6Network| {
                        parsed.contains(r.network()) && parsed.prefix() <= r.prefix() && r.network() == r.ip()
                    })?,
                });
            }
            Ok(IpNetwork::V4(_)) => return Err(twice("IPv4")),
            Ok(IpNetwork::V6(_)) => return Err(twice("IPv6")),
            Err(_) => {
                return Err(ApiError::Invalid(format!(
                    "invalid subnet {subnet:?}: want an address and a prefix length, such as 10.1.2.0/24"
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
        format!("invalid subnet {subnet:?}: it has no prefix length, want something like {subnet}/24")
    } else {
        format!("invalid subnet {subnet}: it has host bits set, did you mean {network}/{prefix}?")
    }))
}

/// Reads what must lie inside `subnet`.
fn inside<T: FromStr>(
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
            "invalid {what} {text:?} of subnet {subnet}: it is of another form or family"
        ))),
    }
}

/// What [`read`] kept, in the request's own form. Subnets are written in the order asked.
fn write(spec: &NetworkSpec, asked: &Value) -> Value {
    let v4 = spec.v4.as_ref().map(|s| ipam_config(&s.subnet, s.gateway.as_ref(), s.ip_range.as_ref()));
    let v6 = spec.v6.as_ref().map(|s| ipam_config(&s.subnet, s.gateway.as_ref(), s.ip_range.as_ref()));
    let mut configs: Vec<_> = v4.into_iter().chain(v6).collect();
    let first = asked.pointer("/IPAM/Config/0/Subnet").and_then(Value::as_str);
    if configs.len() == 2 && configs[0].subnet.as_deref() != first {
        configs.swap(0, 1);
    }
    to_json(wire::NetworkCreateRequest {
        name: spec.name.to_string(),
        driver: Some("overlay".into()),
        scope: Some("swarm".into()),
        internal: Some(spec.internal),
        attachable: Some(false),
        enable_ipv4: Some(true),
        enable_ipv6: Some(spec.ipv6),
        ipam: Some(wire::Ipam { driver: Some("default".into()), config: Some(configs), options: None }),
        labels: Some(labels(&spec.labels)),
        ..Default::default()
    })
}

fn ipam_config(
    subnet: &impl Display,
    gateway: Option<&impl Display>,
    ip_range: Option<&impl Display>,
) -> wire::IpamConfig {
    wire::IpamConfig {
        subnet: Some(subnet.to_string()),
        gateway: gateway.map(ToString::to_string),
        ip_range: ip_range.map(ToString::to_string),
        auxiliary_addresses: None,
    }
}

/// A network as `GET /networks/{id}` shows it. `local` are the tasks of the asked node; `verbose` adds the services with
/// all their tasks.
pub(crate) fn show(
    state: &ClusterState,
    network: &Network,
    local: Option<&weft_model::NodeId>,
    verbose: bool,
) -> Value {
    let subnets = &network.subnets;
    let range = network.spec.v4.and_then(|s| s.ip_range);
    let mut config = vec![ipam_config(&subnets.v4, Some(&subnets.v4_gateway), range.as_ref())];
    if network.spec.ipv6 {
        let range = network.spec.v6.and_then(|s| s.ip_range);
        config.push(ipam_config(&subnets.v6, Some(&subnets.v6_gateway), range.as_ref()));
    }
    let mut shown = to_json(wire::Network {
        name: Some(network.spec.name.to_string()),
        id: Some(network.id.to_string()),
        created: date(network.meta.created_ms),
        scope: Some("swarm".into()),
        driver: Some("overlay".into()),
        enable_ipv4: Some(true),
        enable_ipv6: Some(network.spec.ipv6),
        ipam: Some(wire::Ipam { driver: Some("default".into()), config: Some(config), options: None }),
        internal: Some(network.spec.internal),
        attachable: Some(false),
        ingress: Some(network.ingress),
        config_from: Some(wire::ConfigReference { network: Some(String::new()) }),
        config_only: Some(false),
        options: Some([(VNI_OPTION.to_owned(), network.vni.to_string())].into()),
        labels: Some(labels(&network.spec.labels)),
        peers: None,
    });
    let local_tasks = state.tasks.values().filter(|task| local.is_some() && task.node.as_ref() == local);
    set(&mut shown, "Containers", containers(network, local_tasks));
    if verbose {
        let services: Map<_, _> = state
            .services
            .values()
            .filter(|service| service.endpoints.iter().any(|e| e.network == network.id))
            .map(|service| (service.spec.name.to_string(), show_service(state, network, service)))
            .collect();
        set(&mut shown, "Services", Value::Object(services));
    }
    shown
}

fn containers<'a>(network: &Network, tasks: impl Iterator<Item = &'a Task>) -> Value {
    let shown: Map<String, Value> = tasks
        .filter(|task| task.holds_addresses())
        .filter_map(|task| {
            let attachment = task.attachments.iter().find(|a| a.network == network.id)?;
            let (v4, v6) = (network.subnets.v4.prefix(), network.subnets.v6.prefix());
            let id = task.status.container.clone().unwrap_or_else(|| task.id.to_string());
            Some((
                id,
                json!({
                    "Name": task.name,
                    "EndpointID": task.id.as_str(),
                    "MacAddress": attachment.mac.to_string(),
                    "IPv4Address": format!("{}/{v4}", attachment.addr.v4),
                    "IPv6Address": format!("{}/{v6}", attachment.addr.v6),
                }),
            ))
        })
        .collect();
    Value::Object(shown)
}

fn show_service(state: &ClusterState, network: &Network, service: &Service) -> Value {
    let endpoint = service.endpoints.iter().find(|e| e.network == network.id);
    let tasks: Vec<_> = state
        .tasks_of(&service.id)
        .filter(|task| task.holds_addresses())
        .filter_map(|task| {
            let attachment = task.attachments.iter().find(|a| a.network == network.id)?;
            let host = task.node.as_ref().and_then(|id| state.nodes.get(id)).map(|node| node.addr.to_string());
            Some(wire::NetworkTaskInfo {
                name: Some(task.name.clone()),
                endpoint_id: Some(task.id.to_string()),
                endpoint_ip: Some(attachment.addr.v4.to_string()),
                info: host.map(|host| [("Host IP".to_owned(), host)].into()),
            })
        })
        .collect();
    let ports = service.ports.iter().map(|p| format!("Target: {}, Publish: {}", p.spec.target, p.published)).collect();
    to_json(wire::ServiceInfo {
        vip: endpoint.and_then(|e| e.vip).map(|vip| vip.v4.to_string()),
        ports: Some(ports),
        local_lb_index: endpoint.map(|e| i64::from(e.mesh.0)),
        tasks: Some(tasks),
    })
}

/// A network inside a task's attachments: Swarm's own form, not the engine's.
pub(super) fn show_cluster_network(network: &Network) -> Value {
    let labels: BTreeMap<_, _> = network.spec.labels.iter().collect();
    json!({
        "ID": network.id.as_str(),
        "Version": {"Index": network.meta.version},
        "CreatedAt": date(network.meta.created_ms).map(rfc3339),
        "UpdatedAt": date(network.meta.updated_ms).map(rfc3339),
        "Spec": {
            "Name": network.spec.name.as_str(),
            "Labels": labels,
            "DriverConfiguration": {"Name": "overlay"},
            "Ingress": network.ingress,
            "Attachable": false,
            "Internal": network.spec.internal,
            "Scope": "swarm",
        },
        "DriverState": {"Name": "overlay", "Options": {VNI_OPTION: network.vni.to_string()}},
        "IPAMOptions": {
            "Driver": {"Name": "default"},
            "Configs": [{
                "Subnet": network.subnets.v4.to_string(),
                "Gateway": network.subnets.v4_gateway.to_string(),
            }],
        },
    })
}

fn rfc3339(date: wire::BollardDate) -> String {
    date.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
