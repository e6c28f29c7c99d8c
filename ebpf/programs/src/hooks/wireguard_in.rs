//! `wireguard_in`: decrypted packets from other nodes, at weft's WireGuard links.
//!
//! ```text
//! tunnel packet between addresses of keys   -> mark, pass to the node's stack
//! anything else                             -> drop
//! ```
//!
//! WireGuard has checked that the source is the address of the key that the packet was encrypted
//! with. The mark says to `tunnel_in` that the packet was encrypted. Nothing else than the tunnel
//! uses these links: other nodes must not reach services of this node by them.

use aya_ebpf::{macros::classifier, programs::TcContext};
use weft_ebpf_common::{Addr, DropReason, WIREGUARD_MARK};

use crate::{
    maps::config,
    packet::{
        parse::{ETH_P_IPV6, UDP, V6_HEADER_LEN},
        skb::{HelperError, Skb},
    },
    verdict::{PASS, drop},
};

/// Entry point: a packet that WireGuard has decrypted. It has no Ethernet header.
#[classifier]
// A function that is not inlined has a symbol. Its name would contain a hash of the build folder,
// so other folders would build other objects.
#[inline(always)]
pub fn wireguard_in(context: TcContext) -> i32 {
    let skb = Skb::without_ethernet(context.skb.skb);
    match is_tunnel_packet(skb) {
        Ok(true) => {
            skb.set_mark(WIREGUARD_MARK);
            PASS
        }
        Ok(false) => drop(DropReason::Protocol),
        Err(_) => drop(DropReason::Malformed),
    }
}

#[inline(always)]
fn is_tunnel_packet(skb: Skb) -> Result<bool, HelperError> {
    if skb.protocol_be() != ETH_P_IPV6 {
        return Ok(false);
    }
    let Some(config) = config() else { return Ok(false) };
    let mut header = [0_u32; 10];
    skb.load(0, &mut header)?;
    let src = Addr { words_be: [header[2], header[3], header[4], header[5]] };
    let dst = Addr { words_be: [header[6], header[7], header[8], header[9]] };
    let next_header = (u32::from_be(header[1]) >> 8) as u8;
    if next_header != UDP || !config.is_key_address(&src) || !config.is_key_address(&dst) {
        return Ok(false);
    }
    let mut ports = [0_u16; 2];
    skb.load(V6_HEADER_LEN, &mut ports)?;
    Ok(ports[1] == config.tunnel_port_be)
}
