//! Converts a network to JSON: as an object, and as an attachment of a task.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use bollard_stubs::models;
use serde_json::{Map, Value, json};
use weft_model::{
    ClusterState, DualAddr, Mac, NodeId, TaskId,
    plan::NetworkPlan,
    spec::Labels,
    state::{AttachedContainer, Network, NetworkConfiguration, Service, Task},
};

use super::{ipam, options};
use crate::api::wire::values::{date, labels, set, timestamp, to_json};

/// A network in the form of `GET /networks/{id}`, with the tasks and containers of the node
/// `local`. `verbose` adds the services with all their tasks.
pub(crate) fn show(state: &ClusterState, network: &Network, local: Option<&NodeId>, verbose: bool) -> Value {
    let subnets = &network.subnets;
    let mut config: Vec<_> = ipam::configs(&subnets.v4, &network.spec.v4).collect();
    if network.spec.ipv6 {
        config.extend(ipam::configs(&subnets.v6, &network.spec.v6));
    }
    let mut shown = to_json(models::Network {
        name: Some(network.spec.name.to_string()),
        id: Some(network.id.to_string()),
        created: date(network.meta.created_ms),
        scope: Some("swarm".into()),
        driver: Some("overlay".into()),
        enable_ipv4: Some(network.spec.ipv4),
        enable_ipv6: Some(network.spec.ipv6),
        ipam: Some(ipam::ipam(&network.spec.ipam_options, config)),
        internal: Some(network.spec.internal),
        attachable: Some(network.spec.attachable),
        ingress: Some(network.spec.ingress),
        config_from: Some(models::ConfigReference {
            network: Some(network.spec.config_from.as_ref().map_or_else(String::new, ToString::to_string)),
        }),
        config_only: Some(false),
        options: Some(driver_options(network)),
        labels: Some(labels(&network.spec.labels)),
        peers: None,
    });
    let local_tasks = state.tasks.values().filter(|task| local.is_some() && task.node.as_ref() == local);
    let attached = state.attached.values().filter(|container| Some(&container.node) == local);
    set(&mut shown, "Containers", containers(network, local_tasks, attached));
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

/// A network as a worker knows it, in the form of `GET /networks/{id}`. The plan of a node has no
/// labels and no dates.
pub(crate) fn show_planned(network: &NetworkPlan) -> Value {
    let subnets = network.subnets.iter().filter(|(range, _)| range.is_ipv4() || network.ipv6);
    let config = subnets.map(|(range, gateway)| models::IpamConfig {
        subnet: Some(range.to_string()),
        gateway: Some(gateway.to_string()),
        ..models::IpamConfig::default()
    });
    let mut options = HashMap::from([(options::VNI.to_owned(), network.vni.to_string())]);
    if network.encrypted {
        options.insert(options::ENCRYPTED.to_owned(), String::new());
    }
    let mut shown = to_json(models::Network {
        name: Some(network.name.to_string()),
        id: Some(network.id.to_string()),
        scope: Some("swarm".into()),
        driver: Some("overlay".into()),
        enable_ipv4: Some(!network.subnets.v4.is_empty()),
        enable_ipv6: Some(network.ipv6),
        ipam: Some(ipam::ipam(&Labels::new(), config.collect())),
        internal: Some(network.internal),
        attachable: Some(false),
        ingress: Some(network.ingress),
        config_from: Some(models::ConfigReference { network: Some(String::new()) }),
        config_only: Some(false),
        options: Some(options),
        labels: Some(labels(&Labels::new())),
        ..models::Network::default()
    });
    set(&mut shown, "Containers", json!({}));
    shown
}

/// A configuration-only network in the form of `GET /networks/{id}`. As in Docker, its driver is
/// `null`.
pub(crate) fn show_configuration(configuration: &NetworkConfiguration) -> Value {
    let spec = &configuration.spec;
    let config = spec.v4.iter().map(ipam::write).chain(spec.v6.iter().map(ipam::write)).collect();
    let mut shown = to_json(models::Network {
        name: Some(spec.name.to_string()),
        id: Some(configuration.id.to_string()),
        created: date(configuration.meta.created_ms),
        scope: Some("swarm".into()),
        driver: Some("null".into()),
        enable_ipv4: Some(spec.ipv4),
        enable_ipv6: Some(spec.ipv6),
        ipam: Some(ipam::ipam(&spec.ipam_options, config)),
        internal: Some(false),
        attachable: Some(spec.attachable),
        ingress: Some(false),
        config_from: Some(models::ConfigReference { network: Some(String::new()) }),
        config_only: Some(true),
        options: Some(options::write(spec)),
        labels: Some(labels(&spec.labels)),
        peers: None,
    });
    set(&mut shown, "Containers", json!({}));
    shown
}

/// The driver options that the user has given, and the VNI.
fn driver_options(network: &Network) -> HashMap<String, String> {
    let mut options = options::write(&network.spec);
    options.insert(options::VNI.to_owned(), network.vni.to_string());
    options
}

fn containers<'a>(
    network: &Network,
    tasks: impl Iterator<Item = &'a Task>,
    attached: impl Iterator<Item = &'a AttachedContainer>,
) -> Value {
    let show = |name: &str, id: &TaskId, DualAddr { v4, v6 }: DualAddr, mac: Mac| {
        json!({
            "Name": name,
            "EndpointID": id.as_str(),
            "MacAddress": mac.to_string(),
            "IPv4Address": v4.map(|v4| with_prefix(network, v4.into())).unwrap_or_default(),
            "IPv6Address": if network.spec.ipv6 { with_prefix(network, v6.into()) } else { String::new() },
        })
    };
    let tasks = tasks.filter(|task| task.holds_addresses()).filter_map(|task| {
        let attachment = task.attachments.iter().find(|a| a.network == network.id)?;
        let id = task.status.container.clone().unwrap_or_else(|| task.id.to_string());
        Some((id, show(&task.name, &task.id, attachment.addr, attachment.mac)))
    });
    let attached = attached.filter_map(|container| {
        let link = container.links.iter().find(|link| link.network == network.id)?;
        let identity = container.identity.as_ref()?;
        Some((identity.container.clone(), show(&identity.name, &container.id, link.addr, link.mac)))
    });
    Value::Object(tasks.chain(attached).collect())
}

