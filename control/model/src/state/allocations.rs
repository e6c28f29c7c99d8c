//! Counters and addresses that decide what may be allocated next. Only `apply` in weft-control
//! changes them.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::{DualAddr, NetworkId};

/// Counters of ids, and addresses that may not be used yet. Addresses in use are not stored here:
/// they are computed from the tasks and services.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocations {
    pub next_raft_id: u64,
    pub next_mesh_service: u32,
    pub next_backend: u64,
    pub next_vni: u32,
    /// For each network the addresses that were allocated last. The next search starts after these
    /// addresses.
    pub cursors: BTreeMap<NetworkId, AddressCursor>,
    /// Freed addresses that may not be used yet, because some node may still have them in its maps.
    pub quarantine: Vec<FreedAddress>,
}

impl Default for Allocations {
    fn default() -> Self {
        Self {
            next_raft_id: 1,
            next_mesh_service: 1,
            next_backend: 1,
            next_vni: crate::FIRST_VNI,
            cursors: BTreeMap::new(),
            quarantine: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressCursor {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreedAddress {
    pub network: NetworkId,
    pub addr: DualAddr,
    /// [`super::ClusterState::now_ms`] when the address was freed.
    pub freed_ms: u64,
    /// The log index at which the address was freed.
    pub freed_index: u64,
}
