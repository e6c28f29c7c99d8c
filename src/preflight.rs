//! What a machine must offer before weft can run on it: every lack is named at once, with what to do about it.
//!
//! Owns the questions that are no layer's own, and asks the layers theirs. Changes nothing but that the mesh mounts the BPF
//! file system where it is missing.

use std::fs;

use crate::runtime::chain;

/// The oldest kernel whose BPF features the data plane was made for.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// CAP_NET_ADMIN, CAP_SYS_ADMIN (linux/capability.h), and what each is for.
const CAPABILITIES: [(u32, &str, &str); 2] =
    [(12, "CAP_NET_ADMIN", "links, routes and tunnels"), (21, "CAP_SYS_ADMIN", "namespaces, mounts and BPF")];

/// Everything that is missing; empty where the machine is fit.
pub(crate) fn lacking() -> Vec<String> {
    let mut lacking = Vec::new();
    lacking.extend(kernel(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()));
    let missing = capabilities(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    // Without them a layer could only say the same again.
    if missing.is_empty() {
        lacking.extend(weft_mesh::lacking().iter().map(|error| chain(error)));
    }
    lacking.extend(missing);
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
}
