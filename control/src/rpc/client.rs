//! The client side: channels to other nodes, opened on first use and cached.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{sync::watch, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use weft_model::NodeId;

use super::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::{
    host::net::{self, Stream},
    pki::{Credentials, Identity, MANAGER_NAME},
};

/// Time limit for the TCP and TLS handshakes together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Interval of HTTP/2 pings, and time limit for their answer. So a node notices within 3 s that the
/// leader's machine has failed.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects to one address, expecting one server name, and remembers the local address of the last
/// connection.
#[derive(Debug, Clone)]
pub struct Dialer {
    addr: SocketAddr,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    local: watch::Sender<Option<IpAddr>>,
}

impl Dialer {
    /// Connects to any manager that listens on `addr`.
    pub fn manager(addr: SocketAddr, tls: Arc<ClientConfig>) -> Self {
        Self::new(addr, ServerName::try_from(MANAGER_NAME).expect("a DNS name"), tls)
    }

    /// Connects to `node` only. `None` if the id is not a valid DNS name; every valid id is one.
    pub fn node(addr: SocketAddr, node: &NodeId, tls: Arc<ClientConfig>) -> Option<Self> {
        ServerName::try_from(node.as_str().to_owned()).ok().map(|name| Self::new(addr, name, tls))
    }

    fn new(addr: SocketAddr, name: ServerName<'static>, tls: Arc<ClientConfig>) -> Self {
        Self { addr, name, tls, local: watch::Sender::new(None) }
    }

    /// The local address of the last connection, at which the other node reaches this one. `None`
    /// before the first connection.
    pub fn local_addr(&self) -> Option<IpAddr> {
        *self.local.borrow()
    }

    /// A channel that connects on first use, and reconnects after a failure.
    pub fn lazy(&self) -> Channel {
        let dialer = self.clone();
        endpoint().connect_with_connector_lazy(tower::service_fn(move |_| {
            let dialer = dialer.clone();
            async move { dialer.connect().await.map(TokioIo::new) }
        }))
    }

    async fn connect(&self) -> std::io::Result<TlsStream<Stream>> {
        let connected = timeout(CONNECT_TIMEOUT, async {
            let stream = net::connect(self.addr).await?;
            stream.set_nodelay(true)?;
            self.local.send_replace(Some(stream.local_addr()?.ip()));
            TlsConnector::from(self.tls.clone()).connect(self.name.clone(), stream).await
        });
        connected.await.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)))
    }
}

/// Connects at once, so that the caller can distinguish a failed connection from a failed call.
pub async fn connect_now(dialer: &Dialer) -> Result<Channel, tonic::transport::Error> {
    let dialer = dialer.clone();
    endpoint()
        .connect_with_connector(tower::service_fn(move |_| {
            let dialer = dialer.clone();
            async move { dialer.connect().await.map(TokioIo::new) }
        }))
        .await
}

fn endpoint() -> Endpoint {
    // The connector ignores this address and does TLS itself.
    Endpoint::from_static("http://node.weft")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(false)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}

/// Channels to other nodes, one for each address and name. Cheap to clone.
///
/// A connection keeps the certificate with which it was opened. So all channels are opened again
/// when this node's certificate was replaced: the old one may have expired, and the other nodes
/// then refuse its calls.
#[derive(Debug, Clone)]
pub struct Peers {
    credentials: Credentials,
    opened: Arc<Mutex<Opened>>,
}

/// The cached channels, all opened with the same certificate.
#[derive(Debug)]
struct Opened {
    identity: Arc<Identity>,
    channels: BTreeMap<(SocketAddr, NodeId), Channel>,
}

/// Limit of cached channels. When it is reached, all channels are dropped and opened again on use.
/// Only managers cache channels, to each other.
const MAX_CHANNELS: usize = 256;

impl Peers {
    pub fn new(credentials: Credentials) -> Self {
        let opened = Opened { identity: credentials.identity(), channels: BTreeMap::new() };
        Self { credentials, opened: Arc::new(Mutex::new(opened)) }
    }

    /// A separate connection to `node` for one stream. Use it if the reader may be slow: unread
    /// data fills the flow-control window of the whole connection (RFC 9113, section 5.2), and
    /// would block all other calls on a shared connection.
    pub fn dedicated_channel(&self, addr: SocketAddr, node: &NodeId) -> Option<Channel> {
        Dialer::node(addr, node, self.credentials.client()).map(|dialer| dialer.lazy())
    }

    /// The shared channel to `node` at `addr`, for calls that are answered immediately. `None` as
    /// in [`Dialer::node`].
    pub fn channel(&self, addr: SocketAddr, node: &NodeId) -> Option<Channel> {
        let mut opened = self.opened.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let identity = self.credentials.identity();
        if !Arc::ptr_eq(&opened.identity, &identity) {
            *opened = Opened { identity, channels: BTreeMap::new() };
        }
        let channels = &mut opened.channels;
        let key = (addr, node.clone());
        if let Some(channel) = channels.get(&key) {
            return Some(channel.clone());
        }
        let channel = Dialer::node(addr, node, self.credentials.client())?.lazy();
        if channels.len() >= MAX_CHANNELS {
            channels.clear();
        }
        channels.insert(key, channel.clone());
        Some(channel)
    }
}
