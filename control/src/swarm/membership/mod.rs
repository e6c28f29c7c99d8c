//! A membership from its beginning to its end: forming or joining a cluster, resuming after a
//! restart, the role of this node, and leaving.
//!
//! [`super::Swarm`] calls [`Lifecycle`]. This module is the only one that writes the membership's
//! files and that decides whether a manager runs on this node. It does not decide the role: the
//! cluster state contains it, and the leader sends it to this node in the plan.
//!
//! ```text
//!             init, join              accepted by the cluster, files written
//!     None ───────────────▶ Joining ─────────────────────────────────────────┐
//!     ▲ ▲ │                    │ failed: files removed                       ▼
//!     │ └─┼────────────────────┘   ┌───────────────── Active ─────────────────────────────┐
//!     │   │                        │            the plan says manager:                    │
//!     │   └ open finds a record ──▶│            certificate, keys, log                    │
//!     │                            │   worker ─────────────────────────────────▶ manager  │
//!     │                            │          ◀─────────────────────────────────          │
//!     │                            │            the plan says worker:                     │
//!     │                            │            certificate, log closed and removed       │
//!     │                            └──────────────────────────────────────────────────────┘
//!     │                               │ removed from the cluster,     ▲ a leader accepts a
//!     │                               │ or the log failed             │ session, or the log
//!     │                               ▼                               │ is open again
//!     │                             Error ────────────────────────────┘
//!     │
//!     └── leave, from Active or Error: a manager gives up its vote, the leader is notified,
//!         all tasks stop, the files are removed
//! ```
//!
//! A manager whose files are locked ([`crate::vault`]) is neither: `open` publishes `Locked` and
//! the stored plan, and starts nothing. `unlock` then resumes the membership, and `leave` with
//! force ends it.
//!
//! - `store`: the membership's files.
//! - `address`: which address this node advertises.
//! - `moved`: notices that the machine has another address.
//! - `ask`: calls to any manager that answers.
//! - `role`: keeps the certificate and the manager in line with the role in the plan.
//! - `backup`: the file of a backup.
//! - `reform`: forms the cluster again with this node as its only manager, from its log or a
//!   backup.
//! - `init`, `join`: the two other ways to begin.
//! - `supervisor`: starts and stops the tasks of a membership.
//! - `leave`: gives up the vote and notifies the leader before this node stops.
//! - `lifecycle`: runs the changes of the membership, one at a time.
//! - `attach`: changes of this node's containers that are no tasks.

mod store;
mod address;
mod moved;
mod ask;
mod role;
mod backup;
mod reform;
mod init;
mod join;
mod supervisor;
mod leave;
mod lifecycle;
mod attach;

pub use address::KernelAddrs;
#[cfg(test)]
pub(crate) use backup::Backup;
pub(super) use lifecycle::Lifecycle;
