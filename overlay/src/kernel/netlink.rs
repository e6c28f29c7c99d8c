//! One routing netlink socket (rtnetlink(7)), with one method for each request that weft sends.
//!
//! Arguments and results are the types of `actual`, `desired` and `diff`. Removing an object that
//! does not exist is not an error, so every operation can be repeated.

use std::{
    collections::BTreeMap,
    fmt::Display,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
    path::Path,
};

use futures_util::{Stream, TryStreamExt};
use ipnetwork::{IpNetwork, Ipv6Network};
use nix::errno::Errno;
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, LinkWireguard,
    RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
        link::{InfoData, InfoVeth, LinkMessage},
        route::{RouteAttribute, RouteMessage, RouteMetric, RouteType},
    },
};

use super::decode;
use crate::{
    actual::{ActualKeyRoute, ActualLink, ActualRoute},
    desired::{GatewayRoute, KeyRoute, KeyRouteKind},
    diff::LinkChange,
    error::Error,
};

/// The metric of the route that makes the addresses of keys unreachable: any other route wins.
const UNREACHABLE_METRIC: u32 = u32::MAX;

/// A socket in the network namespace of the thread that opened it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Netlink(Handle);

impl Netlink {
    /// Opens a socket in the calling thread's namespace. A task of the current tokio runtime drives
    /// it until the last clone is dropped.
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Reads every link, with its global addresses.
    pub(crate) async fn links(&self) -> Result<BTreeMap<String, ActualLink>, Error> {
        let messages = collect("list", "links", self.0.link().get().execute()).await?;
        let mut links: BTreeMap<String, ActualLink> = messages.iter().filter_map(decode::link).collect();
        let addresses = collect("list", "addresses", self.0.address().get().execute()).await?;
        for (index, address) in addresses.iter().filter_map(decode::global_address) {
            if let Some(link) = links.values_mut().find(|link| link.index == index) {
                link.addresses.insert(address);
            }
        }
        Ok(links)
    }

