//! Fragments of a datagram: only the first one holds the ports, the later ones get them from here.

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

/// Remembers the ports of a first fragment, or recalls them for a later one. False where the first was not seen.
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
            // SAFETY: the entry is read at once; at worst it is another datagram's, which its key would then name.
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
