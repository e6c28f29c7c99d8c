//! The server side: accepts connections of other nodes and serves the routes that the caller
//! provides. The supervisor in `swarm::membership` calls [`serve`]. hyper serves tonic's routes
//! behind our own TLS acceptor, so that the services know the peer of every connection, and the
//! certificate can change while the server runs.
//!
//! Any host that reaches the port can connect, so connections without a certificate must not use up
//! the connections of members. Connections without a certificate, or with one that has expired,
//! have a separate limit, and so do connections whose handshake is not complete.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
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
    io::{AsyncRead, AsyncWrite},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

#[cfg(test)]
use super::faults;
use super::{CONNECTION_WINDOW_BYTES, Caller, STREAM_WINDOW_BYTES};
use crate::{
    host::{
        net::{self, Listener, Stream},
        now_ms,
    },
    pki::PeerIdentity,
};

/// Limits of the server.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Concurrent connections of members: several for each node of a large cluster.
    pub members: usize,
    /// Concurrent connections without a valid certificate: nodes that fetch the CA, join, or renew
    /// an expired certificate.
    pub unauthenticated: usize,
    /// Concurrent connections in the TLS handshake.
    pub handshakes: usize,
    /// Time limit for the TLS handshake, and then for the first request.
    pub first_request_timeout: Duration,
    /// Longest life of a connection without a valid certificate. A join, which includes a write by
    /// the leader, takes less.
    pub unauthenticated_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            members: 4096,
            unauthenticated: 64,
            handshakes: 1024,
            first_request_timeout: Duration::from_secs(5),
            unauthenticated_timeout: Duration::from_secs(20),
        }
    }
}

/// Interval of HTTP/2 pings, and time limit for their answer. So the server closes the connection
/// of a failed node within 20 s.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after `accept` failed, usually because the process has no free file descriptor.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// A listening socket.
#[derive(Debug)]
pub struct Bound {
    listener: Listener,
    addr: SocketAddr,
}

impl Bound {
    pub fn bind(addr: SocketAddr) -> io::Result<Self> {
        let listener = net::listen(addr)?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr })
    }

    /// The address, with the port that the kernel chose if port 0 was requested.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Serves `routes` until `stop` is cancelled. Returns when every connection has ended. `untrusted`
/// gets the addresses of peers whose certificate a CA has signed that this node does not trust, or
/// that do not trust this node's CA. While it is full, further ones are left out.
pub async fn serve(
    bound: Bound,
    tls: Arc<ServerConfig>,
    routes: Router,
    limits: Limits,
    untrusted: mpsc::Sender<IpAddr>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = TaskTracker::new();
    let slots = Slots {
        members: Arc::new(Semaphore::new(limits.members)),
        unauthenticated: Arc::new(Semaphore::new(limits.unauthenticated)),
        handshakes: Arc::new(Semaphore::new(limits.handshakes)),
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = bound.listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                // Drop the connection instead of waiting: a wait here would delay all later
                // connections, and the peer tries again.
                let Ok(handshake) = slots.handshakes.clone().try_acquire_owned() else {
                    tracing::debug!(%peer, "closing connection: too many TLS handshakes in progress");
                    continue;
                };
                let (slots, untrusted) = (slots.clone(), untrusted.clone());
                let connection = Accepted { peer, limits, handshake, slots, untrusted };
                let (acceptor, routes, stop) = (acceptor.clone(), routes.clone(), stop.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = connection.serve(stream, acceptor, routes) => {}
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
    unauthenticated: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
}

/// A connection that was just accepted.
struct Accepted {
    peer: SocketAddr,
    limits: Limits,
    handshake: OwnedSemaphorePermit,
    slots: Slots,
    untrusted: mpsc::Sender<IpAddr>,
}

impl Accepted {
    async fn serve(self, stream: Stream, acceptor: TlsAcceptor, routes: Router) {
        let Self { peer, limits, handshake, slots, untrusted } = self;
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "cannot disable Nagle's algorithm");
        }
        #[cfg(test)]
        let own = stream.local_addr().expect("the socket is connected").ip();
        let stream = match timeout(limits.first_request_timeout, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                if is_distrust(&error) {
                    // Full: the peer tries again.
                    let _ = untrusted.try_send(peer.ip().to_canonical());
                }
                return tracing::debug!(%peer, %error, "TLS handshake failed");
            }
            Err(_) => return tracing::debug!(%peer, "TLS handshake timed out"),
        };
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let caller = match certificate.map(|c| PeerIdentity::from_certificate(c)).transpose() {
            Ok(None) => Caller::Anonymous,
            Ok(Some((peer, validity))) if validity.has_expired(now_ms()) => Caller::Expired(peer),
            Ok(Some((peer, _))) => Caller::Node(peer),
            Err(error) => return tracing::warn!(%peer, %error, "closing connection: the certificate cannot be read"),
        };
        let (slots, life) = match caller {
            Caller::Node(_) => (slots.members, None),
            Caller::Anonymous | Caller::Expired(_) => (slots.unauthenticated, Some(limits.unauthenticated_timeout)),
        };
        let Ok(_slot) = slots.try_acquire_owned() else {
            return tracing::warn!(%peer, member = life.is_none(), "closing connection: too many connections");
        };
        drop(handshake);
        #[cfg(test)]
        let stream = faults::Held::new(stream, &caller, own);
        let routes = routes.layer(Extension(caller));
        let requests = serve_requests(peer, stream, routes, limits.first_request_timeout);
        match life {
            None => requests.await,
            Some(life) => {
                if timeout(life, requests).await.is_err() {
                    tracing::debug!(%peer, "closing connection: time limit without a valid certificate reached");
                }
            }
        }
    }
}

