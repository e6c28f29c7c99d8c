//! The network between the hosts. Single calls may be dropped, duplicated, delayed and reordered.
//! The messages of one connection arrive in order, and late if packets are lost. An end closes if
//! the other one does not answer, as with HTTP/2's keep-alive. So one end may believe in a
//! connection that the other one has closed, and read what was sent before.

use std::collections::{BTreeMap, VecDeque};

use rand::{Rng, rngs::StdRng};

use super::ctx::{Packet, SessionBody};

/// An end of a connection closes if the other one does not answer for this long (`rpc::client`),
/// and for a part of the time between two questions.
const KEEP_ALIVE_MS: u64 = 3_000;
const PING_MS: u64 = 1_500;
/// How late a message of a connection arrives if a packet of it is lost.
const RETRANSMIT_MS: u64 = 300;

/// How the network treats packets at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Quality {
    pub loss: f64,
    pub duplicates: f64,
    pub max_delay_ms: u64,
}

impl Quality {
    pub(super) const GOOD: Self = Self { loss: 0.0, duplicates: 0.0, max_delay_ms: 5 };
}

#[derive(Debug)]
struct Connection {
    node: End,
    manager: End,
}

#[derive(Debug)]
struct End {
    host: usize,
    open: bool,
    /// What the other end has sent.
    inbox: VecDeque<(u64, SessionBody)>,
    /// When this end learns that the other one has closed, if it can be reached.
    closes_ms: Option<u64>,
    /// What was sent arrives later than this.
    stalls_until_ms: u64,
    silent_since_ms: Option<u64>,
    keep_alive_ms: u64,
}

impl End {
    fn new(host: usize, rng: &mut StdRng) -> Self {
        let keep_alive_ms = KEEP_ALIVE_MS + rng.random_range(0..PING_MS);
        let (inbox, closes_ms, silent_since_ms) = Default::default();
        Self { host, open: true, inbox, closes_ms, stalls_until_ms: 0, silent_since_ms, keep_alive_ms }
    }
}

#[derive(Debug)]
pub(super) struct Network {
    pub quality: Quality,
    /// Pairs of hosts between which no packet arrives, in this direction. A pair may be blocked
    /// several times.
    blocked: BTreeMap<(usize, usize), u32>,
    /// In boxes, because an insertion moves the values beside it.
    calls: BTreeMap<(u64, u64), Box<Call>>,
    connections: BTreeMap<u64, Connection>,
    next: u64,
}

#[derive(Debug)]
struct Call {
    from: usize,
    to: usize,
    packet: Packet,
}

/// A packet that arrives now.
#[derive(Debug)]
pub(super) enum Arrival {
    Call {
        from: usize,
        to: usize,
        packet: Packet,
    },
    Session {
        conn: u64,
        from: usize,
        to: usize,
        body: SessionBody,
    },
    /// The connection has ended for this host.
    Closed {
        conn: u64,
        to: usize,
    },
}

impl Network {
    pub(super) fn new() -> Self {
        Self {
            quality: Quality::GOOD,
            blocked: BTreeMap::new(),
            calls: BTreeMap::new(),
            connections: BTreeMap::new(),
            next: 0,
        }
    }

    pub(super) fn block(&mut self, from: usize, to: usize) {
        *self.blocked.entry((from, to)).or_default() += 1;
    }

    pub(super) fn unblock(&mut self, from: usize, to: usize) {
        if let Some(count) = self.blocked.get_mut(&(from, to)) {
            *count = count.saturating_sub(1);
        }
    }

    /// Ends all faults.
    pub(super) fn heal(&mut self) {
        self.blocked.clear();
        self.quality = Quality::GOOD;
    }

    /// Whether packets from or to the host may be lost or late.
    pub(super) fn disturbs(&self, host: usize, now_ms: u64) -> bool {
        let mut of_node = self.connections.values().filter(|connection| connection.node.host == host);
        let stalls = of_node.any(|connection| connection.manager.stalls_until_ms > now_ms);
        let blocks = |(&(from, to), &count): (&(usize, usize), &u32)| count > 0 && (from == host || to == host);
        stalls || self.quality != Quality::GOOD || self.blocked.iter().any(blocks)
    }

