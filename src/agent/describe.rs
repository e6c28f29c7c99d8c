//! What this machine is, for the cluster's table. Reads /proc; must not change anything.

use std::fs;

use weft_model::{report::NodeDescription, spec::Labels};
use weft_overlay::NodeFacts;

use crate::runtime::RuntimeKind;

pub(super) fn describe_node(runtime: RuntimeKind, labels: &Labels, facts: &NodeFacts) -> NodeDescription {
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    NodeDescription {
        os: std::env::consts::OS.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        nano_cpus: cpus * 1_000_000_000,
        memory_bytes: memory_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime: runtime.as_str().to_owned(),
        engine_labels: labels.clone(),
        addresses: facts.addresses.clone(),
        routes: facts.routes.clone(),
    }
}

/// `MemTotal` of proc_meminfo(5), given there in KiB. Zero where it cannot be read: unknown.
fn memory_bytes(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_described_with_the_labels_of_its_daemon() {
        let labels = Labels::from([("storage".to_owned(), "ssd".to_owned())]);
        let told = describe_node(RuntimeKind::Docker, &labels, &NodeFacts::default());
        assert_eq!((told.runtime.as_str(), told.engine_labels), ("docker", labels));
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(memory_bytes("MemTotal:       24689232 kB\nMemFree: 1 kB\n"), 24_689_232 * 1024);
        assert_eq!(memory_bytes("nonsense"), 0);
    }
}
