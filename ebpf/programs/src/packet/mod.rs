//! One packet: reading it, changing it, sending it on.

pub mod skb;
pub mod parse;
pub mod checksum;
pub mod rewrite;
pub mod send;
