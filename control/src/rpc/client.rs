//! The calling side: channels to other nodes, made on first use and kept.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, sync::watch, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};
use weft_model::NodeId;

use super::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use crate::pki::MANAGER_NAME;

/// TCP and TLS together. Nodes are near each other.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Pings, and how long to wait for the answer: a leader whose machine vanished is noticed within 3 s.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// Connects to one server name with one TLS configuration, and remembers from which address it last did.
#[derive(Debug, Clone)]
pub struct Dialer {
    addr: SocketAddr,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    local: watch::Sender<Option<IpAddr>>,
}

impl Dialer {
    /// To whichever manager listens on `addr`.
    pub fn manager(addr: SocketAddr, tls: Arc<ClientConfig>) -> Self {
        Self::new(addr, ServerName::try_from(MANAGER_NAME).expect("a DNS name"), tls)
    }

    /// To this node and no other. `None` where the id is no DNS name, which none in use is.
    pub fn node(addr: SocketAddr, node: &NodeId, tls: Arc<ClientConfig>) -> Option<Self> {
        ServerName::try_from(node.as_str().to_owned()).ok().map(|name| Self::new(addr, name, tls))
    }

    fn new(addr: SocketAddr, name: ServerName<'static>, tls: Arc<ClientConfig>) -> Self {
        Self { addr, name, tls, local: watch::Sender::new(None) }
    }

    /// This node's address on its way to the other one, once connected.
    pub fn local_addr(&self) -> Option<IpAddr> {
        *self.local.borrow()
    }

    /// A channel that connects when it is first used, and again after it broke.
    pub fn lazy(&self) -> Channel {
        let dialer = self.clone();
        endpoint().connect_with_connector_lazy(tower::service_fn(move |_| {
            let dialer = dialer.clone();
            async move { dialer.connect().await.map(TokioIo::new) }
        }))
    }

    async fn connect(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let connected = timeout(CONNECT_TIMEOUT, async {
            let stream = TcpStream::connect(self.addr).await?;
            stream.set_nodelay(true)?;
            self.local.send_replace(Some(stream.local_addr()?.ip()));
            TlsConnector::from(self.tls.clone()).connect(self.name.clone(), stream).await
        });
        connected.await.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut)))
    }
}

/// A connection made now, so that its failure can be told from that of a call.
pub async fn one_off(dialer: &Dialer) -> Result<Channel, tonic::transport::Error> {
    let dialer = dialer.clone();
    endpoint()
        .connect_with_connector(tower::service_fn(move |_| {
            let dialer = dialer.clone();
            async move { dialer.connect().await.map(TokioIo::new) }
        }))
        .await
}

fn endpoint() -> Endpoint {
    // The connector knows where to connect, and speaks TLS itself.
    Endpoint::from_static("http://node.weft")
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(false)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}

/// Channels to other nodes, one for each address and name. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Peers {
    tls: Arc<ClientConfig>,
    channels: Arc<Mutex<BTreeMap<(SocketAddr, NodeId), Channel>>>,
}

/// Channels kept; beyond that all are dropped and made anew. Only managers keep any, to each other.
const MAX_CHANNELS: usize = 256;

impl Peers {
    pub fn new(tls: Arc<ClientConfig>) -> Self {
        Self { tls, channels: Arc::default() }
    }

    /// A connection to `node` that nobody else uses, for a stream that its reader may let wait: what waits there fills the
    /// flow-control window of its whole connection (RFC 9113, section 5.2), and would hold up every other answer on it.
    pub fn apart(&self, addr: SocketAddr, node: &NodeId) -> Option<Channel> {
        Dialer::node(addr, node, self.tls.clone()).map(|dialer| dialer.lazy())
    }

    /// The channel to `node` at `addr`, for calls that are answered at once. `None` as in [`Dialer::node`].
    pub fn channel(&self, addr: SocketAddr, node: &NodeId) -> Option<Channel> {
        let mut channels = self.channels.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = (addr, node.clone());
        if let Some(channel) = channels.get(&key) {
            return Some(channel.clone());
        }
        let channel = Dialer::node(addr, node, self.tls.clone())?.lazy();
        if channels.len() >= MAX_CHANNELS {
            channels.clear();
        }
        channels.insert(key, channel.clone());
        Some(channel)
    }
}
