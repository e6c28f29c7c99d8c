//! Counters and addresses that decide what may be allocated next. Only `apply` in weft-control
//! changes them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use super::Slot;
use crate::{DualAddr, NetworkId, NodeId, ServiceId};

/// Counters of ids, and the addresses that cannot be allocated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocations {
    pub next_raft_id: u64,
    pub next_mesh_service: u32,
    pub next_backend: u64,
    pub next_vni: u32,
    /// The addresses of each network.
    pub addresses: BTreeMap<NetworkId, NetworkAddresses>,
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
            addresses: BTreeMap::new(),
            quarantine: Vec::new(),
        }
    }
}

/// Which addresses of one network cannot be allocated. A change of one address costs the same,
/// however many addresses the network has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAddresses {
    /// The addresses of VIPs and tasks, those in quarantine, and those that are never allocated:
    /// gateways, addresses that the user has reserved, network and broadcast addresses.
    pub used_v4: BTreeSet<Ipv4Addr>,
    /// The same for IPv6.
    pub used_v6: BTreeSet<Ipv6Addr>,
    /// The address that was allocated last. The next search starts after it.
    pub last_v4: Option<Ipv4Addr>,
    pub last_v6: Option<Ipv6Addr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreedAddress {
    pub network: NetworkId,
    pub addr: DualAddr,
    /// [`super::ClusterState::now_ms`] when the address was freed.
    pub freed_ms: u64,
    /// The log index at which the address was freed.
    pub freed_index: u64,
    /// The node whose task had the address. `None` for a VIP.
    #[serde(default)]
    pub node: Option<NodeId>,
    /// The slot of that task. The next task of the slot may take the address before the quarantine
    /// ends.
    #[serde(default)]
    pub slot: Option<(ServiceId, Slot)>,
}
