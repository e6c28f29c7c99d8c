//! From the TUN device to the peers: reads packets, cuts superpackets, encrypts, and sends.

use std::io;

use boringtun::noise::TunnResult;

use crate::{
    kernel::{
        socket::{SendBatch, UdpSocket},
        tun::Queue,
    },
    packet::{
        ip,
        segment::{Malformed, segment},
        vnet::{TUNNEL_LEN, VnetHeader},
    },
    peer::{MIN_BUFFER, OVERHEAD},
    table::PeerTable,
};

/// The longest packet that a TUN device returns, with its vnet header.
const BUFFER_LEN: usize = TUNNEL_LEN + 65_535 + 200;
/// How many packets are read before the other direction has its turn. The kernel's budget for a
/// device is the same (NAPI_POLL_WEIGHT).
const BUDGET: usize = 64;

pub(super) struct Outbound {
    buffer: Vec<u8>,
}

impl Outbound {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; BUFFER_LEN] }
    }

    /// Sends the packets that wait in the queue.
    ///
    /// # Errors
    /// When the queue cannot be read: the device has been removed.
    pub(super) fn forward(
        &mut self,
        table: &PeerTable,
        queue: &Queue,
        socket: &UdpSocket,
        batch: &mut SendBatch,
    ) -> io::Result<()> {
        for _ in 0..BUDGET {
            let Some((header, range)) = queue.read(&mut self.buffer)? else { break };
            if let Err(error) = encrypt(table, &header, &mut self.buffer[range], socket, batch) {
                tracing::debug!(%error, ?header, "dropping a packet");
            }
        }
        batch.send(socket);
        Ok(())
    }
}

/// Encrypts a packet or superpacket for its peer. Drops it if no peer has its destination, or if it
/// is not known where the peer is.
fn encrypt(
    table: &PeerTable,
    header: &VnetHeader,
    packet: &mut [u8],
    socket: &UdpSocket,
    batch: &mut SendBatch,
) -> Result<(), Malformed> {
    let Some((_, destination)) = ip::addresses(packet) else { return Ok(()) };
    let Some(peer) = table.route(destination) else { return Ok(()) };
    let mut state = peer.lock();
    let Some(endpoint) = state.endpoint else { return Ok(()) };
    segment(header, packet, |segment| {
        let needed = MIN_BUFFER.max(segment.len() + OVERHEAD);
        if !batch.has_room(needed) {
            batch.send(socket);
        }
        batch.push(endpoint, |buffer| match state.tunnel.encapsulate(segment, buffer) {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            // Without a session the packet waits for one, and the first one starts a handshake.
            _ => None,
        });
    })
}
