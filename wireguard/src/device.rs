//! The handle of a device: opens it, configures its peers, reports, and removes it.

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use boringtun::{
    noise::{Tunn, rate_limiter::RateLimiter},
    x25519::{PublicKey, StaticSecret},
};

use crate::{
    config::{DeviceConfig, PeerConfig, PeerStatus},
    error::Error,
    kernel::{socket, tun},
    peer::Peer,
    worker::{Shared, Worker, run_timer},
};

/// Above this rate of handshake messages, in messages per second, a sender must prove its address
/// by a cookie. Each message is counted twice: once for the device, and once for its peer.
const HANDSHAKES_PER_SECOND: u64 = 100;
const COUNTED: u64 = 2;

/// A running WireGuard device. Dropping it stops its threads and removes its link.
pub struct Device {
    shared: Arc<Shared>,
    port: u16,
    /// Held while the next snapshot of the peers is made.
    change: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
}

impl Device {
    /// Creates the TUN device, opens the UDP port and starts the threads, all in the network
    /// namespace of the calling thread. The link has its MTU, and is down: the caller gives it
    /// addresses and routes, and sets it up.
    ///
    /// # Errors
    /// When the name is not valid or a link has it, when another socket has the port, or when this
    /// process is not root. Nothing is left then.
    pub fn open(config: DeviceConfig) -> Result<Self, Error> {
        let DeviceConfig { name, private_key, port, mtu, workers } = config;
        if !is_link_name(&name) {
            return Err(Error::Name(name));
        }
        if workers == 0 {
            return Err(Error::NoWorkers);
        }
        let private_key = StaticSecret::from(private_key);
        let limiter = RateLimiter::new(&PublicKey::from(&private_key), HANDSHAKES_PER_SECOND * COUNTED);
        let (sockets, port) = socket::open(port, workers).map_err(|source| Error::Listen { port, source })?;
        let (queues, offloads) = tun::create(&name, mtu, workers)?;
        let wait = |source| Error::Wait { name: name.clone(), source };
        let shared = Arc::new(Shared::new(name.clone(), private_key, limiter).map_err(wait)?);
        // From here on a failure stops the threads that were started.
        let mut device = Self { shared: Arc::clone(&shared), port, change: Mutex::new(()), threads: Vec::new() };
        let sockets: Vec<_> = sockets.into_iter().map(Arc::new).collect();
        if let Some(socket) = sockets.first().map(Arc::clone) {
            let shared = Arc::clone(&shared);
            device.start(&format!("{name}-timer"), move || run_timer(&shared, &socket))?;
        }
        for (index, (queue, socket)) in queues.into_iter().zip(sockets).enumerate() {
            let worker = Worker::new(Arc::clone(&shared), queue, socket, offloads).map_err(wait)?;
            device.start(&format!("{name}-{index}"), move || worker.run())?;
        }
        tracing::debug!(link = name, port, workers, ?offloads, "opened a WireGuard device");
        Ok(device)
    }

    fn start(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
        let cannot_start = |source| Error::Thread { name: self.shared.name.clone(), source };
        self.threads.push(thread.map_err(cannot_start)?);
        Ok(())
    }

    /// The public key of the device.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.shared.public_key.to_bytes()
    }

    /// The UDP port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes the device have these peers, and no others. A peer that it already has keeps its
    /// session, also when its endpoint, addresses or keepalive change. If a key is given more than
    /// once, the last one counts.
    pub fn set_peers(&self, peers: &[PeerConfig]) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.shared.table.load();
        let next = before.with_peers(peers, |config, is_used| self.make_peer(config, is_used));
        self.shared.table.store(Arc::new(next));
    }

    fn make_peer(&self, config: &PeerConfig, is_used: &dyn Fn(u32) -> bool) -> Peer {
        // Random, so that messages to an earlier device of this key do not match.
        let index = loop {
            let index = rand::random::<u32>() >> 8;
            if !is_used(index) {
                break index;
            }
        };
        let Shared { private_key, limiter, .. } = &*self.shared;
        let public_key = PublicKey::from(config.public_key);
        let tunnel = Tunn::new(private_key.clone(), public_key, None, None, index, Some(Arc::clone(limiter)));
        Peer::new(index, tunnel, config)
    }

    /// What is known of each peer, in the order of [`Self::set_peers`].
    #[must_use]
    pub fn status(&self) -> Vec<PeerStatus> {
        self.shared.table.load().peers().map(|peer| peer.status()).collect()
    }

    /// Whether the device has failed: its link was removed, or a system call failed that must not
    /// fail. It must be dropped and opened again.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.shared.has_failed()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // The event stays readable, so that all threads see it.
        if let Err(errno) = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()) {
            tracing::error!(error = %io::Error::from(errno), link = self.shared.name, "cannot stop a WireGuard device");
            return;
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!(link = self.shared.name, "a thread of a WireGuard device panicked");
            }
        }
    }
}

impl fmt::Debug for Device {
    /// Leaves out the private key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("name", &self.shared.name).field("port", &self.port).finish_non_exhaustive()
    }
}

/// The kernel's rules (dev_valid_name, net/core/dev.c).
fn is_link_name(name: &str) -> bool {
    let is_allowed = |octet: u8| octet.is_ascii_graphic() && octet != b'/' && octet != b':' && octet != b'%';
    (1..=15).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(is_allowed)
}
