//! The loop for the datagrams of one task.
//!
//! `server` starts it. It answers at once from the zone. Only questions about other names wait,
//! each in a tokio task; the handler bounds their number.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hickory_server::{net::xfer::Protocol, server::Request};
use tokio::{net::UdpSocket, task::JoinSet, time::sleep};
use tracing::debug;

use crate::handler::{Handler, MAX_UDP_OCTETS, encode, is_request, malformed};

/// The pause after a socket error, so that a persistent error does not cause a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn serve(handler: Handler, socket: UdpSocket) {
    let socket = Arc::new(socket);
    let mut waiting = JoinSet::new();
    let mut buffer = vec![0; usize::from(MAX_UDP_OCTETS)];
    let mut reply_octets = Vec::with_capacity(buffer.len());
    loop {
        let (len, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "cannot receive DNS request");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        while waiting.try_join_next().is_some() {}
        if !is_request(&buffer[..len]) {
            continue;
        }
        match Request::from_bytes(buffer[..len].to_vec(), client, Protocol::Udp) {
            Ok(request) => match handler.immediate_reply(&request) {
                Some(reply) => encode(&request, reply, &mut reply_octets),
                None => {
                    let (handler, socket) = (handler.clone(), Arc::clone(&socket));
                    waiting.spawn(async move {
                        let reply = handler.outside_reply(&request).await;
                        let mut octets = Vec::new();
                        encode(&request, reply, &mut octets);
                        send(&socket, &octets, client).await;
                    });
                    continue;
                }
            },
            Err(error) => {
                debug!(%client, %error, "malformed DNS request");
                malformed(&buffer[..len], &mut reply_octets);
            }
        }
        send(&socket, &reply_octets, client).await;
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(reply, client).await {
        debug!(%client, %error, "cannot send DNS reply");
    }
}
