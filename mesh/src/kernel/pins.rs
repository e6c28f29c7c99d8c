//! Where maps and links are pinned: `<pin dir>/v<layout>/<map>` and `<pin dir>/links/<attachment>`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, mount};
use weft_ebpf_common::LAYOUT_VERSION;

use super::Error;

/// `BPF_FS_MAGIC` (linux/magic.h).
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// Where the BPF file system belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Mounts the BPF file system where it belongs, unless it is there.
pub(super) fn provide_bpffs() -> Result<(), Error> {
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
    links: PathBuf,
}

impl Pins {
    /// Makes the directories, and mounts the file system where none is yet.
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let maps = root.join(layout_dir());
        let links = links_dir(root);
        if root.starts_with(BPFFS) {
            provide_bpffs()?;
        }
        for dir in [&maps, &links] {
            fs::create_dir_all(dir).map_err(|source| Error::Io { what: "creating", path: dir.clone(), source })?;
        }
        if !is_bpffs(root) {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "another file system is there");
            return Err(Error::NoBpffs { path: root.to_owned(), source });
        }
        Ok(Self { root: root.to_owned(), maps, links })
    }

    pub(super) fn maps(&self) -> &Path {
        &self.maps
    }

    pub(super) fn links(&self) -> &Path {
        &self.links
    }

    /// Drops maps of other layouts: no program uses them any more.
    pub(crate) fn sweep(&self) -> Result<(), Error> {
        for path in entries(&self.root)? {
            if path != self.maps && path != self.links {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

pub(super) fn links_dir(root: &Path) -> PathBuf {
    root.join("links")
}

fn layout_dir() -> String {
    format!("v{LAYOUT_VERSION}")
}

fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|magic| magic == BPF_FS_MAGIC))
}

/// What is in a directory; nothing where there is none.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::Io { what: "reading", path: dir.to_owned(), source };
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Removes a directory with all that is in it; it may be gone already.
pub(super) fn remove(dir: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { what: "removing", path: dir.to_owned(), source }),
    }
}
