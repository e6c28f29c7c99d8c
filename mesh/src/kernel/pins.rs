//! The directories of the pins: `<pin dir>/v<layout>/<map>` and `<pin dir>/links/<attachment>`. A
//! pin keeps a map or an attachment alive after the daemon has ended.
//!
//! `kernel` and `programs` call it. It must remove nothing outside of the pin directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, mount};
use weft_ebpf_common::LAYOUT_VERSION;

use crate::error::Error;

/// `BPF_FS_MAGIC` (linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// The usual mount point of the BPF file system.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Mounts the BPF file system at [`BPFFS`], unless it is mounted there already.
pub(super) fn mount_bpffs() -> Result<(), Error> {
    if is_bpffs(Path::new(BPFFS)) {
        return Ok(());
    }
    mount("bpf", BPFFS, "bpf", MountFlags::empty(), None)
        .map_err(|source| Error::NoBpffs { path: BPFFS.into(), source: source.into() })
}

#[derive(Debug)]
pub(crate) struct Pins {
    root: PathBuf,
    maps: PathBuf,
    attachments: PathBuf,
}

impl Pins {
    /// Creates the directories, and mounts the BPF file system if it is not mounted.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let maps = root.join(layout_dir());
        let attachments = attachments_dir(root);
        if root.starts_with(BPFFS) {
            mount_bpffs()?;
        }
        for dir in [&maps, &attachments] {
            fs::create_dir_all(dir).map_err(|source| Error::Io { verb: "create", path: dir.clone(), source })?;
        }
        if !is_bpffs(root) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it is on another file system");
            return Err(Error::NoBpffs { path: root.to_owned(), source });
        }
        Ok(Self { root: root.to_owned(), maps, attachments })
    }

    pub(super) fn maps(&self) -> &Path {
        &self.maps
    }

    pub(super) fn attachments(&self) -> &Path {
        &self.attachments
    }

    /// Removes the maps of other layouts. Call it only when no attached program uses them any more.
    pub(crate) fn remove_old_layouts(&self) -> Result<(), Error> {
        for path in entries(&self.root)? {
            if path != self.maps && path != self.attachments {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

pub(super) fn attachments_dir(root: &Path) -> PathBuf {
    root.join("links")
}

fn layout_dir() -> String {
    format!("v{LAYOUT_VERSION}")
}

fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|magic| magic == BPF_FS_MAGIC))
}

/// The paths in a directory. Empty if the directory does not exist.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let error = |source| Error::Io { verb: "read", path: dir.to_owned(), source };
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(error)?.path())).collect(),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(error(source)),
    }
}

/// Removes a directory and its contents. A directory that does not exist is not an error.
pub(super) fn remove(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { verb: "remove", path: dir.to_owned(), source }),
    }
}
