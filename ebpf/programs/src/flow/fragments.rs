//! Fragments of a datagram: only the first one holds the ports, the later ones get them from here.

use weft_ebpf_common::{FragKey, FragPorts};

use crate::{
    maps::FRAGMENTS,
    packet::parse::{Packet, fragment},
};

#[inline(always)]
fn fragment_key(packet: &Packet, zone: u32, key: &mut FragKey) {
    key.zone = zone;
    key.src = packet.src;
    key.dst = packet.dst;
    key.id_be = packet.id_be;
    key.proto = packet.proto.into();
}

/// Remembers the ports of a first fragment, or recalls them for a later one. False where the first was not seen.
#[inline(always)]
pub fn follow_fragments(packet: &mut Packet, zone: u32, key: &mut FragKey) -> bool {
    match packet.fragment {
        fragment::FIRST => {
            fragment_key(packet, zone, key);
            let ports = FragPorts { sport_be: packet.sport_be, dport_be: packet.dport_be };
            let _ = FRAGMENTS.insert(&*key, ports, 0);
            true
        }
        fragment::LATER => {
            fragment_key(packet, zone, key);
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
