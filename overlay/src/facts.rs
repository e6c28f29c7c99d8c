//! The node's uplinks, addresses and routes, for other layers.
//!
//! `reconcile` computes them after each pass. The agent gives them to the mesh and reports them to
//! the leader. Pure. Links that weft made are left out.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use ipnetwork::IpNetwork;

use crate::{
    actual::{ActualLink, ActualLinkKind, ActualNetns, ActualRoute, Framing},
    name,
};

/// The node's own network namespace without weft's links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Every link by which packets of other machines can enter the node, sorted by name.
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
    /// The source address that the route sets. If it sets none, the one that the kernel would
    /// choose for a packet of the node.
    pub source: IpAddr,
}

/// A link through which other machines reach the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub ifindex: u32,
    /// Never [`Framing::Other`].
    pub framing: Framing,
    /// In octets.
    pub mtu: u32,
    /// The global addresses with their prefix lengths, sorted. Empty if the link has none: the node
    /// then uses an address of another link or of `lo`.
    pub addresses: Vec<IpNetwork>,
}

/// Computes the facts from a dump of the node's namespace.
pub(crate) fn facts(node: &ActualNetns) -> NodeFacts {
    let other_links = || node.links.iter().filter(|(name, _)| !name::is_weft_link(name));
    let uplinks: Vec<Uplink> = other_links().filter_map(|(_, link)| uplink(node, link)).collect();
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

/// The link as an uplink. `None` if no packet that is for the node enters by it:
///
/// - `lo`, to which the mesh attaches in any case;
/// - a port of a bridge or bond, because the bridge or bond receives its packets;
/// - a veth or netkit with neither an address nor a route of the node: the end of another engine's
///   container, of which a bridge or another program takes the packets;
/// - a link whose packets weft cannot parse or send.
///
/// A link that is down counts: if it counted only while it is up, packets of known flows would
/// reach the node's stack after it comes up, and the stack would reset their connections.
fn uplink(node: &ActualNetns, link: &ActualLink) -> Option<Uplink> {
    let addresses: Vec<IpNetwork> = reachable_addresses(link).collect();
    let is_pair = matches!(link.kind, ActualLinkKind::Veth { .. } | ActualLinkKind::Netkit);
    let is_used =
        || node.routes.iter().any(|route| route.link == Some(link.index) && !is_link_local(route.destination.ip()));
    let is_uplink = !link.loopback
        && !link.port
        && link.framing != Framing::Other
        && (!addresses.is_empty() || !is_pair || is_used());
    is_uplink.then_some(Uplink { ifindex: link.index, framing: link.framing, mtu: link.mtu, addresses })
}

fn egress_routes(node: &ActualNetns, uplinks: &[Uplink]) -> Vec<EgressRoute> {
    let mut preferred: BTreeMap<IpNetwork, (u32, EgressRoute)> = BTreeMap::new();
    for route in node.routes.iter().filter(|route| !is_link_local(route.destination.ip())) {
        let Some(uplink) = uplinks.iter().find(|uplink| Some(uplink.ifindex) == route.link) else { continue };
        let Some(source) = route.source.or_else(|| source_address(node, uplink, route)) else { continue };
        let egress_route = EgressRoute { destination: route.destination, ifindex: uplink.ifindex, source };
        match preferred.get(&route.destination) {
            Some((metric, _)) if *metric <= route.metric => {}
            _ => drop(preferred.insert(route.destination, (route.metric, egress_route))),
        }
    }
    preferred.into_values().map(|(_, route)| route).collect()
}

/// The source address for a route that sets none. `None` if the node has no address of the family.
///
/// This is what the kernel chooses: the address of the route's link whose subnet has the gateway,
/// or any other address of the link. If the link has none, an address of another link, of `lo` if
/// possible. For IPv4 that is the link with the lowest index (`inet_select_addr`,
/// net/ipv4/devinet.c); of several addresses of a link the lowest one is taken, where the kernel
/// takes the oldest one. For IPv6 an address of the same kind as the destination is preferred, and
/// then the one with which it shares more bits (rules 6 and 8 of RFC 6724, section 5).
fn source_address(node: &ActualNetns, uplink: &Uplink, route: &ActualRoute) -> Option<IpAddr> {
    let is_same_family = |address: &&IpNetwork| address.is_ipv4() == route.destination.is_ipv4();
    let own = || uplink.addresses.iter().filter(is_same_family);
    let near_gateway = own().find(|address| route.via.is_some_and(|via| address.contains(via)));
    if let Some(address) = near_gateway.or_else(|| own().next()) {
        return Some(address.ip());
    }
    let mut links: Vec<_> = node.links.iter().filter(|(name, _)| !name::is_weft_link(name)).collect();
    links.sort_unstable_by_key(|(_, link)| link.index);
    let addresses = links.into_iter().flat_map(|(_, link)| reachable_addresses(link)).map(|address| address.ip());
    let mut candidates = addresses.filter(|address| address.is_ipv4() == route.destination.is_ipv4());
    let IpAddr::V6(destination) = route.destination.ip() else { return candidates.next() };
    let preference = |source: &IpAddr| match source {
        IpAddr::V6(v6) => preference(*v6, destination),
        IpAddr::V4(_) => (false, 0),
    };
    candidates.reduce(|best, other| if preference(&other) > preference(&best) { other } else { best })
}

/// How well a source address fits a destination: whether both or neither are unique local (RFC
/// 4193), then the number of leading bits that they share.
fn preference(source: Ipv6Addr, destination: Ipv6Addr) -> (bool, u32) {
    let is_same_kind = source.is_unique_local() == destination.is_unique_local();
    (is_same_kind, (source.to_bits() ^ destination.to_bits()).leading_zeros())
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
        assert_eq!(facts.uplinks.iter().map(|uplink| uplink.ifindex).collect::<Vec<_>>(), [6, 2, 3]);
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

    fn is_uplink(link: ActualLink, routes: &[ActualRoute]) -> bool {
        let links = [("link0".to_owned(), link)].into();
        let node = ActualNetns { links, routes: routes.to_vec(), ..ActualNetns::default() };
        facts(&node).uplinks.iter().any(|uplink| uplink.ifindex == 9)
    }

    #[test]
    fn a_link_without_an_address_is_an_uplink_unless_another_link_receives_its_packets() {
        assert!(is_uplink(link(9, &[]), &[]));
        assert!(is_uplink(ActualLink { framing: Framing::Ip, ..link(9, &[]) }, &[]));
        assert!(!is_uplink(ActualLink { framing: Framing::Other, ..link(9, &["192.0.2.1/24"]) }, &[]));
        assert!(!is_uplink(ActualLink { port: true, ..link(9, &["192.0.2.1/24"]) }, &[]));
        assert!(!is_uplink(ActualLink { loopback: true, ..link(9, &["192.0.2.1/24"]) }, &[]));
    }

    #[test]
    fn the_end_of_another_engines_container_is_an_uplink_only_if_the_node_uses_it() {
        for kind in [ActualLinkKind::Veth { peer: Some(4) }, ActualLinkKind::Netkit] {
            let pair = |addresses: &[&str]| ActualLink { kind: kind.clone(), ..link(9, addresses) };
            assert!(!is_uplink(pair(&[]), &[]));
            assert!(!is_uplink(pair(&[]), &[route("fe80::/64", 9), route("10.0.0.0/8", 8)]));
            assert!(is_uplink(pair(&[]), &[route("198.51.100.9/32", 9)]));
            assert!(is_uplink(pair(&["192.0.2.1/24"]), &[]));
        }
    }

    /// The source address of packets to `destination` through link 9 and the gateway `via`.
    fn source(links: &[(&str, ActualLink)], destination: &str, via: Option<&str>) -> Option<String> {
        let links = links.iter().map(|(name, link)| ((*name).to_owned(), link.clone())).collect();
        let via = via.map(|via| via.parse().expect("an address"));
        let routes = vec![ActualRoute { via, ..route(destination, 9) }];
        let facts = facts(&ActualNetns { links, routes, ..ActualNetns::default() });
        facts.egress_routes.first().map(|route| route.source.to_string())
    }

    #[test]
    fn a_route_through_a_link_without_an_address_has_an_address_of_another_link() {
        let links = [
            ("br0", link(3, &["10.1.0.1/16", "fd01::1/64"])),
            ("eth0", link(9, &[])),
            ("eth1", link(2, &["192.0.2.1/24", "2001:db8:2::1/64"])),
            ("lo", ActualLink { loopback: true, ..link(1, &["127.0.0.1/8", "::1/128"]) }),
            (name::TUNNEL, link(4, &["192.0.2.9/24"])),
        ];
        let with_lo = |address: &str| {
            let mut links = links.clone();
            links[3].1.addresses.insert(address.parse().expect("an address"));
            links
        };
        assert_eq!(source(&links, "0.0.0.0/0", None).as_deref(), Some("192.0.2.1"), "the lowest index");
        assert_eq!(source(&with_lo("198.51.100.7/32"), "0.0.0.0/0", None).as_deref(), Some("198.51.100.7"));
        assert_eq!(source(&links, "::/0", None).as_deref(), Some("2001:db8:2::1"));
        assert_eq!(source(&links, "fd02::/16", None).as_deref(), Some("fd01::1"), "both are unique local");
        assert_eq!(source(&with_lo("2001:db8:3::1/128"), "::/0", None).as_deref(), Some("2001:db8:3::1"));
        assert_eq!(source(&with_lo("2001:db8:3::1/128"), "2001:db8:2::/48", None).as_deref(), Some("2001:db8:2::1"));
        assert_eq!(source(&links[1..2], "0.0.0.0/0", None), None, "the node has no address");
    }

    #[test]
    fn a_route_has_the_address_of_its_link_that_is_near_the_gateway() {
        let links = [("eth0", link(9, &["192.0.2.1/24", "203.0.113.1/24", "2001:db8::1/64"]))];
        assert_eq!(source(&links, "0.0.0.0/0", Some("203.0.113.254")).as_deref(), Some("203.0.113.1"));
        assert_eq!(source(&links, "0.0.0.0/0", Some("198.51.100.1")).as_deref(), Some("192.0.2.1"));
        assert_eq!(source(&links, "::/0", Some("fe80::1")).as_deref(), Some("2001:db8::1"));
    }
}
