//! The maps of a node's data plane, as another program sees them.

use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use weft_ebpf_common::{LAYOUT_VERSION, PortKey, PortTarget};
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
