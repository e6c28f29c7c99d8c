//! The root of the cgroup2 hierarchy. The kernel runs the programs that are attached there for the
//! sockets of every process on the machine.

use std::{fs, path::PathBuf};

use crate::error::Error;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Finds where cgroup2 is mounted. On machines with version 1 controllers it is not
/// `/sys/fs/cgroup`.
pub(super) fn root() -> Result<PathBuf, Error> {
    let text =
        fs::read_to_string(MOUNTINFO).map_err(|source| Error::Io { verb: "read", path: MOUNTINFO.into(), source })?;
    mount_point(&text).ok_or(Error::NoCgroup2)
}

/// Parses proc_pid_mountinfo(5): the fifth field is the mount point, and the type follows a dash.
fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (file_system.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    })
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
            ("31 30 0:28 /child /mnt/part rw - cgroup2 none rw\n", None),
            ("30 25 0:27 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n", None),
            ("", None),
        ] {
            assert_eq!(mount_point(mountinfo), expected.map(PathBuf::from), "{mountinfo}");
        }
    }
}
