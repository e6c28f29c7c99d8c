//! Reading the kernel's list of mounts (proc(5), `/proc/pid/mountinfo`).

use std::{
    ffi::OsString,
    fs,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

use crate::runtime::RuntimeError;

/// The list as this process sees it.
pub(crate) fn list() -> Result<String, RuntimeError> {
    fs::read_to_string("/proc/self/mountinfo").map_err(RuntimeError::kernel("read the list of mounts"))
}

/// Where things are mounted, in the order in which that happened.
pub(crate) fn points(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo.lines().filter_map(point).collect()
}

/// Where the cgroup hierarchies are mounted, of either version.
pub(crate) fn cgroups(mountinfo: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter(|line| {
            // The type is the first field behind the lone dash that ends the optional ones.
            let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next());
            matches!(kind, Some("cgroup" | "cgroup2"))
        })
        .filter_map(point)
        .collect()
}

pub(crate) fn is_mounted(mountinfo: &str, path: &Path) -> bool {
    mountinfo.lines().filter_map(point).any(|point| point == path)
}

/// The fifth field, in which space, tab, newline and backslash are written as three octal digits.
fn point(line: &str) -> Option<PathBuf> {
    let escaped = line.split(' ').nth(4)?.as_bytes();
    let mut path = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
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
    Some(OsString::from_vec(path).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
27 22 0:25 / /sys/fs/cgroup/cpu rw,relatime shared:4 master:1 - cgroup cgroup rw,cpu
28 22 0:26 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup rw
29 22 0:27 net:[4026532] /run/a\\040b/netns rw - nsfs nsfs rw
";

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(points(MOUNTINFO)[3], Path::new("/run/a b/netns"));
        assert!(is_mounted(MOUNTINFO, Path::new("/run/a b/netns")));
        assert!(!is_mounted(MOUNTINFO, Path::new("/run")));
    }

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        assert_eq!(cgroups(MOUNTINFO), ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/unified"].map(PathBuf::from));
    }
}
