//! What the kernel counted, summed over all CPUs. Counters start at zero when a service or backend is first seen and
//! survive the daemon.

use std::collections::BTreeMap;

use weft_ebpf_common::{DropReason, Traffic};
use weft_model::{BackendId, MeshServiceId};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Flows by this node's choice; packets and bytes of its services' backends together.
    pub services: BTreeMap<MeshServiceId, ServiceCount>,
    /// Flows that this node gave each; packets and bytes that passed this node towards it.
    pub backends: BTreeMap<BackendId, ServiceCount>,
    /// Every reason, in a fixed order.
    pub drops: Vec<DropCount>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServiceCount {
    pub flows: u64,
    pub packets: u64,
    pub bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropCount {
    pub reason: DropReason,
    pub packets: u64,
}

impl ServiceCount {
    pub(crate) fn sum<'a>(per_cpu: impl IntoIterator<Item = &'a Traffic>) -> Self {
        per_cpu.into_iter().fold(Self::default(), |sum, cpu| Self {
            flows: sum.flows + cpu.flows,
            packets: sum.packets + cpu.packets,
            bytes: sum.bytes + cpu.bytes,
        })
    }
}
