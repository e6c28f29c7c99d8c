//! Flows: how they are found, created and applied to packets. A flow is what other systems call a
//! conntrack entry.
//!
//! The hooks call this room. A hook looks a packet up first. If it has no flow, the hook decides
//! what kind of flow it may get and calls `create_flow` of that kind:
//!
//! ```text
//!                  hook
//!                   |
//!          lookup::lookup(packet)
//!           |                 |
//!        Lookup::Hit     Lookup::Miss
//!           |                 |
//!           |     published, vip or egress::create_flow
//!           |                 |
//!           |        pick::pick_backend        (not for egress)
//!           |                 |
//!           |        insert::insert_pair       (two entries of FLOWS)
//!           |                 |
//!     apply::translate_and_send
//! ```
//!
//! - [`pick`]: finding backends, and choosing one for a new flow;
//! - [`fragments`]: the ports of fragmented datagrams;
//! - [`insert`]: writing a new flow and the flow of its replies;
//! - [`lookup`]: finding the flow of a packet, and tracking its state;
//! - [`apply`]: translating and sending a packet as its flow says;
//! - [`published`], [`vip`], [`egress`]: creating flows to published ports, to VIPs and to the
//!   outside;
//! - [`icmp_error`]: ICMP errors about packets of a flow.
//!
//! `FLOWS` has one entry for each direction. Its key is the packet as it looks before translation,
//! in the zone where it is seen; its value is the packet after translation, and where to send it.
//! Only this room writes `FLOWS`, except that a hook removes the flow of a dead backend. An entry
//! may disappear at any time, because the map evicts the least recently used one when it is full.

pub mod pick;
pub mod fragments;
pub mod insert;
pub mod lookup;
pub mod apply;
pub mod published;
pub mod vip;
pub mod egress;
pub mod icmp_error;
