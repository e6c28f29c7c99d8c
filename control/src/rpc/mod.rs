//! How nodes talk: gRPC over mutual TLS.
//!
//! Owns the wire: generated messages, their encoding, connections in both directions, and the check of who is calling.
//! It must not decide what a call does: [`crate::swarm`] implements the services, [`crate::raft`] calls one of them.
//! Tasks: one for each accepted connection, ended by the server's token.

mod caller;
mod client;
pub mod codec;
mod server;

pub use caller::Caller;
pub use client::{Dialer, Peers, one_off};
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

/// How much of one answer, or of one request's stream, may be on its way unread; and of all on one connection together
/// (RFC 9113, section 5.2). One stream that is read slowly leaves most of the connection to the others.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;

/// Largest message: a table or a plan of a large cluster fits many times over.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;