    /// Reads the unicast routes of the main table, and the routes with weft's mark.
    pub(crate) async fn routes(&self) -> Result<(Vec<ActualRoute>, Vec<ActualKeyRoute>), Error> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut messages = collect("list", "IPv4 routes", self.0.route().get(v4).execute()).await?;
        messages.extend(collect("list", "IPv6 routes", self.0.route().get(v6).execute()).await?);
        let routes = messages.iter().filter_map(decode::route).collect();
        Ok((routes, messages.iter().filter_map(decode::key_route).collect()))
    }

    /// Reads the MTU of the node's current route to `peer`, in octets. `None` if
    /// there is no route.
    pub(crate) async fn path_mtu(
        &self,
        peer: IpAddr,
        links: &BTreeMap<String, ActualLink>,
    ) -> Result<Option<u32>, Error> {
        let request = match peer {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
        };
        let route = match collect("find", format!("the route to {peer}"), self.0.route().get(request).execute()).await {
            Ok(routes) => routes.into_iter().next(),
            Err(error) if matches!(error.errno(), Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL)) => {
                None
            }
            Err(error) => return Err(error),
        };
        Ok(route.and_then(|route| {
            let link_mtu = oif(&route).and_then(|index| links.values().find(|link| link.index == index)).map(|l| l.mtu);
            let route_mtu = metrics(&route).find_map(|metric| match metric {
                RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                _ => None,
            });
            route_mtu.into_iter().chain(link_mtu).min()
        }))
    }

    /// Creates the tunnel, one VXLAN device for all networks. Its own VNI is 0, because a device in
    /// collect_metadata mode receives no packets with any other VNI.
    pub(crate) async fn create_tunnel(&self, name: &str, port: u16, mtu: u32) -> Result<(), Error> {
        let tunnel = LinkVxlan::new(name, 0)
            .collect_metadata(true)
            .learning(false)
            .port(port)
            .udp_zero_csum6_rx(true)
            .udp_zero_csum6_tx(true)
            .mtu(mtu)
            .build();
        check("create", format!("the tunnel {name}"), self.0.link().add(tunnel).execute().await)
    }

    /// Creates a WireGuard link of the kernel, without key and peers.
    pub(crate) async fn create_wireguard(&self, name: &str) -> Result<(), Error> {
        let link = LinkWireguard::new(name).build();
        check("create", format!("the WireGuard link {name}"), self.0.link().add(link).execute().await)
    }

    /// Creates a veth pair: `host` in this namespace and its peer in the namespace `sandbox`. Both
    /// are down.
    pub(crate) async fn create_veth(&self, host: &str, peer: &str, sandbox: &Path, mtu: u32) -> Result<(), Error> {
        let namespace = File::open(sandbox).map_err(|source| Error::OpenNetns { path: sandbox.to_owned(), source })?;
        let peer_message =
            LinkMessageBuilder::<LinkUnspec>::new().name(peer).mtu(mtu).setns_by_fd(namespace.as_raw_fd()).build();
        let pair =
            LinkVeth::new(host, peer).mtu(mtu).set_info_data(InfoData::Veth(InfoVeth::Peer(peer_message))).build();
        let object = format!("the link {host} and its peer {peer} in {}", sandbox.display());
        check("create", object, self.0.link().add(pair).execute().await)
    }

    /// Deletes the link and its peer.
    pub(crate) async fn delete_link(&self, name: &str) -> Result<(), Error> {
        match self.index(name).await {
            Ok(index) => {
                let deleted = self.0.link().del(index).execute().await;
                ignore_missing(check("delete", format!("the link {name}"), deleted))
            }
            Err(error) => ignore_missing(Err(error)),
        }
    }

    pub(crate) async fn set_link(&self, name: &str, change: &LinkChange) -> Result<(), Error> {
        let mut message = LinkUnspec::new_with_index(self.index(name).await?);
        if let Some(mac) = change.mac {
            message = message.address(mac.0.to_vec());
        }
        if let Some(mtu) = change.mtu {
            message = message.mtu(mtu);
        }
        if let Some(alias) = &change.alias {
            message = message.alias(alias.as_str());
        }
        if change.up {
            message = message.up();
        }
        check("change", format!("the link {name}"), self.0.link().set(message.build()).execute().await)
    }

    /// Adds an address without duplicate address detection: the cluster state gives each address to
    /// one task only.
    pub(crate) async fn add_address(&self, link: &str, address: IpNetwork) -> Result<(), Error> {
        let mut request = self.0.address().add(self.index(link).await?, address.ip(), address.prefix()).replace();
        if address.is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        check("add", format!("the address {address} to {link}"), request.execute().await)
    }

    pub(crate) async fn remove_address(&self, link: &str, address: IpNetwork) -> Result<(), Error> {
        let index = match self.index(link).await {
            Ok(index) => index,
            Err(error) => return ignore_missing(Err(error)),
        };
        let removed = self.0.address().del(address_message(index, address)).execute().await;
        ignore_missing(check("remove", format!("the address {address} from {link}"), removed))
    }

    pub(crate) async fn add_route(&self, route: &GatewayRoute) -> Result<(), Error> {
        let link = self.index(&route.link).await?;
        let message = route_message(route.destination, Some(route.via), Some(link), 0);
        let object = format!("the route to {} via {} on {}", route.destination, route.via, route.link);
        check("add", object, self.0.route().add(message).execute().await)
    }

    pub(crate) async fn remove_route(&self, route: &ActualRoute) -> Result<(), Error> {
        let message = route_message(route.destination, route.via, route.link, route.metric);
        let removed = self.0.route().del(message).execute().await;
        ignore_missing(check("remove", format!("the route to {}", route.destination), removed))
    }

    pub(crate) async fn add_key_route(&self, route: &KeyRoute) -> Result<(), Error> {
        let (source, link) = match &route.kind {
            KeyRouteKind::From { source, link } => (Some((*source).into()), Some(self.index(link).await?)),
            KeyRouteKind::Unreachable => (None, None),
        };
        let metric = if link.is_some() { 0 } else { UNREACHABLE_METRIC };
        let message = key_route(route.destination, source, link, metric);
        let object = format!("the route to {} on link {link:?}", route.destination);
        check("add", object, self.0.route().add(message).execute().await)
    }

    pub(crate) async fn remove_key_route(&self, route: &ActualKeyRoute) -> Result<(), Error> {
        let message = key_route(route.destination, route.source, route.link, route.metric);
        let removed = self.0.route().del(message).execute().await;
        ignore_missing(check("remove", format!("the route to {}", route.destination), removed))
    }

    pub(crate) async fn has_link(&self, name: &str) -> Result<bool, Error> {
        match self.index(name).await {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn index(&self, name: &str) -> Result<u32, Error> {
        let messages = self.0.link().get().match_name(name).execute();
        let links: Vec<LinkMessage> = collect("find", format!("the link {name}"), messages).await?;
        links.first().map(|link| link.header.index).ok_or_else(|| Error::Netlink {
            verb: "find",
            object: format!("the link {name}"),
            source: Errno::ENODEV.into(),
        })
    }
}

async fn collect<T>(
    verb: &'static str,
    object: impl Display,
    messages: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, Error> {
    messages.try_collect().await.map_err(|error| Error::netlink(verb, object, &error))
}

fn check(verb: &'static str, object: impl Display, result: Result<(), rtnetlink::Error>) -> Result<(), Error> {
    result.map_err(|error| Error::netlink(verb, object, &error))
}

/// Ignores the error which says that the object to remove does not exist.
fn ignore_missing(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error) if matches!(error.errno(), Some(Errno::ENODEV | Errno::ESRCH | Errno::EADDRNOTAVAIL)) => Ok(()),
        other => other,
    }
}

