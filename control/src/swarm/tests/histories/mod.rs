//! Histories of requests to the API, and whether they are linearizable: whether the answers are
//! those that a single machine could have given. `stack` records them under faults.
//!
//! Clients create, update, read and remove three services through the Engine API of the managers,
//! at the same time. Each call and its answer are recorded. [`check`](check::check) decides for
//! each service whether its history is linearizable. Services do not depend on each other, so this
//! is the case for the whole history too.
//!
//! - A call without an answer, and an answer with status 503, leave the outcome open: the change
//!   may have been made at any time, or may still be made.
//! - Other errors promise that nothing has changed, and are checked like every answer.
//! - An answer with the warning that it may be out of date must be what was true at some earlier
//!   time. Without the warning, it must be true during the request.

mod operation;
mod check;
mod client;
mod tests;

pub(super) use client::{Client, Recorder};
