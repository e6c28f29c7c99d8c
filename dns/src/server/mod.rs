//! The sockets of each task, and the loops that answer on them.
//!
//! The agent calls [`Server::start`] and [`Server::stop`]. Each task has one loop for datagrams and
//! one for connections. A loop answers from the zone at once. Only forwarded questions and
//! connections wait, in a bounded number of tokio tasks. So a task cannot exhaust the daemon's
//! memory or file descriptors. hickory's own server loops have no such bounds: they start a tokio
//! task for every datagram and keep every connection.
//!
//! Cancel-safety: dropping a loop drops the questions that wait in it. The client asks again.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::{AbortHandle, JoinSet},
    time::{sleep, timeout},
};
use tracing::{debug, warn};
use weft_model::{NetworkId, TaskId};

use crate::{
    error::Error,
    forward::Forwarder,
    message::{Incoming, MAX_UDP_OCTETS, Question, Transport, decode},
    resolve::{Answer, resolve},
    zone::ZoneHandle,
};

/// The address of the resolver inside a task, the same as in Docker.
const ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
/// Questions of one task that are forwarded at the same time.
const MAX_FORWARDED: usize = 64;
/// Connections of one task at the same time.
const MAX_CONNECTIONS: usize = 32;
/// How long a connection may be idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a socket error, so that a persistent error does not cause a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// The resolver sockets of a task, opened in its network namespace.
#[derive(Debug)]
pub struct Sockets {
    pub udp: std::net::UdpSocket,
    pub tcp: std::net::TcpListener,
}

/// Opens 127.0.0.11:53 in the network namespace of the calling thread.
///
/// # Errors
///
/// The errors of bind(2), for example if the task runs its own resolver on that address.
pub fn open_sockets() -> io::Result<Sockets> {
    Ok(Sockets { udp: std::net::UdpSocket::bind(ADDRESS)?, tcp: std::net::TcpListener::bind(ADDRESS)? })
}

/// The resolvers of this node's tasks. Cheap to clone. They stop when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    zone: ZoneHandle,
    forwarder: Forwarder,
    tasks: Mutex<HashMap<TaskId, Vec<AbortHandle>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        tasks.values().flatten().for_each(AbortHandle::abort);
    }
}

/// The data that the loops of one task share.
#[derive(Debug)]
struct Resolver {
    zone: ZoneHandle,
    forwarder: Forwarder,
    /// The networks of the task. The resolver looks a name up on them in this order.
    networks: Vec<NetworkId>,
    rotation: AtomicUsize,
    forwarded: Semaphore,
}

impl Server {
    /// Answers from `zone`, and forwards other questions to `upstreams`. Without upstream
    /// resolvers, other questions get the response code SERVFAIL.
    pub fn new(zone: ZoneHandle, upstreams: Vec<SocketAddr>) -> Self {
        Self(Arc::new(Inner { zone, forwarder: Forwarder::new(upstreams), tasks: Mutex::default() }))
    }

