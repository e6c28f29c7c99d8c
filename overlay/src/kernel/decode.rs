//! Netlink messages → our terms. Pure.

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

use crate::found::{FoundKind, FoundLink, FoundRoute, VxlanSettings};

/// The link and its name, its addresses still missing.
pub(crate) fn link(message: &LinkMessage) -> Option<(String, FoundLink)> {
    let mut name = None;
    let mut peer = None;
    let mut infos: &[LinkInfo] = &[];
    let mut link = FoundLink {
        index: message.header.index,
        kind: FoundKind::Other,
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

fn kind(infos: &[LinkInfo], peer: Option<u32>) -> FoundKind {
    let is = |kind: InfoKind| infos.iter().any(|info| *info == LinkInfo::Kind(kind.clone()));
    if is(InfoKind::Veth) {
        return FoundKind::Veth { peer };
    }
    if !is(InfoKind::Vxlan) {
        return FoundKind::Other;
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
    FoundKind::Vxlan(settings)
}

/// The index of its link, and the address, where its scope is global and nobody else has it.
pub(crate) fn global_address(message: &AddressMessage) -> Option<(u32, IpNetwork)> {
    let is_refused = message.header.flags.contains(AddressHeaderFlags::Dadfailed);
    if message.header.scope != AddressScope::Universe || is_refused {
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
    // On a point-to-point link, `Address` is the other end.
    let own = message.attributes.iter().find_map(local).or_else(|| message.attributes.iter().find_map(address))?;
    Some((message.header.index, IpNetwork::new(own, message.header.prefix_len).ok()?))
}

/// A unicast route of the main table.
pub(crate) fn route(message: &RouteMessage) -> Option<FoundRoute> {
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
    let is_ours_to_see = message.header.kind == RouteType::Unicast && table == u32::from(RouteHeader::RT_TABLE_MAIN);
    is_ours_to_see.then_some(FoundRoute { destination, via, link, source, metric })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some((*v4).into()),
        RouteAddress::Inet6(v6) => Some((*v6).into()),
        _ => None,
    }
}
