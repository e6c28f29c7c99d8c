//! A weft cluster on one machine: nodes and a client in network namespaces, joined by a bridge, running the real daemon.
//! The demo, the end-to-end tests, the benchmarks and `cargo xtask lab` all stand on it.
//!
//! It owns the namespaces, links, processes and files that [`contract`] names, makes them ([`Lab::up`]) and takes them
//! away without a trace ([`Lab::down`], [`clean`]). It drives weft only as a user would: by its command line, its API
//! socket and packets. It must not know anything of weft's inside.

pub mod api;
pub mod clean;
mod cluster;
pub mod contract;
pub mod dns;
pub mod docker;
pub mod http;
mod lab;
pub mod load;
mod lock;
pub mod netns;
pub mod packets;
pub mod process;
pub mod resolver;
mod topology;
mod tree;
mod wait;
mod witness;

pub use api::Task;
pub use clean::leftovers;
pub use cluster::Role;
pub use contract::CLIENT;
pub use lab::{Lab, LabOptions, Runtime};
pub use load::{Load, LoadReport};
pub use lock::LabLock;
pub use topology::Cable;
pub use wait::{eventually, try_eventually};
