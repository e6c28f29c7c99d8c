//! The sockets of each task.
//!
//! One loop for the datagrams and one for the connections of each task. What is known here is answered at once, in the
//! loop; only questions for outside wait, in a bounded number of tasks of the runtime, and so do connections: nothing
//! that a task does makes the daemon run out of memory or file descriptors. (This is why hickory's own server loops are
//! not used: they start a task for every datagram, and keep every connection.)
//!
//! Cancel-safety: dropping a loop drops what it waits for; a client asks again.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
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
    forward::Forwarder,
    message::{Incoming, MAX_UDP_OCTETS, Question, Transport, decode},
    resolve::{Answer, resolve},
    zone::Names,
};

/// Where tasks expect their resolver: as in containers everywhere.
const ADDRESS: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
/// Questions of one task that wait for upstream.
const MAX_FORWARDED: usize = 64;
/// Connections of one task.
const MAX_CONNECTIONS: usize = 32;
/// How long a connection may stay silent.
const IDLE: Duration = Duration::from_secs(10);
/// Pause after a socket refused to go on for want of resources: it would only refuse again.
const RECOVERY: Duration = Duration::from_millis(100);

/// Why a task cannot have its resolver.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot use the resolver sockets of task {task}: {source}")]
    Sockets { task: TaskId, source: io::Error },
}

/// A task's resolver sockets, opened in its network namespace.
#[derive(Debug)]
pub struct Sockets {
    pub udp: std::net::UdpSocket,
    pub tcp: std::net::TcpListener,
}

/// Opens 127.0.0.11:53 in the network namespace of the calling thread.
pub fn open_sockets() -> io::Result<Sockets> {
    Ok(Sockets { udp: std::net::UdpSocket::bind(ADDRESS)?, tcp: std::net::TcpListener::bind(ADDRESS)? })
}

/// The resolvers of this node's tasks. Cheap to clone; they stop with the last clone.
#[derive(Debug, Clone)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    names: Names,
    forwarder: Forwarder,
    tasks: Mutex<HashMap<TaskId, Vec<AbortHandle>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let tasks = self.tasks.get_mut().unwrap_or_else(PoisonError::into_inner);
        tasks.values().flatten().for_each(AbortHandle::abort);
    }
}

/// What the loops of one task share.
#[derive(Debug)]
struct Resolver {
    names: Names,
    forwarder: Forwarder,
    /// The task's networks, in order.
    view: Vec<NetworkId>,
    turn: AtomicUsize,
    forwarded: Semaphore,
}

impl Server {
    /// Answers from `names`, and asks `upstreams` about the outside; without any, the outside has no names.
    pub fn new(names: Names, upstreams: Vec<SocketAddr>) -> Self {
        Self(Arc::new(Inner { names, forwarder: Forwarder::new(upstreams), tasks: Mutex::default() }))
    }

    /// Begins to answer a task that is on the networks `view`, in place of the sockets it had before.
    pub fn start(&self, task: TaskId, view: Vec<NetworkId>, sockets: Sockets) -> Result<(), ServerError> {
        let usable = || -> io::Result<_> {
            sockets.udp.set_nonblocking(true)?;
            sockets.tcp.set_nonblocking(true)?;
            Ok((UdpSocket::from_std(sockets.udp)?, TcpListener::from_std(sockets.tcp)?))
        };
        let (udp, tcp) = usable().map_err(|source| ServerError::Sockets { task: task.clone(), source })?;
        let resolver = Arc::new(Resolver {
            names: self.0.names.clone(),
            forwarder: self.0.forwarder.clone(),
            view,
            turn: AtomicUsize::new(0),
            forwarded: Semaphore::new(MAX_FORWARDED),
        });
        let loops = vec![
            tokio::spawn(serve_udp(Arc::clone(&resolver), Arc::new(udp))).abort_handle(),
            tokio::spawn(serve_tcp(resolver, tcp)).abort_handle(),
        ];
        let before = self.tasks().insert(task, loops);
        before.iter().flatten().for_each(AbortHandle::abort);
        Ok(())
    }

    /// Stops answering a task. One that is not served is no error.
    pub fn stop(&self, task: &TaskId) {
        let stopped = self.tasks().remove(task);
        stopped.iter().flatten().for_each(AbortHandle::abort);
    }

    /// The tasks that are served.
    pub fn serving(&self) -> Vec<TaskId> {
        self.tasks()
            .iter()
            .filter(|(_, loops)| loops.iter().all(|l| !l.is_finished()))
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, HashMap<TaskId, Vec<AbortHandle>>> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolver {
    fn resolve(&self, question: &Question) -> Answer {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        resolve(&self.names.current(), &self.view, &question.name, question.kind, turn)
    }

    /// The upstream's reply to `request`, or that there is none.
    async fn forward(&self, request: &[u8], question: &Question, transport: Transport) -> Option<Vec<u8>> {
        let answered = match self.forwarded.try_acquire() {
            Ok(_permit) => self.forwarder.ask(request, transport).await,
            Err(_) => None,
        };
        answered.or_else(|| question.reply(Answer::Forward, transport))
    }
}

async fn serve_udp(resolver: Arc<Resolver>, socket: Arc<UdpSocket>) {
    let mut waiting = JoinSet::new();
    let mut request = vec![0; usize::from(MAX_UDP_OCTETS)];
    loop {
        let (len, client) = match socket.recv_from(&mut request).await {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "resolver socket");
                sleep(RECOVERY).await;
                continue;
            }
        };
        while waiting.try_join_next().is_some() {}
        let reply = match decode(&request[..len]) {
            Incoming::Noise => None,
            Incoming::Refused(reply) => Some(reply),
            Incoming::Question(question) => match resolver.resolve(&question) {
                // The semaphore refuses at once when too many wait, so these tasks are few.
                Answer::Forward => {
                    let (resolver, socket, request) =
                        (Arc::clone(&resolver), Arc::clone(&socket), request[..len].to_vec());
                    waiting.spawn(async move {
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
        debug!(%client, %error, "cannot send reply");
    }
}

async fn serve_tcp(resolver: Arc<Resolver>, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // Further connections wait in the listener's queue.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!(%error, "cannot accept resolver connection");
                sleep(RECOVERY).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let resolver = Arc::clone(&resolver);
        connections.spawn(async move {
            let _permit = permit;
            if let Err(error) = serve_connection(&resolver, stream).await {
                debug!(%error, "resolver connection");
            }
        });
    }
}

/// Answers the requests of one connection in turn (RFC 7766), until it ends or falls silent.
async fn serve_connection(resolver: &Resolver, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let request = match timeout(IDLE, read_request(&mut stream)).await {
            Ok(Ok(request)) => request,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_silent) => return Ok(()),
        };
        let reply = match decode(&request) {
            Incoming::Noise => return Ok(()),
            Incoming::Refused(reply) => Some(reply),
            Incoming::Question(question) => match resolver.resolve(&question) {
                Answer::Forward => resolver.forward(&request, &question, Transport::Tcp).await,
                answer => question.reply(answer, Transport::Tcp),
            },
        };
        let Some(reply) = reply else { return Ok(()) };
        let len = u16::try_from(reply.len()).map_err(io::Error::other)?;
        timeout(IDLE, stream.write_all(&[len.to_be_bytes().as_slice(), &reply].concat())).await??;
    }
}

async fn read_request(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut request = vec![0; usize::from(len)];
    stream.read_exact(&mut request).await?;
    Ok(request)
}

#[cfg(test)]
mod tests;
