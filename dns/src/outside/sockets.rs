//! The sockets by which upstream resolvers are asked: those of the process, or those that a task's
//! [`OpenSockets`] opens.
//!
//! hickory-resolver calls [`Provider`] for each question that it sends.

use std::{
    fmt,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use hickory_resolver::net::runtime::{
    RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime, iocompat::AsyncIoTokioAsStd,
};
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    task::spawn_blocking,
    time::timeout,
};

use super::ATTEMPT_TIMEOUT;

/// Opens sockets in another network namespace than that of the process. The methods may block.
pub trait OpenSockets: fmt::Debug + Send + Sync {
    /// Opens a UDP socket that is bound to `local`.
    ///
    /// # Errors
    ///
    /// Those of socket(2) and bind(2), and if the namespace cannot be entered.
    fn udp(&self, local: SocketAddr) -> io::Result<std::net::UdpSocket>;

    /// Opens a TCP socket that can be connected to `server`.
    ///
    /// # Errors
    ///
    /// Those of socket(2), and if the namespace cannot be entered.
    fn tcp(&self, server: IpAddr) -> io::Result<TcpSocket>;
}

/// Opens the sockets of one resolver.
#[derive(Clone, Default)]
pub(super) struct Provider {
    process: TokioRuntimeProvider,
    /// `None`: the sockets are those of the process.
    sockets: Option<Arc<dyn OpenSockets>>,
}

impl Provider {
    pub(super) fn new(sockets: Option<Arc<dyn OpenSockets>>) -> Self {
        Self { process: TokioRuntimeProvider::new(), sockets }
    }
}

type Opening<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl RuntimeProvider for Provider {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> TokioHandle {
        self.process.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        deadline: Option<Duration>,
    ) -> Opening<Self::Tcp> {
        let Some(sockets) = self.sockets.clone() else { return self.process.connect_tcp(server, local, deadline) };
        Box::pin(async move {
            let socket = spawn_blocking(move || sockets.tcp(server.ip())).await.map_err(io::Error::other)??;
            if let Some(local) = local {
                socket.bind(local)?;
            }
            socket.set_nodelay(true)?;
            let connected = timeout(deadline.unwrap_or(ATTEMPT_TIMEOUT), socket.connect(server)).await;
            connected.map_err(|_elapsed| io::Error::from(io::ErrorKind::TimedOut))?.map(AsyncIoTokioAsStd)
        })
    }

    fn bind_udp(&self, local: SocketAddr, server: SocketAddr) -> Opening<Self::Udp> {
        let Some(sockets) = self.sockets.clone() else { return self.process.bind_udp(local, server) };
        Box::pin(async move {
            let socket = spawn_blocking(move || sockets.udp(local)).await.map_err(io::Error::other)??;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        })
    }
}
