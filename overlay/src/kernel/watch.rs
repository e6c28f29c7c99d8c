//! Following the links, addresses and routes of the node. What changed does not matter: any notice means "look again".

use std::io;

use rtnetlink::{
    MulticastGroup,
    sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};

use super::KernelError;

/// Room for a burst of notices. When it overflows the kernel says so, which is a notice too.
const RECEIVE_BUFFER_BYTES: u32 = 256 * 1024;
/// Longer notices are cut: nobody reads them.
const NOTICE_BYTES: usize = 1024;
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
    /// Follows the calling thread's namespace.
    pub(crate) fn open() -> Result<Self, KernelError> {
        let open = || -> io::Result<TokioSocket> {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_ref().set_rx_buf_sz(RECEIVE_BUFFER_BYTES)?;
            socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
            for group in GROUPS {
                socket.socket_ref().add_membership(group as u32)?;
            }
            Ok(socket)
        };
        open().map(Self).map_err(KernelError::Watch)
    }

    /// Returns when something changed. Cancel-safe.
    pub(crate) async fn changed(&mut self) -> Result<(), KernelError> {
        let mut notice = Vec::with_capacity(NOTICE_BYTES);
        match self.0.recv(&mut notice).await {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => Ok(()),
            Err(error) => Err(KernelError::Watch(error)),
        }
    }
}
