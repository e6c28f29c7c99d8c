//! The resolver for the names that tasks use, at port 53 of a loopback address inside each task's
//! network namespace: 127.0.0.11, unless the caller of [`open_sockets`] says another one.
//!
//! The agent publishes a new [`Zone`] for each plan, and starts and stops the resolver of each
//! task.
//!
//! This crate owns the resolution of names and the use of the resolver sockets. It must not enter a
//! namespace (the agent passes it the sockets, or opens them), and it does not decide where packets
//! go.
//!
//! Modules in reading order:
//!
//! - [`zone`]: the names of each network, from the plan (pure, except for the handle);
//! - [`resolve`]: the answer to a question, from the zone and the networks of the task (pure);
//! - `reply`: the content of a reply (pure);
//! - `error`: the one error type;
//! - `upstream`: an upstream resolver as users give it (pure);
//! - `outside`: questions about other names, which upstream resolvers answer;
//! - `handler`: the answers of one task's resolver;
//! - `server`: the sockets of each task.
//!
//! Invariants: a zone is immutable and replaced as a whole, so each answer comes from one plan. A
//! task never gets an answer about a network that it is not on.

pub mod zone;
pub mod resolve;
mod reply;
mod error;
mod upstream;
mod outside;
mod handler;
mod server;
#[cfg(test)]
mod fixture;

pub use error::Error;
pub use handler::TaskConfig;
pub use outside::{OpenSockets, Outside};
pub use server::{Server, Sockets, open_sockets};
pub use upstream::{ParseUpstreamError, Upstream};
pub use zone::{ListedName, Zone, ZoneHandle};
