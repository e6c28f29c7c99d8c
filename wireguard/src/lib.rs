//! A WireGuard device in user space, for nodes whose kernel has none. Handshake and encryption are
//! boringtun's (`noise::Tunn`); this crate moves the packets.
//!
//! `weft-overlay` opens a device where kernel WireGuard is missing, and configures its link as it
//! does others. The crate knows nothing of weft's cluster, plans and networks, and depends on no
//! other crate of weft.
//!
//! It is fast because it handles many packets at once: the TUN device hands over superpackets of
//! TCP and of VXLAN, which are cut, encrypted and sent as trains of datagrams (UDP_SEGMENT); trains
//! are received (UDP_GRO), decrypted, and written as superpackets. `worker` says how threads share
//! the work.
//!
//! Modules in reading order:
//!
//! - `config`: what the caller asks for, and what it is told (plain data);
//! - `error`: the error type, with hints for the operator;
//! - `packet`: headers, checksums, segmentation and its inverse (pure);
//! - `routes`: the longest prefix of an address (pure);
//! - `peer`: the session of one peer, behind its lock;
//! - `table`: a snapshot of all peers;
//! - `kernel`: the TUN device and UDP sockets; the only code with `unsafe`;
//! - `worker`: the threads;
//! - `device`: the handle.
//!
//! Limits: there are no preshared keys, and no change of the private key; weft opens another device
//! for another key.

mod config;
mod error;
mod packet;
mod routes;
mod peer;
mod table;
mod kernel;
mod worker;
mod device;

pub use config::{DeviceConfig, PeerConfig, PeerStatus};
pub use device::Device;
pub use error::Error;
