//! The threads of a device. Each worker has a queue of the TUN device and a socket of its own, and
//! moves packets in both directions: `outbound` from TUN to UDP, `inbound` from UDP to TUN. The
//! kernel gives all packets of a connection to the same queue, and all datagrams of a peer to the
//! same socket, so that their order is kept. `timer` sends what is due without a packet.
//!
//! `Device` starts the threads, and stops them with an event. They share the snapshot of the peers,
//! and the lock of a peer while they encrypt or decrypt packets of this peer. A packet in the
//! steady state allocates nothing.

mod outbound;
mod inbound;
mod timer;

use std::{
    io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use boringtun::{
    noise::rate_limiter::RateLimiter,
    x25519::{PublicKey, StaticSecret},
};
use rustix::{
    buffer::spare_capacity,
    event::{
        EventfdFlags, epoll,
        epoll::{EventData, EventFlags},
        eventfd,
    },
};

use self::{inbound::Inbound, outbound::Outbound};
use crate::{
    kernel::{
        socket::{SendBatch, UdpSocket},
        tun::Queue,
    },
    packet::coalesce::Offloads,
    table::PeerTable,
};

pub(crate) use self::timer::run as run_timer;

/// What all threads of a device share.
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) private_key: StaticSecret,
    pub(crate) public_key: PublicKey,
    pub(crate) limiter: Arc<RateLimiter>,
    pub(crate) table: ArcSwap<PeerTable>,
    /// Readable once the threads must end.
    pub(crate) stop: OwnedFd,
    /// Whether a worker has ended because of an error.
    failed: AtomicBool,
}

impl Shared {
    pub(crate) fn new(name: String, private_key: StaticSecret, limiter: RateLimiter) -> io::Result<Self> {
        Ok(Self {
            name,
            public_key: PublicKey::from(&private_key),
            private_key,
            limiter: Arc::new(limiter),
            table: ArcSwap::from_pointee(PeerTable::empty()),
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            failed: AtomicBool::new(false),
        })
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

/// What became readable.
const STOP: u64 = 0;
const TUN: u64 = 1;
const UDP: u64 = 2;

pub(crate) struct Worker {
    shared: Arc<Shared>,
    queue: Queue,
    socket: Arc<UdpSocket>,
    epoll: OwnedFd,
    outbound: Outbound,
    inbound: Inbound,
}

impl Worker {
    pub(crate) fn new(
        shared: Arc<Shared>,
        queue: Queue,
        socket: Arc<UdpSocket>,
        offloads: Offloads,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &shared.stop, EventData::new_u64(STOP), EventFlags::IN)?;
        epoll::add(&epoll, &queue, EventData::new_u64(TUN), EventFlags::IN)?;
        epoll::add(&epoll, &*socket, EventData::new_u64(UDP), EventFlags::IN)?;
        Ok(Self { shared, queue, socket, epoll, outbound: Outbound::new(), inbound: Inbound::new(offloads) })
    }

    /// Moves packets until the device stops.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.serve() {
            self.shared.failed.store(true, Ordering::Relaxed);
            tracing::error!(%error, link = self.shared.name, "a WireGuard device has failed");
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        let mut events = Vec::with_capacity(4);
        let mut replies = SendBatch::new();
        loop {
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            for event in &events {
                let table = self.shared.table.load();
                match event.data.u64() {
                    TUN => self.outbound.forward(&table, &self.queue, &self.socket, &mut replies)?,
                    UDP => self.inbound.forward(&self.shared, &table, &self.queue, &self.socket, &mut replies)?,
                    _ => return Ok(()),
                }
            }
        }
    }
}
