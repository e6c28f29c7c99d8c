//! Mounts the root file system of a task.
//!
//! The shim calls it. All mounts are in the shim's own mount namespace, so no process outside of it
//! sees them, and the kernel removes them with the namespace.

use std::{
    ffi::CStr,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use libcontainer::syscall::{
    linux::{MOUNT_ATTR_RDONLY, MountAttr},
    syscall::create_syscall,
};
use nix::sched::{CloneFlags, unshare};
use rustix::{
    fs::CWD,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind_recursive,
        mount_change, move_mount, open_tree, unmount,
    },
};

use super::mounts;
use crate::runtime::RuntimeError;

/// Limits what a task can write to its root, outside of its own mounts.
const ROOT_OPTIONS: &CStr = c"size=64m,mode=755";

/// The program file of this process, as a detached mount (open_tree(2)).
#[derive(Debug)]
pub(crate) struct OwnProgram(OwnedFd);

/// Moves this process into a mount namespace of its own. Returns a mount of weft's program, which
/// can be attached there.
pub(crate) fn enter_mount_namespace() -> Result<OwnProgram, RuntimeError> {
    // This must happen before unshare(2): a mount of the old namespace cannot be cloned from the
    // new one. The link in /proc leads to this program even if a newer weft has replaced the file.
    let program = open_tree(CWD, "/proc/self/exe", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .map_err(RuntimeError::kernel("clone the mount of weft's own program"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(RuntimeError::kernel("create a mount namespace"))?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(RuntimeError::kernel("detach the mounts of the host"))?;
    Ok(OwnProgram(program))
}

/// Mounts an empty root on `rootfs`, with weft's own program at `at`.
pub(crate) fn mount_program(rootfs: &Path, OwnProgram(program): &OwnProgram, at: &str) -> Result<(), RuntimeError> {
    mount("tmpfs", rootfs, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(ROOT_OPTIONS))
        .map_err(RuntimeError::io("mount a root on", rootfs))?;
    let path = in_root(rootfs, Path::new(at));
    fs::write(&path, b"").map_err(RuntimeError::io("create", &path))?;
    move_mount(program, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(RuntimeError::io("mount weft's own program on", &path))?;
    make_read_only(&path, Depth::Mount)
}

/// Mounts this machine's root on `rootfs`, read-only, without the mounts in the directories of
/// `excluded`.
pub(crate) fn mount_host(rootfs: &Path, excluded: &[&Path]) -> Result<(), RuntimeError> {
    mount_bind_recursive("/", rootfs).map_err(RuntimeError::io("mount / on", rootfs))?;
    mount_change(rootfs, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(RuntimeError::io("make private", rootfs))?;
    let excluded: Vec<PathBuf> = excluded.iter().map(|dir| in_root(rootfs, dir)).collect();
    for mount in mounts::list()?.iter().rev() {
        if excluded.iter().any(|dir| mount.point.starts_with(dir)) {
            // The error is ignored: the mount may have been unmounted together with its parent
            // mount.
            let _ = unmount(&mount.point, UnmountFlags::DETACH);
        }
    }
    make_read_only(rootfs, Depth::Tree)
}

/// Translates an absolute path in a task's root file system to a path of the shim.
fn in_root(rootfs: &Path, path: &Path) -> PathBuf {
    rootfs.join(path.strip_prefix("/").unwrap_or(path))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// One mount.
    Mount,
    /// A mount with all mounts below it.
    Tree,
}

/// Makes a mount read-only (mount_setattr(2)).
fn make_read_only(path: &Path, depth: Depth) -> Result<(), RuntimeError> {
    let attributes = MountAttr { attr_set: MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = match depth {
        Depth::Mount => 0,
        Depth::Tree => nix::libc::AT_RECURSIVE as u32,
    };
    create_syscall()
        .mount_setattr(CWD, path, flags, &attributes, size_of::<MountAttr>())
        .map_err(io::Error::other)
        .map_err(RuntimeError::io("make read-only", path))
}
