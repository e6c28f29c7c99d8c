//! Decodes netlink messages into the types of [`crate::actual`]. `netlink` calls it. Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{IpNetwork, Ipv6Network};
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        InfoData, InfoKind, InfoPortKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    },
    route::{
        RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags, RouteProtocol,
        RouteType,
    },
};
use weft_model::Mac;

use crate::actual::{ActualKeyRoute, ActualLink, ActualLinkKind, ActualRoute, Framing, VxlanSettings};

/// The protocol of weft's own routes: a number that iproute2 gives to no other program
/// (rtnetlink(7), `rtm_protocol`).
pub(super) const WEFT: RouteProtocol = RouteProtocol::Other(119);

/// Decodes a link and its name. The kernel sends its addresses in separate messages.
pub(crate) fn link(message: &LinkMessage) -> Option<(String, ActualLink)> {
    let mut name = None;
    let mut peer = None;
    let mut infos: &[LinkInfo] = &[];
    let mut has_controller = false;
    let mut link = ActualLink {
        index: message.header.index,
        kind: ActualLinkKind::Other,
        framing: framing(message),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        port: false,
        alias: None,
        addresses: BTreeSet::new(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::IfAlias(text) => link.alias = Some(text.clone()),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(address) if message.header.link_layer_type == LinkLayerType::Ether => {
                link.mac = <[u8; 6]>::try_from(address.as_slice()).ok().map(Mac);
            }
            LinkAttribute::Link(index) => peer = Some(*index),
            LinkAttribute::Controller(_) => has_controller = true,
            LinkAttribute::LinkInfo(all) => infos = all,
            _ => {}
        }
    }
    link.kind = kind(infos, peer);
    // A link in a VRF still receives its own packets. Only their routes differ.
    link.port = has_controller && !infos.contains(&LinkInfo::PortKind(InfoPortKind::Vrf));
    Some((name?, link))
}

/// The types without a header are those of `dev_is_mac_header_xmit` (linux/if_arp.h): to these
/// links, a program may redirect a packet without an Ethernet header.
fn framing(message: &LinkMessage) -> Framing {
    use LinkLayerType as Type;

    // The remote address of a tunnel. Zero if the tunnel has none.
    let has_remote = || {
        message.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::Broadcast(remote) => remote.iter().any(|octet| *octet != 0),
            _ => false,
        })
    };
    match message.header.link_layer_type {
        Type::Ether | Type::Loopback => Framing::Ethernet,
        Type::None | Type::Rawip | Type::Ppp => Framing::Ip,
        Type::Tunnel | Type::Tunnel6 | Type::Sit | Type::Ipgre | Type::Ip6gre if has_remote() => Framing::Ip,
        _ => Framing::Other,
    }
}

fn kind(infos: &[LinkInfo], peer: Option<u32>) -> ActualLinkKind {
    let is = |kind: InfoKind| infos.iter().any(|info| *info == LinkInfo::Kind(kind.clone()));
    if is(InfoKind::Veth) {
        return ActualLinkKind::Veth { peer };
    }
    if is(InfoKind::Netkit) {
        return ActualLinkKind::Netkit;
    }
    if is(InfoKind::Wireguard) {
        return ActualLinkKind::WireGuard;
    }
    if !is(InfoKind::Vxlan) {
        return ActualLinkKind::Other;
    }
    let mut settings = VxlanSettings::default();
    for info in infos {
        let LinkInfo::Data(InfoData::Vxlan(values)) = info else { continue };
        for value in values {
            match value {
                InfoVxlan::CollectMetadata(on) => settings.collect_metadata = *on,
                InfoVxlan::Learning(on) => settings.learning = *on,
                InfoVxlan::Port(port) => settings.port = *port,
                _ => {}
            }
        }
    }
    ActualLinkKind::Vxlan(settings)
}

/// Decodes an address and the index of its link. `None` if its scope is not global, or if duplicate
/// address detection found it on another machine.
pub(crate) fn global_address(message: &AddressMessage) -> Option<(u32, IpNetwork)> {
    let is_duplicate = message.header.flags.contains(AddressHeaderFlags::Dadfailed);
    if message.header.scope != AddressScope::Universe || is_duplicate {
        return None;
    }
    let local = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    };
    let address = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    // On a point-to-point link, `Address` is the address of the other end.
    let own = message.attributes.iter().find_map(local).or_else(|| message.attributes.iter().find_map(address))?;
    Some((message.header.index, IpNetwork::new(own, message.header.prefix_len).ok()?))
}

