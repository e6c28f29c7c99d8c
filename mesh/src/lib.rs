//! The user-space half of the data plane: it makes the maps and the attached programs of the kernel
//! match the node's plan.
//!
//! The agent calls [`Mesh::reconcile`] after the overlay has made the links. The programs
//! themselves are in `ebpf/`.
//!
//! This crate owns the life cycle of the eBPF programs (load, attach, pin) and the contents of
//! their maps. It must not create a link, an address or a namespace. Every function blocks: call it
//! from a thread that may block and that is in the node's network namespace.
//!
//! Modules in reading order. The crate `weft-overlay` has the same ones, except those marked with
//! *:
//!
//! - [`facts`]: the state of this machine that the plan cannot contain (pure data);
//! - [`tables`]*: the contents of the maps, as values (pure data);
//! - [`attachment`]*: where a program is attached (pure data);
//! - [`desired`]: what the kernel must hold, from the plan and the facts (pure);
//! - [`actual`]: what the kernel holds (pure data);
//! - [`diff`]: the operations that turn `actual` into `desired` (pure);
//! - `counters`*: the kernel's counters of dropped packets (pure);
//! - `error`: the one error type, with hints for the operator;
//! - `kernel`: programs, maps, pins and sockets; the only code that makes system calls;
//! - `reconcile`: reads, compares and applies, in an order that is safe for traffic;
//! - `mesh`: the handle that the agent holds.
//!
//! Invariant: the data plane works while no daemon is running. Maps and attachments are pinned, so
//! they survive the daemon, and the next daemon adopts them.

pub mod facts;
pub mod tables;
pub mod attachment;
pub mod desired;
pub mod actual;
pub mod diff;
mod counters;
mod error;
mod kernel;
mod reconcile;
mod mesh;

pub use error::Error;
pub use facts::{HostRoute, LocalEndpoint, LocalFacts, LocalNetns, LocalWireGuard, ResolvedName, Uplink};
pub use kernel::{BPFFS, close_connections};
pub use mesh::Mesh;
pub use reconcile::Report;
