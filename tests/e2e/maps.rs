//! The maps of a node's data plane, as another program sees them.

use std::{mem::offset_of, path::Path};

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData, MapError};
use weft_ebpf_common::{Flow, FlowKey, LAYOUT_VERSION, PortKey, PortTarget, flow_flags};
use weft_lab::contract;

/// A map whose keys and values have these sizes in octets.
pub(crate) type RawMap<const KEY: usize, const VALUE: usize> = HashMap<MapData, [u8; KEY], [u8; VALUE]>;

/// A pinned map of any type.
pub(crate) fn data(node: &str, name: &str) -> Result<MapData> {
    let pin = Path::new(contract::PINS).join(node).join(format!("v{LAYOUT_VERSION}")).join(name);
    MapData::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))
}

pub(crate) fn open<const KEY: usize, const VALUE: usize>(node: &str, name: &str) -> Result<RawMap<KEY, VALUE>> {
    Ok(HashMap::try_from(Map::HashMap(data(node, name)?))?)
}

/// The published ports.
pub(crate) fn ports(node: &str) -> Result<RawMap<{ size_of::<PortKey>() }, { size_of::<PortTarget>() }>> {
    open(node, "PORTS")
}

type Flows = RawMap<{ size_of::<FlowKey>() }, { size_of::<Flow>() }>;

const SOURCE_PORT: usize = offset_of!(FlowKey, sport_be);
const FLAGS: usize = offset_of!(Flow, flags);
const LAST_SEEN: usize = offset_of!(Flow, last_seen_s);

fn last_seen(flow: &[u8]) -> Result<u32> {
    Ok(u32::from_ne_bytes(flow[LAST_SEEN..LAST_SEEN + size_of::<u32>()].try_into()?))
}

fn closed_flows(flows: &Flows) -> Result<Vec<([u8; size_of::<FlowKey>()], [u8; size_of::<Flow>()])>> {
    let keys = flows.keys().collect::<Result<Vec<_>, _>>()?;
    // The kernel may have evicted an entry meanwhile.
    let all = keys.into_iter().filter_map(|key| Some((key, flows.get(&key, 0).ok()?)));
    Ok(all.filter(|(_, flow)| flow[FLAGS] & flow_flags::FIN != 0).collect())
}

/// Moves the last packets of all closed connections so far before the newest one, in units of
/// 1.07 s, if they are not there already.
pub(crate) fn age_closed_flows(node: &str, by: u32) -> Result<()> {
    let mut flows: Flows = open(node, "FLOWS")?;
    let closed = closed_flows(&flows)?;
    let times = closed.iter().map(|(_, flow)| last_seen(flow)).collect::<Result<Vec<_>>>()?;
    let before = times.iter().max().map_or(0, |newest| newest.saturating_sub(by));
    for ((key, mut flow), seen) in closed.into_iter().zip(times) {
        let aged = seen.min(before);
        flow[LAST_SEEN..LAST_SEEN + size_of::<u32>()].copy_from_slice(&aged.to_ne_bytes());
        flows.insert(key, flow, 0)?;
    }
    Ok(())
}

/// Removes all closed connections, as the kernel does with the oldest entries of a full map.
pub(crate) fn forget_closed_flows(node: &str) -> Result<()> {
    let mut flows: Flows = open(node, "FLOWS")?;
    for (key, _) in closed_flows(&flows)? {
        match flows.remove(&key) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// The times of the last packets of all flows with a FIN whose packets come from this port, in
/// units of 1.07 s.
pub(crate) fn last_packets_after_fin(node: &str, source_port: u16) -> Result<Vec<u32>> {
    let from_port = |key: &[u8]| key[SOURCE_PORT..SOURCE_PORT + size_of::<u16>()] == source_port.to_be_bytes();
    let closed = closed_flows(&open(node, "FLOWS")?)?;
    closed.into_iter().filter(|(key, _)| from_port(key)).map(|(_, flow)| last_seen(&flow)).collect()
}
