//! The node's uplinks, addresses and routes, for other layers.
//!
//! `reconcile` computes them after each pass. The agent gives them to the mesh and reports them to
//! the leader. Pure. Links that weft made are left out.

use std::{collections::BTreeMap, net::IpAddr};

use ipnetwork::IpNetwork;
use weft_model::Mac;

use crate::{
    actual::{ActualLink, ActualNetns},
    name,
};

/// The node's own network namespace without weft's links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Every link with a global address except `lo`, sorted by name. Some of them carry no Ethernet
    /// frames: the mesh must not attach programs there.
    pub uplinks: Vec<Uplink>,
    /// The global addresses of all links including `lo`, sorted: the addresses at which other
    /// machines can reach the node. Without 127.0.0.0/8 and ::1, whatever their scope.
    pub addresses: Vec<IpAddr>,
    /// The destinations of the node's routes except the default routes, sorted. No network of the
    /// cluster may overlap them.
    pub routes: Vec<IpNetwork>,
    /// The routes for packets to the outside, including the default routes. If several routes
    /// have the same destination, only the preferred one is listed.
    pub egress_routes: Vec<EgressRoute>,
    /// `SO_NETNS_COOKIE` of the node's network namespace.
    pub netns_cookie: u64,
}

/// A route of the node that uses one of its uplinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EgressRoute {
    pub destination: IpNetwork,
    pub ifindex: u32,
    /// The source address that the route sets. If it sets none, the link's first address of the
    /// same family as the destination.
    pub source: IpAddr,
}

/// A link through which other machines reach the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub ifindex: u32,
    /// `None` if the link has no Ethernet address.
    pub mac: Option<Mac>,
    /// The global addresses with their prefix lengths, sorted.
    pub addresses: Vec<IpNetwork>,
}

/// Computes the facts from a dump of the node's namespace.
pub(crate) fn facts(node: &ActualNetns) -> NodeFacts {
    let other_links = || node.links.iter().filter(|(name, _)| !name::is_weft_link(name));
    let uplinks: Vec<Uplink> = other_links()
        .filter(|(_, link)| !link.loopback)
        .map(|(_, link)| Uplink { ifindex: link.index, mac: link.mac, addresses: reachable_addresses(link).collect() })
        .filter(|uplink| !uplink.addresses.is_empty())
        .collect();
    let mut addresses: Vec<IpAddr> =
        other_links().flat_map(|(_, link)| reachable_addresses(link)).map(|address| address.ip()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let is_weft_link = |index: u32| node.link_by_index(index).is_some_and(|(name, _)| name::is_weft_link(name));
    let mut routes: Vec<IpNetwork> = node
        .routes
        .iter()
        .filter(|route| route.destination.prefix() > 0 && !is_link_local(route.destination.ip()))
        .filter(|route| !route.link.is_some_and(is_weft_link))
        .map(|route| route.destination)
        .collect();
    routes.sort_unstable();
    routes.dedup();
    let egress_routes = egress_routes(node, &uplinks);
    NodeFacts { uplinks, addresses, routes, egress_routes, netns_cookie: node.cookie }
}

/// The addresses at which other machines can reach the node.
fn reachable_addresses(link: &ActualLink) -> impl Iterator<Item = IpNetwork> {
    link.addresses.iter().copied().filter(|address| !address.ip().is_loopback())
}

fn egress_routes(node: &ActualNetns, uplinks: &[Uplink]) -> Vec<EgressRoute> {
    let mut preferred: BTreeMap<IpNetwork, (u32, EgressRoute)> = BTreeMap::new();
    for route in node.routes.iter().filter(|route| !is_link_local(route.destination.ip())) {
        let Some(uplink) = uplinks.iter().find(|uplink| Some(uplink.ifindex) == route.link) else { continue };
        let is_same_family = |address: &&IpNetwork| address.is_ipv4() == route.destination.is_ipv4();
        let link_address = || uplink.addresses.iter().find(is_same_family).map(IpNetwork::ip);
        let Some(source) = route.source.or_else(link_address) else { continue };
        let egress_route = EgressRoute { destination: route.destination, ifindex: uplink.ifindex, source };
        match preferred.get(&route.destination) {
            Some((metric, _)) if *metric <= route.metric => {}
            _ => drop(preferred.insert(route.destination, (route.metric, egress_route))),
        }
    }
    preferred.into_values().map(|(_, route)| route).collect()
}

/// Every link has routes to these addresses, so these routes do not show which link leads to the
/// outside.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_loopback() || v4.is_multicast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.is_loopback() || v6.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::actual::ActualRoute;

    fn link(index: u32, addresses: &[&str]) -> ActualLink {
        ActualLink {
            index,
            mtu: 1500,
            addresses: addresses.iter().map(|a| a.parse().expect("an address")).collect(),
            ..ActualLink::default()
        }
    }

    fn route(destination: &str, link: u32) -> ActualRoute {
        ActualRoute {
            destination: destination.parse().expect("a network"),
            via: None,
            link: Some(link),
            source: None,
            metric: 0,
        }
    }

    #[test]
    fn reports_the_links_addresses_and_routes_that_lead_outside() {
        let node = ActualNetns {
            cookie: 7,
            links: [
                ("lo".to_owned(), ActualLink { loopback: true, ..link(1, &["127.0.0.2/8", "198.51.100.7/32"]) }),
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
                ActualRoute { source: Some([192, 0, 2, 7].into()), metric: 9, ..route("203.0.113.0/24", 2) },
                ActualRoute { metric: 10, ..route("203.0.113.0/24", 2) },
            ],
            ..ActualNetns::default()
        };
        let facts = facts(&node);
        assert_eq!(facts.uplinks.iter().map(|uplink| uplink.ifindex).collect::<Vec<_>>(), [2]);
        assert_eq!(
            facts.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.1", "192.0.2.7", "198.51.100.7", "2001:db8::1"]
        );
        assert_eq!(
            facts.routes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["192.0.2.0/24", "203.0.113.0/24", "2001:db8::/64"]
        );
        let route = |destination: &str, source: &str| EgressRoute {
            destination: destination.parse().expect("a network"),
            ifindex: 2,
            source: source.parse().expect("an address"),
        };
        assert_eq!(
            facts.egress_routes,
            [
                route("0.0.0.0/0", "192.0.2.1"),
                route("192.0.2.0/24", "192.0.2.1"),
                route("203.0.113.0/24", "192.0.2.7"),
                route("2001:db8::/64", "2001:db8::1"),
            ]
        );
        assert_eq!(facts.netns_cookie, 7);
    }
}
