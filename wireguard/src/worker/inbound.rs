//! From the peers to the TUN device: receives, decrypts, joins segments, and writes.
//!
//! Datagrams of unknown senders cost little: a data message with an unknown receiver index costs
//! one lookup, a handshake message with a wrong MAC one hash. Above a rate, handshakes are only
//! answered if the sender has proved by a cookie that it receives at its address (WireGuard
//! whitepaper, section 5.3).

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    sync::Arc,
};

use boringtun::noise::{Packet, TunnResult, handshake::parse_handshake_anon};

use super::Shared;
use crate::{
    kernel::{
        socket::{ReceiveBatch, SendBatch, UdpSocket},
        tun::{Queue, VnetBytes},
    },
    packet::{
        coalesce::{Coalescer, MAX_SEGMENTS, Offloads},
        ip,
    },
    peer::{MIN_BUFFER, Peer, State},
    table::PeerTable,
};

/// How many batches are received before the other direction has its turn.
const BUDGET: usize = 4;
/// Room for the packets that wait to be written. They are written when less than the longest
/// datagram fits.
const ARENA_LEN: usize = 512 * 1024;
const MAX_DATAGRAM: usize = 65_535;
/// The type of a message is its first octet (WireGuard whitepaper, section 5.4).
const COOKIE_REPLY: u8 = 3;
const DATA: [u8; 4] = [4, 0, 0, 0];
/// The longest message that is a reply.
const MAX_REPLY: usize = MIN_BUFFER;

pub(super) struct Inbound {
    received: ReceiveBatch,
    decrypted: Decrypted,
}

/// Packets that wait to be written.
struct Decrypted {
    arena: Vec<u8>,
    used: usize,
    coalescer: Coalescer,
}

impl Inbound {
    pub(super) fn new(offloads: Offloads) -> Self {
        let decrypted = Decrypted { arena: vec![0; ARENA_LEN], used: 0, coalescer: Coalescer::new(offloads) };
        Self { received: ReceiveBatch::new(), decrypted }
    }

    /// Writes the packets of the datagrams that wait in the socket, and sends the replies.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub(super) fn forward(
        &mut self,
        shared: &Shared,
        table: &PeerTable,
        queue: &Queue,
        socket: &UdpSocket,
        replies: &mut SendBatch,
    ) -> io::Result<()> {
        for _ in 0..BUDGET {
            let has_more = self.received.receive(socket)?;
            for (from, datagrams) in self.received.trains() {
                let mut messages = Messages { shared, table, from, socket, replies: &mut *replies };
                messages.handle(datagrams, queue, &mut self.decrypted);
            }
            self.decrypted.write(queue);
            replies.send(socket);
            if !has_more {
                break;
            }
        }
        Ok(())
    }
}

impl Decrypted {
    /// Room for one more packet.
    fn room(&mut self, queue: &Queue) -> &mut [u8] {
        if self.arena.len() - self.used < MAX_DATAGRAM {
            self.write(queue);
        }
        &mut self.arena[self.used..]
    }

    /// Keeps the packet that was written to the beginning of the room.
    fn keep(&mut self, len: usize) {
        let packet = self.used..self.used + len;
        self.coalescer.push(&self.arena, packet);
        self.used += len;
    }

    /// Writes all packets to the TUN device.
    fn write(&mut self, queue: &Queue) {
        if self.coalescer.is_empty() {
            return;
        }
        self.coalescer.finish(&mut self.arena, |header, packets| {
            let bytes = VnetBytes::from(header);
            // The first slice is for the vnet header.
            let mut slices = [IoSlice::new(&[]); MAX_SEGMENTS + 1];
            let mut count = 1;
            for (slice, packet) in slices.iter_mut().skip(1).zip(packets) {
                *slice = IoSlice::new(packet);
                count += 1;
            }
            if let Err(error) = queue.write(&bytes, &mut slices[..count]) {
                // The link may be down.
                tracing::debug!(%error, ?header, "cannot write a packet to the TUN device");
            }
        });
        self.used = 0;
    }
}

/// The messages of one sender.
struct Messages<'a> {
    shared: &'a Shared,
    table: &'a PeerTable,
    from: SocketAddr,
    socket: &'a UdpSocket,
    replies: &'a mut SendBatch,
}

