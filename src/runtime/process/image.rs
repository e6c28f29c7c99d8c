//! The two images of the process runtime: their names, their default command, and how their root
//! file system is mounted.
//!
//! The daemon finds an image here when it prepares a task, and the shim mounts it. There are no
//! image files: both images come from the running machine.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use super::kernel::root;
use crate::runtime::{
    RuntimeError,
    reference::{LATEST, Reference},
    whoami,
};

/// Path of weft's own program in `weft/whoami`.
const PROGRAM: &str = "/weft";
const HOST: &str = "host";
/// Directories of the host whose mounts a task does not get. A task has its own mounts there, and a
/// copy of the host's mounts would keep those file systems busy.
const EXCLUDED: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];

/// Those of them where the task's own mount is writable and empty.
const WRITABLE: [&str; 2] = ["/run", "/tmp"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Image {
    /// An empty root with weft's own program.
    Whoami,
    /// This machine's root, read-only.
    Host,
}

impl Image {
    pub(super) fn find(image: &str) -> Result<Self, RuntimeError> {
        match Reference::parse(image) {
            reference if reference.is_whoami() => Ok(Self::Whoami),
            Reference { name: HOST, version: LATEST } => Ok(Self::Host),
            _ => Err(RuntimeError::NoSuchImage { image: image.to_owned() }),
        }
    }

    /// The default command.
    pub(super) fn entrypoint(self) -> Vec<String> {
        match self {
            Self::Whoami => vec![PROGRAM.to_owned(), whoami::COMMAND.to_owned()],
            Self::Host => Vec::new(),
        }
    }

    /// Whether a task gets an init by default. Programs of a full machine expect an init: it reaps
    /// orphans, and the kernel ignores many signals to the first process of a PID namespace
    /// (pid_namespaces(7)).
    pub(super) fn wants_init(self) -> bool {
        self == Self::Host
    }

    /// The texts of `/etc/passwd` and `/etc/group`; empty if the image has none.
    pub(super) fn passwd_and_group(self) -> (String, String) {
        match self {
            Self::Whoami => Default::default(),
            Self::Host => {
                let read = |path| fs::read_to_string(path).unwrap_or_default();
                (read("/etc/passwd"), read("/etc/group"))
            }
        }
    }

    /// Whether a file can be mounted on this path. The root of [`Self::Host`] is read-only, so the
    /// file must exist there, unless the task has a file system of its own at the path.
    pub(super) fn can_mount_file(self, path: &str) -> bool {
        match self {
            Self::Whoami => true,
            Self::Host if WRITABLE.iter().any(|dir| Path::new(path).starts_with(dir)) => true,
            Self::Host if EXCLUDED.iter().any(|dir| Path::new(path).starts_with(dir)) => false,
            Self::Host => fs::symlink_metadata(path).is_ok(),
        }
    }

    /// Moves this process into a mount namespace of its own and mounts the image on `rootfs` there.
    /// The mounts in `run_dir` are left out: they are other tasks' network namespaces, and a copy
    /// would keep them alive.
    pub(super) fn mount(self, rootfs: &Path, run_dir: &Path) -> Result<(), RuntimeError> {
        let program = root::enter_mount_namespace()?;
        match self {
            Self::Whoami => root::mount_program(rootfs, &program, PROGRAM),
            Self::Host => {
                let excluded: Vec<&Path> = EXCLUDED.iter().map(Path::new).chain([run_dir]).collect();
                root::mount_host(rootfs, &excluded)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_can_be_mounted_where_the_task_has_a_file_system_or_the_machine_a_file() {
        for (path, host) in [
            ("/run/secrets/key", true),
            ("/tmp/key", true),
            ("/etc/passwd", true),
            ("/no-such-file", false),
            ("/proc/self/stat", false),
            ("/dev/null", false),
        ] {
            assert_eq!(Image::Host.can_mount_file(path), host, "{path}");
            assert!(Image::Whoami.can_mount_file(path), "{path}");
        }
    }

    #[test]
    fn finds_an_image_by_its_name() {
        for name in ["weft/whoami", "weft/whoami:latest", "weft/whoami:v2"] {
            assert_eq!(Image::find(name).expect("a built-in image"), Image::Whoami, "{name}");
        }
        for name in ["host", "host:latest"] {
            assert_eq!(Image::find(name).expect("a built-in image"), Image::Host, "{name}");
        }
        for name in
            ["nginx", "host:v2", "registry:5000/host", "localhost:5000/weft/whoami", "weft/whoami@sha256:ab", ""]
        {
            let error = Image::find(name).expect_err("not a built-in image").to_string();
            assert!(error.starts_with(&format!("no image {name} on this node: ")), "{error}");
            assert!(error.ends_with("start the daemon with --runtime docker to run other images"), "{error}");
        }
    }
}
