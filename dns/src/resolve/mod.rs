//! The answer to a question, from the zone and the networks of the task that asks. Pure.
//!
//! `server` calls [`resolve`] for every question. A question that the zone does not answer is
//! forwarded to the upstream resolvers.

use std::net::IpAddr;

use hickory_proto::rr::{Name, RecordType};
use weft_model::NetworkId;

use crate::zone::Zone;

/// The answer to one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Addresses(Vec<IpAddr>),
    /// The name of the address in the question.
    Name(Name),
    /// The name exists, but has no record of the type in the question.
    NoData,
    /// The name does not exist, and no upstream resolver can have it.
    NxDomain,
    /// The zone has no answer: an upstream resolver must answer.
    Forward,
}

/// Answers the question for `name` and `record_type` of a task that is on `networks`. `rotation`
/// selects the address that comes first. The caller increments it for each question, which spreads
/// clients that use the first address over all addresses.
///
/// A name that exists only on other networks is answered like a name that does not exist.
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
/// let vip = DualAddr { v4: [10, 0, 1, 2].into(), v6: "fd00:1::2".parse().expect("an address") };
/// let mut plan = NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into());
/// # plan.networks.push(NetworkPlan {
/// #     id: network.clone(),
/// #     name: "front".parse().expect("a name"),
/// #     vni: Vni::new(4097).expect("a VNI"),
/// #     subnets: Subnets {
/// #         v4: "10.0.1.0/24".parse().expect("a subnet"),
/// #         v4_gateway: [10, 0, 1, 1].into(),
/// #         v6: "fd00:1::/64".parse().expect("a subnet"),
/// #         v6_gateway: "fd00:1::1".parse().expect("an address"),
/// #     },
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
/// assert_eq!(answer, Answer::Addresses(vec![vip.v4.into()]));
///
/// // A task on no network of the service gets no answer from the zone.
/// assert_eq!(resolve(&zone, &[], &name, RecordType::A, 0), Answer::Forward);
/// ```
pub fn resolve(zone: &Zone, networks: &[NetworkId], name: &Name, record_type: RecordType, rotation: usize) -> Answer {
    if let Some(address) = address_of_reverse_name(name) {
        return match zone.reverse(networks, address) {
            None => Answer::Forward,
            Some(None) => Answer::NxDomain,
            Some(Some(name)) if matches!(record_type, RecordType::PTR | RecordType::ANY) => dns_name(name),
            Some(Some(_)) => Answer::NoData,
        };
    }
    let Some((network, entry)) = zone_name(name).as_deref().and_then(|name| zone.find(networks, name)) else {
        return Answer::Forward;
    };
    let v4 = matches!(record_type, RecordType::A | RecordType::ANY);
    let v6 = matches!(record_type, RecordType::AAAA | RecordType::ANY) && network.ipv6;
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(entry.addresses.len());
    for address in rotated(&entry.addresses, rotation) {
        addresses.extend(v4.then_some(IpAddr::V4(address.v4)));
        addresses.extend(v6.then_some(IpAddr::V6(address.v6)));
    }
    if addresses.is_empty() { Answer::NoData } else { Answer::Addresses(addresses) }
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

fn dns_name(name: &str) -> Answer {
    // This does not fail, because the names of services, tasks and networks are validated when they
    // are created, and an alias is never the name of an address.
    Name::from_labels(name.split('.').map(str::as_bytes)).map_or(Answer::NoData, Answer::Name)
}

#[cfg(test)]
mod tests;