    /// Starts the resolver of a task that is on `networks`. Replaces the sockets that the task had
    /// before.
    ///
    /// # Errors
    ///
    /// [`Error::Sockets`] if tokio cannot use the sockets.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(&self, task: TaskId, networks: Vec<NetworkId>, sockets: Sockets) -> Result<(), Error> {
        let convert = || -> io::Result<_> {
            sockets.udp.set_nonblocking(true)?;
            sockets.tcp.set_nonblocking(true)?;
            Ok((UdpSocket::from_std(sockets.udp)?, TcpListener::from_std(sockets.tcp)?))
        };
        let (udp, tcp) = convert().map_err(|source| Error::Sockets { task: task.clone(), source })?;
        let resolver = Arc::new(Resolver {
            zone: self.0.zone.clone(),
            forwarder: self.0.forwarder.clone(),
            networks,
            rotation: AtomicUsize::new(0),
            forwarded: Semaphore::new(MAX_FORWARDED),
        });
        let loops = vec![
            tokio::spawn(serve_udp(Arc::clone(&resolver), Arc::new(udp))).abort_handle(),
            tokio::spawn(serve_tcp(resolver, tcp)).abort_handle(),
        ];
        let previous = self.tasks().insert(task, loops);
        previous.iter().flatten().for_each(AbortHandle::abort);
        Ok(())
    }

    /// Stops the resolver of a task. A task without a resolver is not an error.
    pub fn stop(&self, task: &TaskId) {
        let stopped = self.tasks().remove(task);
        stopped.iter().flatten().for_each(AbortHandle::abort);
    }

    /// The tasks that have a resolver.
    pub fn serving(&self) -> Vec<TaskId> {
        self.tasks()
            .iter()
            .filter(|(_, loops)| loops.iter().all(|l| !l.is_finished()))
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<TaskId, Vec<AbortHandle>>> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolver {
    fn resolve(&self, question: &Question) -> Answer {
        let rotation = self.rotation.fetch_add(1, Ordering::Relaxed);
        resolve(&self.zone.current(), &self.networks, &question.name, question.record_type, rotation)
    }

    /// The reply of an upstream resolver to `request`. If there is none, a reply with SERVFAIL.
    async fn forward(&self, request: &[u8], question: &Question, transport: Transport) -> Option<Vec<u8>> {
        let reply = match self.forwarded.try_acquire() {
            Ok(_permit) => self.forwarder.query(request, transport).await,
            Err(_) => None,
        };
        reply.or_else(|| question.reply(Answer::Forward, transport))
    }
}

async fn serve_udp(resolver: Arc<Resolver>, socket: Arc<UdpSocket>) {
    let mut forwarded = JoinSet::new();
    let mut request = vec![0; usize::from(MAX_UDP_OCTETS)];
    loop {
        let (len, client) = match socket.recv_from(&mut request).await {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "cannot receive DNS request");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        while forwarded.try_join_next().is_some() {}
        let reply = match decode(&request[..len]) {
            Incoming::Ignored => None,
            Incoming::Rejected(reply) => Some(reply),
            Incoming::Question(question) => match resolver.resolve(&question) {
                // The semaphore in `forward` bounds the number of these tokio tasks that wait.
                Answer::Forward => {
                    let (resolver, socket, request) =
                        (Arc::clone(&resolver), Arc::clone(&socket), request[..len].to_vec());
                    forwarded.spawn(async move {
                        if let Some(reply) = resolver.forward(&request, &question, Transport::Udp).await {
                            send(&socket, &reply, client).await;
                        }
                    });
                    None
                }
                answer => question.reply(answer, Transport::Udp),
            },
        };
        if let Some(reply) = reply {
            send(&socket, &reply, client).await;
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        debug!(%client, %error, "cannot send DNS reply");
    }
}

async fn serve_tcp(resolver: Arc<Resolver>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // Without a permit, further connections wait in the listener's queue.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept DNS connection");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let resolver = Arc::clone(&resolver);
        connections.spawn(async move {
            let _permit = permit;
            if let Err(error) = serve_connection(&resolver, stream).await {
                debug!(%error, "DNS connection failed");
            }
        });
    }
}

/// Answers the requests of one connection in their order (RFC 7766), until the client closes it or
/// it is idle for [`IDLE_TIMEOUT`].
async fn serve_connection(resolver: &Resolver, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let request = match timeout(IDLE_TIMEOUT, read_request(&mut stream)).await {
            Ok(Ok(request)) => request,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_idle) => return Ok(()),
        };
        let reply = match decode(&request) {
            Incoming::Ignored => return Ok(()),
            Incoming::Rejected(reply) => Some(reply),
            Incoming::Question(question) => match resolver.resolve(&question) {
                Answer::Forward => resolver.forward(&request, &question, Transport::Tcp).await,
                answer => question.reply(answer, Transport::Tcp),
            },
        };
        let Some(reply) = reply else { return Ok(()) };
        let len = u16::try_from(reply.len()).map_err(io::Error::other)?;
        timeout(IDLE_TIMEOUT, stream.write_all(&[len.to_be_bytes().as_slice(), &reply].concat())).await??;
    }
}

/// Reads one request with the two octets of length before it (RFC 1035, section 4.2.2).
async fn read_request(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut request = vec![0; usize::from(len)];
    stream.read_exact(&mut request).await?;
    Ok(request)
}

#[cfg(test)]
mod tests;