/// Decodes an IPv6 route with weft's mark. `None` for other routes.
pub(crate) fn key_route(message: &RouteMessage) -> Option<ActualKeyRoute> {
    let header = &message.header;
    if header.address_family != AddressFamily::Inet6 || header.protocol != WEFT {
        return None;
    }
    let (mut destination, mut source, mut link, mut metric) = (Ipv6Addr::UNSPECIFIED, None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet6(address)) => destination = *address,
            RouteAttribute::Source(RouteAddress::Inet6(address)) => source = Some(*address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let source = source.map(|source| Ipv6Network::new(source, header.source_prefix_length)).transpose().ok()?;
    Some(ActualKeyRoute {
        destination: Ipv6Network::new(destination, header.destination_prefix_length).ok()?,
        source,
        // The kernel reports loopback as the link of unreachable routes.
        link: link.filter(|_| header.kind == RouteType::Unicast),
        metric,
    })
}

/// Decodes a unicast route of the main table. `None` for other routes.
pub(crate) fn route(message: &RouteMessage) -> Option<ActualRoute> {
    let mut table = u32::from(message.header.table);
    let mut destination = match message.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut via, mut link, mut source, mut metric) = (None, None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(id) => table = *id,
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::MultiPath(hops) => link = live_hop(hops).map(|hop| hop.interface_index),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let destination = IpNetwork::new(destination, message.header.destination_prefix_length).ok()?;
    let is_main_unicast = message.header.kind == RouteType::Unicast && table == u32::from(RouteHeader::RT_TABLE_MAIN);
    is_main_unicast.then_some(ActualRoute { destination, via, link, source, metric })
}

/// The first next hop of a multipath route that the kernel uses.
fn live_hop(hops: &[RouteNextHop]) -> Option<&RouteNextHop> {
    let dead = RouteNextHopFlags::Dead | RouteNextHopFlags::Linkdown;
    hops.iter().find(|hop| !hop.flags.intersects(dead)).or_else(|| hops.first())
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: LinkLayerType, attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.link_layer_type = kind;
        message.attributes = attributes;
        message.attributes.push(LinkAttribute::IfName("link0".to_owned()));
        message
    }

    fn decoded(kind: LinkLayerType, attributes: Vec<LinkAttribute>) -> ActualLink {
        link(&message(kind, attributes)).expect("a link with a name").1
    }

    #[test]
    fn the_type_of_a_link_says_what_precedes_its_ip_packets() {
        let framing = |kind, attributes| decoded(kind, attributes).framing;
        assert_eq!(framing(LinkLayerType::Ether, vec![]), Framing::Ethernet);
        for kind in [LinkLayerType::None, LinkLayerType::Ppp, LinkLayerType::Rawip] {
            assert_eq!(framing(kind, vec![]), Framing::Ip, "{kind:?}");
        }
        for kind in [LinkLayerType::Infiniband, LinkLayerType::Netlink, LinkLayerType::Void] {
            assert_eq!(framing(kind, vec![]), Framing::Other, "{kind:?}");
        }
    }

    #[test]
    fn a_tunnel_needs_a_remote_address() {
        use LinkLayerType::{Ip6gre, Ipgre, Sit, Tunnel, Tunnel6};
        for kind in [Tunnel, Tunnel6, Sit, Ipgre, Ip6gre] {
            let framing = |remote: &[u8]| decoded(kind, vec![LinkAttribute::Broadcast(remote.to_vec())]).framing;
            assert_eq!(framing(&[192, 0, 2, 9]), Framing::Ip, "{kind:?}");
            assert_eq!(framing(&[0; 4]), Framing::Other, "{kind:?}");
        }
    }

    #[test]
    fn a_port_of_a_bridge_does_not_receive_but_a_link_in_a_vrf_does() {
        let port_of = |kind| {
            let info = LinkAttribute::LinkInfo(vec![LinkInfo::PortKind(kind)]);
            decoded(LinkLayerType::Ether, vec![LinkAttribute::Controller(7), info]).port
        };
        assert!(port_of(InfoPortKind::Bridge) && port_of(InfoPortKind::Bond));
        assert!(port_of(InfoPortKind::Other("openvswitch".to_owned())));
        assert!(!port_of(InfoPortKind::Vrf));
        assert!(!decoded(LinkLayerType::Ether, vec![]).port);
    }

    #[test]
    fn a_multipath_route_uses_its_first_live_hop() {
        let hop = |index, flags| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = index;
            hop.flags = flags;
            hop
        };
        let link_of = |hops| {
            let mut message = RouteMessage::default();
            message.header.address_family = AddressFamily::Inet;
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            message.header.kind = RouteType::Unicast;
            message.attributes.push(RouteAttribute::MultiPath(hops));
            route(&message).and_then(|route| route.link)
        };
        let (dead, down) = (RouteNextHopFlags::Dead, RouteNextHopFlags::Linkdown);
        let live = RouteNextHopFlags::empty();
        assert_eq!(link_of(vec![hop(2, live), hop(3, live)]), Some(2));
        assert_eq!(link_of(vec![hop(2, dead | down), hop(3, down), hop(4, live)]), Some(4));
        assert_eq!(link_of(vec![hop(2, down), hop(3, down)]), Some(2));
    }
}
