//! Service routing, user half: makes the kernel's tables say what the node's plan says.
//!
//! Owns the eBPF programs' life (load, attach, pin) and the contents of their maps. Must not create a link, an address or
//! a namespace, nor know how a plan came about. Rooms, in reading order:
//!
//! - `facts`: what only this machine knows and the plan cannot say;
//! - `tables`: the contents of all maps, as values;
//! - `desired`: plan and facts → tables; pure;
//! - `diff`: desired and actual tables → changes; pure;
//! - `kernel`: the only code here that makes system calls;
//! - `counters`: what the kernel counted; pure;
//! - `mesh`: the shell that puts them together.
//!
//! Everything is blocking; call it from a thread that may block and that is in the node's network namespace.
//!
//! Architecture invariant: the kernel half serves without this crate. Maps and links are pinned, so a daemon that dies
//! takes nothing with it, and the next one adopts what it finds.

mod counters;
mod desired;
mod diff;
mod facts;
mod kernel;
mod mesh;
mod tables;

pub use facts::{HostRoute, LocalEndpoint, LocalFacts, Uplink};
pub use kernel::{BPFFS, Error, close_connections, lacking};
pub use mesh::{Mesh, Report};
