//! The shim's side of a log: appends records and rotates the file.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::super::dir::TaskDir;

/// Size in bytes at which a file is rotated. The two files of a task together are about twice as
/// large at most.
pub(super) const MAX_FILE_BYTES: u64 = 8 << 20;

/// The open log of one task.
#[derive(Debug)]
pub(in crate::runtime::process) struct Writer {
    dir: PathBuf,
    file: File,
    /// Size of the file in bytes.
    pub(super) len: u64,
}

impl Writer {
    pub(in crate::runtime::process) fn open(dir: &TaskDir) -> io::Result<Self> {
        let file = open_for_append(&dir.join("log"))?;
        let len = file.metadata()?.len();
        Ok(Self { dir: dir.path().to_owned(), file, len })
    }

    /// Appends complete records, as [`super::encode`] writes them. Rotates the file first if it is
    /// full.
    pub(in crate::runtime::process) fn append(&mut self, records: &[u8]) -> io::Result<()> {
        if self.len >= MAX_FILE_BYTES {
            fs::rename(self.dir.join("log"), self.dir.join("log.1"))?;
            self.file = open_for_append(&self.dir.join("log"))?;
            self.len = 0;
        }
        self.file.write_all(records)?;
        self.len += records.len() as u64;
        Ok(())
    }
}

/// Opens a file that only its owner may read, because the output of a task can contain secrets.
fn open_for_append(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}
