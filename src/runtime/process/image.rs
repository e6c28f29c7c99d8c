//! The images that need no file: what they are called, what they run, and what their root file system is made of.

use std::{fs, path::Path};

use serde::{Deserialize, Serialize};

use super::kernel::root;
use crate::runtime::{
    RuntimeError,
    reference::{LATEST, Reference},
    whoami,
};

/// Where weft's own program stands in `weft/whoami`.
const PROGRAM: &str = "/weft";
const HOST: &str = "host";
/// Where a task has mounts of its own, or none of the machine's: gone, those of the machine hold on to nothing.
const COVERED: [&str; 5] = ["/proc", "/sys", "/dev", "/run", "/tmp"];

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
        let program = root::enter()?;
        match self {
            Self::Whoami => root::mount_program(rootfs, &program, PROGRAM),
            Self::Host => {
                let covered: Vec<&Path> = COVERED.iter().map(Path::new).chain([run_dir]).collect();
                root::mount_host(rootfs, &covered)
            }
        }
    }
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
        for name in
            ["nginx", "host:v2", "registry:5000/host", "localhost:5000/weft/whoami", "weft/whoami@sha256:ab", ""]
        {
            let error = Image::find(name).unwrap_err().to_string();
            assert!(error.starts_with(&format!("no image {name} on this node: ")), "{error}");
            assert!(error.ends_with("start the daemon with --runtime docker to run other images"), "{error}");
        }
    }
}
