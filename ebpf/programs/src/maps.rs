//! The maps that the programs share with user space.
//!
//! `weft-mesh` opens each map by its name here, and pins it in the BPF file system under the same
//! name, so that it outlives the daemon. `bpftool map` shows the same names. The keys and values
//! are defined in `weft-ebpf-common`.
//!
//! | Map | Written by | Read by |
//! |---|---|---|
//! | `CONFIG` to `NAME_SCOPES` | user space, from the node's plan | the programs |
//! | `FLOWS`, `FRAGMENTS`, `SOCKETS` | the programs | the programs |
//! | `SERVICE_STATS` | user space creates the entries, the programs count | the programs |
//! | `DROPS`, `NAME_ANSWERS` | the programs | user space |
//!
//! The programs must never write to a map of the first row.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap},
};
use weft_ebpf_common::{
    Addr, Backend, Config, DropReason, Endpoint, Flow, FlowKey, Forward, FragmentKey, FragmentPorts, NetAddr, Nets,
    Node, PortKey, PortTarget, Route, Service, ServiceStats, SlotKey, SocketKey, SocketPeer,
    names::{NAME_ENTRIES, Name, NameKey, NameScope},
};

/// Maximum number of entries of the maps that grow with the cluster. These maps are not
/// preallocated: they use memory only for the entries that they hold.
const PLAN_ENTRIES: u32 = 262_144;
/// Maximum number of entries of the maps that grow with the node's links and tasks, or with the
/// number of nodes.
const FEW_ENTRIES: u32 = 16_384;
/// Maximum number of flow entries. Most flows take two, one for each direction. Preallocated; the
/// kernel evicts the least recently used entry of a full map.
const FLOW_ENTRIES: u32 = 131_072;
const SOCKET_ENTRIES: u32 = 32_768;
const FRAGMENT_ENTRIES: u32 = 4_096;

/// The node's configuration, as the only entry.
#[map]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);
/// This node's own addresses. The value has no meaning.
#[map]
pub static OWN: HashMap<NetAddr, u32> = HashMap::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);
/// Published ports, and the service behind each.
#[map]
pub static PORTS: HashMap<PortKey, PortTarget> = HashMap::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);
/// VIPs, and the id of the service behind each.
#[map]
pub static VIPS: HashMap<NetAddr, u32> = HashMap::pinned(PLAN_ENTRIES, BPF_F_NO_PREALLOC);
/// The number of slots of a service, by service id.
#[map]
pub static SERVICES: HashMap<u32, Service> = HashMap::pinned(PLAN_ENTRIES, BPF_F_NO_PREALLOC);
/// The backend id in a slot of a service.
#[map]
pub static SLOTS: HashMap<SlotKey, u64> = HashMap::pinned(PLAN_ENTRIES, BPF_F_NO_PREALLOC);
/// Backends by id.
#[map]
pub static BACKENDS: HashMap<u64, Backend> = HashMap::pinned(PLAN_ENTRIES, BPF_F_NO_PREALLOC);
/// Tasks of this node, by the ifindex of the host side of their veth.
#[map]
pub static ENDPOINTS: HashMap<u32, Endpoint> = HashMap::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);
/// Where the task with an address is.
#[map]
pub static FORWARD: HashMap<NetAddr, Forward> = HashMap::pinned(PLAN_ENTRIES, BPF_F_NO_PREALLOC);
/// The other nodes, by each address that their tunnel packets may have as source. Only these may
/// send packets through the tunnel.
#[map]
pub static NODES: HashMap<NetAddr, Node> = HashMap::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);
/// The node's own routes, for packets from tasks to the outside, and the subnets of the networks
/// that tasks of this node are on.
#[map]
pub static ROUTES: LpmTrie<NetAddr, Route> = LpmTrie::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);
/// The networks of the tasks of this node, by the cookie of the task's network namespace.
#[map]
pub static NETNS: HashMap<u64, Nets> = HashMap::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);
/// The address at which the resolver listens, by the cookie of the task's network namespace. Only
/// of tasks whose resolver does not listen at [`weft_ebpf_common::RESOLVER`].
#[map]
pub static RESOLVERS: HashMap<u64, Addr> = HashMap::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);
/// Names of the networks that tasks of this node are on, and their addresses.
#[map]
pub static NAMES: HashMap<NameKey, Name> = HashMap::pinned(NAME_ENTRIES, BPF_F_NO_PREALLOC);
/// The networks on which a task's names are looked up, by the class of the filter in its namespace.
#[map]
pub static NAME_SCOPES: HashMap<u32, NameScope> = HashMap::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);

/// Flows, one entry for each direction (see `flow`).
#[map]
pub static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(FLOW_ENTRIES, 0);
/// Ports of fragmented datagrams (see `flow::fragments`).
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::pinned(FRAGMENT_ENTRIES, 0);
/// Remote addresses that the socket programs have translated (see `hooks::sock`).
#[map]
pub static SOCKETS: LruHashMap<SocketKey, SocketPeer> = LruHashMap::pinned(SOCKET_ENTRIES, 0);

/// New flows of a service, which drive round-robin. User space creates and deletes the entries; the
/// programs only count.
#[map]
pub static SERVICE_STATS: PerCpuHashMap<u32, ServiceStats> = PerCpuHashMap::pinned(PLAN_ENTRIES, BPF_F_NO_PREALLOC);
/// Number of dropped packets, by `DropReason`.
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(DropReason::ALL.len() as u32, 0);
/// Number of questions about names that the programs have answered, as the only entry.
#[map]
pub static NAME_ANSWERS: PerCpuArray<u64> = PerCpuArray::pinned(1, 0);

/// The node's configuration. The array always has this entry, but the verifier requires that
/// callers check for `None`.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}
