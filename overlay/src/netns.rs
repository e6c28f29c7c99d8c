//! Running code inside another network namespace, and making and removing named ones.
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

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

pub use crate::kernel::cookie::netns_cookie;

/// The calling thread's own network namespace.
pub(crate) const CURRENT: &str = "/proc/thread-self/ns/net";

/// Why a network namespace could not be made, entered or removed.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    #[error("cannot open the network namespace {}: {source}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot enter the network namespace {}: {source} (is this root, with CAP_SYS_ADMIN?)", path.display())]
    Enter { path: PathBuf, source: io::Error },
    #[error("cannot make the network namespace {}: {source} (is this root, with CAP_SYS_ADMIN?)", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot remove the network namespace {}: {source}", path.display())]
    Remove { path: PathBuf, source: io::Error },
    #[error("no thread for the network namespace {}: {source}", path.display())]
    Thread { path: PathBuf, source: io::Error },
}

/// Runs `work` on a fresh thread inside the network namespace that `path` names (a bind-mounted file, or
/// `/proc/PID/ns/net`), and returns what it returned. Blocks until then. A panic of `work` goes on in the caller.
pub fn in_netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    let namespace = File::open(path).map_err(|source| NetnsError::Open { path: path.to_owned(), source })?;
    on_thread(path, || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetnsError::Enter { path: path.to_owned(), source: errno.into() })?;
        Ok(work())
    })
}

/// Makes a new network namespace and binds it to the file `path`, which must not exist: it lives until [`remove`].
pub fn create(path: &Path) -> Result<(), NetnsError> {
    let failed = |source: io::Error| NetnsError::Create { path: path.to_owned(), source };
    File::create_new(path).map_err(failed)?;
    let made = on_thread(path, || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
        mount(Some(CURRENT), path, None::<&str>, MsFlags::MS_BIND, None::<&str>).map_err(|errno| failed(errno.into()))
    });
    if made.is_err() {
        // The first error is the one to report; an empty file left behind would only hide it next time.
        let _ = std::fs::remove_file(path);
    }
    made
}

/// Unbinds and removes the file `path`. The namespace ends with its last process and socket. A file that is gone
/// already is no error.
pub fn remove(path: &Path) -> Result<(), NetnsError> {
    let failed = |source: io::Error| NetnsError::Remove { path: path.to_owned(), source };
    match umount2(path, MntFlags::MNT_DETACH) {
        // EINVAL: a file that nothing is mounted on.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(source)),
        _ => Ok(()),
    }
}

fn on_thread<T: Send>(path: &Path, work: impl FnOnce() -> Result<T, NetnsError> + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|source| NetnsError::Thread { path: path.to_owned(), source })?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
