#![no_std]
#![no_main]
//! The kernel half of the data plane: the eBPF programs that send packets to services and tasks.
//!
//! The kernel runs one of the programs in [`hooks`] for each packet that enters the node by a link,
//! by the tunnel or from a task, and for each socket call of a process on the node. `weft-mesh`,
//! the user half, loads and attaches the programs and fills their maps.
//!
//! The programs never decide what is true of the cluster. They read it from maps that only user
//! space writes. They write only what they need to remember about traffic: flows, fragments, socket
//! addresses and counters.
//!
//! Others rely on these invariants:
//!
//! - Maps and programs keep their names: `weft-mesh` finds them by name and pins them by name.
//! - The programs need no user space to handle a packet. Traffic continues while the daemon is
//!   down.
//! - Every packet that a program drops is counted under a `DropReason`.
//!
//! # Rooms
//!
//! A room imports only from the rooms above it in this list:
//!
//! - [`maps`]: the maps that are shared with user space;
//! - [`counters`]: how the programs count;
//! - [`verdict`]: what a program returns to the kernel for a packet;
//! - [`packet`]: parsing, rewriting and sending one packet; calls of kernel helpers;
//! - [`scratch`]: per-CPU memory for the packet in progress;
//! - [`reply`]: packets that weft itself sends as an answer: resets, ICMP errors, ARP, echo;
//! - [`flow`]: finding and creating flows, and choosing backends;
//! - [`hooks`]: the programs.
//!
//! # Limits of the oldest kernel
//!
//! The oldest supported kernel is Linux 6.1. The programs therefore use no kfuncs and no open-coded
//! iterators, and all loops are bounded. The verifier allows 512 bytes of stack, so everything that
//! is larger than a few words is in [`scratch`].

mod maps;
mod counters;
mod verdict;
mod packet;
mod scratch;
mod reply;
mod flow;
mod hooks;

/// The kernel offers helpers such as `bpf_skb_load_bytes` only to programs under the GPL. It
/// accepts this dual licence (`license_is_gpl_compatible`, linux/license.h).
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
