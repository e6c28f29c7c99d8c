//! The sockets of each task, and the loops that read from them.
//!
//! The agent calls [`Server::start`] and [`Server::stop`]. Each task has one loop for datagrams and
//! one for connections. Both pass each request to the task's `Handler`. They are bounded, so that a
//! task cannot exhaust the daemon's memory or file descriptors.
//!
//! Cancel-safety: dropping a loop drops the questions that wait in it. The client asks again.

mod udp;
mod tcp;

use std::{
    collections::HashMap,
    io,
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    net::{TcpListener, UdpSocket},
    task::AbortHandle,
};
use weft_model::{NetworkId, TaskId};

use crate::{
    error::Error,
    handler::{Handler, TaskConfig},
    zone::ZoneHandle,
};

/// The port of the resolver, of UDP and TCP.
const PORT: u16 = 53;

/// The resolver sockets of a task, opened in its network namespace.
#[derive(Debug)]
pub struct Sockets {
    pub udp: std::net::UdpSocket,
    pub tcp: std::net::TcpListener,
}

/// Opens port 53 of `address` in the network namespace of the calling thread.
///
/// The processes of a task ask 127.0.0.11, as in Docker. In a container whose 127.0.0.11 is the DNS
/// server of the container engine, the resolver listens at another address of 127.0.0.0/8, and the
/// data plane leads the questions there.
///
/// # Errors
///
/// The errors of bind(2), for example if the task runs its own resolver on that address.
pub fn open_sockets(address: Ipv4Addr) -> io::Result<Sockets> {
    let local = (address, PORT);
    Ok(Sockets { udp: std::net::UdpSocket::bind(local)?, tcp: std::net::TcpListener::bind(local)? })
}

/// The resolvers of this node's tasks. Cheap to clone. They stop when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Server(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    zone: ZoneHandle,
    tasks: Mutex<HashMap<TaskId, Running>>,
}

/// The resolver of one task.
#[derive(Debug)]
struct Running {
    handler: Handler,
    loops: [AbortHandle; 2],
}

impl Drop for Running {
    fn drop(&mut self) {
        self.loops.iter().for_each(AbortHandle::abort);
    }
}

impl Server {
    /// Answers from `zone`.
    pub fn new(zone: ZoneHandle) -> Self {
        Self(Arc::new(Inner { zone, tasks: Mutex::default() }))
    }

    /// Starts the resolver of a task. Replaces the sockets that the task had before.
    ///
    /// # Errors
    ///
    /// [`Error::Sockets`] if tokio cannot use the sockets.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn start(&self, task: TaskId, config: TaskConfig, sockets: Sockets) -> Result<(), Error> {
        let convert = || -> io::Result<_> {
            sockets.udp.set_nonblocking(true)?;
            sockets.tcp.set_nonblocking(true)?;
            Ok((UdpSocket::from_std(sockets.udp)?, TcpListener::from_std(sockets.tcp)?))
        };
        let (udp, tcp) = convert().map_err(|source| Error::Sockets { task: task.clone(), source })?;
        let handler = Handler::new(self.0.zone.clone(), config);
        let loops = [
            tokio::spawn(udp::serve(handler.clone(), udp)).abort_handle(),
            tokio::spawn(tcp::serve(handler.clone(), tcp)).abort_handle(),
        ];
        self.tasks().insert(task, Running { handler, loops });
        Ok(())
    }

    /// Replaces the networks of a task. A task without a resolver is not an error.
    pub fn set_networks(&self, task: &TaskId, networks: Vec<NetworkId>) {
        if let Some(running) = self.tasks().get(task) {
            running.handler.set_networks(networks);
        }
    }

    /// Stops the resolver of a task. A task without a resolver is not an error.
    pub fn stop(&self, task: &TaskId) {
        self.tasks().remove(task);
    }

    /// The tasks that have a resolver.
    pub fn serving(&self) -> Vec<TaskId> {
        self.tasks()
            .iter()
            .filter(|(_, running)| running.loops.iter().all(|l| !l.is_finished()))
            .map(|(id, _)| id.clone())
            .collect()
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<TaskId, Running>> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
