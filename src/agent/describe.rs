//! Describes this machine for the cluster state. [`super::report`] calls it for each report. It
//! must not change anything on the machine.

use rustix::system::{Sysinfo, sysinfo, uname};
use weft_model::report::NodeDescription;
use weft_overlay::OverlayState;

use crate::runtime::{EngineFacts, RuntimeKind};

/// `engine` has the labels of the daemon too.
pub(super) fn describe_node(runtime: RuntimeKind, engine: &EngineFacts, links: &OverlayState) -> NodeDescription {
    let facts = &links.facts;
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    NodeDescription {
        os: std::env::consts::OS.to_owned(),
        arch: uname().machine().to_string_lossy().into_owned(),
        nano_cpus: cpus * 1_000_000_000,
        memory_bytes: memory_bytes(&sysinfo()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime: runtime.as_str().to_owned(),
        engine_labels: engine.labels.clone(),
        addresses: facts.addresses.clone(),
        routes: facts.routes.clone(),
        encryption: links.encryption.clone(),
        plugins: engine.plugins.clone(),
    }
}

/// Usable memory of the machine (sysinfo(2): `totalram` counts units of `mem_unit` bytes).
fn memory_bytes(info: &Sysinfo) -> u64 {
    info.totalram.saturating_mul(info.mem_unit.into())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use procfs::{Current as _, Meminfo};
    use weft_model::{spec::Labels, wireguard::EncryptionSupport};
    use weft_overlay::NodeFacts;

    use super::*;

    #[test]
    fn describes_a_node_with_the_labels_of_its_daemon() {
        let labels = Labels::from([("storage".to_owned(), "ssd".to_owned())]);
        let links = OverlayState {
            tunnel_ifindex: 4,
            mtu: 1450,
            encrypted_mtu: 1370,
            encryption: EncryptionSupport::UserSpace,
            key_links: Vec::new(),
            endpoints: Vec::new(),
            facts: NodeFacts::default(),
            faults: BTreeMap::new(),
            encryption_fault: None,
        };
        let engine = EngineFacts { labels: labels.clone(), ..EngineFacts::default() };
        let node = describe_node(RuntimeKind::Docker, &engine, &links);
        assert_eq!((node.runtime.as_str(), node.engine_labels), ("docker", labels));
        assert_eq!(node.encryption, EncryptionSupport::UserSpace);
        assert_eq!((node.os.as_str(), node.arch.as_str()), (std::env::consts::OS, std::env::consts::ARCH));
    }

    #[test]
    fn memory_is_in_bytes_and_equals_mem_total() {
        let meminfo = Meminfo::current().expect("/proc/meminfo is readable");
        assert_eq!(memory_bytes(&sysinfo()), meminfo.mem_total);
    }
}
