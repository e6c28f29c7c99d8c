//! The root of the cgroup2 hierarchy, to which `programs` attaches the programs for sockets. The
//! kernel runs the programs that are attached there for the sockets of every process on the
//! machine.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use procfs::{
    FromRead,
    process::{MountInfo, MountInfos},
};

use crate::error::Error;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Finds where cgroup2 is mounted. On machines with version 1 controllers it is not
/// `/sys/fs/cgroup`.
pub(super) fn root() -> Result<PathBuf, Error> {
    let mounts = MountInfos::from_file(MOUNTINFO).map_err(|error| Error::Io {
        verb: "read",
        path: MOUNTINFO.into(),
        source: io::Error::other(error),
    })?;
    mounts.iter().find_map(mount_point).ok_or(Error::NoCgroup2)
}

/// The mount point, if the whole cgroup2 hierarchy is mounted there.
fn mount_point(mount: &MountInfo) -> Option<PathBuf> {
    (mount.fs_type == "cgroup2" && mount.root == "/").then(|| unescape(&mount.mount_point))
}

/// Decodes the octal escapes for space, tab, newline and backslash (proc_pid_mountinfo(5)). procfs
/// returns paths as the kernel writes them.
fn unescape(path: &Path) -> PathBuf {
    let mut decoded = Vec::new();
    let mut rest = path.as_os_str().as_bytes();
    while let Some((&octet, tail)) = rest.split_first() {
        rest = tail;
        match (octet, tail) {
            (b'\\', &[a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                decoded.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = &tail[3..];
            }
            _ => decoded.push(octet),
        }
    }
    OsString::from_vec(decoded).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mount_point_of_the_whole_hierarchy() {
        for (mountinfo, expected) in [
            ("35 25 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n", Some("/sys/fs/cgroup")),
            (
                "30 25 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n31 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 none rw\n",
                Some("/sys/fs/cgroup/unified"),
            ),
            ("31 30 0:28 / /mnt/a\\040b\\134c rw - cgroup2 none rw\n", Some("/mnt/a b\\c")),
            ("31 30 0:28 /child /mnt/part rw - cgroup2 none rw\n", None),
            ("30 25 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n", None),
            ("", None),
        ] {
            let mounts = MountInfos::from_read(mountinfo.as_bytes()).expect("mounts");
            assert_eq!(mounts.iter().find_map(mount_point), expected.map(PathBuf::from), "{mountinfo}");
        }
    }

    #[test]
    fn decodes_escapes_only() {
        for (escaped, decoded) in [
            ("/plain", "/plain"),
            ("/a\\011b\\012", "/a\tb\n"),
            ("/a\\04", "/a\\04"),
            ("/a\\x40", "/a\\x40"),
            ("\\", "\\"),
        ] {
            assert_eq!(unescape(Path::new(escaped)), Path::new(decoded), "{escaped}");
        }
    }
}
