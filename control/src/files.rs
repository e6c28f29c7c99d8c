//! Reads and writes the small files of the data directory.
//!
//! A file is replaced as a whole or stays unchanged, even if the machine loses power. The swarm's
//! membership store and the agent use this module for their files. The
//! Raft store uses it for its key; its log is one redb file. All functions block: an async caller
//! runs them on a blocking thread, or accepts that it waits for the disk.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

#[cfg(test)]
use crate::fixture::{disk, journal};

/// Only the owner may read and write: some of these files contain private keys, and no other user
/// needs to read them.
const MODE: u32 = 0o600;

/// Replaces the content of `path`. A reader, or a restart after a crash, reads either the complete
/// old content or the complete new content.
///
/// # Errors
/// The error of the file system, or `InvalidInput` if `path` has no parent directory.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = staged(path);
    let mut file = create(&staged)?;
    file.write_all(bytes)?;
    sync(&file, &staged)?;
    #[cfg(test)]
    journal::file_synced(&staged);
    rename(&staged, path)
}

/// Like [`write()`], but for a file that is of no use after a power loss: it waits for no disk.
///
/// # Errors
/// The error of the file system.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = staged(path);
    create(&staged)?.write_all(bytes)?;
    fs::rename(&staged, path)
}

/// Replaces the file `to` by the file `from` of the same directory. The change survives a power
/// loss.
///
/// # Errors
/// The error of the file system, or `InvalidInput` if `to` has no parent directory.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let dir = to.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    #[cfg(test)]
    disk::renaming(from, to)?;
    fs::rename(from, to)?;
    #[cfg(test)]
    journal::renamed(from, to);
    // The rename survives a power loss only once the directory itself is on the disk (fsync(2)).
    sync_dir(dir)
}

/// Where the new content of `path` is written first.
fn staged(path: &Path) -> PathBuf {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    staged.into()
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(path)
}

fn sync(file: &File, path: &Path) -> io::Result<()> {
    #[cfg(not(test))]
    let _ = path;
    #[cfg(test)]
    disk::syncing(path)?;
    #[cfg(test)]
    if disk::is_simulated() {
        return Ok(());
    }
    file.sync_all()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    #[cfg(test)]
    disk::syncing_dir(dir)?;
    #[cfg(test)]
    if disk::is_simulated() {
        return Ok(());
    }
    File::open(dir)?.sync_all()?;
    #[cfg(test)]
    journal::record(dir, journal::Step::DirSynced);
    Ok(())
}

/// The content of `path`, or `None` if the file does not exist.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    none_if_absent(fs::read(path))
}

/// Removes a file. Returns no error if the file does not exist.
///
/// # Errors
/// The error of the file system.
pub fn remove(path: &Path) -> io::Result<()> {
    none_if_absent(fs::remove_file(path)).map(|_| ())
}

fn none_if_absent<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The error's text, followed by what the operator can do about it.
pub(crate) fn advice(error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space on this file system; changes that were confirmed are still stored"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "make it writable (mount -o remount,rw), or choose another directory with --data-dir"
        }
        io::ErrorKind::PermissionDenied => "run the daemon as root, or choose another directory with --data-dir",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "choose a directory with --data-dir",
        _ => "check the disk (dmesg), or choose another directory with --data-dir",
    };
    format!("{error}: {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_a_file_as_a_whole_and_leaves_no_staged_file() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("file");
        assert_eq!(read(&path).expect("a missing file is no error"), None);
        write(&path, b"first, longer").expect("the file is written");
        write(&path, b"second").expect("the file is replaced");
        assert_eq!(read(&path).expect("the file is read").as_deref(), Some(b"second".as_slice()));
        assert_eq!(fs::read_dir(dir.path()).expect("the directory's entries").count(), 1, "no staged file is left");
        remove(&path).expect("the file is removed");
        remove(&path).expect("removing a missing file is no error");
    }
}
