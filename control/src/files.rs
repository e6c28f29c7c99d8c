//! Small files of the data directory: written whole or not at all, also when the machine dies; and what to tell a person
//! whose disk refuses.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Readable and writable by the owner alone: all of these files are secret, or none of others' business.
const MODE: u32 = 0o600;

/// Replaces `path` by `bytes`: readers, and a restart after a crash, see the old content or the new one.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(MODE).open(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&staged, path)?;
    File::open(dir)?.sync_all()
}

/// `None` where there is no such file.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    absent_is_none(fs::read(path))
}

/// Removes a file that may be absent.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    absent_is_none(fs::remove_file(path)).map(|_| ())
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The error, and what to do about it.
pub(crate) fn advice(error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "free some space there; nothing that was confirmed is lost"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "make it writable (mount -o remount,rw), or choose another with --data-dir"
        }
        io::ErrorKind::PermissionDenied => "run the daemon as root, or choose another with --data-dir",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => "choose a directory with --data-dir",
        _ => "check the disk (dmesg), or choose another with --data-dir",
    };
    format!("{error}: {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        assert_eq!(read(&path).expect("no file is no error"), None);
        write(&path, b"first, longer").expect("written");
        write(&path, b"second").expect("written");
        assert_eq!(read(&path).expect("read").as_deref(), Some(b"second".as_slice()));
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1, "nothing staged stays behind");
        remove(&path).expect("removed");
        remove(&path).expect("removing nothing is no error");
    }
}
