//! Notifications of changes of the node's links, addresses and routes.
//!
//! `overlay` waits for them and wakes the agent. The content of a notification is not read: each
//! one only means that the agent has to reconcile again.

use std::io;

use rtnetlink::{
    MulticastGroup,
    sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};

use crate::error::Error;

/// Room for a burst of notifications, in octets. If it overflows, the kernel returns `ENOBUFS`,
/// which counts as a notification too.
const RECEIVE_BUFFER_BYTES: u32 = 256 * 1024;
/// The kernel truncates longer notifications, which does no harm because they are not read.
const NOTIFICATION_BYTES: usize = 1024;
const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// A subscription to the changes of one network namespace.
pub(crate) struct Watch(TokioSocket);

impl Watch {
    /// Subscribes to the changes of the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, Error> {
        let open = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_ref().set_rx_buf_sz(RECEIVE_BUFFER_BYTES)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            for group in GROUPS {
                socket.socket_ref().add_membership(group as u32)?;
            }
            Ok(socket)
        };
        open().map(Self).map_err(Error::Watch)
    }

    /// Waits until something has changed. Cancel-safe: a notification that is not received stays in
    /// the socket.
    pub(crate) async fn changed(&mut self) -> Result<(), Error> {
        let mut notification = Vec::with_capacity(NOTIFICATION_BYTES);
        match self.0.recv(&mut notification).await {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Ok(()),
            Err(error) => Err(Error::Watch(error)),
        }
    }
}
