//! Decodes netlink messages into the types of [`crate::actual`]. `netlink` calls it. Pure.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use rtnetlink::packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType},
};
use weft_model::Mac;

use crate::actual::{ActualLink, ActualLinkKind, ActualRoute, VxlanSettings};

/// Decodes a link and its name. The kernel sends its addresses in separate messages.
pub(crate) fn link(message: &LinkMessage) -> Option<(String, ActualLink)> {
    let mut name = None;
    let mut peer = None;
    let mut infos: &[LinkInfo] = &[];
    let mut link = ActualLink {
        index: message.header.index,
        kind: ActualLinkKind::Other,
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
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
            LinkAttribute::LinkInfo(all) => infos = all,
            _ => {}
        }
    }
    link.kind = kind(infos, peer);
    Some((name?, link))
}

fn kind(infos: &[LinkInfo], peer: Option<u32>) -> ActualLinkKind {
    let is = |kind: InfoKind| infos.iter().any(|info| *info == LinkInfo::Kind(kind.clone()));
    if is(InfoKind::Veth) {
        return ActualLinkKind::Veth { peer };
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
            RouteAttribute::MultiPath(hops) => link = hops.first().map(|hop| hop.interface_index),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let destination = IpNetwork::new(destination, message.header.destination_prefix_length).ok()?;
    let is_main_unicast = message.header.kind == RouteType::Unicast && table == u32::from(RouteHeader::RT_TABLE_MAIN);
    is_main_unicast.then_some(ActualRoute { destination, via, link, source, metric })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
