//! The links of one node: the tunnel device that serves every overlay network, one veth pair for each attachment of a
//! task, and the addresses, routes and sysctls that make packets reach them.
//!
//! Owns what the kernel's routing netlink speaks of, and network namespaces. It must not know where packets go: the
//! mesh decides that, on the links made here. Nothing here needs a bridge, netfilter or `ip_forward`.
//!
//! Rooms, in reading order:
//!
//! - `found`: what the kernel holds in one network namespace, in our terms (pure);
//! - [`facts`]: what the node itself has: uplinks, addresses, routes (pure);
//! - `name`: the names and aliases of links that are weft's (pure);
//! - `desired`: [`weft_model::NodePlan`] and sandboxes → the links that shall be (pure);
//! - `diff`: those and what the kernel holds → operations (pure);
//! - `endpoint`: what tasks are reached by (pure);
//! - `kernel`: netlink sockets, sysctls; the only place that knows errno;
//! - [`netns`]: running code inside another network namespace;
//! - `overlay`: the shell that puts them together.

mod desired;
mod diff;
mod endpoint;
pub mod facts;
mod found;
mod kernel;
mod name;
pub mod netns;
mod overlay;

pub use endpoint::Endpoint;
pub use facts::{NodeFacts, Uplink, Way};
pub use kernel::KernelError;
pub use netns::NetnsError;
pub use overlay::{Overlay, OverlayError, OverlayState};
