//! One packet: parsing it, rewriting it, sending it.
//!
//! The rooms `reply` and `flow` and the hooks call this one. It does not look up flows and makes no
//! decision about a packet: callers say what to write and where to send.
//!
//! - [`skb`]: calls of kernel helpers, the only code that touches the packet's bytes;
//! - [`parse`]: from bytes to a `Packet`;
//! - [`checksum`]: Internet checksum arithmetic;
//! - [`rewrite`]: changing addresses and ports, with all checksums that depend on them;
//! - [`send`]: redirecting the packet to a task, a link or the tunnel.
//!
//! A `Packet` is a copy of header fields. Rewriting changes the bytes and not the copy, so code
//! after a rewrite still sees the fields as they arrived.

pub mod skb;
pub mod parse;
pub mod checksum;
pub mod rewrite;
pub mod send;
