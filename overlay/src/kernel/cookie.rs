//! The cookie of a network namespace: how eBPF programs on sockets know whose socket it is.

use std::{
    io,
    os::{fd::AsRawFd, unix::net::UnixDatagram},
};

use nix::libc;

/// The cookie of the calling thread's network namespace. Never zero, never used twice while the kernel runs.
#[expect(unsafe_code, reason = "no crate wraps SO_NETNS_COOKIE")]
pub(crate) fn netns_cookie() -> io::Result<u64> {
    // Any socket has its namespace; this one needs no address.
    let socket = UnixDatagram::unbound()?;
    let mut cookie = 0u64;
    let mut len = libc::socklen_t::try_from(size_of_val(&cookie)).map_err(io::Error::other)?;
    // SAFETY: `cookie` and `len` are live for the call, and `len` says how much the kernel may write to `cookie`.
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
