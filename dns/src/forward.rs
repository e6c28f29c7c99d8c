//! Questions about names that are not in the zone: upstream resolvers answer them.
//!
//! `server` calls [`Forwarder::query`]. It forwards a request and returns the reply without
//! changes, so every record type, flag and TTL is preserved.
//!
//! The sockets are opened in the network namespace of the process. This is the node's namespace,
//! never the namespace of a task. A bounded number of questions is forwarded at the same time.
//!
//! Equal questions that are waiting at the same time share one reply. This also ends a loop, in
//! which an upstream resolver asks a task and that task asks this server: the second question joins
//! the first one, and both end with the timeout.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    FutureExt, StreamExt,
    future::{BoxFuture, Shared, WeakShared},
    stream::FuturesUnordered,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::debug;

use crate::message::{MAX_UDP_OCTETS, Transport};

/// The longest time for one question. Resolvers in tasks ask again after five seconds by default
/// (resolv.conf(5)).
const TIMEOUT: Duration = Duration::from_secs(4);
/// How long one upstream resolver has to reply before the next one is asked too.
const NEXT_UPSTREAM_AFTER: Duration = Duration::from_millis(800);
/// How many times each upstream resolver is asked, because a datagram can be lost.
const ATTEMPTS: usize = 2;
/// Upstream resolvers that are used, as many as by the C library (resolv.conf(5)).
const MAX_UPSTREAMS: usize = 3;
/// Forwarded questions of all tasks at the same time. Each of them needs a socket.
const MAX_IN_FLIGHT: usize = 512;
/// Octets of a header. The question follows it.
const HEADER_OCTETS: usize = 12;
/// The response code in the second octet of the flags (RFC 1035, section 4.1.1), and the codes with
/// which another upstream resolver may have a better reply.
const CODE_MASK: u8 = 0x0f;
const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

/// A reply without its id. `None` if no upstream resolver replied.
type Reply = Option<Arc<[u8]>>;
type PendingReply = Shared<BoxFuture<'static, Reply>>;
/// The key of a pending question: the transport, and the request without its id.
type PendingReplies = HashMap<(Transport, Vec<u8>), WeakShared<BoxFuture<'static, Reply>>>;

/// The client of the upstream resolvers. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Forwarder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upstreams: Vec<SocketAddr>,
    permits: Arc<Semaphore>,
    /// The questions that are being forwarded. An entry ends when no caller waits for it any more.
    pending: Mutex<PendingReplies>,
}

impl Forwarder {
    pub(crate) fn new(mut upstreams: Vec<SocketAddr>) -> Self {
        upstreams.truncate(MAX_UPSTREAMS);
        let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        Self(Arc::new(Inner { upstreams, permits, pending: Mutex::default() }))
    }

    /// Asks the upstream resolvers. `None` if none of them replied in time, or if too many
    /// questions are being forwarded.
    pub(crate) async fn query(&self, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let (id, body) = request.split_at_checked(2)?;
        let reply = self.pending_reply(body, transport)?.await?;
        Some([id, reply.as_ref()].concat())
    }

    /// The reply to `body`, a request without its id. Joins an equal request that is waiting
    /// already.
    fn pending_reply(&self, body: &[u8], transport: Transport) -> Option<PendingReply> {
        let key = (transport, body.to_vec());
        let mut pending = self.0.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reply) = pending.get(&key).and_then(WeakShared::upgrade) {
            return Some(reply);
        }
        pending.retain(|_, reply| reply.upgrade().is_some_and(|reply| reply.peek().is_none()));
        let permit = Arc::clone(&self.0.permits).try_acquire_owned().ok()?;
        let (upstreams, body) = (self.0.upstreams.clone(), body.to_vec());
        let reply = async move {
            let _permit = permit;
            query_upstreams(&upstreams, &body, transport).await.map(Arc::from)
        };
        let reply = reply.boxed().shared();
        pending.extend(reply.downgrade().map(|reply| (key, reply)));
        Some(reply)
    }
}

