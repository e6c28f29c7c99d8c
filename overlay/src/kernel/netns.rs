//! Runs code inside another network namespace.
//!
//! This crate and the agent call [`in_netns`]. A socket belongs for its whole life to the namespace
//! in which it was opened. So code that serves another namespace opens its socket inside and keeps
//! it.
//!
//! Invariant: only a new thread enters a namespace, and it ends with its work. No thread of the
//! caller and no asynchronous task ever changes its namespace.

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};

use super::cookie;
use crate::error::Error;

/// The network namespace of the calling thread.
pub(crate) const CURRENT: &str = "/proc/thread-self/ns/net";

/// Runs `work` on a new thread inside the network namespace that `path` names, and returns what
/// `work` returned. Blocks until the thread has ended. `path` is a file on which a namespace is
/// mounted, or `/proc/PID/ns/net`.
///
/// # Errors
///
/// [`Error::OpenNetns`], [`Error::EnterNetns`] or [`Error::NetnsThread`]. In each case `work` did
/// not run.
///
/// # Panics
///
/// If `work` panics, with the same panic.
///
/// ```no_run
/// use std::{net::UdpSocket, path::Path};
///
/// // The socket stays in the task's namespace, although it is used outside of it.
/// let path = Path::new("/run/netns/task");
/// let socket = weft_overlay::netns::in_netns(path, || UdpSocket::bind("127.0.0.11:53"))?;
/// # let _ = socket;
/// # Ok::<(), weft_overlay::Error>(())
/// ```
pub fn in_netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    Netns::open(path)?.run(work)
}

/// An open network namespace. It exists at least as long as this value, whatever happens to the
/// file by which it was opened.
#[derive(Debug)]
pub struct Netns {
    file: File,
    /// For errors.
    path: PathBuf,
}

impl Netns {
    /// Opens the namespace that `path` names, as for [`in_netns`].
    ///
    /// # Errors
    ///
    /// [`Error::OpenNetns`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::OpenNetns { path: path.to_owned(), source })?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Like [`in_netns`].
    ///
    /// # Errors
    ///
    /// [`Error::EnterNetns`] or [`Error::NetnsThread`]. In each case `work` did not run.
    ///
    /// # Panics
    ///
    /// If `work` panics, with the same panic.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let enter_and_work = || {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::EnterNetns { path: self.path.clone(), source: errno.into() })?;
            Ok(work())
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, enter_and_work)
                .map_err(|source| Error::NetnsThread { path: self.path.clone(), source })?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The number that tells this namespace from all others since the machine has started.
    ///
    /// # Errors
    ///
    /// As for [`Netns::run`], or [`Error::Cookie`].
    pub fn cookie(&self) -> Result<u64, Error> {
        self.run(cookie::netns_cookie)?.map_err(Error::Cookie)
    }
}