impl Messages<'_> {
    fn handle<'m>(&mut self, messages: impl Iterator<Item = &'m [u8]>, queue: &Queue, decrypted: &mut Decrypted) {
        let mut messages = messages.peekable();
        while let Some(first) = messages.next() {
            if first.first_chunk() != Some(&DATA) {
                self.handle_handshake(first);
                continue;
            }
            let Some(receiver) = receiver(first) else { continue };
            let Some(peer) = self.table.by_receiver(receiver) else { continue };
            // The lock is held for all data messages of the train.
            let mut state = peer.lock();
            let mut is_authentic = false;
            let mut next = Some(first);
            while let Some(message) = next {
                is_authentic |= self.decrypt(peer, &mut state, message, queue, decrypted);
                let is_same =
                    |message: &&[u8]| message.first_chunk() == Some(&DATA) && self::receiver(message) == Some(receiver);
                next = messages.next_if(is_same);
            }
            if is_authentic {
                self.send_waiting(&mut state);
            }
        }
    }

    /// Decrypts a data message. Returns whether the peer has sent it.
    fn decrypt(
        &mut self,
        peer: &Arc<Peer>,
        state: &mut State,
        message: &[u8],
        queue: &Queue,
        decrypted: &mut Decrypted,
    ) -> bool {
        let room = decrypted.room(queue);
        let (len, source) = match state.tunnel.decapsulate(Some(self.from.ip()), message, room) {
            TunnResult::WriteToTunnelV4(packet, source) => (packet.len(), source.into()),
            TunnResult::WriteToTunnelV6(packet, source) => (packet.len(), source.into()),
            TunnResult::Done => {
                self.follow(state);
                return true;
            }
            TunnResult::Err(error) => {
                tracing::trace!(?error, from = %self.from, "dropping a message");
                return false;
            }
            // No reply to a data message exists.
            TunnResult::WriteToNetwork(_) => return false,
        };
        self.follow(state);
        // A peer may send only from its own addresses.
        if self.table.route(source).is_some_and(|owner| Arc::ptr_eq(owner, peer)) {
            decrypted.keep(len);
        }
        true
    }

    /// The endpoint of a peer is where its last authenticated message came from.
    fn follow(&self, state: &mut State) {
        if state.endpoint != Some(self.from) {
            tracing::debug!(endpoint = %self.from, "a peer has a new endpoint");
            state.endpoint = Some(self.from);
        }
    }

    fn handle_handshake(&mut self, message: &[u8]) {
        let mut buffer = [0; MIN_BUFFER];
        let verified = self.shared.limiter.verify_packet(Some(self.from.ip()), message, &mut buffer);
        let packet = match verified {
            Ok(packet) => packet,
            Err(TunnResult::WriteToNetwork(cookie)) => return self.reply(cookie),
            Err(_) => return,
        };
        let peer = match packet {
            Packet::HandshakeInit(ref initiation) => {
                let Shared { private_key, public_key, .. } = self.shared;
                let half = parse_handshake_anon(private_key, public_key, initiation);
                half.ok().and_then(|half| self.table.by_key(&half.peer_static_public))
            }
            Packet::HandshakeResponse(ref response) => self.table.by_receiver(response.receiver_idx),
            Packet::PacketCookieReply(ref reply) => self.table.by_receiver(reply.receiver_idx),
            Packet::PacketData(_) => None,
        };
        let Some(peer) = peer else { return };
        let mut state = peer.lock();
        match state.tunnel.decapsulate(Some(self.from.ip()), message, &mut buffer) {
            TunnResult::WriteToNetwork(reply) => {
                // A cookie reply says that the message was not looked into.
                let is_authentic = reply.first() != Some(&COOKIE_REPLY);
                self.reply(reply);
                if is_authentic {
                    self.follow(&mut state);
                    self.send_waiting(&mut state);
                }
            }
            TunnResult::Err(error) => tracing::debug!(?error, from = %self.from, "dropping a handshake message"),
            TunnResult::Done | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {}
        }
    }

    fn reply(&mut self, message: &[u8]) {
        if !self.replies.has_room(MAX_REPLY) {
            self.replies.send(self.socket);
        }
        self.replies.push(self.from, |buffer| {
            buffer.get_mut(..message.len())?.copy_from_slice(message);
            Some(message.len())
        });
    }

    /// Sends the packets that waited for a session, if there is one now.
    fn send_waiting(&mut self, state: &mut State) {
        let mut is_sent = state.has_session();
        while is_sent {
            if !self.replies.has_room(MAX_DATAGRAM) {
                self.replies.send(self.socket);
            }
            is_sent = false;
            self.replies.push(self.from, |buffer| match state.tunnel.decapsulate(None, &[], buffer) {
                TunnResult::WriteToNetwork(message) => {
                    is_sent = true;
                    Some(message.len())
                }
                _ => None,
            });
        }
    }
}

/// The receiver index of a data message.
fn receiver(message: &[u8]) -> Option<u32> {
    ip::array(message, 4).map(u32::from_le_bytes)
}

const _: () = assert!(ARENA_LEN > MAX_DATAGRAM);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receiver_of_a_data_message_is_its_second_word() {
        assert_eq!(receiver(&[4, 0, 0, 0, 1, 2, 3, 4, 5]), Some(0x0403_0201));
        assert_eq!(receiver(&[4, 0, 0, 0, 1, 2, 3]), None);
    }
}
