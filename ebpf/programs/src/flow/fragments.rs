//! Tracking fragments: only the first fragment of a datagram has the ports, and the later ones get
//! them from here.
//!
//! The tc hooks call [`track_fragments`] before they look up a flow. A later fragment that arrives
//! before the first has no ports and is not translated.

use weft_ebpf_common::{FragmentKey, FragmentPorts};

use crate::{
    maps::FRAGMENTS,
    packet::parse::{Packet, fragment},
};

#[inline(always)]
fn write_key(packet: &Packet, zone: u32, key: &mut FragmentKey) {
    key.zone = zone;
    key.src = packet.src;
    key.dst = packet.dst;
    key.id_be = packet.id_be;
    key.proto = packet.proto.into();
}

/// Stores the ports of a first fragment, or sets those of a later one. False if the packet is a
/// later fragment and the first was not seen. `key` is memory to build the key in.
#[inline(always)]
pub fn track_fragments(packet: &mut Packet, zone: u32, key: &mut FragmentKey) -> bool {
    match packet.fragment {
        fragment::FIRST => {
            write_key(packet, zone, key);
            let ports = FragmentPorts { sport_be: packet.sport_be, dport_be: packet.dport_be };
            let _ = FRAGMENTS.insert(&*key, ports, 0);
            true
        }
        fragment::LATER => {
            write_key(packet, zone, key);
            // SAFETY: the entry is read at once. If another CPU replaces it meanwhile, the ports
            // are at worst those of another datagram.
            match unsafe { FRAGMENTS.get(&*key) } {
                Some(ports) => {
                    packet.sport_be = ports.sport_be;
                    packet.dport_be = ports.dport_be;
                    true
                }
                None => false,
            }
        }
        _ => true,
    }
}
