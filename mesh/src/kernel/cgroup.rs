//! The root of the cgroup2 hierarchy: sockets of every process on the machine pass the programs attached there.

use std::{fs, path::PathBuf};

use super::Error;

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Where cgroup2 is mounted: machines with version 1 controllers have it in an odd place.
pub(super) fn root() -> Result<PathBuf, Error> {
    let text = fs::read_to_string(MOUNTINFO).map_err(|source| Error::Io {
        what: "reading",
        path: MOUNTINFO.into(),
        source,
    })?;
    mount_point(&text).ok_or(Error::NoCgroup2)
}

/// proc_pid_mountinfo(5): the fifth field is the mount point, and after a lone dash comes the type.
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
    fn the_hierarchy_is_found_wherever_it_is() {
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
