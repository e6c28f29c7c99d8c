//! Runs code inside of a network namespace.
//!
//! Only the calling thread, or a thread of this module, moves. Only the network namespace changes:
//! the mounts of the machine stay visible, including /sys/fs/bpf and /sys/fs/cgroup.

use std::{collections::BTreeSet, fs::File, os::fd::AsFd, os::linux::fs::MetadataExt, panic, path::Path, thread};

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Runs `action` inside of the namespace, on a new thread. Sockets that it opens and processes that
/// it starts belong to the namespace, and stay there.
///
/// # Errors
/// When the namespace does not exist, or this process is not root.
///
/// # Panics
/// When `action` panics.
pub fn within<T: Send>(netns: &Path, action: impl FnOnce() -> T + Send) -> Result<T> {
    let file = open(netns)?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok::<T, rustix::io::Errno>(action())
        });
        match thread.join() {
            Ok(done) => done.with_context(|| cannot_move_to(netns)),
            Err(panic) => panic::resume_unwind(panic),
        }
    })
}

/// Moves the calling thread into the namespace. It cannot move back.
///
/// # Errors
/// When the namespace does not exist, or this process is not root.
pub fn move_thread_to(netns: &Path) -> Result<()> {
    let file = open(netns)?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).with_context(|| cannot_move_to(netns))
}

fn open(netns: &Path) -> Result<File> {
    File::open(netns).with_context(|| format!("cannot open the network namespace {}", netns.display()))
}

fn cannot_move_to(netns: &Path) -> String {
    format!("cannot move a thread into the network namespace {}", netns.display())
}

/// The inode number of a namespace, which identifies it. `None` when the file does not exist.
pub(crate) fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.st_ino())
}

/// The inode numbers of those files that exist.
pub(crate) fn inodes<'a>(paths: impl IntoIterator<Item = &'a Path>) -> BTreeSet<u64> {
    paths.into_iter().filter_map(inode).collect()
}
