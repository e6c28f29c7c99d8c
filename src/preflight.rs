//! What a machine must offer before weft can run on it: every lack is named at once, with what to do about it.
//!
//! Owns the questions; changes nothing but that it mounts the BPF file system where it is missing.

use std::{fs, io, path::Path};

use rustix::mount::{MountFlags, mount};

/// The oldest kernel whose BPF features the data plane was made for.
const OLDEST_KERNEL: (u32, u32) = (6, 1);
pub(crate) const BPF_FS: &str = "/sys/fs/bpf";

/// CAP_NET_ADMIN, CAP_SYS_ADMIN (linux/capability.h), and what each is for.
const CAPABILITIES: [(u32, &str, &str); 2] =
    [(12, "CAP_NET_ADMIN", "links, routes and tunnels"), (21, "CAP_SYS_ADMIN", "namespaces, mounts and BPF")];

/// Everything that is missing; empty where the machine is fit.
pub(crate) fn lacking() -> Vec<String> {
    let mut lacking = Vec::new();
    lacking.extend(kernel(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()));
    let missing = capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    let privileged = missing.is_empty();
    lacking.extend(missing);
    if privileged {
        lacking.extend(bpf_fs());
    }
    if cgroup2(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()).is_none() {
        lacking
            .push("no cgroup2 hierarchy is mounted: mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`)".into());
    }
    lacking
}

fn kernel(release: &str) -> Option<String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = OLDEST_KERNEL;
    (version < OLDEST_KERNEL)
        .then(|| format!("kernel {} is too old: weft needs {major}.{minor} or newer", release.trim()))
}

/// `CapEff` of proc_pid_status(5).
fn capabilities(status: &str) -> Vec<String> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    CAPABILITIES
        .iter()
        .filter(|(bit, _, _)| effective & (1 << bit) == 0)
        .map(|(_, name, purpose)| format!("{name} is missing ({purpose}): run weft as root"))
        .collect()
}

fn bpf_fs() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if mount_point(&mounts, "bpf").is_some_and(|at| at == BPF_FS) {
        return None;
    }
    let mounted: io::Result<()> =
        mount("bpf", Path::new(BPF_FS), "bpf", MountFlags::empty(), None).map_err(io::Error::from);
    mounted.err().map(|error| format!("no BPF file system at {BPF_FS}, and mounting it failed ({error}): does this kernel have CONFIG_BPF_SYSCALL?"))
}

/// Where the cgroup2 hierarchy is mounted: /sys/fs/cgroup on most machines, below it on hybrid ones.
fn cgroup2(mountinfo: &str) -> Option<&str> {
    mount_point(mountinfo, "cgroup2")
}

/// Mount point of the first file system of this type in proc_pid_mountinfo(5).
fn mount_point<'a>(mountinfo: &'a str, fs_type: &str) -> Option<&'a str> {
    mountinfo.lines().find_map(|line| {
        let (mount, fs) = line.split_once(" - ")?;
        (fs.split(' ').next()? == fs_type).then(|| mount.split(' ').nth(4))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_are_refused() {
        assert!(kernel("5.15.0-generic").is_some_and(|text| text.contains("too old")));
        assert!(kernel("6.0.12").is_some());
        for fine in ["6.1.0-13-amd64", "6.18.44", "7.0.1"] {
            assert_eq!(kernel(fine), None, "{fine}");
        }
    }

    #[test]
    fn each_missing_capability_is_named() {
        assert_eq!(capabilities("CapEff:\t000001ffffffffff\n"), Vec::<String>::new());
        let none = capabilities("CapEff:\t0000000000000000\n").join("\n");
        assert!(none.contains("CAP_NET_ADMIN") && none.contains("CAP_SYS_ADMIN"));
    }

    #[test]
    fn the_cgroup2_mount_is_found_wherever_it_is() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      42 24 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2(hybrid), Some("/sys/fs/cgroup/unified"));
        assert_eq!(cgroup2("30 24 0:26 / / rw - ext4 /dev/vda rw\n"), None);
    }
}
