//! Running code inside another network namespace.
//!
//! A socket belongs to the namespace it was opened in for good, so the way to serve or program another namespace is to
//! open the socket inside and keep it. Every entry is on a fresh thread that ends with it: no thread of the caller, and
//! no asynchronous task, ever changes its namespace.

use std::{
    fs::File,
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

pub(crate) use crate::kernel::cookie::netns_cookie;

/// The calling thread's own network namespace.
pub(crate) const CURRENT: &str = "/proc/thread-self/ns/net";

/// Why a network namespace could not be entered. Causes are sources, and no part of the text.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("cannot open the network namespace {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot enter the network namespace {} (is this root, with CAP_SYS_ADMIN?)", path.display())]
    Enter { path: PathBuf, source: io::Error },
    #[error("no thread for the network namespace {}", path.display())]
    Thread { path: PathBuf, source: io::Error },
}

/// Runs `work` on a fresh thread inside the network namespace that `path` names (a bind-mounted file, or
/// `/proc/PID/ns/net`), and returns what it returned. Blocks until then. A panic of `work` goes on in the caller.
pub fn in_netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let namespace = File::open(path).map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
    let enter = || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetnsError::Enter { path: path.to_owned(), source: errno.into() })?;
        Ok(work())
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, enter)
            .map_err(|source| NetnsError::Thread { path: path.to_owned(), source })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
