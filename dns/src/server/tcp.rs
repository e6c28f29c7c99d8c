//! The loop for the connections of one task.
//!
//! `server` starts it. It accepts connections only while there are less than [`MAX_CONNECTIONS`];
//! further ones wait in the listener's queue. So a task cannot exhaust the daemon's memory or file
//! descriptors.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hickory_server::{net::xfer::Protocol, server::Request};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::{debug, warn};

use crate::handler::{HEADER_OCTETS, Handler, encode, is_request, malformed};

/// Connections of one task at the same time.
const MAX_CONNECTIONS: usize = 32;
/// How long a connection may be idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a socket error, so that a persistent error does not cause a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn serve(handler: Handler, listener: TcpListener) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // Without a permit, further connections wait in the listener's queue.
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "cannot accept DNS connection");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let handler = handler.clone();
        connections.spawn(async move {
            let _permit = permit;
            if let Err(error) = serve_connection(&handler, stream, client).await {
                debug!(%error, "DNS connection failed");
            }
        });
    }
}

/// Answers the requests of one connection in their order (RFC 7766), until the client closes it,
/// sends something that is no request, or is idle for [`IDLE_TIMEOUT`].
async fn serve_connection(handler: &Handler, mut stream: TcpStream, client: SocketAddr) -> io::Result<()> {
    loop {
        let request = match timeout(IDLE_TIMEOUT, read_request(&mut stream)).await {
            Ok(Ok(request)) => request,
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_idle) => return Ok(()),
        };
        let Some(reply) = reply(handler, request, client).await else { return Ok(()) };
        let len = u16::try_from(reply.len()).map_err(io::Error::other)?;
        timeout(IDLE_TIMEOUT, stream.write_all(&[len.to_be_bytes().as_slice(), &reply].concat())).await??;
    }
}

/// The reply to the octets of one request. `None` if they are no request.
async fn reply(handler: &Handler, octets: Vec<u8>, client: SocketAddr) -> Option<Vec<u8>> {
    if !is_request(&octets) {
        return None;
    }
    let header = octets[..HEADER_OCTETS].to_vec();
    let mut reply_octets = Vec::new();
    match Request::from_bytes(octets, client, Protocol::Tcp) {
        Ok(request) => {
            let reply = match handler.immediate_reply(&request) {
                Some(reply) => reply,
                None => handler.outside_reply(&request).await,
            };
            encode(&request, reply, &mut reply_octets);
        }
        Err(error) => {
            debug!(%client, %error, "malformed DNS request");
            malformed(&header, &mut reply_octets);
        }
    }
    Some(reply_octets)
}

/// Reads one request with the two octets of length before it (RFC 1035, section 4.2.2).
pub(super) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let len = stream.read_u16().await?;
    let mut request = vec![0; usize::from(len)];
    stream.read_exact(&mut request).await?;
    Ok(request)
}
