//! Allocates published ports. A published port belongs to one service. If the user has not chosen a
//! port, this module chooses a free one.

use std::collections::BTreeSet;

use weft_model::{
    CONTROL_PORT, ClusterState, DYNAMIC_PORTS, Rejection, ServiceId,
    spec::{EndpointMode, EndpointSpec, PortSpec, Protocol},
    state::{Node, PublishedPort},
    wireguard::WIREGUARD_PORTS,
};

/// Whether the cluster itself uses this port on any node. Then it cannot be published, because a
/// published port is a port of all nodes.
fn is_reserved(state: &ClusterState, port: u16, protocol: Protocol) -> bool {
    match protocol {
        Protocol::Tcp => port == CONTROL_PORT || state.nodes.values().any(|node| node.rpc_addr.port() == port),
        Protocol::Udp => {
            let is_key_port = |node: &Node| node.keys.keys.iter().any(|record| record.key.port == port);
            state.cluster.as_ref().is_some_and(|cluster| cluster.tunnel_port == port)
                || WIREGUARD_PORTS.contains(&port)
                || state.nodes.values().any(is_key_port)
        }
    }
}

/// Refuses a node whose control port is already published: connections to the control port would be
/// sent to the service.
pub(super) fn check_control_port(state: &ClusterState, port: u16) -> Result<(), Rejection> {
    let taken = state
        .services
        .values()
        .filter(|service| !service.removing)
        .find(|service| service.ports.iter().any(|p| p.published == port && p.spec.protocol == Protocol::Tcp));
    match taken {
        Some(service) => Err(Rejection::Invalid(format!(
            "service {} publishes port {port}/tcp, which this node wants to listen on: join with another --listen-addr port",
            service.spec.name
        ))),
        None => Ok(()),
    }
}

/// The ports of `spec`, each with its published port. A service that is updated keeps the ports
/// that were chosen for it (`current`).
pub(super) fn publish(
    state: &ClusterState,
    service: &ServiceId,
    spec: &EndpointSpec,
    current: &[PublishedPort],
) -> Result<Vec<PublishedPort>, Rejection> {
    if spec.mode == EndpointMode::Dnsrr && !spec.ports.is_empty() {
        return Err(Rejection::Invalid(
            "a service with endpoint mode dnsrr cannot publish ports: use endpoint mode vip, or publish none"
                .to_owned(),
        ));
    }
    let mut taken = BTreeSet::new();
    for port in &spec.ports {
        if let Some(published) = port.published {
            check(state, service, port, published)?;
            if !taken.insert((published, port.protocol)) {
                let protocol = port.protocol.as_str();
                return Err(Rejection::Invalid(format!(
                    "port {published}/{protocol} is published twice: publish it once"
                )));
            }
        } else if port.target == 0 {
            return Err(port_zero());
        }
    }
    let mut ports = Vec::with_capacity(spec.ports.len());
    for port in &spec.ports {
        let published = match port.published {
            Some(published) => published,
            None => choose_port(state, service, port, current, &taken)?,
        };
        taken.insert((published, port.protocol));
        ports.push(PublishedPort { spec: *port, published });
    }
    Ok(ports)
}

fn port_zero() -> Rejection {
    Rejection::Invalid("port 0 cannot be published: use 1 to 65535".to_owned())
}

fn check(state: &ClusterState, service: &ServiceId, port: &PortSpec, published: u16) -> Result<(), Rejection> {
    let protocol = || port.protocol.as_str().to_owned();
    if published == 0 || port.target == 0 {
        return Err(port_zero());
    }
    if is_reserved(state, published, port.protocol) {
        return Err(Rejection::PortReserved { port: published, protocol: protocol() });
    }
    match owner(state, service, published, port.protocol) {
        Some(by) => Err(Rejection::PortInUse { port: published, protocol: protocol(), by }),
        None => Ok(()),
    }
}

/// The name of another service that has this port. A service that is being removed has no ports.
fn owner(state: &ClusterState, service: &ServiceId, published: u16, protocol: Protocol) -> Option<String> {
    state
        .services
        .values()
        .filter(|other| !other.removing && other.id != *service)
        .find(|other| other.ports.iter().any(|p| p.published == published && p.spec.protocol == protocol))
        .map(|other| other.spec.name.to_string())
}

/// A free port of [`DYNAMIC_PORTS`], or the port that was chosen for the same port spec before.
fn choose_port(
    state: &ClusterState,
    service: &ServiceId,
    port: &PortSpec,
    current: &[PublishedPort],
    taken: &BTreeSet<(u16, Protocol)>,
) -> Result<u16, Rejection> {
    let free = |published: &u16| {
        !taken.contains(&(*published, port.protocol))
            && !is_reserved(state, *published, port.protocol)
            && owner(state, service, *published, port.protocol).is_none()
    };
    let before = current.iter().filter(|p| p.spec == *port).map(|p| p.published);
    before.chain(DYNAMIC_PORTS).find(free).ok_or(Rejection::NoFreePort)
}
