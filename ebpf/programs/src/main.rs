#![no_std]
#![no_main]
//! Service routing, kernel half: four hooks on the way of every packet.
//!
//! Owns what happens to a packet; must not decide what is true of the cluster: it reads that from maps which only user
//! space writes, and keeps only flows of its own. Rooms, in reading order:
//!
//! - [`maps`], [`counters`], [`verdict`]: state, counters, and what a program says in the end;
//! - [`packet`]: parsing, rewriting, checksums, helper calls, the ways out;
//! - [`scratch`]: memory for a packet under way;
//! - [`reply`]: answers built in place;
//! - [`flow`]: what is known of flows, and how new ones are made;
//! - [`hooks`]: the programs.
//!
//! A room imports only from the rooms above it.
//!
//! The oldest kernel is 6.1, so: no kfuncs, no open-coded iterators, bounded loops only, and little on the stack (the
//! verifier allows 512 bytes): whatever is larger than a few words lives in [`scratch`].

mod maps;
mod counters;
mod verdict;
mod packet;
mod scratch;
mod reply;
mod flow;
mod hooks;

/// Helpers such as `bpf_skb_load_bytes` are for programs under the GPL only; the kernel takes this dual licence for it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
