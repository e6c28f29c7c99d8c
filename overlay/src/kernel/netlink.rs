//! One routing netlink socket, and what weft asks of it, in our terms.

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
use ipnetwork::IpNetwork;
use nix::errno::Errno;
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope},
        link::{InfoData, InfoVeth, LinkMessage},
        route::{RouteAttribute, RouteMessage, RouteMetric},
    },
};
use weft_model::TUNNEL_PORT;

use super::{KernelError, decode};
use crate::{
    desired::DefaultRoute,
    diff::LinkChange,
    found::{FoundLink, FoundRoute},
    netns::NetnsError,
};

/// A socket in the network namespace of the thread that opened it. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Netlink(Handle);

impl Netlink {
    /// Opens one in the calling thread's namespace, driven by the current runtime until the last clone is dropped.
    pub(crate) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Every link, with its global addresses.
    pub(crate) async fn links(&self) -> Result<BTreeMap<String, FoundLink>, KernelError> {
        let messages = collect("list", "links", self.0.link().get().execute()).await?;
        let mut links: BTreeMap<String, FoundLink> = messages.iter().filter_map(decode::link).collect();
        let addresses = collect("list", "addresses", self.0.address().get().execute()).await?;
        for (index, address) in addresses.iter().filter_map(decode::global_address) {
            if let Some(link) = links.values_mut().find(|link| link.index == index) {
                link.addresses.insert(address);
            }
        }
        Ok(links)
    }

    /// The unicast routes of the main table.
    pub(crate) async fn routes(&self) -> Result<Vec<FoundRoute>, KernelError> {
        let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
        let mut messages = collect("list", "IPv4 routes", self.0.route().get(v4).execute()).await?;
        messages.extend(collect("list", "IPv6 routes", self.0.route().get(v6).execute()).await?);
        Ok(messages.iter().filter_map(decode::route).collect())
    }

