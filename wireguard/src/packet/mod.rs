//! What has to be known of the packets inside of the tunnel: addresses, checksums, and how one
//! superpacket is cut into packets or made from packets. The workers call it. Everything here is
//! pure and allocates nothing for a packet.
//!
//! `vnet`, `checksum` and `ip` are leaves. `segment` and `coalesce` use them, and are inverse to
//! each other.

pub(crate) mod vnet;
pub(crate) mod checksum;
pub(crate) mod ip;
pub(crate) mod segment;
pub(crate) mod coalesce;
#[cfg(test)]
mod samples;
