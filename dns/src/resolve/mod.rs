//! The answer to a question, from the zone and the networks of the task that asks. Pure.
//!
//! `handler` calls [`resolve`] for every question. Upstream resolvers answer a question that the
//! zone does not answer.
//!
//! Invariants: a name that the zone has on a network of the task is never asked for outside, also
//! not for a type that it does not have. So a missing AAAA record costs no time and no name of a
//! service reaches other resolvers.

use std::net::IpAddr;

use hickory_proto::rr::{Name, RecordType};
use weft_model::{DualAddr, NetworkId, spec::Protocol};

use crate::zone::{Entry, NetworkNames, Zone};

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Addresses(Vec<IpAddr>),
    /// The name of the address in the question.
    Name(Name),
    /// Where a service listens (SRV).
    Endpoints(Vec<Endpoint>),
    /// The name exists, but has no record of the type in the question.
    NoData,
    /// The name does not exist, and no upstream resolver can have it.
    NxDomain,
    /// The type in the question is not a type of records, but a request that no task may make.
    Refused,
    /// The zone has no answer: an upstream resolver must answer.
    Outside,
}

/// A port of a service, and the name and the addresses at which it listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub port: u16,
    pub target: Name,
    pub addresses: Vec<IpAddr>,
}

/// Answers the question for `name` and `record_type` of a task that is on `networks`. `rotation`
/// selects the address that comes first. The caller increments it for each question, which spreads
/// clients that use the first address over all addresses.
///
/// A name that exists only on other networks is answered like a name that does not exist. A
/// question of type ANY gets the records of one type (RFC 8482).
///
/// ```
/// use hickory_proto::rr::{Name, RecordType};
/// use weft_dns::{
///     Zone,
///     resolve::{Answer, resolve},
/// };
/// use weft_model::{DualAddr, MeshServiceId, NetworkId, NodeId, NodePlan, ServiceId, Vni};
/// # use weft_model::{net::Subnets, plan::{NetworkPlan, ServicePlan}};
///
/// // A plan with the service `web` on one network.
/// let network = NetworkId::from_random(1);
/// let vip = DualAddr {
///     v4: Some([10, 0, 1, 2].into()),
///     v6: "fd00:1::2".parse().expect("an address"),
/// };
/// let mut plan = NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into());
/// # plan.networks.push(NetworkPlan {
/// #     id: network.clone(),
/// #     name: "front".parse().expect("a name"),
/// #     vni: Vni::new(4097).expect("a VNI"),
/// #     subnets: Subnets::dual(
/// #         "10.0.1.0/24".parse().expect("a subnet"),
/// #         "fd00:1::/64".parse().expect("a subnet"),
/// #     ),
/// #     ipv6: false,
/// #     internal: false,
/// #     ingress: false,
/// #     encrypted: false,
/// # });
/// plan.services.push(ServicePlan {
///     name: "web".parse().expect("a name"),
///     vip: Some(vip),
///     network: network.clone(),
/// #   mesh: MeshServiceId(1),
/// #   service: ServiceId::from_random(1),
/// #   aliases: vec![],
/// #   removing: false,
/// #   backends: vec![],
///     // …
/// });
///
/// let zone = Zone::from_plan(&plan);
/// let name = Name::from_ascii("web.").expect("a name");
/// let answer = resolve(&zone, &[network], &name, RecordType::A, 0);
/// assert_eq!(answer, Answer::Addresses(vec![vip.first()]));
///
/// // A task on no network of the service gets no answer from the zone.
/// assert_eq!(resolve(&zone, &[], &name, RecordType::A, 0), Answer::Outside);
/// ```
pub fn resolve(zone: &Zone, networks: &[NetworkId], name: &Name, record_type: RecordType, rotation: usize) -> Answer {
    if is_request(record_type) {
        return Answer::Refused;
    }
    if let Some(address) = address_of_reverse_name(name) {
        return match zone.reverse(networks, address) {
            None => Answer::Outside,
            Some(None) => Answer::NxDomain,
            Some(Some(name)) if matches!(record_type, RecordType::PTR | RecordType::ANY) => {
                dns_name(name).map_or(Answer::NoData, Answer::Name)
            }
            Some(Some(_)) => Answer::NoData,
        };
    }
    let Some(name) = zone_name(name) else { return Answer::Outside };
    if let Some((network, entry)) = zone.find(networks, &name) {
        return addresses(network, entry, record_type, rotation);
    }
    match port_name(&name) {
        Some((port, protocol, name)) => match zone.find(networks, name) {
            Some((network, entry)) => endpoints(network, entry, (port, protocol), record_type, rotation),
            None => Answer::Outside,
        },
        None => Answer::Outside,
    }
}

