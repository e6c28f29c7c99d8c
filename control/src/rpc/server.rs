//! The listening side. tonic's routes are served by hyper behind our own TLS acceptor, so that every connection's peer is
//! known to the services and the certificate can change while the server runs.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Caller;
use crate::pki::PeerIdentity;

/// A TLS handshake that takes longer is given up.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections at a time: some for each node of a large cluster.
const MAX_CONNECTIONS: usize = 4096;
/// Pings on an idle connection, and how long to wait for the answer: a vanished node frees its connection.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Between tries after `accept` failed: mostly for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A bound address.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    addr: SocketAddr,
}

impl Bound {
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let socket = if addr.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        let listener = socket.listen(BACKLOG)?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr })
    }

    /// With the port that was given out where port 0 was asked for.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Serves `routes` until `stop`; returns when every connection has ended.
pub async fn serve(bound: Bound, tls: Arc<ServerConfig>, routes: Router, stop: CancellationToken) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = bound.listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let (acceptor, routes, stop) = (acceptor.clone(), routes.clone(), stop.clone());
                connections.spawn(async move {
                    let _slot = slot;
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = connection(stream, peer, acceptor, routes) => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection from another node");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(bound);
    connections.close();
    connections.wait().await;
}

async fn connection(stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, routes: Router) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "cannot disable Nagle's algorithm");
    }
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
        Err(_) => return tracing::debug!(%peer, "TLS handshake timed out"),
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let identity = match certificate.map(|c| PeerIdentity::from_certificate(c)).transpose() {
        Ok(identity) => identity,
        Err(error) => return tracing::warn!(%peer, %error, "refused a connection"),
    };
    let routes = routes.layer(Extension(Caller::new(identity)));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)).await {
        tracing::debug!(%peer, %error, "connection ended");
    }
}
