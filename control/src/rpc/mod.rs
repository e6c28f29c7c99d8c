//! Calls between nodes: gRPC over mutual TLS on TCP port 2377.
//!
//! [`crate::swarm`] implements the services and calls them; [`crate::raft`] calls one of the
//! services. This module owns the generated messages, the connections in both directions, and the
//! check of the caller's certificate. It must not decide what a call does.
//!
//! Tasks: one for each accepted connection. They end when the server's cancellation token is
//! cancelled.

mod caller;
mod client;
#[cfg(test)]
pub(crate) mod faults;
mod server;

pub use caller::Caller;
pub use client::{Dialer, Peers, connect_now};
pub use server::{Bound, Limits, serve};

/// Generated from `proto/node.proto`.
#[expect(
    unused_qualifications,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod pb {
    tonic::include_proto!("weft.node.v1");
}

/// Flow-control windows in bytes (RFC 9113, section 5.2): how much unread data one stream, and one
/// connection, may have in flight. A stream that is read slowly fills only a small part of the
/// connection's window, so the other streams continue.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Largest message in bytes. The plan of a large cluster is a few megabytes.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
