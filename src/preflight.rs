//! Checks what weft requires of a machine. The daemon calls it once, before it starts anything, so
//! that the user sees all missing requirements together, each with its solution.
//!
//! It checks the kernel's version and the capabilities of this process, and calls the mesh to check
//! the requirements of the data plane. It must not change the machine, except that the mesh mounts
//! the BPF file system if it is not mounted.

use rustix::{
    system::uname,
    thread::{CapabilitySet, capabilities},
};

use weft_model::error_chain;

/// The oldest kernel that has all BPF features of the data plane.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// The capabilities that weft needs (capabilities(7)), and what each is for.
const CAPABILITIES: [(CapabilitySet, &str, &str); 2] = [
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN", "links, routes and tunnels"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN", "namespaces, mounts and BPF"),
];

/// Describes each requirement that this machine does not meet. Empty if weft can run.
pub(crate) fn missing_requirements() -> Vec<String> {
    let mut missing = Vec::new();
    missing.extend(old_kernel(&uname().release().to_string_lossy()));
    // If the capabilities cannot be read, weft reports all of them as missing.
    let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let capabilities = missing_capabilities(effective);
    // Without the capabilities, the checks of the mesh fail too, and would only repeat that weft
    // needs root.
    if capabilities.is_empty() {
        missing.extend(weft_mesh::Mesh::check().iter().map(|error| error_chain(error)));
    }
    missing.extend(capabilities);
    missing
}

/// `release` is the kernel's version as uname(2) gives it, such as `6.1.0-13-amd64`.
fn old_kernel(release: &str) -> Option<String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = OLDEST_KERNEL;
    (version < OLDEST_KERNEL).then(|| format!("kernel {release} is too old: weft needs {major}.{minor} or newer"))
}

fn missing_capabilities(effective: CapabilitySet) -> Vec<String> {
    CAPABILITIES
        .iter()
        .filter(|(capability, _, _)| !effective.contains(*capability))
        .map(|(_, name, purpose)| format!("{name} is missing ({purpose}): run weft as root"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_kernels_older_than_6_1() {
        assert!(old_kernel("5.15.0-generic").is_some_and(|text| text.contains("too old")));
        assert!(old_kernel("6.0.12").is_some());
        for supported in ["6.1.0-13-amd64", "6.18.44", "7.0.1"] {
            assert_eq!(old_kernel(supported), None, "{supported}");
        }
    }

    #[test]
    fn names_each_missing_capability() {
        assert_eq!(missing_capabilities(CapabilitySet::all()), Vec::<String>::new());
        let none = missing_capabilities(CapabilitySet::empty()).join("\n");
        assert!(none.contains("CAP_NET_ADMIN") && none.contains("CAP_SYS_ADMIN"));
        let one = missing_capabilities(CapabilitySet::NET_ADMIN).join("\n");
        assert!(!one.contains("CAP_NET_ADMIN") && one.contains("CAP_SYS_ADMIN"));
    }
}
