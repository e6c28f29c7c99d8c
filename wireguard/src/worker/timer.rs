//! The thread that sends what is due without a packet: handshakes that are repeated, keys that are
//! renewed, keepalives.

use std::{io, sync::Arc, time::Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Shared;
use crate::{
    kernel::socket::{SendBatch, UdpSocket},
    peer::MIN_BUFFER,
};

/// How often boringtun's timers must be updated. They are rounded to this.
const PERIOD: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };

/// Runs until the device stops.
pub(crate) fn run(shared: &Arc<Shared>, socket: &UdpSocket) {
    let mut batch = SendBatch::new();
    while !must_stop(shared) {
        // The limiter counts handshakes for a second.
        shared.limiter.reset_count();
        let now = Instant::now();
        for peer in shared.table.load().peers() {
            let mut state = peer.lock();
            let Some(endpoint) = state.endpoint else { continue };
            if !batch.has_room(MIN_BUFFER) {
                batch.send(socket);
            }
            batch.push(endpoint, |buffer| state.due(now, buffer));
        }
        batch.send(socket);
    }
}

/// Waits for a period, or until the device stops.
fn must_stop(shared: &Shared) -> bool {
    let mut fds = [PollFd::new(&shared.stop, PollFlags::IN)];
    match poll(&mut fds, Some(&PERIOD)) {
        Ok(ready) => ready > 0,
        Err(rustix::io::Errno::INTR) => false,
        Err(errno) => {
            tracing::error!(error = %io::Error::from(errno), link = shared.name, "cannot wait for the next timer");
            true
        }
    }
}
