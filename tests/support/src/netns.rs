//! Being inside a network namespace. Only the calling thread ever moves, and only the network namespace changes: mounts,
//! and with them /sys/fs/bpf and /sys/fs/cgroup, stay those of the machine.

use std::{collections::BTreeSet, fs::File, os::fd::AsFd, os::linux::fs::MetadataExt, panic, path::Path, thread};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `action` on a thread of its own inside the namespace. Sockets opened and processes started there belong to it.
/// A panic inside is a panic here.
pub fn within<T: Send>(netns: &Path, action: impl FnOnce() -> T + Send) -> Result<T> {
    let file = open(netns)?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok::<T, rustix::io::Errno>(action())
        });
        match thread.join() {
            Ok(done) => done.with_context(|| format!("cannot enter {}", netns.display())),
            Err(panic) => panic::resume_unwind(panic),
        }
    })
}

/// Moves the calling thread itself, for good. For a process that is about to become another program.
pub fn enter(netns: &Path) -> Result<()> {
    let file = open(netns)?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter {}", netns.display()))
}

fn open(netns: &Path) -> Result<File> {
    File::open(netns).with_context(|| format!("cannot open the network namespace {}", netns.display()))
}

/// The inode that identifies a namespace.
pub(crate) fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.st_ino())
}

/// The inodes of all namespaces that exist of these files.
pub(crate) fn inodes<'a>(paths: impl IntoIterator<Item = &'a Path>) -> BTreeSet<u64> {
    paths.into_iter().filter_map(inode).collect()
}
