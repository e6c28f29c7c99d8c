//! Reads and writes the sysctls of the calling thread's network namespace, which are below
//! `/proc/sys/net`. `kernel`, `reconcile` and `overlay` call it.

use std::{collections::BTreeMap, fs, path::Path};

use crate::error::Error;

const ROOT: &str = "/proc/sys";

/// Reads the sysctl `key`, a path below `/proc/sys`. `None` if it does not exist or cannot be read.
pub(crate) fn read(key: &str) -> Option<String> {
    fs::read_to_string(Path::new(ROOT).join(key)).ok().map(|value| value.trim().to_owned())
}

/// Reads the sysctls in `keys` that exist.
pub(crate) fn read_all<'a>(keys: impl Iterator<Item = &'a String>) -> BTreeMap<String, String> {
    keys.filter_map(|key| Some((key.clone(), read(key)?))).collect()
}

pub(crate) fn write(key: &str, value: &str) -> Result<(), Error> {
    fs::write(Path::new(ROOT).join(key), value).map_err(|source| Error::Sysctl {
        key: key.to_owned(),
        value: value.to_owned(),
        source,
    })
}
