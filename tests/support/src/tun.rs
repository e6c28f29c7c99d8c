//! A link without Ethernet between two hosts: a tun device on each, and a thread that carries
//! packets between them. The tests use it for what weft does on WireGuard, PPP and other links
//! whose packets have no Ethernet header.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, poll};

use crate::{contract, kernel, netns};

/// The largest packet that a tun device carries, in bytes.
const LARGEST: usize = 65_535;

/// Two connected tun devices. They exist until the value is dropped.
#[derive(Debug)]
pub struct TunCable {
    /// The thread ends when this is closed.
    stop: Option<UnixStream>,
    carrier: Option<JoinHandle<()>>,
    /// The length of the largest packet that the first host has sent, in bytes.
    largest: Arc<AtomicUsize>,
}

impl TunCable {
    /// Creates a device with this name on both hosts. They are down and have no address.
    ///
    /// # Errors
    /// When this process is not root, the kernel has no tun devices, or the name is in use.
    pub fn new(name: &str, hosts: [&str; 2]) -> Result<Self> {
        let create = |host: &str| -> Result<File> {
            let created = netns::within(&contract::namespace_path(host), || kernel::create_tun(name))?;
            created.with_context(|| format!("cannot create the tun device {name} on {host}"))
        };
        let ends = [create(hosts[0])?, create(hosts[1])?];
        let (stop, stopped) = UnixStream::pair()?;
        let largest = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&largest);
        let carrier = thread::Builder::new().name("tun".to_owned()).spawn(move || carry(&ends, &stopped, &seen))?;
        Ok(Self { stop: Some(stop), carrier: Some(carrier), largest })
    }

    /// The length of the largest packet that the first host has sent, in bytes.
    pub fn largest_from_first(&self) -> usize {
        self.largest.load(Ordering::Relaxed)
    }
}

impl Drop for TunCable {
    fn drop(&mut self) {
        drop(self.stop.take());
        // The devices are deleted when the thread has closed their files. A panic in it was
        // printed.
        drop(self.carrier.take().map(JoinHandle::join));
    }
}

fn carry(ends: &[File; 2], stopped: &UnixStream, largest_from_first: &AtomicUsize) {
    let mut packet = vec![0; LARGEST];
    loop {
        let mut ready = [
            PollFd::new(&ends[0], PollFlags::IN),
            PollFd::new(&ends[1], PollFlags::IN),
            PollFd::new(stopped, PollFlags::IN),
        ];
        if poll(&mut ready, None).is_err() || !ready[2].revents().is_empty() {
            return;
        }
        let is_ready = [ready[0].revents(), ready[1].revents()].map(|events| events.contains(PollFlags::IN));
        for (from, is_ready) in is_ready.into_iter().enumerate() {
            if is_ready {
                // A device that is down carries nothing.
                let carried = carry_one(&ends[from], &ends[1 - from], &mut packet).unwrap_or_default();
                if from == 0 {
                    largest_from_first.fetch_max(carried, Ordering::Relaxed);
                }
            }
        }
    }
}

fn carry_one(mut from: &File, mut to: &File, packet: &mut [u8]) -> io::Result<usize> {
    let length = from.read(packet)?;
    to.write_all(&packet[..length])?;
    Ok(length)
}
