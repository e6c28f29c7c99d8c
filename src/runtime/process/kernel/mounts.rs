//! The list of mounts that this process sees (proc_pid_mountinfo(5)).
//!
//! [`super::netns`], [`super::root`] and [`super::cgroup`] read it. procfs splits a line into
//! fields, but does not decode the kernel's escapes in a mount point, so this module decodes them.

use std::{
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use procfs::process::MountInfo;

use crate::runtime::RuntimeError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    /// The file system's type, such as `tmpfs`.
    pub(crate) fs_type: String,
}

/// All mounts, oldest first.
pub(crate) fn list() -> Result<Vec<Mount>, RuntimeError> {
    let text = fs::read_to_string("/proc/self/mountinfo").map_err(RuntimeError::kernel("read the list of mounts"))?;
    Ok(parse(&text))
}

/// Where the cgroup hierarchies of version 1 and 2 are mounted.
pub(crate) fn cgroups(mounts: &[Mount]) -> Vec<PathBuf> {
    let hierarchies = mounts.iter().filter(|mount| matches!(mount.fs_type.as_str(), "cgroup" | "cgroup2"));
    hierarchies.map(|mount| mount.point.clone()).collect()
}

pub(crate) fn is_mounted(mounts: &[Mount], path: &Path) -> bool {
    mounts.iter().any(|mount| mount.point == path)
}

/// Skips lines that procfs cannot parse: one unusual mount must not prevent all tasks from running.
fn parse(mountinfo: &str) -> Vec<Mount> {
    mountinfo
        .lines()
        .filter_map(|line| MountInfo::from_line(line).ok())
        .map(|info| Mount { point: unescape(info.mount_point.as_os_str()), fs_type: info.fs_type })
        .collect()
}

/// Decodes the backslash and three octal digits that the kernel writes for space, tab, newline and
/// backslash (fs/proc_namespace.c).
fn unescape(escaped: &OsStr) -> PathBuf {
    let mut path = Vec::with_capacity(escaped.len());
    let mut rest = escaped.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.first_chunk::<3>().filter(|_| byte == b'\\').and_then(|digits| {
            digits.iter().try_fold(0u8, |n, d| n.checked_mul(8)?.checked_add(d.checked_sub(b'0').filter(|d| *d < 8)?))
        });
        match octal {
            Some(byte) => {
                path.push(byte);
                rest = &tail[3..];
            }
            None => {
                path.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
27 22 0:25 / /sys/fs/cgroup/cpu rw,relatime shared:4 master:1 - cgroup cgroup rw,cpu
28 22 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup rw
29 22 0:27 net:[4026532] /run/a\\040b/netns rw - nsfs nsfs rw
30 22 0:28 / /run/tab\\011newline\\012backslash\\134\\040 rw - tmpfs tmpfs rw
";

    #[test]
    fn decodes_the_escapes_of_a_mount_point() {
        let mounts = parse(MOUNTINFO);
        assert_eq!(mounts[3].point, Path::new("/run/a b/netns"));
        assert!(is_mounted(&mounts, Path::new("/run/a b/netns")));
        assert!(!is_mounted(&mounts, Path::new("/run")));
        assert_eq!(mounts[4].point, Path::new("/run/tab\tnewline\nbackslash\\ "));
    }

    #[test]
    fn keeps_a_backslash_without_three_octal_digits() {
        for text in ["/a\\", "/a\\04", "/a\\08x", "/a\\999"] {
            assert_eq!(unescape(OsStr::new(text)), Path::new(text));
        }
    }

    #[test]
    fn finds_the_hierarchies_of_both_cgroup_versions() {
        assert_eq!(cgroups(&parse(MOUNTINFO)), ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(PathBuf::from));
    }

    #[test]
    fn skips_a_line_that_is_not_a_mount() {
        assert_eq!(parse(&format!("22 1 254:0 / /\n{MOUNTINFO}")).len(), 5);
    }
}
