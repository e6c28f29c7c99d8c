//! The network links of one node: the tunnel device that carries every overlay network, a WireGuard
//! link for each key of the node, one veth pair for each attachment of a task, and the addresses,
//! routes and sysctls that they need.
//!
//! The agent calls [`Overlay::reconcile`] when the plan or the links of the node change. The mesh
//! attaches its programs to the links that this crate makes.
//!
//! This crate owns links, addresses, routes and their sysctls, and how code enters a network
//! namespace. It must not decide where a packet goes: that is the mesh's job. It needs no bridge,
//! no netfilter rule and no `ip_forward`.
//!
//! Modules in reading order. The crate `weft-mesh` has the same ones, except those marked with *:
//!
//! - `name`*: the names of weft's links (pure);
//! - `sandbox`*: where the task side of a task's links is (plain data);
//! - `wireguard`*: keys, and which implementation of WireGuard encrypts (plain data);
//! - [`desired`]: what this node must have, from the plan and the sandboxes (pure);
//! - [`actual`]: what the kernel holds (pure data);
//! - [`diff`]: the operations that turn `actual` into `desired` (pure);
//! - [`facts`]: the node's uplinks, addresses and routes, for other layers (pure);
//! - `endpoint`*: the links through which tasks can be reached (pure);
//! - `error`: the one error type, with hints for the operator;
//! - `kernel`: netlink, WireGuard, sysctls and namespaces; the only code that makes system calls;
//! - `reconcile`: reads, compares and applies until nothing is left to do;
//! - `overlay`: the handle that the agent holds.
//!
//! Invariant: a link belongs to weft if and only if its name says so. Links with other names are
//! never changed, except that `lo` gets two sysctls.

mod name;
mod sandbox;
mod wireguard;
pub mod desired;
pub mod actual;
pub mod diff;
pub mod facts;
mod endpoint;
mod error;
mod kernel;
mod reconcile;
mod overlay;

pub use endpoint::Endpoint;
pub use error::Error;
pub use facts::{EgressRoute, NodeFacts, Uplink};
pub use kernel::netns;
pub use name::handed_over;
pub use overlay::{Overlay, OverlayState};
pub use sandbox::Sandbox;
pub use wireguard::{EncryptionMode, KeyLink, OwnKey, PrivateKey};
