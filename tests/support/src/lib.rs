//! A weft cluster on one machine: nodes and a client in network namespaces, connected by a bridge,
//! with the real daemon on each node. The demo, the end-to-end tests, the benchmarks and
//! `cargo xtask lab` use it.
//!
//! The crate owns the namespaces, links, processes and files that [`contract`] names. [`Lab::up`]
//! creates them and [`Lab::down`] removes all of them. It controls weft only as a user can: by the
//! command line, the API socket and packets. It must not use any crate of weft.
//!
//! Everything here needs root, except [`contract`].

pub mod speed;
mod wait;
mod tree;
mod kernel;
pub mod contract;
pub mod netns;
pub mod process;
pub mod api;
pub mod http;
pub mod dns;
pub mod packets;
pub mod name_server;
pub mod resolver;
mod topology;
pub mod tun;
pub mod docker;
mod engine;
mod lock;
pub mod cleanup;
mod lab;
pub mod load;

pub use api::Task;
pub use cleanup::leftovers;
pub use contract::CLIENT;
pub use lab::{Lab, LabOptions, Role, Runtime};
pub use load::{Load, LoadReport};
pub use lock::LabLock;
pub use speed::{scaled, unscaled};
pub use topology::{Cable, Direction, underlay_path};
pub use wait::{eventually, try_eventually};
