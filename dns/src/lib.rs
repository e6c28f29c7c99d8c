//! The names that tasks see: a resolver at 127.0.0.11:53 inside each task's network namespace.
//!
//! Owns what a name means, and the sockets it is asked on. It must not know how a namespace is entered (it is handed
//! sockets) nor where packets go. Answers come from an immutable [`Zone`], a function of the node's plan, that is
//! swapped whole; no task sees a name of a network that it is not on.
//!
//! Rooms, in reading order:
//!
//! - [`zone`]: [`weft_model::NodePlan`] → the names of each network (pure);
//! - [`resolve`]: zone, view and question → answer (pure);
//! - `message`: octets ↔ questions and answers (pure);
//! - `forward`: questions about the outside, asked upstream;
//! - `server`: the sockets of each task.

mod forward;
mod message;
pub mod resolve;
#[cfg(test)]
mod sample;
mod server;
pub mod zone;

pub use server::{Server, ServerError, Sockets, open_sockets};
pub use zone::{Names, Zone};
