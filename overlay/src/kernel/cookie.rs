//! The cookie of a network namespace. The mesh's programs for sockets use it to find out which task
//! owns a socket, or whether the node does.

use std::{
    io,
    os::{fd::AsRawFd, unix::net::UnixDatagram},
};

use nix::libc;

/// Reads the cookie of the calling thread's network namespace. The kernel never returns zero, and
/// never gives two namespaces the same cookie until the machine restarts (`SO_NETNS_COOKIE`,
/// net/core/net_namespace.c).
#[expect(unsafe_code, reason = "no crate wraps SO_NETNS_COOKIE")]
pub(crate) fn netns_cookie() -> io::Result<u64> {
    // Every socket has the option; an unbound Unix socket needs no address.
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: `cookie` and `len` outlive the call, and `len` is the number of octets that the
    // kernel may write to `cookie`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}