/// Asks one upstream resolver after the other: the next one as soon as the previous one has failed,
/// or after [`NEXT_UPSTREAM_AFTER`]. Returns the first usable reply. If there is none, returns the
/// first other reply.
async fn query_upstreams(upstreams: &[SocketAddr], body: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let deadline = Instant::now() + TIMEOUT;
    let mut next = upstreams.repeat(ATTEMPTS).into_iter();
    let mut queries = FuturesUnordered::new();
    let mut unusable = None;
    loop {
        match next.next() {
            Some(upstream) => queries.push(query_upstream(upstream, body, transport, deadline)),
            None if queries.is_empty() => return unusable,
            None => {}
        }
        let until = if next.len() == 0 { deadline } else { deadline.min(Instant::now() + NEXT_UPSTREAM_AFTER) };
        tokio::select! {
            Some((upstream, reply)) = queries.next() => match reply {
                Ok(reply) if is_usable(&reply) => return Some(reply),
                Ok(reply) => unusable = unusable.or(Some(reply)),
                Err(error) => debug!(%upstream, %error, "upstream resolver does not reply"),
            },
            () = sleep_until(until) => {
                if until == deadline {
                    return unusable;
                }
            }
        }
    }
}

async fn query_upstream(
    upstream: SocketAddr,
    body: &[u8],
    transport: Transport,
    deadline: Instant,
) -> (SocketAddr, io::Result<Vec<u8>>) {
    let reply = async {
        match transport {
            Transport::Udp => query_udp(upstream, body).await,
            Transport::Tcp => query_tcp(upstream, body).await,
        }
    };
    let reply = timeout_at(deadline, reply).await.unwrap_or_else(|elapsed| Err(elapsed.into()));
    (upstream, reply)
}

/// Returns the reply without its id. A random port, a random id and the repeated question
/// distinguish a reply from a forged one (RFC 5452).
async fn query_udp(upstream: SocketAddr, body: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    let id: [u8; 2] = rand::random();
    socket.send(&[&id, body].concat()).await?;
    let mut reply = vec![0; usize::from(MAX_UDP_OCTETS)];
    loop {
        let len = socket.recv(&mut reply).await?;
        if let Some(reply) = reply_body(&reply[..len], id, body) {
            return Ok(reply.to_vec());
        }
    }
}

async fn query_tcp(upstream: SocketAddr, body: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let id: [u8; 2] = rand::random();
    let len = u16::try_from(id.len() + body.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), id.as_slice(), body].concat()).await?;
    let len = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(len)];
    stream.read_exact(&mut reply).await?;
    let reply = reply_body(&reply, id, body).map(<[u8]>::to_vec);
    reply.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the reply is to another question"))
}

/// The octets of `reply` after its id, if it is a reply to the request with `id` and `body`.
fn reply_body<'a>(reply: &'a [u8], id: [u8; 2], body: &[u8]) -> Option<&'a [u8]> {
    let reply = reply.strip_prefix(&id)?;
    let is_reply = reply.first()? & 0x80 != 0;
    let question = question_section(body)?;
    let repeated = reply.get(HEADER_OCTETS - 2..)?.get(..question.len())?;
    (is_reply && repeated.eq_ignore_ascii_case(question)).then_some(reply)
}

/// The question in a request without its id: a name, a type and a class. The name cannot end with a
/// compression pointer, because no other name precedes it.
fn question_section(body: &[u8]) -> Option<&[u8]> {
    let section = body.get(HEADER_OCTETS - 2..)?;
    let mut end = 0;
    while let len @ 1.. = *section.get(end)? {
        end += usize::from(len) + 1;
    }
    section.get(..end + 5)
}

/// Whether another upstream resolver cannot have a better reply.
fn is_usable(reply: &[u8]) -> bool {
    reply.get(1).is_some_and(|flags| !matches!(flags & CODE_MASK, SERVFAIL | REFUSED))
}
