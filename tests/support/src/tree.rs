//! Removes folders with everything below them, for `cleanup` and `docker`.

use std::{fs, io, path::Path};

use anyhow::{Context, Result};

/// Removes a folder with everything below it. A folder that does not exist is not an error.
pub(crate) fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
