//! Locks the resources that only one daemon at a time may use: a data directory, and the path of an
//! API socket. [`super::run`] calls it before it opens anything else.
//!
//! Two daemons with the same data directory would both write its copy of the cluster state, and
//! both would act as the same node.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use tokio::net::{UnixListener, UnixStream};

/// The owner and the group of the socket may use the API; others may not.
const SOCKET_MODE: u32 = 0o660;

/// Locks the data directory for this process (flock(2)). The lock is held until the returned file
/// is dropped; the kernel releases it if the process is killed.
///
/// # Errors
///
/// If another daemon holds the lock, or if the directory cannot be opened.
pub(super) fn lock_data_dir(dir: &Path) -> Result<File> {
    let file = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let dir = dir.display();
            bail!("{dir} is in use by another daemon: stop that one or choose another directory with --data-dir")
        }
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", dir.display())),
    }
}

/// Listens on a socket at this path. A socket that a dead daemon left behind is replaced.
///
/// # Errors
///
/// If a daemon listens there, if the path is something other than a socket, or if the path cannot
/// be created.
pub(super) async fn bind_socket(path: &Path) -> Result<UnixListener> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            bail!("{} exists and is not a socket: remove it or choose another path with --socket", path.display())
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            bail!("{} is in use by another daemon: stop that one or choose another path with --socket", path.display())
        }
        Ok(_) => fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))
        .with_context(|| format!("cannot set the permissions of {}", path.display()))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_daemon_locks_a_data_directory() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let lock = lock_data_dir(dir.path()).expect("the first daemon locks it");
        let error = lock_data_dir(dir.path()).expect_err("the second daemon is refused").to_string();
        assert!(error.contains("in use by another daemon") && error.contains("--data-dir"), "{error}");
        drop(lock);
        lock_data_dir(dir.path()).expect("the lock is free again");
    }
}