/// The ingress network, on which a service that publishes ports is shown, as in Swarm.
pub(crate) fn ingress_of<'a>(state: &'a ClusterState, service: &Service) -> Option<&'a Network> {
    state.networks.values().find(|network| network.spec.ingress && !service.ports.is_empty())
}

/// The addresses that users see, with their prefix lengths: those of the families that the spec of
/// the network has. Each address of weft has an IPv6 part. On networks without IPv6, no name
/// resolves to that part, and it is not shown.
pub(crate) fn shown_addresses(network: &Network, addr: DualAddr) -> impl Iterator<Item = String> {
    addr.ips().filter(|ip| ip.is_ipv4() || network.spec.ipv6).map(|ip| with_prefix(network, ip))
}

/// An address on the network, with the prefix length of its subnet.
pub(crate) fn with_prefix(network: &Network, address: IpAddr) -> String {
    let length = network
        .subnets
        .containing(address)
        .map_or(if address.is_ipv4() { 32 } else { 128 }, |(range, _)| range.prefix());
    format!("{address}/{length}")
}

fn show_service(state: &ClusterState, network: &Network, service: &Service) -> Value {
    let endpoint = service.endpoints.iter().find(|e| e.network == network.id);
    let tasks: Vec<_> = state
        .tasks_of(&service.id)
        .filter(|task| task.holds_addresses())
        .filter_map(|task| {
            let attachment = task.attachments.iter().find(|a| a.network == network.id)?;
            let host = task.node.as_ref().and_then(|id| state.nodes.get(id)).map(|node| node.addr.to_string());
            Some(models::NetworkTaskInfo {
                name: Some(task.name.clone()),
                endpoint_id: Some(task.id.to_string()),
                endpoint_ip: Some(attachment.addr.first().to_string()),
                info: host.map(|host| [("Host IP".to_owned(), host)].into()),
            })
        })
        .collect();
    let ports = service.ports.iter().map(|p| format!("Target: {}, Publish: {}", p.spec.target, p.published)).collect();
    to_json(models::ServiceInfo {
        vip: endpoint.and_then(|e| e.vip).map(|vip| vip.first().to_string()),
        ports: Some(ports),
        local_lb_index: endpoint.map(|e| i64::from(e.mesh.0)),
        tasks: Some(tasks),
    })
}

/// A network in the form that an attachment of a task contains. As in Swarm, it differs from the
/// form of `GET /networks`.
pub(crate) fn show_attached(network: &Network) -> Value {
    let labels: BTreeMap<_, _> = network.spec.labels.iter().collect();
    let shown = network.subnets.iter().filter(|(range, _)| range.is_ipv4() || network.spec.ipv6);
    let configs: Vec<_> =
        shown.map(|(range, gateway)| json!({"Subnet": range.to_string(), "Gateway": gateway.to_string()})).collect();
    json!({
        "ID": network.id.as_str(),
        "Version": {"Index": network.meta.version},
        "CreatedAt": timestamp(network.meta.created_ms),
        "UpdatedAt": timestamp(network.meta.updated_ms),
        "Spec": {
            "Name": network.spec.name.as_str(),
            "Labels": labels,
            "DriverConfiguration": {"Name": "overlay"},
            "Ingress": network.spec.ingress,
            "Attachable": network.spec.attachable,
            "Internal": network.spec.internal,
            "Scope": "swarm",
        },
        "DriverState": {"Name": "overlay", "Options": driver_options(network)},
        "IPAMOptions": {
            "Driver": {"Name": "default"},
            "Configs": configs,
        },
    })
}
