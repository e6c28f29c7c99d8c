//! The listening side. tonic's routes are served by hyper behind our own TLS acceptor, so that every connection's peer is
//! known to the services and the certificate can change while the server runs.
//!
//! Whoever can reach the port can connect, so nothing that a stranger does may take a member's place: who has shown no
//! certificate yet, and who has none, is counted apart, and has little time.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Extension, Router};
use hyper::{body::Incoming, server::conn::http2};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{CONNECTION_WINDOW_BYTES, Caller, STREAM_WINDOW_BYTES};
use crate::pki::PeerIdentity;

/// What the server allows.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections of members at a time: some for each node of a large cluster.
    pub members: usize,
    /// Connections at a time whose peer has no certificate: it fetches the CA, or joins.
    pub strangers: usize,
    /// Connections at a time whose TLS handshake is under way.
    pub arriving: usize,
    /// A TLS handshake that takes longer is given up; so is a connection whose first request takes longer.
    pub patience: Duration,
    /// How long a connection without a certificate may last: a join, and the leader's write in it, ends within that.
    pub visit: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            members: 4096,
            strangers: 64,
            arriving: 1024,
            patience: Duration::from_secs(5),
            visit: Duration::from_secs(20),
        }
    }
}

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
pub async fn serve(bound: Bound, tls: Arc<ServerConfig>, routes: Router, limits: Limits, stop: CancellationToken) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = TaskTracker::new();
    let slots = Slots {
        members: Arc::new(Semaphore::new(limits.members)),
        strangers: Arc::new(Semaphore::new(limits.strangers)),
        arriving: Arc::new(Semaphore::new(limits.arriving)),
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = bound.listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Whoever is turned away tries again; whoever waited here would hold up the next one.
                let Ok(arriving) = slots.arriving.clone().try_acquire_owned() else {
                    tracing::debug!(%peer, "too many connections arrive at once");
                    continue;
                };
                let visitor = Visitor { peer, limits, arriving, slots: slots.clone() };
                let (acceptor, routes, stop) = (acceptor.clone(), routes.clone(), stop.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = visitor.receive(stream, acceptor, routes) => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection from another node");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
    drop(bound);
    connections.close();
    connections.wait().await;
}

#[derive(Debug, Clone)]
struct Slots {
    members: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    arriving: Arc<Semaphore>,
}

/// The peer of one connection, from its arrival on.
struct Visitor {
    peer: SocketAddr,
    limits: Limits,
    arriving: OwnedSemaphorePermit,
    slots: Slots,
}

impl Visitor {
    async fn receive(self, stream: TcpStream, acceptor: TlsAcceptor, routes: Router) {
        let Self { peer, limits, arriving, slots } = self;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "cannot disable Nagle's algorithm");
        }
        let stream = match timeout(limits.patience, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%peer, "TLS handshake timed out"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let identity = match certificate.map(|c| PeerIdentity::from_certificate(c)).transpose() {
            Ok(identity) => identity,
            Err(error) => return tracing::warn!(%peer, %error, "refused a connection"),
        };
        let (slots, visit) = match identity {
            Some(_) => (slots.members, None),
            None => (slots.strangers, Some(limits.visit)),
        };
        let Ok(_slot) = slots.try_acquire_owned() else {
            return tracing::warn!(%peer, member = identity.is_some(), "too many connections: refused one");
        };
        drop(arriving);
        let conversation = converse(peer, stream, routes.layer(Extension(Caller::new(identity))), limits.patience);
        match visit {
            None => conversation.await,
            Some(visit) => {
                if timeout(visit, conversation).await.is_err() {
                    tracing::debug!(%peer, "a peer without a certificate stayed too long");
                }
            }
        }
    }
}

