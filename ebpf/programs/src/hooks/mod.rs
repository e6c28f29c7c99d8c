//! The programs, one module for each hook that the kernel runs them at.
//!
//! | Program | Runs for | Attached to |
//! |---|---|---|
//! | [`uplink_in`] | packets that enter the node | each uplink with Ethernet, and loopback |
//! | [`uplink_in::uplink_in_l3`] | the same | each uplink without Ethernet |
//! | [`wireguard_in`] | decrypted packets from other nodes | each WireGuard link of weft |
//! | [`tunnel_in`] | packets from other nodes | the VXLAN device |
//! | [`task_out`] | packets that a task sends | the host side of each task's veth |
//! | [`sock`] | socket calls | the root cgroup |
//! | [`names_out`] | packets that a task sends to itself | `lo` in each task's namespace, at egress |
//!
//! `weft-mesh` attaches them. A hook decides which kind of packet it has and calls `flow` and
//! `reply` for the rest. No other room imports from the hooks.
//!
//! # The walk of a packet to a published port
//!
//! Client C connects to port 8080 of node A. The chosen task T listens on port 80 of node B. The
//! client's address is not translated, and replies leave by the node that the request entered.
//!
//! ```text
//! client C                     node A, the ingress node              node B                 task T
//!    |                                   |                              |                        |
//!    |  C:40000 -> A:8080                |                              |                        |
//!    |---------------------------------->| uplink_in                    |                        |
//!    |                                   |   no flow: choose T, insert  |                        |
//!    |                                   |   C -> A  Request            |                        |
//!    |                                   |                              |                        |
//!    |                                   |  VNI 1: C:40000 -> A:8080    |                        |
//!    |                                   |=============================>| tunnel_in              |
//!    |                                   |                              |   no flow: insert      |
//!    |                                   |                              |   C -> A  LocalBackend |
//!    |                                   |                              |   T -> C  Reply        |
//!    |                                   |                              |                        |
//!    |                                   |                              |  C:40000 -> T:80       |
//!    |                                   |                              |----------------------->|
//!    |                                   |                              |  T:80 -> C:40000       |
//!    |                                   |                     task_out |<-----------------------|
//!    |                                   |                T -> C  Reply |                        |
//!    |                                   |  VNI 2: A:8080 -> C:40000    |                        |
//!    |                         tunnel_in |<=============================|                        |
//!    |   reversed key: C -> A  Request   |                              |                        |
//!    |  A:8080 -> C:40000                |                              |                        |
//!    |<----------------------------------|                              |                        |
//! ```
//!
//! If T is on node A, `uplink_in` delivers the packet to it at once, and `task_out` sends the
//! replies out of the link that the client's last packet came from.

pub mod uplink_in;
pub mod wireguard_in;
pub mod tunnel_in;
pub mod task_out;
pub mod sock;
pub mod names_out;
