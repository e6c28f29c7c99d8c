//! Every map. Names are what pins and `bpftool` show.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    macros::map,
    maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap},
};
use weft_ebpf_common::{
    Backend, Config, DropReason, Endpoint, Flow, FlowKey, Forward, FragmentKey, FragmentPorts, NetAddr, Nets, PortKey,
    PortTarget, Route, Service, ServiceStats, SlotKey, SocketKey, SocketPeer,
};

/// Bound of every map that user space fills; they take memory for what they hold only.
const PLAN_ENTRIES: u32 = 262_144;
/// Links, tasks and nodes of one machine or cluster.
const FEW_ENTRIES: u32 = 16_384;
/// Two entries for each flow on the node of its backend. Preallocated.
const FLOW_ENTRIES: u32 = 131_072;
const SOCKET_ENTRIES: u32 = 32_768;
const FRAGMENT_ENTRIES: u32 = 4_096;

#[map]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);
/// This node's own addresses.
#[map]
pub static OWN: HashMap<NetAddr, u32> = HashMap::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);
/// Published ports.
#[map]
pub static PORTS: HashMap<PortKey, PortTarget> = HashMap::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);
/// VIPs: their services.
#[map]
pub static VIPS: HashMap<NetAddr, u32> = HashMap::pinned(PLAN_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
pub static SERVICES: HashMap<u32, Service> = HashMap::pinned(PLAN_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
pub static SLOTS: HashMap<SlotKey, u64> = HashMap::pinned(PLAN_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
pub static BACKENDS: HashMap<u64, Backend> = HashMap::pinned(PLAN_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
pub static ENDPOINTS: HashMap<u32, Endpoint> = HashMap::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
pub static FORWARD: HashMap<NetAddr, Forward> = HashMap::pinned(PLAN_ENTRIES, BPF_F_NO_PREALLOC);
/// Trusted tunnel endpoints.
#[map]
pub static NODES: HashMap<NetAddr, u32> = HashMap::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
pub static ROUTES: LpmTrie<NetAddr, Route> = LpmTrie::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);
/// By network namespace cookie.
#[map]
pub static NETNS: HashMap<u64, Nets> = HashMap::pinned(FEW_ENTRIES, BPF_F_NO_PREALLOC);

#[map]
pub static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::pinned(FLOW_ENTRIES, 0);
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::pinned(FRAGMENT_ENTRIES, 0);
#[map]
pub static SOCKETS: LruHashMap<SocketKey, SocketPeer> = LruHashMap::pinned(SOCKET_ENTRIES, 0);

/// User space makes the entries, the kernel only adds to them.
#[map]
pub static SERVICE_STATS: PerCpuHashMap<u32, ServiceStats> = PerCpuHashMap::pinned(PLAN_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
pub static DROPS: PerCpuArray<u64> = PerCpuArray::pinned(DropReason::ALL.len() as u32, 0);

/// The node's configuration.
#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}