/// Answers requests until the connection ends, or no request has come in time.
async fn converse(peer: SocketAddr, stream: TlsStream<TcpStream>, routes: Router, patience: Duration) {
    let asked = Arc::new(AtomicBool::new(false));
    let has_asked = asked.clone();
    let service = routes.map_request(move |request: hyper::Request<Incoming>| {
        has_asked.store(true, Ordering::Relaxed);
        request
    });
    let service = service.map_err(|never: Infallible| never);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT);
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = sleep(patience) => {
            if !asked.load(Ordering::Relaxed) {
                return tracing::debug!(%peer, "connected, and asked nothing");
            }
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "connection ended");
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncReadExt as _, time::Instant};
    use tokio_rustls::TlsConnector;
    use weft_model::{NodeId, id::ClusterId, spec::Role};

    use super::*;
    use crate::{
        pki::{Ca, Credentials, KeyRequest, MANAGER_NAME, SignedFor, unverified_client},
        rpc::{Dialer, one_off},
    };

    /// Short, for tests that wait for the end of it.
    const LIMITS: Limits = Limits {
        members: 4,
        strangers: 2,
        arriving: 8,
        patience: Duration::from_millis(300),
        visit: Duration::from_millis(900),
    };
    const DEADLINE: Duration = Duration::from_secs(20);

    fn credentials() -> Credentials {
        let ca = Ca::create().expect("a CA");
        let request = KeyRequest::generate().expect("a request");
        let (cluster, node) = (ClusterId::from_random(1), NodeId::from_random(2));
        let life = Duration::from_secs(1000);
        let subject = SignedFor { cluster: &cluster, node: &node, role: Role::Manager, life };
        let cert = ca.sign(request.csr_pem(), subject).expect("signed");
        Credentials::new(Arc::new(request.finish(&cert, ca.cert_pem()).expect("an identity"))).expect("credentials")
    }

    struct Server {
        addr: SocketAddr,
        credentials: Credentials,
        stop: CancellationToken,
    }

    impl Server {
        fn start() -> Self {
            let credentials = credentials();
            let bound = Bound::bind(([127, 0, 0, 1], 0).into()).expect("a port");
            let (addr, stop) = (bound.addr(), CancellationToken::new());
            let routes = Router::new().route("/", axum::routing::get(|| async { "here" }));
            tokio::spawn(serve(bound, credentials.server(), routes, LIMITS, stop.clone()));
            Self { addr, credentials, stop }
        }

        /// A peer without a certificate that shakes hands and says nothing more.
        async fn stranger(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
            let stream = TcpStream::connect(self.addr).await.expect("connected");
            let tls = TlsConnector::from(unverified_client().expect("a configuration"));
            tls.connect(MANAGER_NAME.try_into().expect("a name"), stream).await.expect("TLS")
        }

        async fn a_member_is_served(&self) {
            let dialer = Dialer::manager(self.addr, self.credentials.client());
            let channel = one_off(&dialer).await.expect("a member connects");
            let request = hyper::Request::get("http://x/").body(tonic::body::Body::empty()).expect("a request");
            let answer = timeout(DEADLINE, channel.oneshot(request)).await.expect("in time").expect("an answer");
            assert_eq!(answer.status(), 200);
        }
    }

    async fn is_closed(mut stream: impl tokio::io::AsyncRead + Unpin) {
        let closed = async { while !matches!(stream.read(&mut [0; 256]).await, Ok(0) | Err(_)) {} };
        timeout(DEADLINE, closed).await.expect("closed in time");
    }

    #[tokio::test]
    async fn strangers_take_no_members_place() {
        let server = Server::start();
        let mut crowd = Vec::new();
        for _ in 0..LIMITS.strangers {
            crowd.push(server.stranger().await);
        }
        is_closed(server.stranger().await).await;
        server.a_member_is_served().await;
        server.stop.cancel();
    }

    #[tokio::test]
    async fn whoever_asks_nothing_is_sent_away() {
        let server = Server::start();
        let since = Instant::now();
        is_closed(server.stranger().await).await;
        assert!(since.elapsed() >= LIMITS.patience, "{:?}", since.elapsed());
        is_closed(TcpStream::connect(server.addr).await.expect("connected, and no TLS")).await;
        server.stop.cancel();
    }

    #[tokio::test]
    async fn a_stranger_that_asks_may_not_stay_for_ever() {
        let server = Server::start();
        let dialer = Dialer::manager(server.addr, unverified_client().expect("a configuration"));
        let channel = one_off(&dialer).await.expect("connected");
        let ask = || {
            let request = hyper::Request::get("http://x/").body(tonic::body::Body::empty()).expect("a request");
            channel.clone().oneshot(request)
        };
        assert_eq!(ask().await.expect("an answer").status(), 200);
        let since = Instant::now();
        let gone = async { while ask().await.is_ok() {} };
        timeout(DEADLINE, gone).await.expect("sent away in time");
        assert!(since.elapsed() >= LIMITS.visit / 2, "{:?}", since.elapsed());
        server.stop.cancel();
    }
}
