//! What the node itself has, whatever weft does: the links that lead outside, its addresses, its routes.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use weft_model::Mac;

use crate::{
    found::{Found, FoundLink},
    name,
};

/// What the kernel says of the node's own network namespace, weft's links left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Every link with a global address but lo, in the order of their names. Some carry no Ethernet: a program for
    /// frames has no business on them.
    pub uplinks: Vec<Uplink>,
    /// The global addresses of all links, lo too, sorted: those that the node answers others on. Addresses that mean
    /// this very node to everybody (127.0.0.0/8 and ::1) are not among them, whatever scope they were given.
    pub addresses: Vec<IpAddr>,
    /// Destinations of its routes but the default ones, sorted: no network may overlap them.
    pub routes: Vec<IpNetwork>,
    /// Where packets to the outside leave, default routes included; of several to one destination the preferred one.
    pub ways: Vec<Way>,
    /// Of the node's network namespace.
    pub netns_cookie: u64,
}

/// A route of the node's that leads out of one of its links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    pub destination: IpNetwork,
    pub ifindex: u32,
    /// What the route names, else the link's first address of the destination's family.
    pub source: IpAddr,
}

/// A link of the node through which the outside reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub ifindex: u32,
    /// `None` where the link has no Ethernet addresses.
    pub mac: Option<Mac>,
    /// Global ones, sorted, with the length of their prefix.
    pub addresses: Vec<IpNetwork>,
}

/// Reads the facts from a dump of the node's namespace.
pub(crate) fn facts(node: &Found, netns_cookie: u64) -> NodeFacts {
    let others = || node.links.iter().filter(|(name, _)| !name::is_ours(name));
    let uplinks: Vec<Uplink> = others()
        .filter(|(_, link)| !link.loopback)
        .map(|(_, link)| Uplink { ifindex: link.index, mac: link.mac, addresses: reachable(link).collect() })
        .filter(|uplink| !uplink.addresses.is_empty())
        .collect();
    let mut addresses: Vec<IpAddr> =
        others().flat_map(|(_, link)| reachable(link)).map(|address| address.ip()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let ours = |index: u32| node.link_at(index).is_some_and(|(name, _)| name::is_ours(name));
    let mut routes: Vec<IpNetwork> = node
        .routes
        .iter()
        .filter(|route| route.destination.prefix() > 0 && !is_link_local(route.destination.ip()))
        .filter(|route| !route.link.is_some_and(ours))
        .map(|route| route.destination)
        .collect();
    routes.sort_unstable();
    routes.dedup();
    let ways = ways(node, &uplinks);
    NodeFacts { uplinks, addresses, routes, ways, netns_cookie }
}

/// Addresses at which others can reach the node.
fn reachable(link: &FoundLink) -> impl Iterator<Item = IpNetwork> {
    link.addresses.iter().copied().filter(|address| !address.ip().is_loopback())
}

fn ways(node: &Found, uplinks: &[Uplink]) -> Vec<Way> {
    let mut best: BTreeMap<IpNetwork, (u32, Way)> = BTreeMap::new();
    for route in node.routes.iter().filter(|route| !is_link_local(route.destination.ip())) {
        let Some(uplink) = uplinks.iter().find(|uplink| Some(uplink.ifindex) == route.link) else { continue };
        let family = |address: &&IpNetwork| address.is_ipv4() == route.destination.is_ipv4();
        let of_link = || uplink.addresses.iter().find(family).map(IpNetwork::ip);
        let Some(source) = route.source.or_else(of_link) else { continue };
        let way = Way { destination: route.destination, ifindex: uplink.ifindex, source };
        match best.get(&route.destination) {
            Some((metric, _)) if *metric <= route.metric => {}
            _ => drop(best.insert(route.destination, (route.metric, way))),
        }
    }
    best.into_values().map(|(_, way)| way).collect()
}

/// Every link has these: they say nothing of where the node's routes lead.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_loopback() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_loopback() || v6.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::found::FoundRoute;

    fn link(index: u32, addresses: &[&str]) -> FoundLink {
        FoundLink {
            index,
            mtu: 1500,
            addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
            ..FoundLink::default()
        }
    }

    fn route(destination: &str, link: u32) -> FoundRoute {
        FoundRoute {
            destination: destination.parse().expect("a network"),
            via: None,
            link: Some(link),
            source: None,
            metric: 0,
        }
    }

    #[test]
    fn uplinks_are_foreign_links_with_a_global_address() {
        let found = Found {
            links: [
                ("lo".to_owned(), FoundLink { loopback: true, ..link(1, &["127.0.0.2/8", "198.51.100.7/32"]) }),
                ("eth0".to_owned(), link(2, &["192.0.2.1/24", "192.0.2.7/24", "2001:db8::1/64"])),
                ("eth1".to_owned(), link(3, &[])),
                ("dummy0".to_owned(), link(6, &["127.9.0.1/32"])),
                (name::TUNNEL.to_owned(), link(4, &["192.0.2.9/24"])),
                ("wvabcdefghijk-0".to_owned(), link(5, &["192.0.2.8/24"])),
            ]
            .into(),
            routes: vec![
                route("0.0.0.0/0", 2),
                route("192.0.2.0/24", 2),
                route("fe80::/64", 2),
                route("ff00::/8", 2),
                route("10.9.0.0/24", 5),
                route("2001:db8::/64", 2),
                route("192.0.2.0/24", 3),
                FoundRoute { source: Some([192, 0, 2, 7].into()), metric: 9, ..route("203.0.113.0/24", 2) },
                FoundRoute { metric: 10, ..route("203.0.113.0/24", 2) },
            ],
            ..Found::default()
        };
        let facts = facts(&found, 7);
        assert_eq!(facts.uplinks.iter().map(|uplink| uplink.ifindex).collect::<Vec<_>>(), [2]);
        assert_eq!(
            facts.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.1", "192.0.2.7", "198.51.100.7", "2001:db8::1"]
        );
        assert_eq!(
            facts.routes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.0/24", "203.0.113.0/24", "2001:db8::/64"]
        );
        let way = |destination: &str, source: &str| Way {
            destination: destination.parse().expect("a network"),
            ifindex: 2,
            source: source.parse().expect("an address"),
        };
        assert_eq!(
            facts.ways,
            [
                way("0.0.0.0/0", "192.0.2.1"),
                way("192.0.2.0/24", "192.0.2.1"),
                way("203.0.113.0/24", "192.0.2.7"),
                way("2001:db8::/64", "2001:db8::1"),
            ]
        );
        assert_eq!(facts.netns_cookie, 7);
    }
}
