#![no_std]
#![no_main]
//! Service routing, kernel half: four hooks on the way of every packet.
//!
//! Owns what happens to a packet; must not decide what is true of the cluster: it reads that from maps which only user
//! space writes, and keeps only flows of its own. Rooms, in reading order:
//!
//! - [`uplink_in`], [`tunnel_in`], [`task_out`], [`sock`]: the hooks;
//! - [`flow`]: what becomes of a packet whose flow is known, and how two flows are told apart;
//! - [`published`], [`vip`], [`egress`]: how new flows are made;
//! - [`pick`]: which backend a new flow gets;
//! - [`send`]: the ways out;
//! - [`refuse`], [`neigh`], [`echo`]: answers built in place;
//! - [`icmp`]: errors that speak of a flow;
//! - [`packet`], [`rewrite`], [`skb`]: parsing, checksums, helper calls;
//! - [`maps`], [`drops`]: state and counters.
//!
//! The oldest kernel is 6.1, so: no kfuncs, no open-coded iterators, bounded loops only, and little on the stack (the
//! verifier allows 512 bytes): whatever is larger than a few words lives in [`maps::scratch`].

mod drops;
mod echo;
mod egress;
mod flow;
mod icmp;
mod maps;
mod neigh;
mod packet;
mod pick;
mod published;
mod refuse;
mod rewrite;
mod send;
mod skb;
mod sock;
mod task_out;
mod tunnel_in;
mod uplink_in;
mod vip;

/// Helpers such as `bpf_skb_load_bytes` are for programs under the GPL only; the kernel takes this dual licence for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