fn address_message(index: u32, address: IpNetwork) -> AddressMessage {
    let mut message = match address {
        IpNetwork::V4(v4) => {
            AddressMessageBuilder::<Ipv4Addr>::new().index(index).address(v4.ip(), v4.prefix()).build()
        }
        IpNetwork::V6(v6) => {
            AddressMessageBuilder::<Ipv6Addr>::new().index(index).address(v6.ip(), v6.prefix()).build()
        }
    };
    message.header.scope = AddressScope::Universe;
    message
}

/// A metric of 0 means the default of the address family.
fn route_message(destination: IpNetwork, via: Option<IpAddr>, link: Option<u32>, metric: u32) -> RouteMessage {
    let mut message = match destination {
        IpNetwork::V4(destination) => {
            let route = RouteMessageBuilder::<Ipv4Addr>::new();
            let route = route.destination_prefix(destination.ip(), destination.prefix());
            match via {
                Some(IpAddr::V4(via)) => route.gateway(via).build(),
                _ => route.build(),
            }
        }
        IpNetwork::V6(destination) => {
            let route = RouteMessageBuilder::<Ipv6Addr>::new();
            let route = route.destination_prefix(destination.ip(), destination.prefix());
            match via {
                Some(IpAddr::V6(via)) => route.gateway(via).build(),
                _ => route.build(),
            }
        }
    };
    message.attributes.extend(link.map(RouteAttribute::Oif));
    message.attributes.extend((metric > 0).then_some(RouteAttribute::Priority(metric)));
    message
}

/// A route with weft's mark. Without a link it makes the destination unreachable.
fn key_route(destination: Ipv6Network, source: Option<Ipv6Network>, link: Option<u32>, metric: u32) -> RouteMessage {
    let mut route = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(destination.ip(), destination.prefix())
        .protocol(decode::WEFT);
    if let Some(source) = source {
        route = route.source_prefix(source.ip(), source.prefix());
    }
    route = match link {
        Some(link) => route.output_interface(link),
        None => route.kind(RouteType::Unreachable),
    };
    if metric > 0 {
        route = route.priority(metric);
    }
    route.build()
}

fn oif(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn metrics(route: &RouteMessage) -> impl Iterator<Item = &RouteMetric> {
    route
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            RouteAttribute::Metrics(metrics) => Some(metrics),
            _ => None,
        })
        .flatten()
}
