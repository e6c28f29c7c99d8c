//! Converts between the Engine API's JSON and weft's own types, in both directions. Pure.
//!
//! The handlers call it. Only this module knows the format on the wire, which is the JSON of the
//! Engine API: the names of fields, the units (nanoseconds on the wire, milliseconds in weft), and
//! the difference between zero and absent. It must not use the network or the clock. It gets
//! bodies, never whole requests.
//!
//! Each reader of a body calls [`fields::read_known`] first, which accepts names of fields in any
//! case, and removes and lists the fields that the Engine API does not have.
//! It calls [`unsupported::refuse`] last, which refuses each value that weft's types cannot hold
//! and names it in the error. This guarantees that weft does everything that an accepted body asks
//! for in fields of the Engine API.

mod values;
pub(crate) mod fields;
pub(crate) mod unsupported;
pub(crate) mod placement;
mod left_out;
pub(crate) mod network;
pub(crate) mod dependency;
pub(crate) mod task;
pub(crate) mod service;
pub(crate) mod encryption;
pub(crate) mod cluster;
pub(crate) mod node;
pub(crate) mod membership;
#[cfg(test)]
mod roundtrip;

pub(crate) use values::{set, signed, to_json};
