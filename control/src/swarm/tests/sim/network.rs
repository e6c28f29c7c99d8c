//! The network between the hosts. Single calls may be dropped, duplicated, delayed and reordered.
//! The messages of one connection arrive in order, and late if packets are lost; a connection whose
//! other end does not answer ends, as with HTTP/2's keep-alive.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::{Rng, rngs::StdRng};

use super::ctx::{Packet, SessionBody};

/// A connection ends if its other end does not answer for this long (`rpc::client`).
const KEEP_ALIVE_MS: u64 = 3_000;
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
    node: usize,
    manager: usize,
    to_manager: VecDeque<(u64, SessionBody)>,
    to_node: VecDeque<(u64, SessionBody)>,
    silent_since_ms: Option<u64>,
    /// One end has closed it, or has died.
    dead: bool,
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
    pub(super) fn disturbs(&self, host: usize) -> bool {
        let blocks = |(&(from, to), &count): (&(usize, usize), &u32)| count > 0 && (from == host || to == host);
        self.quality != Quality::GOOD || self.blocked.iter().any(blocks)
    }

    pub(super) fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocked.get(&(from, to)).is_some_and(|count| *count > 0)
    }

    pub(super) fn connect(&mut self, node: usize, manager: usize) -> u64 {
        self.next += 1;
        let (to_manager, to_node) = Default::default();
        self.connections
            .insert(self.next, Connection { node, manager, to_manager, to_node, silent_since_ms: None, dead: false });
        self.next
    }

    /// One end closes the connection. The other end sees it if it can be reached.
    pub(super) fn close(&mut self, conn: u64) {
        if let Some(connection) = self.connections.get_mut(&conn) {
            connection.dead = true;
        }
    }

    pub(super) fn send(&mut self, from: usize, to: usize, packet: Packet, now_ms: u64, rng: &mut StdRng) {
        let Quality { loss, duplicates, max_delay_ms } = self.quality;
        let mut at_ms = now_ms + rng.random_range(1..=max_delay_ms);
        if let Packet::Session(conn, body) = packet {
            let Some(connection) = self.connections.get_mut(&conn) else { return };
            if rng.random_bool(loss) {
                at_ms += RETRANSMIT_MS;
            }
            let queue = if from == connection.node { &mut connection.to_manager } else { &mut connection.to_node };
            queue.push_back((at_ms, body));
            return;
        }
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

    /// The host of the node that has opened the connection.
    pub(super) fn node_of(&self, conn: u64) -> Option<usize> {
        self.connections.get(&conn).map(|connection| connection.node)
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

    /// The messages of connections that arrive by `now_ms`, and the connections that end.
    /// `answers` says which hosts answer, and `runs` which daemons run.
    pub(super) fn poll_sessions(
        &mut self,
        now_ms: u64,
        answers: impl Fn(usize) -> bool,
        runs: impl Fn(usize) -> bool,
    ) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        let mut ended = BTreeSet::new();
        let blocked = &self.blocked;
        let is_blocked = |from, to| blocked.get(&(from, to)).is_some_and(|count| *count > 0);
        for (conn, connection) in &mut self.connections {
            let (node, manager) = (connection.node, connection.manager);
            let reachable = !is_blocked(node, manager) && !is_blocked(manager, node);
            let both_run = runs(node) && runs(manager) && !connection.dead;
            if reachable && answers(node) && answers(manager) && both_run {
                connection.silent_since_ms = None;
            } else {
                connection.silent_since_ms.get_or_insert(now_ms);
            }
            let ends = [(node, manager, &mut connection.to_manager), (manager, node, &mut connection.to_node)];
            for (from, to, queue) in ends {
                while queue.front().is_some_and(|(at_ms, _)| *at_ms <= now_ms)
                    && !is_blocked(from, to)
                    && answers(to)
                    && let Some((_, body)) = queue.pop_front()
                {
                    arrivals.push(Arrival::Session { conn: *conn, to, body });
                }
            }
            // What was sent arrives before the end of the connection.
            let drained = |to: usize, queue: &VecDeque<_>| !runs(to) || queue.is_empty();
            let drained = drained(manager, &connection.to_manager) && drained(node, &connection.to_node);
            let is_silent = connection.silent_since_ms.is_some_and(|since_ms| now_ms >= since_ms + KEEP_ALIVE_MS);
            if is_silent || (reachable && !both_run && drained) {
                ended.insert(*conn);
                arrivals.push(Arrival::Closed { conn: *conn, to: node });
                arrivals.push(Arrival::Closed { conn: *conn, to: manager });
            }
        }
        self.connections.retain(|conn, _| !ended.contains(conn));
        arrivals
    }

    /// The daemon of the host has died: its connections end.
    pub(super) fn reset(&mut self, host: usize) {
        for connection in self.connections.values_mut().filter(|c| c.node == host || c.manager == host) {
            connection.dead = true;
        }
    }
}
