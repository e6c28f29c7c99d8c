//! Zone, view and question → answer. Pure.

use std::net::IpAddr;

use hickory_proto::rr::{Name, RecordType};
use weft_model::NetworkId;

use crate::zone::Zone;

/// What a name or address comes to, for one who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Addresses(Vec<IpAddr>),
    /// The name of the address that was asked about.
    Name(Name),
    /// There is such a name, but nothing of the type asked for.
    NoData,
    /// There is no such name, and nobody else could know.
    NxDomain,
    /// Not ours to say.
    Forward,
}

/// Answers the question for `name` and `kind`, from someone on the networks `view`. `turn` is which of several
/// addresses comes first; counting it up spreads those who take the first.
///
/// A name that is only on other networks is like one that nobody ever heard of.
pub fn resolve(zone: &Zone, view: &[NetworkId], name: &Name, kind: RecordType, turn: usize) -> Answer {
    if let Some(address) = address_of_reverse_name(name) {
        return match zone.reverse(view, address) {
            None => Answer::Forward,
            Some(None) => Answer::NxDomain,
            Some(Some(owner)) if matches!(kind, RecordType::PTR | RecordType::ANY) => dns_name(owner),
            Some(Some(_)) => Answer::NoData,
        };
    }
    let Some((network, entry)) = text_of(name).as_deref().and_then(|name| zone.find(view, name)) else {
        return Answer::Forward;
    };
    let v4 = matches!(kind, RecordType::A | RecordType::ANY);
    let v6 = matches!(kind, RecordType::AAAA | RecordType::ANY) && network.ipv6;
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(entry.addresses.len());
    for address in rotated(&entry.addresses, turn) {
        addresses.extend(v4.then_some(IpAddr::V4(address.v4)));
        addresses.extend(v6.then_some(IpAddr::V6(address.v6)));
    }
    if addresses.is_empty() { Answer::NoData } else { Answer::Addresses(addresses) }
}

fn rotated<T>(all: &[T], turn: usize) -> impl Iterator<Item = &T> {
    let first = turn.checked_rem(all.len()).unwrap_or_default();
    all[first..].iter().chain(&all[..first])
}

/// The one address that a name below in-addr.arpa or ip6.arpa stands for (RFC 1035, section 3.5; RFC 3596).
fn address_of_reverse_name(name: &Name) -> Option<IpAddr> {
    let network = name.parse_arpa_name().ok()?;
    (network.prefix_len() == network.max_prefix_len()).then(|| network.addr())
}

/// As a zone writes names; `None` for one that no zone holds: it has an octet that our names never have.
fn text_of(name: &Name) -> Option<String> {
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

fn dns_name(text: &str) -> Answer {
    // Names of services, tasks and networks are checked when they are made; an alias is never the name of an address.
    Name::from_labels(text.split('.').map(str::as_bytes)).map_or(Answer::NoData, Answer::Name)
}

#[cfg(test)]
mod tests;