    /// How long a packet to `peer` may be as the node's routes are now; `None` where no route leads there.
    pub(crate) async fn path_mtu(
        &self,
        peer: IpAddr,
        links: &BTreeMap<String, FoundLink>,
    ) -> Result<Option<u32>, KernelError> {
        let question = match peer {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
        };
        let route = match collect("find", format!("the route to {peer}"), self.0.route().get(question).execute()).await
        {
            Ok(routes) => routes.into_iter().next(),
            Err(error) if matches!(error.errno(), Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EINVAL)) => {
                None
            }
            Err(error) => return Err(error),
        };
        Ok(route.and_then(|route| {
            let of_link = oif(&route).and_then(|index| links.values().find(|link| link.index == index)).map(|l| l.mtu);
            let of_route = metrics(&route).find_map(|metric| match metric {
                RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                _ => None,
            });
            of_route.into_iter().chain(of_link).min()
        }))
    }

    /// The tunnel: one VXLAN device for every network. It has no network of its own (id 0: any other id receives
    /// nothing when the metadata says where packets go).
    pub(crate) async fn create_tunnel(&self, name: &str, mtu: u32) -> Result<(), KernelError> {
        let tunnel = LinkVxlan::new(name, 0)
            .collect_metadata(true)
            .learning(false)
            .port(TUNNEL_PORT)
            .udp_zero_csum6_rx(true)
            .udp_zero_csum6_tx(true)
            .mtu(mtu)
            .build();
        done("create", format!("the tunnel {name}"), self.0.link().add(tunnel).execute().await)
    }

    /// A pair: `host` here, its peer `inside` in the namespace `sandbox`. Both are down.
    pub(crate) async fn create_veth(
        &self,
        host: &str,
        inside: &str,
        sandbox: &Path,
        mtu: u32,
    ) -> Result<(), KernelError> {
        let namespace = File::open(sandbox).map_err(|source| NetnsError::Open { path: sandbox.to_owned(), source })?;
        let peer =
            LinkMessageBuilder::<LinkUnspec>::new().name(inside).mtu(mtu).setns_by_fd(namespace.as_raw_fd()).build();
        let pair = LinkVeth::new(host, inside).mtu(mtu).set_info_data(InfoData::Veth(InfoVeth::Peer(peer))).build();
        let object = format!("the link {host} and its peer {inside} in {}", sandbox.display());
        done("create", object, self.0.link().add(pair).execute().await)
    }

    /// Removes the link, and its peer. One that is gone already is no error.
    pub(crate) async fn delete_link(&self, name: &str) -> Result<(), KernelError> {
        match self.index(name).await {
            Ok(index) => {
                let deleted = self.0.link().del(index).execute().await;
                gone(done("delete", format!("the link {name}"), deleted))
            }
            Err(error) => gone(Err(error)),
        }
    }

    pub(crate) async fn set_link(&self, name: &str, change: &LinkChange) -> Result<(), KernelError> {
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
        done("change", format!("the link {name}"), self.0.link().set(message.build()).execute().await)
    }

    /// No duplicate address detection: every address has one owner, by the table.
    pub(crate) async fn add_address(&self, link: &str, address: IpNetwork) -> Result<(), KernelError> {
        let mut request = self.0.address().add(self.index(link).await?, address.ip(), address.prefix()).replace();
        if address.is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        done("add", format!("the address {address} to {link}"), request.execute().await)
    }

    pub(crate) async fn remove_address(&self, link: &str, address: IpNetwork) -> Result<(), KernelError> {
        let index = match self.index(link).await {
            Ok(index) => index,
            Err(error) => return gone(Err(error)),
        };
        let removed = self.0.address().del(address_message(index, address)).execute().await;
        gone(done("remove", format!("the address {address} of {link}"), removed))
    }

    pub(crate) async fn add_default_route(&self, route: &DefaultRoute) -> Result<(), KernelError> {
        let link = self.index(&route.link).await?;
        let message = default_route(Some(route.via), route.via.is_ipv6(), Some(link), 0);
        let object = format!("the default route via {} on {}", route.via, route.link);
        done("add", object, self.0.route().add(message).execute().await)
    }

    pub(crate) async fn remove_default_route(
        &self,
        via: Option<IpAddr>,
        v6: bool,
        link: Option<u32>,
        metric: u32,
    ) -> Result<(), KernelError> {
        let removed = self.0.route().del(default_route(via, v6, link, metric)).execute().await;
        gone(done("remove", "a default route", removed))
    }

    pub(crate) async fn has_link(&self, name: &str) -> Result<bool, KernelError> {
        match self.index(name).await {
            Ok(_) => Ok(true),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn index(&self, name: &str) -> Result<u32, KernelError> {
        let found = self.0.link().get().match_name(name).execute();
        let links: Vec<LinkMessage> = collect("find", format!("the link {name}"), found).await?;
        links.first().map(|link| link.header.index).ok_or_else(|| KernelError::Netlink {
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
) -> Result<Vec<T>, KernelError> {
    messages.try_collect().await.map_err(|error| KernelError::netlink(verb, object, &error))
}

fn done(verb: &'static str, object: impl Display, result: Result<(), rtnetlink::Error>) -> Result<(), KernelError> {
    result.map_err(|error| KernelError::netlink(verb, object, &error))
}

/// A removal of what is not there has done its work.
fn gone(result: Result<(), KernelError>) -> Result<(), KernelError> {
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

/// Without metric, the family's usual one.
fn default_route(via: Option<IpAddr>, v6: bool, link: Option<u32>, metric: u32) -> RouteMessage {
    let mut message = if v6 {
        let route = RouteMessageBuilder::<Ipv6Addr>::new();
        match via {
            Some(IpAddr::V6(via)) => route.gateway(via).build(),
            _ => route.build(),
        }
    } else {
        let route = RouteMessageBuilder::<Ipv4Addr>::new();
        match via {
            Some(IpAddr::V4(via)) => route.gateway(via).build(),
            _ => route.build(),
        }
    };
    message.attributes.extend(link.map(RouteAttribute::Oif));
    message.attributes.extend((metric > 0).then_some(RouteAttribute::Priority(metric)));
    message
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