/// Whether the number is no type of records of a name: OPT, and from TKEY to MAILA (RFC 6895,
/// section 3.1), which includes the transfers of whole zones. ANY is not one of these.
fn is_request(record_type: RecordType) -> bool {
    matches!(u16::from(record_type), 41 | 249..=254)
}

fn addresses(network: &NetworkNames, entry: &Entry, record_type: RecordType, rotation: usize) -> Answer {
    let of_type = |address: &DualAddr| match record_type {
        RecordType::A => address.v4.map(IpAddr::V4),
        RecordType::AAAA => network.ipv6.then_some(IpAddr::V6(address.v6)),
        RecordType::ANY => Some(address.first()),
        _ => None,
    };
    let addresses: Vec<IpAddr> =
        rotated(&entry.addresses, rotation).filter_map(|(address, _)| of_type(address)).collect();
    if addresses.is_empty() { Answer::NoData } else { Answer::Addresses(addresses) }
}

/// The endpoints of a port that the service publishes: its VIP, or else each of its tasks.
fn endpoints(
    network: &NetworkNames,
    entry: &Entry,
    port: (u16, Protocol),
    record_type: RecordType,
    rotation: usize,
) -> Answer {
    if !entry.ports.contains(&port) {
        return Answer::NxDomain;
    }
    if !matches!(record_type, RecordType::SRV | RecordType::ANY) {
        return Answer::NoData;
    }
    let endpoints: Vec<Endpoint> = rotated(&entry.addresses, rotation)
        .filter(|(_, ports)| ports.contains(&port))
        .filter_map(|(address, _)| {
            let target = dns_name(network.name_of(*address)?)?;
            let v6 = network.ipv6.then_some(IpAddr::V6(address.v6));
            let addresses = address.v4.map(IpAddr::V4).into_iter().chain(v6).collect();
            Some(Endpoint { port: port.0, target, addresses })
        })
        .collect();
    if endpoints.is_empty() { Answer::NoData } else { Answer::Endpoints(endpoints) }
}

/// The parts of `_80._tcp.web`: a port of the tasks, its protocol, and the name of a service
/// (RFC 2782). The port is a number, because weft's ports have no names.
fn port_name(name: &str) -> Option<(u16, Protocol, &str)> {
    let (port, rest) = name.strip_prefix('_')?.split_once("._")?;
    let (protocol, name) = rest.split_once('.')?;
    let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|known| known.as_str() == protocol)?;
    let number: u16 = port.parse().ok()?;
    (number.to_string() == port).then_some((number, protocol, name))
}

fn rotated<T>(items: &[T], rotation: usize) -> impl Iterator<Item = &T> {
    let first = rotation.checked_rem(items.len()).unwrap_or_default();
    items[first..].iter().chain(&items[..first])
}

/// The address of a name below in-addr.arpa or ip6.arpa (RFC 1035, section 3.5; RFC 3596, section
/// 2.5). `None` if the name is not the reverse name of a single address.
fn address_of_reverse_name(name: &Name) -> Option<IpAddr> {
    let network = name.parse_arpa_name().ok()?;
    (network.prefix_len() == network.max_prefix_len()).then(|| network.addr())
}

/// Converts a name into the form of the zone. `None` if it contains an octet that names of a zone
/// cannot contain.
fn zone_name(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name {
        if !text.is_empty() {
            text.push('.');
        }
        for &octet in label {
            if !octet.is_ascii_graphic() || octet == b'.' {
                return None;
            }
            text.push(char::from(octet.to_ascii_lowercase()));
        }
    }
    (!text.is_empty()).then_some(text)
}

/// `None` does not happen, because the names of services, tasks and networks are validated when
/// they are created, and an alias is never the name of an address.
fn dns_name(name: &str) -> Option<Name> {
    Name::from_labels(name.split('.').map(str::as_bytes)).ok()
}

#[cfg(test)]
mod tests;
