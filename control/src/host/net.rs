//! TCP between nodes: `rpc` connects and listens with these functions.

use std::{io, net::SocketAddr};

use tokio::net::TcpSocket;

#[cfg(not(test))]
pub(crate) use tokio::net::{TcpListener as Listener, TcpStream as Stream};

#[cfg(test)]
pub(crate) use crate::fixture::simulated::tcp::{Listener, Stream};

/// Length of the queue of connections that are not accepted yet (listen(2)).
const BACKLOG: u32 = 1024;

pub(crate) async fn connect(addr: SocketAddr) -> io::Result<Stream> {
    Stream::connect(addr).await
}

pub(crate) fn listen(addr: SocketAddr) -> io::Result<Listener> {
    #[cfg(test)]
    if let Some(listener) = Listener::simulated(addr) {
        return listener;
    }
    let socket = if addr.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    #[cfg_attr(not(test), expect(clippy::useless_conversion, reason = "another type in tests"))]
    Ok(socket.listen(BACKLOG)?.into())
}
