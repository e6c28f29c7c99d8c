//! The images that need no file: what they are called, what they run, and how their root file system is mounted.
//!
//! Mounting happens in the shim's own mount namespace, so nothing of it is ever seen, or left, outside.

use std::{
    ffi::CStr,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use libcontainer::syscall::{linux::MountAttr, syscall::create_syscall};
use nix::sched::{CloneFlags, unshare};
use rustix::{
    fs::CWD,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_bind_recursive,
        mount_change, move_mount, open_tree, unmount,
    },
};
use serde::{Deserialize, Serialize};

use crate::runtime::{RuntimeError, whoami};

/// Where weft's own program stands in `weft/whoami`.
const PROGRAM: &str = "/weft";
/// What a task may write outside its own mounts before it is full.
const ROOT_OPTIONS: &CStr = c"size=64m,mode=755";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Image {
    /// An empty root with weft's own program.
    Whoami,
    /// This machine's root, read-only.
    Host,
}

impl Image {
    /// Tags of `weft/whoami` all mean the program of this very weft.
    pub(super) fn find(image: &str) -> Result<Self, RuntimeError> {
        let (name, tag) = match image.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (image, None),
        };
        match (name, tag) {
            ("weft/whoami", _) => Ok(Self::Whoami),
            ("host", None | Some("latest")) => Ok(Self::Host),
            _ => Err(RuntimeError::NoSuchImage { image: image.to_owned() }),
        }
    }

    /// What runs where the user names no command.
    pub(super) fn entrypoint(self) -> Vec<String> {
        match self {
            Self::Whoami => vec![PROGRAM.to_owned(), whoami::COMMAND.to_owned()],
            Self::Host => Vec::new(),
        }
    }

    /// Commands of a full machine expect an init above them: it reaps, and lets signals work that pid 1 would ignore.
    pub(super) fn wants_init(self) -> bool {
        self == Self::Host
    }

    /// `/etc/passwd` and `/etc/group`, empty where it has none.
    pub(super) fn accounts(self) -> (String, String) {
        match self {
            Self::Whoami => Default::default(),
            Self::Host => {
                let read = |path| fs::read_to_string(path).unwrap_or_default();
                (read("/etc/passwd"), read("/etc/group"))
            }
        }
    }

    /// Whether a file can be mounted over this path: in a read-only root none can be made for it.
    pub(super) fn takes_file(self, path: &str) -> bool {
        match self {
            Self::Whoami => true,
            Self::Host => fs::symlink_metadata(path).is_ok(),
        }
    }

    /// Moves this process into a mount namespace of its own and mounts the image on `rootfs` there. `run_dir` holds the other
    /// tasks' namespaces: this one's root must not hold on to them.
    pub(super) fn mount(self, rootfs: &Path, run_dir: &Path) -> Result<(), RuntimeError> {
        // Taken hold of first: the mount that this program was started from is not part of the new namespace. Through the link
        // it is found even if a newer weft has taken its name.
        let program =
            open_tree(CWD, "/proc/self/exe", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
                .map_err(|error| RuntimeError::kernel("take hold of weft's own program")(error.into()))?;
        unshare(CloneFlags::CLONE_NEWNS)
            .map_err(|error| RuntimeError::kernel("make a mount namespace")(error.into()))?;
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
            .map_err(|error| RuntimeError::kernel("detach the mounts of the host")(error.into()))?;
        match self {
            Self::Whoami => mount_program(rootfs, &program),
            Self::Host => mount_host(rootfs, run_dir),
        }
    }
}

fn mount_program(rootfs: &Path, program: &OwnedFd) -> Result<(), RuntimeError> {
    mount("tmpfs", rootfs, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(ROOT_OPTIONS))
        .map_err(|error| RuntimeError::io("mount a root on", rootfs)(error.into()))?;
    let path = rootfs.join(&PROGRAM[1..]);
    fs::write(&path, b"").map_err(RuntimeError::io("create", &path))?;
    move_mount(program, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|error| RuntimeError::io("mount weft's own program on", &path)(error.into()))?;
    set_read_only(&path, false)
}

fn mount_host(rootfs: &Path, run_dir: &Path) -> Result<(), RuntimeError> {
    mount_bind_recursive("/", rootfs).map_err(|error| RuntimeError::io("mount / on", rootfs)(error.into()))?;
    mount_change(rootfs, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|error| RuntimeError::io("make private", rootfs)(error.into()))?;
    // Covered by the task's own mounts anyhow; gone, they hold on to nothing.
    let below = |dir: &Path| rootfs.join(dir.strip_prefix("/").unwrap_or(dir));
    let covered: Vec<PathBuf> =
        ["/proc", "/sys", "/dev", "/run", "/tmp"].iter().map(Path::new).chain([run_dir]).map(below).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(RuntimeError::kernel("read the list of mounts"))?;
    for point in super::mounts::points(&mounts).iter().rev() {
        if covered.iter().any(|dir| point.starts_with(dir)) {
            // Those beneath one that is already gone are gone, too.
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
    set_read_only(rootfs, true)
}

/// Makes a mount read-only, and those beneath it too where `recursive` (mount_setattr(2)).
fn set_read_only(path: &Path, recursive: bool) -> Result<(), RuntimeError> {
    let attributes = MountAttr {
        attr_set: libcontainer::syscall::linux::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = if recursive { nix::libc::AT_RECURSIVE as u32 } else { 0 };
    create_syscall()
        .mount_setattr(CWD, path, flags, &attributes, size_of::<MountAttr>())
        .map_err(|error| RuntimeError::io("make read-only", path)(std::io::Error::other(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_by_name() {
        for name in ["weft/whoami", "weft/whoami:latest", "weft/whoami:v2"] {
            assert_eq!(Image::find(name).unwrap(), Image::Whoami, "{name}");
        }
        for name in ["host", "host:latest"] {
            assert_eq!(Image::find(name).unwrap(), Image::Host, "{name}");
        }
        for name in ["nginx", "host:v2", "registry:5000/host", "localhost:5000/weft/whoami", ""] {
            let error = Image::find(name).unwrap_err().to_string();
            assert_eq!(error, format!("no image {name} on this node: the process runtime has weft/whoami and host"));
        }
    }
}
