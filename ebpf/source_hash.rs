//! The hash that ties the committed object `weft.bpf.o` to its source.
//!
//! Two crates include this file, so that both compute the same hash: the build script of
//! `weft-mesh`, which refuses an object that is older than its source, and `cargo xtask ebpf`,
//! which builds the object and records the hash. It reads files and writes none.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

/// The files and folders that the object is built from, relative to `ebpf/`.
pub(crate) const SOURCES: [&str; 4] = ["common/src", "programs/src", "programs/Cargo.toml", "programs/Cargo.lock"];

/// SHA-256 over the paths and contents of all source files, ordered by path, in hexadecimal. `ebpf`
/// is the folder that the sources are in. Fails if a file cannot be read.
pub(crate) fn source_hash(ebpf: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&ebpf.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let name = file.strip_prefix(ebpf).unwrap_or(&file);
        let content = fs::read(&file)?;
        hash.update(name.as_os_str().as_encoded_bytes());
        hash.update((content.len() as u64).to_be_bytes());
        hash.update(content);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            collect(&entry?.path(), files)?;
        }
    } else {
        files.push(path.to_owned());
    }
    Ok(())
}

/// The value in the line `name = value` of the object's record, `weft.bpf.txt`.
pub(crate) fn recorded<'a>(record: &'a str, name: &str) -> Option<&'a str> {
    record.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('=').map(str::trim))
}