/// Whether a handshake failed because one side does not trust the CA of the other.
fn is_distrust(error: &io::Error) -> bool {
    use rustls::{AlertDescription as A, CertificateError as C, Error as E};
    let Some(error) = error.get_ref().and_then(|error| error.downcast_ref::<E>()) else { return false };
    // CAs of weft have the same name, so a peer may try the signature of another one.
    matches!(
        error,
        E::InvalidCertificate(C::UnknownIssuer | C::BadSignature)
            | E::AlertReceived(A::UnknownCA | A::DecryptError | A::BadCertificate)
    )
}

/// Answers requests until the connection ends, or `first_request_timeout` passes without any
/// request.
async fn serve_requests(
    peer: SocketAddr,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    routes: Router,
    first_request_timeout: Duration,
) {
    let received = Arc::new(AtomicBool::new(false));
    let mark_received = received.clone();
    let service = routes.map_request(move |request: hyper::Request<Incoming>| {
        mark_received.store(true, Ordering::Relaxed);
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
        () = sleep(first_request_timeout) => {
            if !received.load(Ordering::Relaxed) {
                return tracing::debug!(%peer, "closing idle connection: no request received");
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
    use tokio::{io::AsyncReadExt as _, net::TcpStream, time::Instant};
    use tokio_rustls::TlsConnector;
    use weft_model::{NodeId, id::ClusterId, spec::Role};

    use super::*;
    use crate::{
        pki::{Ca, Credentials, KeyRequest, MANAGER_NAME, Subject, unverified_client},
        rpc::{Dialer, connect_now},
    };

    /// Short times, because the tests wait for them to pass.
    const LIMITS: Limits = Limits {
        members: 4,
        unauthenticated: 2,
        handshakes: 8,
        first_request_timeout: Duration::from_millis(300),
        unauthenticated_timeout: Duration::from_millis(900),
    };
    const DEADLINE: Duration = Duration::from_secs(20);

    const LIFE: Duration = Duration::from_secs(1000);

    fn credentials(ca: &Ca, life: Duration) -> Credentials {
        let request = KeyRequest::generate().expect("a request");
        let (cluster, node) = (ClusterId::from_random(1), NodeId::from_random(2));
        let subject = Subject { cluster: &cluster, node: &node, role: Role::Manager, life };
        let cert = ca.sign(request.csr_pem(), subject).expect("signed");
        Credentials::new(Arc::new(request.finish(&cert, ca.cert_pem()).expect("an identity"))).expect("credentials")
    }

    struct Server {
        addr: SocketAddr,
        credentials: Credentials,
        stop: CancellationToken,
        untrusted: mpsc::Receiver<IpAddr>,
    }

    impl Server {
        fn start() -> Self {
            Self::start_with(credentials(&Ca::create().expect("a CA"), LIFE))
        }

        fn start_with(credentials: Credentials) -> Self {
            let bound = Bound::bind(([127, 0, 0, 1], 0).into()).expect("a port");
            let (addr, stop) = (bound.addr(), CancellationToken::new());
            let routes = Router::new().route("/", axum::routing::get(|| async { "here" }));
            let (sender, untrusted) = mpsc::channel(4);
            tokio::spawn(serve(bound, credentials.server(), routes, LIMITS, sender, stop.clone()));
            Self { addr, credentials, stop, untrusted }
        }

        /// A peer without a certificate that completes the TLS handshake and sends nothing more.
        async fn connect_unauthenticated(&self) -> tokio_rustls::client::TlsStream<TcpStream> {
            let stream = TcpStream::connect(self.addr).await.expect("connected");
            let tls = TlsConnector::from(unverified_client().expect("a configuration"));
            tls.connect(MANAGER_NAME.try_into().expect("a name"), stream).await.expect("TLS")
        }

        async fn check_member_is_served(&self) {
            let dialer = Dialer::manager(self.addr, self.credentials.client());
            let channel = connect_now(&dialer).await.expect("a member connects");
            let request = hyper::Request::get("http://x/").body(tonic::body::Body::empty()).expect("a request");
            let answer = timeout(DEADLINE, channel.oneshot(request)).await.expect("in time").expect("an answer");
            assert_eq!(answer.status(), 200);
        }
    }

    async fn wait_until_expired(credentials: &Credentials) {
        let mut interval = tokio::time::interval(Duration::from_millis(50));
        let expired = async {
            while !credentials.identity().validity.has_expired(now_ms()) {
                interval.tick().await;
            }
        };
        timeout(DEADLINE, expired).await.expect("expired in time");
    }

    async fn check_closed(mut stream: impl AsyncRead + Unpin) {
        let closed = async { while !matches!(stream.read(&mut [0; 256]).await, Ok(0) | Err(_)) {} };
        timeout(DEADLINE, closed).await.expect("closed in time");
    }

    #[tokio::test]
    async fn unauthenticated_connections_do_not_use_up_those_of_members() {
        let server = Server::start();
        let mut open = Vec::new();
        for _ in 0..LIMITS.unauthenticated {
            open.push(server.connect_unauthenticated().await);
        }
        check_closed(server.connect_unauthenticated().await).await;
        server.check_member_is_served().await;
        server.stop.cancel();
    }

    #[tokio::test]
    async fn a_connection_without_a_request_is_closed() {
        let server = Server::start();
        let since = Instant::now();
        check_closed(server.connect_unauthenticated().await).await;
        assert!(since.elapsed() >= LIMITS.first_request_timeout, "{:?}", since.elapsed());
        check_closed(TcpStream::connect(server.addr).await.expect("connected, and no TLS")).await;
        server.stop.cancel();
    }

    #[tokio::test]
    async fn an_expired_server_is_accepted_for_the_renewal_only() {
        let ca = Ca::create().expect("a CA");
        let server = Server::start_with(credentials(&ca, Duration::ZERO));
        wait_until_expired(&server.credentials).await;
        let member = credentials(&ca, LIFE);
        let refused = connect_now(&Dialer::manager(server.addr, member.client())).await;
        let refused = format!("{:?}", refused.expect_err("the server's certificate has expired"));
        assert!(refused.contains("Expired"), "{refused}");
        connect_now(&Dialer::manager(server.addr, member.renewal_client())).await.expect("it may be asked to renew");
        let other = credentials(&Ca::create().expect("a CA"), LIFE);
        let refused = connect_now(&Dialer::manager(server.addr, other.renewal_client())).await;
        let refused = format!("{:?}", refused.expect_err("another cluster's CA signed the server's certificate"));
        assert!(refused.contains("UnknownIssuer") || refused.contains("BadSignature"), "{refused}");
        server.stop.cancel();
    }

    #[tokio::test]
    async fn the_address_of_a_peer_with_another_ca_is_reported() {
        let (ca, other) = (Ca::create().expect("a CA"), Ca::create().expect("a CA"));
        let mut server = Server::start_with(credentials(&ca, LIFE));
        // It does not trust the server.
        let stranger = credentials(&other, LIFE);
        connect_now(&Dialer::manager(server.addr, stranger.client())).await.expect_err("refused by the client");
        let reported = timeout(DEADLINE, server.untrusted.recv()).await.expect("reported in time");
        assert_eq!(reported, Some([127, 0, 0, 1].into()));
        // It trusts the server, which does not trust it.
        let roots = format!("{}{}", ca.cert_pem(), other.cert_pem());
        let identity = stranger.identity().with_roots(&roots).expect("both CAs");
        let friend = Credentials::new(Arc::new(identity)).expect("credentials");
        let stream = TcpStream::connect(server.addr).await.expect("connected");
        let stream =
            TlsConnector::from(friend.client()).connect(MANAGER_NAME.try_into().expect("a name"), stream).await;
        check_closed(stream.expect("the server's certificate is trusted")).await;
        let reported = timeout(DEADLINE, server.untrusted.recv()).await.expect("reported in time");
        assert_eq!(reported, Some([127, 0, 0, 1].into()));
        server.stop.cancel();
    }

    #[tokio::test]
    async fn an_expired_client_has_no_place_among_the_members() {
        let ca = Ca::create().expect("a CA");
        let server = Server::start_with(credentials(&ca, LIFE));
        let expired = credentials(&ca, Duration::ZERO);
        wait_until_expired(&expired).await;
        let mut open = Vec::new();
        for _ in 0..LIMITS.unauthenticated {
            open.push(server.connect_unauthenticated().await);
        }
        let stream = TcpStream::connect(server.addr).await.expect("connected");
        let connector = TlsConnector::from(expired.client());
        let stream = connector.connect(MANAGER_NAME.try_into().expect("a name"), stream).await.expect("TLS");
        check_closed(stream).await;
        server.check_member_is_served().await;
        server.stop.cancel();
    }

    #[tokio::test]
    async fn an_unauthenticated_connection_is_closed_after_its_time_limit() {
        let server = Server::start();
        let dialer = Dialer::manager(server.addr, unverified_client().expect("a configuration"));
        let channel = connect_now(&dialer).await.expect("connected");
        let ask = || {
            let request = hyper::Request::get("http://x/").body(tonic::body::Body::empty()).expect("a request");
            channel.clone().oneshot(request)
        };
        assert_eq!(ask().await.expect("an answer").status(), 200);
        let since = Instant::now();
        let closed = async { while ask().await.is_ok() {} };
        timeout(DEADLINE, closed).await.expect("closed in time");
        assert!(since.elapsed() >= LIMITS.unauthenticated_timeout / 2, "{:?}", since.elapsed());
        server.stop.cancel();
    }
}
