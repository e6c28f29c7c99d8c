//! A task's network namespace. It exists before the task's program starts. A bind mount on a file
//! keeps it alive without any process, so it survives the end of the daemon and of the shim.
//!
//! [`super::super::task_dirs`] calls it. It must not configure links: the overlay does that.

use std::{fs, io, path::Path, thread};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::mounts;
use crate::runtime::RuntimeError;

/// The first port that needs no privilege (ip(7)). With 0 a task without privileges can bind every
/// port of its own namespace.
const UNPRIVILEGED_PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Creates a namespace and mounts it on `path`.
pub(crate) fn create(path: &Path) -> Result<(), RuntimeError> {
    fs::File::create(path).map_err(RuntimeError::io("create", path))?;
    thread::scope(|scope| {
        // unshare(2) moves the calling thread into the new namespace, so this thread must end
        // afterwards.
        scope
            .spawn(|| -> io::Result<()> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                fs::write(UNPRIVILEGED_PORTS, "0")?;
                mount_bind("/proc/thread-self/ns/net", path)?;
                Ok(())
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that creates it panicked")))
    })
    .map_err(RuntimeError::io("create a network namespace at", path))
}

pub(crate) fn exists(path: &Path) -> Result<bool, RuntimeError> {
    Ok(mounts::is_mounted(&mounts::list()?, path))
}

/// Unmounts the namespace. The kernel frees it after the last process and the last socket in it.
pub(crate) fn remove(path: &Path) -> Result<(), RuntimeError> {
    loop {
        match unmount(path, UnmountFlags::DETACH) {
            // Unmounts again: after a crash between the mount and the record, two mounts may lie on
            // the same path.
            Ok(()) => {}
            // Not mounted, or no such file.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(RuntimeError::io("unmount", path)(error)),
        }
    }
}
