//! One peer: its session, and where it is. The workers and the timer share it; each holds its lock
//! only while it encrypts or decrypts packets of this peer.

use std::{
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use boringtun::noise::{Tunn, TunnResult, errors::WireGuardError};

use crate::config::{PeerConfig, PeerStatus};

/// The headers of a data message (WireGuard whitepaper, section 5.4.6).
pub(crate) const OVERHEAD: usize = 32;
/// The buffer of any message must have at least the length of a handshake initiation.
pub(crate) const MIN_BUFFER: usize = 148;

/// A peer of a device. Its session outlives a change of its configuration.
pub(crate) struct Peer {
    pub(crate) public_key: [u8; 32],
    /// The upper 24 bits of the receiver index in messages of this peer.
    pub(crate) index: u32,
    state: Mutex<State>,
}

/// What changes with every packet.
pub(crate) struct State {
    pub(crate) tunnel: Tunn,
    pub(crate) endpoint: Option<SocketAddr>,
    keepalive: Option<Duration>,
    /// When the last keepalive was due.
    kept_alive: Option<Instant>,
}

impl Peer {
    pub(crate) fn new(index: u32, tunnel: Tunn, config: &PeerConfig) -> Self {
        let PeerConfig { public_key, endpoint, keepalive, .. } = *config;
        Self { public_key, index, state: Mutex::new(State { tunnel, endpoint, keepalive, kept_alive: None }) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of boringtun cannot leave the endpoint or the timers half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies what has changed between two configurations. A peer that has roamed keeps its
    /// endpoint unless the configured endpoint has changed.
    pub(crate) fn reconfigure(&self, before: &PeerConfig, after: &PeerConfig) {
        let mut state = self.lock();
        if before.endpoint != after.endpoint && after.endpoint.is_some() {
            state.endpoint = after.endpoint;
        }
        state.keepalive = after.keepalive;
    }

    pub(crate) fn status(&self) -> PeerStatus {
        let state = self.lock();
        let (since, tx_bytes, rx_bytes, ..) = state.tunnel.stats();
        PeerStatus {
            public_key: self.public_key,
            endpoint: state.endpoint,
            last_handshake: since.and_then(|since| SystemTime::now().checked_sub(since)),
            rx_bytes: u64::try_from(rx_bytes).unwrap_or(u64::MAX),
            tx_bytes: u64::try_from(tx_bytes).unwrap_or(u64::MAX),
        }
    }
}

impl State {
    /// Whether packets can be encrypted now.
    pub(crate) fn has_session(&self) -> bool {
        self.tunnel.time_since_last_handshake().is_some()
    }

    /// Writes the message that is due now into `buffer`, and returns its length: a handshake or a
    /// keepalive.
    pub(crate) fn due(&mut self, now: Instant, buffer: &mut [u8]) -> Option<usize> {
        match self.tunnel.update_timers(buffer) {
            TunnResult::WriteToNetwork(message) => return Some(message.len()),
            TunnResult::Err(WireGuardError::ConnectionExpired) | TunnResult::Done => {}
            TunnResult::Err(error) => tracing::debug!(?error, "cannot update the timers of a peer"),
            TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {}
        }
        let period = self.keepalive?;
        if self.kept_alive.is_some_and(|last| now.duration_since(last) < period) {
            return None;
        }
        self.kept_alive = Some(now);
        let result = if self.has_session() {
            self.tunnel.encapsulate(&[], buffer)
        } else {
            self.tunnel.format_handshake_initiation(buffer, false)
        };
        match result {
            TunnResult::WriteToNetwork(message) => Some(message.len()),
            _ => None,
        }
    }
}
