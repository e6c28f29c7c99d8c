//! Mounting the root file system of a task, in the shim's own mount namespace: nothing of it is ever seen, or left, outside.

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

/// What a task may write outside its own mounts before it is full.
const ROOT_OPTIONS: &CStr = c"size=64m,mode=755";

/// The program that this process was started from, held as a mount of its own.
#[derive(Debug)]
pub(crate) struct OwnProgram(OwnedFd);

/// Moves this process into a mount namespace of its own, taking weft's program along.
pub(crate) fn enter() -> Result<OwnProgram, RuntimeError> {
    // Taken hold of first: the mount that this program was started from is not part of the new namespace. Through the link
    // it is found even if a newer weft has taken its name.
    let program = open_tree(CWD, "/proc/self/exe", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .map_err(RuntimeError::kernel("take hold of weft's own program"))?;
    unshare(CloneFlags::CLONE_NEWNS).map_err(RuntimeError::kernel("make a mount namespace"))?;
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(RuntimeError::kernel("detach the mounts of the host"))?;
    Ok(OwnProgram(program))
}

/// An empty root on `rootfs`, with weft's own program at `at`.
pub(crate) fn mount_program(rootfs: &Path, OwnProgram(program): &OwnProgram, at: &str) -> Result<(), RuntimeError> {
    mount("tmpfs", rootfs, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(ROOT_OPTIONS))
        .map_err(RuntimeError::io("mount a root on", rootfs))?;
    let path = below(rootfs, Path::new(at));
    fs::write(&path, b"").map_err(RuntimeError::io("create", &path))?;
    move_mount(program, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(RuntimeError::io("mount weft's own program on", &path))?;
    make_read_only(&path, Depth::Itself)
}

/// This machine's root on `rootfs`, read-only, without what is mounted below the directories in `covered`.
pub(crate) fn mount_host(rootfs: &Path, covered: &[&Path]) -> Result<(), RuntimeError> {
    mount_bind_recursive("/", rootfs).map_err(RuntimeError::io("mount / on", rootfs))?;
    mount_change(rootfs, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(RuntimeError::io("make private", rootfs))?;
    let covered: Vec<PathBuf> = covered.iter().map(|dir| below(rootfs, dir)).collect();
    let mountinfo = mounts::list()?;
    for point in mounts::points(&mountinfo).iter().rev() {
        if covered.iter().any(|dir| point.starts_with(dir)) {
            // Those beneath one that is already gone are gone, too.
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
    make_read_only(rootfs, Depth::Tree)
}

/// An absolute path, seen from outside of the root that it is meant for.
fn below(rootfs: &Path, path: &Path) -> PathBuf {
    rootfs.join(path.strip_prefix("/").unwrap_or(path))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// One mount.
    Itself,
    /// With all that are mounted beneath.
    Tree,
}

/// mount_setattr(2).
fn make_read_only(path: &Path, depth: Depth) -> Result<(), RuntimeError> {
    let attributes = MountAttr { attr_set: MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = match depth {
        Depth::Itself => 0,
        Depth::Tree => nix::libc::AT_RECURSIVE as u32,
    };
    create_syscall()
        .mount_setattr(CWD, path, flags, &attributes, size_of::<MountAttr>())
        .map_err(io::Error::other)
        .map_err(RuntimeError::io("make read-only", path))
}
