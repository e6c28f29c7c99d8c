//! Settings below `/proc/sys/net`, which are those of the calling thread's network namespace.

use std::{fs, path::Path};

use super::KernelError;

const ROOT: &str = "/proc/sys";

/// The value of `key` (a path below `/proc/sys`), if there is such a setting.
pub(crate) fn read(key: &str) -> Option<String> {
    fs::read_to_string(Path::new(ROOT).join(key)).ok().map(|value| value.trim().to_owned())
}

pub(crate) fn write(key: &str, value: &str) -> Result<(), KernelError> {
    fs::write(Path::new(ROOT).join(key), value).map_err(|source| KernelError::Sysctl {
        key: key.to_owned(),
        value: value.to_owned(),
        source,
    })
}
