//! Conversion between the Engine API's JSON and weft's own types, in both directions. Pure.
//!
//! The handlers call it. It alone knows what the wire looks like: names of fields, units
//! (nanoseconds on the wire, milliseconds in weft), and the difference between zero and absent. It
//! must not use the network or the clock, and it gets bodies, not requests.
//!
//! Reading starts with [`fields::read`], which accepts names of fields in any case. It ends with
//! [`unsupported::refuse`], which refuses by name what weft's types cannot hold. So weft
//! does everything that an accepted body asks for.

mod values;
pub(crate) mod fields;
pub(crate) mod unsupported;
pub(crate) mod placement;
pub(crate) mod network;
pub(crate) mod task;
pub(crate) mod service;
pub(crate) mod node;
pub(crate) mod cluster;
pub(crate) mod membership;
#[cfg(test)]
mod roundtrip;

pub(crate) use values::{set, signed, to_json};