    pub(super) fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocked.get(&(from, to)).is_some_and(|count| *count > 0)
    }

    pub(super) fn connect(&mut self, node: usize, manager: usize, rng: &mut StdRng) -> u64 {
        self.next += 1;
        let connection = Connection { node: End::new(node, rng), manager: End::new(manager, rng) };
        self.connections.insert(self.next, connection);
        self.next
    }

    /// The node, or the manager, closes its end. The other one sees it if it can be reached.
    pub(super) fn close(&mut self, conn: u64, by_node: bool, now_ms: u64, rng: &mut StdRng) {
        let at_ms = self.arrival_ms(now_ms, rng);
        let Some(connection) = self.connections.get_mut(&conn) else { return };
        let (own, other) = connection.ends(by_node);
        own.open = false;
        other.closes_ms.get_or_insert(at_ms);
    }

    /// When a message of a connection arrives that is sent now.
    fn arrival_ms(&self, now_ms: u64, rng: &mut StdRng) -> u64 {
        let again_ms = if rng.random_bool(self.quality.loss) { RETRANSMIT_MS } else { 0 };
        now_ms + rng.random_range(1..=self.quality.max_delay_ms) + again_ms
    }

    pub(super) fn send(&mut self, from: usize, to: usize, packet: Packet, now_ms: u64, rng: &mut StdRng) {
        let Quality { loss, duplicates, max_delay_ms } = self.quality;
        if let Packet::Session(conn, body) = packet {
            let at_ms = self.arrival_ms(now_ms, rng);
            let Some(connection) = self.connections.get_mut(&conn) else { return };
            let (own, other) = connection.ends(matches!(body, SessionBody::Open { .. } | SessionBody::Message { .. }));
            if own.open {
                other.inbox.push_back((at_ms, body));
            }
            return;
        }
        let at_ms = now_ms + rng.random_range(1..=max_delay_ms);
        if rng.random_bool(loss) {
            return;
        }
        if rng.random_bool(duplicates) {
            self.next += 1;
            let later_ms = at_ms + rng.random_range(0..=4 * max_delay_ms);
            self.calls.insert((later_ms, self.next), Box::new(Call { from, to, packet: packet.clone() }));
        }
        self.next += 1;
        self.calls.insert((at_ms, self.next), Box::new(Call { from, to, packet }));
    }

    /// A call waits until its host reads it.
    pub(super) fn delay(&mut self, from: usize, to: usize, packet: Packet, at_ms: u64) {
        self.next += 1;
        self.calls.insert((at_ms, self.next), Box::new(Call { from, to, packet }));
    }

    /// When the next call arrives.
    pub(super) fn next_ms(&self) -> Option<u64> {
        self.calls.keys().next().map(|(at_ms, _)| *at_ms)
    }

    /// The next call that arrives by `now_ms`.
    pub(super) fn next_call(&mut self, now_ms: u64) -> Option<Arrival> {
        loop {
            let first = self.calls.first_entry().filter(|entry| entry.key().0 <= now_ms)?;
            let Call { from, to, packet } = *first.remove();
            if !self.is_blocked(from, to) {
                return Some(Arrival::Call { from, to, packet });
            }
        }
    }

    /// The messages of connections that arrive by `now_ms`, and the ends that close. `answers` says
    /// which hosts answer.
    pub(super) fn poll_sessions(&mut self, now_ms: u64, answers: impl Fn(usize) -> bool) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        let blocked = &self.blocked;
        let is_blocked = |from, to| blocked.get(&(from, to)).is_some_and(|count| *count > 0);
        for (conn, connection) in &mut self.connections {
            connection.each(|own, other| {
                let host = own.host;
                let is_reached = !is_blocked(other.host, host) && now_ms >= own.stalls_until_ms;
                if !own.open || !answers(host) {
                    own.silent_since_ms = None;
                    return;
                }
                while own.inbox.front().is_some_and(|(at_ms, _)| *at_ms <= now_ms)
                    && is_reached
                    && let Some((_, body)) = own.inbox.pop_front()
                {
                    arrivals.push(Arrival::Session { conn: *conn, from: other.host, to: host, body });
                }
                if is_reached && !is_blocked(host, other.host) && other.open && answers(other.host) {
                    own.silent_since_ms = None;
                } else {
                    own.silent_since_ms.get_or_insert(now_ms);
                }
                // What was sent arrives before the end of the connection.
                let is_closed =
                    own.closes_ms.is_some_and(|at_ms| at_ms <= now_ms) && is_reached && own.inbox.is_empty();
                let is_silent = own.silent_since_ms.is_some_and(|since_ms| now_ms >= since_ms + own.keep_alive_ms);
                if is_closed || is_silent {
                    own.open = false;
                    other.closes_ms.get_or_insert(now_ms + 1);
                    arrivals.push(Arrival::Closed { conn: *conn, to: host });
                }
            });
        }
        self.connections.retain(|_, connection| connection.node.open || connection.manager.open);
        arrivals
    }

    /// What the node sends on its connections arrives late: after the node has given them up, and
    /// has connected again.
    pub(super) fn stall(&mut self, node: usize, now_ms: u64, rng: &mut StdRng) {
        for connection in self.connections.values_mut().filter(|connection| connection.node.host == node) {
            let closes_ms = now_ms + rng.random_range(100..1_000);
            connection.node.closes_ms = Some(closes_ms);
            connection.manager.stalls_until_ms = closes_ms + rng.random_range(100..1_500);
        }
    }

    /// The connections of the host end, at both ends.
    pub(super) fn disconnect(&mut self, host: usize, now_ms: u64) {
        let is_of_host = |c: &&mut Connection| c.node.host == host || c.manager.host == host;
        for connection in self.connections.values_mut().filter(is_of_host) {
            connection.each(|own, _| own.closes_ms = Some(now_ms));
        }
    }

    /// The daemon of the host has died: its ends of connections close.
    pub(super) fn reset(&mut self, host: usize, now_ms: u64) {
        for connection in self.connections.values_mut() {
            connection.each(|own, other| {
                if own.host == host {
                    own.open = false;
                    other.closes_ms.get_or_insert(now_ms + 1);
                }
            });
        }
    }
}

impl Connection {
    /// Calls `visit` with each end and the other one.
    fn each(&mut self, mut visit: impl FnMut(&mut End, &mut End)) {
        visit(&mut self.manager, &mut self.node);
        visit(&mut self.node, &mut self.manager);
    }

    /// The end of the node, or of the manager, and the other one.
    fn ends(&mut self, as_node: bool) -> (&mut End, &mut End) {
        if as_node { (&mut self.node, &mut self.manager) } else { (&mut self.manager, &mut self.node) }
    }
}
