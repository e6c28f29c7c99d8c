//! Questions about the outside: passed on as they came, and answered with what came back, so that every record type,
//! flag and TTL survives.
//!
//! The sockets are opened here, in the network namespace of the process: the node's own, never a task's. Questions are
//! asked in parallel, a bounded number at a time. Equal questions that wait at the same time share one answer; that is
//! also what ends a loop, in which an upstream resolver asks a task that asks us: the second round joins the first and
//! both end with the deadline.

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

/// All that one question may take. Resolvers in tasks ask again after five seconds by default.
const DEADLINE: Duration = Duration::from_secs(4);
/// How long one upstream has the question for itself before the next one is asked too.
const PATIENCE: Duration = Duration::from_millis(800);
/// How often the list of upstreams is gone through: a datagram may get lost.
const ROUNDS: usize = 2;
/// Upstreams that are used; resolv.conf(5) has as many.
const MAX_UPSTREAMS: usize = 3;
/// Questions in flight, over all tasks: each holds a socket.
const MAX_IN_FLIGHT: usize = 512;
/// Octets of a header; the question follows.
const HEADER_OCTETS: usize = 12;
/// Where a header's second octet of flags holds the response code, and its values for "ask somebody else".
const CODE_MASK: u8 = 0x0f;
const SERVFAIL: u8 = 2;
const REFUSED: u8 = 5;

/// A reply, less its id; `None` where no upstream gave one.
type Reply = Option<Arc<[u8]>>;
type Asked = Shared<BoxFuture<'static, Reply>>;
/// By transport, and request without its id.
type Waiting = HashMap<(Transport, Vec<u8>), WeakShared<BoxFuture<'static, Reply>>>;

/// The way to the resolvers outside. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Forwarder(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upstreams: Vec<SocketAddr>,
    permits: Arc<Semaphore>,
    /// What is being asked now. An entry goes with the last one who waits for it.
    waiting: Mutex<Waiting>,
}

impl Forwarder {
    pub(crate) fn new(mut upstreams: Vec<SocketAddr>) -> Self {
        upstreams.truncate(MAX_UPSTREAMS);
        let permits = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        Self(Arc::new(Inner { upstreams, permits, waiting: Mutex::default() }))
    }

    /// Asks the upstreams; `None` where none of them answered in time, or too much is asked already.
    pub(crate) async fn ask(&self, request: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let (id, question) = request.split_at_checked(2)?;
        let reply = self.shared(question, transport)?.await?;
        Some([id, reply.as_ref()].concat())
    }

    /// The answer to `question` (a request without its id), together with all who wait for it already.
    fn shared(&self, question: &[u8], transport: Transport) -> Option<Asked> {
        let key = (transport, question.to_vec());
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = waiting.get(&key).and_then(WeakShared::upgrade) {
            return Some(asked);
        }
        waiting.retain(|_, asked| asked.upgrade().is_some_and(|asked| asked.peek().is_none()));
        let permit = Arc::clone(&self.0.permits).try_acquire_owned().ok()?;
        let (upstreams, question) = (self.0.upstreams.clone(), question.to_vec());
        let asked = async move {
            let _permit = permit;
            ask_all(&upstreams, &question, transport).await.map(Arc::from)
        };
        let asked = asked.boxed().shared();
        waiting.extend(asked.downgrade().map(|asked| (key, asked)));
        Some(asked)
    }
}

/// Asks one upstream after the other, each a little after the one before or as soon as that one failed, and takes the
/// first good answer; without any, the first bad one.
async fn ask_all(upstreams: &[SocketAddr], question: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let deadline = Instant::now() + DEADLINE;
    let mut next = upstreams.repeat(ROUNDS).into_iter();
    let mut asked = FuturesUnordered::new();
    let mut bad = None;
    loop {
        match next.next() {
            Some(upstream) => asked.push(ask_one(upstream, question, transport, deadline)),
            None if asked.is_empty() => return bad,
            None => {}
        }
        let patience = if next.len() == 0 { deadline } else { deadline.min(Instant::now() + PATIENCE) };
        tokio::select! {
            Some((upstream, reply)) = asked.next() => match reply {
                Ok(reply) if is_good(&reply) => return Some(reply),
                Ok(reply) => bad = bad.or(Some(reply)),
                Err(error) => debug!(%upstream, %error, "upstream resolver does not answer"),
            },
            () = sleep_until(patience) => {
                if patience == deadline {
                    return bad;
                }
            }
        }
    }
}

async fn ask_one(
    upstream: SocketAddr,
    question: &[u8],
    transport: Transport,
    deadline: Instant,
) -> (SocketAddr, io::Result<Vec<u8>>) {
    let reply = async {
        match transport {
            Transport::Udp => ask_udp(upstream, question).await,
            Transport::Tcp => ask_tcp(upstream, question).await,
        }
    };
    let reply = timeout_at(deadline, reply).await.unwrap_or_else(|late| Err(late.into()));
    (upstream, reply)
}

/// Returns the reply less its id. A random port and id, and the repeated question, are what tells a reply from a forgery
/// (RFC 5452).
async fn ask_udp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match upstream {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(upstream).await?;
    let id: [u8; 2] = rand::random();
    socket.send(&[&id, question].concat()).await?;
    let mut reply = vec![0; usize::from(MAX_UDP_OCTETS)];
    loop {
        let len = socket.recv(&mut reply).await?;
        if let Some(reply) = reply_to(&reply[..len], id, question) {
            return Ok(reply.to_vec());
        }
    }
}

async fn ask_tcp(upstream: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(upstream).await?;
    let id: [u8; 2] = rand::random();
    let len = u16::try_from(id.len() + question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), id.as_slice(), question].concat()).await?;
    let len = stream.read_u16().await?;
    let mut reply = vec![0; usize::from(len)];
    stream.read_exact(&mut reply).await?;
    let reply = reply_to(&reply, id, question).map(<[u8]>::to_vec);
    reply.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a reply to another question"))
}

/// The octets after the id, if they reply to `question`.
fn reply_to<'a>(octets: &'a [u8], id: [u8; 2], question: &[u8]) -> Option<&'a [u8]> {
    let reply = octets.strip_prefix(&id)?;
    let is_reply = reply.first()? & 0x80 != 0;
    let asked = question_section(question)?;
    let repeated = reply.get(HEADER_OCTETS - 2..)?.get(..asked.len())?;
    (is_reply && repeated.eq_ignore_ascii_case(asked)).then_some(reply)
}

/// The question itself: a name (which no pointer can end, for nothing is before it), a type and a class.
fn question_section(message: &[u8]) -> Option<&[u8]> {
    let section = message.get(HEADER_OCTETS - 2..)?;
    let mut end = 0;
    while let len @ 1.. = *section.get(end)? {
        end += usize::from(len) + 1;
    }
    section.get(..end + 5)
}

/// Whether asking somebody else could not give a better answer.
fn is_good(reply: &[u8]) -> bool {
    reply.get(1).is_some_and(|flags| !matches!(flags & CODE_MASK, SERVFAIL | REFUSED))
}
