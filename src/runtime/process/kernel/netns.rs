//! A task's network namespace: made before the task, held by a bind mount on a file, so that it outlives daemons and
//! shims alike.

use std::{fs, io, path::Path, thread};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::mounts;
use crate::runtime::RuntimeError;

/// Ports from which on a task needs no privilege: inside its own namespace every port is its own.
const UNPRIVILEGED_PORTS: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";

/// Makes a namespace and mounts it on `path`.
pub(crate) fn create(path: &Path) -> Result<(), RuntimeError> {
    fs::File::create(path).map_err(RuntimeError::io("create", path))?;
    thread::scope(|scope| {
        // Only a thread that ends with this can give up the namespace it was born in.
        scope
            .spawn(|| -> io::Result<()> {
                unshare(CloneFlags::CLONE_NEWNET)?;
                fs::write(UNPRIVILEGED_PORTS, "0")?;
                mount_bind("/proc/thread-self/ns/net", path)?;
                Ok(())
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
    })
    .map_err(RuntimeError::io("make a network namespace at", path))
}

pub(crate) fn is_there(path: &Path) -> Result<bool, RuntimeError> {
    Ok(mounts::is_mounted(&mounts::list()?, path))
}

/// Lets go of the namespace: it ends with the last process and socket in it.
pub(crate) fn remove(path: &Path) -> Result<(), RuntimeError> {
    loop {
        match unmount(path, UnmountFlags::DETACH) {
            // Once more: a crash between mount and record may have stacked two.
            Ok(()) => {}
            // Not mounted, or not there at all.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(RuntimeError::io("unmount", path)(error)),
        }
    }
}
