//! Which peer has an address: the longest prefix of the allowed addresses (cryptokey routing).
//! Built by `table`, looked up for each packet by the workers. Pure.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use ipnetwork::IpNetwork;

/// The prefixes of one address family, by length, longest first.
type Prefixes<T> = Vec<(u8, HashMap<u128, T>)>;

/// A map from networks to values. Each length of a prefix costs a lookup one hash: weft's own
/// networks have one length.
#[derive(Debug, Clone)]
pub(crate) struct Routes<T> {
    v4: Prefixes<T>,
    v6: Prefixes<T>,
}

impl<T> Routes<T> {
    /// Of two equal networks the later one wins.
    pub(crate) fn new(entries: impl IntoIterator<Item = (IpNetwork, T)>) -> Self {
        let (mut v4, mut v6) = (BTreeMap::new(), BTreeMap::new());
        for (network, value) in entries {
            let (prefixes, bits) = if network.is_ipv4() { (&mut v4, 32) } else { (&mut v6, 128) };
            let length = network.prefix();
            let networks: &mut HashMap<u128, T> = prefixes.entry(length).or_default();
            networks.insert(masked(number(network.ip()), length, bits), value);
        }
        let sorted = |prefixes: BTreeMap<u8, HashMap<u128, T>>| prefixes.into_iter().rev().collect();
        Self { v4: sorted(v4), v6: sorted(v6) }
    }

    pub(crate) fn get(&self, address: IpAddr) -> Option<&T> {
        let (prefixes, bits) = if address.is_ipv4() { (&self.v4, 32) } else { (&self.v6, 128) };
        let number = number(address);
        prefixes.iter().find_map(|(length, networks)| networks.get(&masked(number, *length, bits)))
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn masked(number: u128, length: u8, bits: u8) -> u128 {
    let host_bits = u32::from(bits.saturating_sub(length));
    let mask = u128::MAX.checked_shl(host_bits).unwrap_or(0);
    number & mask
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// Networks and addresses from a small range, so that many of them match.
    fn address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            (0u32..1024).prop_map(|bits| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | bits))),
            (0u128..1024).prop_map(|bits| IpAddr::V6(Ipv6Addr::from((0xfd00 << 112) | bits))),
        ]
    }

    fn network() -> impl Strategy<Value = IpNetwork> {
        (address(), 0u8..=12).prop_map(|(address, host_bits)| {
            let bits = if address.is_ipv4() { 32 } else { 128 };
            let length = if host_bits == 12 { 0 } else { bits - host_bits };
            IpNetwork::new(address, length).expect("a valid prefix")
        })
    }

    proptest! {
        #[test]
        fn the_longest_prefix_wins(networks in prop::collection::vec(network(), 0..20), address in address()) {
            let routes = Routes::new(networks.iter().copied().zip(0..));
            let matching = networks.iter().zip(0..).filter(|(network, _)| network.contains(address));
            // `max_by_key` returns the last of several.
            let expected = matching.max_by_key(|(network, _)| network.prefix()).map(|(_, index)| index);
            prop_assert_eq!(routes.get(address).copied(), expected);
        }
    }
}
