//! Packets that weft itself sends, each built in place from the packet that it answers.
//!
//! The hooks call this room, and `flow::apply` calls [`refuse`] for packets that are too big for
//! the tunnel or an uplink. It looks up no flow and no map of the plan: callers decide that a
//! packet is answered, and where the answer goes.
//!
//! - [`refuse`]: a TCP reset or an ICMP error for a packet that is dropped;
//! - [`ip`]: the IP header of such an answer;
//! - [`icmp`]: how these ICMP errors are built;
//! - [`neigh`]: ARP and neighbour discovery for the addresses around a task;
//! - [`echo`]: pings of VIPs and gateways.
//!
//! Each function overwrites the packet, so the caller must return its verdict at once. A `Packet`
//! that was parsed before does not describe the answer.

pub mod ip;
pub mod icmp;
pub mod refuse;
pub mod neigh;
pub mod echo;
