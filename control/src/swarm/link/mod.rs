//! The link: this node's session with the leader. It finds the leader, sends reports, acks and
//! heartbeats, and publishes the plans that it receives.
//!
//! One task, started by the supervisor. It reconnects until the membership ends. While there is no
//! session, the node keeps its last plan. The link withdraws the plan only if a leader answers that
//! the cluster state no longer contains this node. Invariant: a generation is acked only after the
//! agent programmed its plan and the supervisor stored it, or failed to store it. Invariant: a plan
//! never replaces a newer one ([`weft_model::plan::PlanVersion`]).
//!
//! ```text
//!               no connection, no answer, or no leader is known
//!              ┌────────────────────────────────────────────────┐
//!              │                                                ▼
//!   ┌────▶ connecting ◀────── 100 ms, doubled up to 1 s ────── waiting
//!   │        │  │  │                                           ▲   ▲
//!   │        │  │  └── PermissionDenied ──▶ removed ───────────┘   │
//!   │        │  │                           the plan is withdrawn  │
//!   │        │  │ Plan                                             │
//!   │        │  ▼                                                  │
//!   │        │ established ────────── connection lost ─────────────┘
//!   │        │  │   reports, acks and heartbeats to the leader,
//!   │        │  │   plans from the leader
//!   └────────┴──┘
//!     Redirect: connects to the leader at once
//! ```
//!
//! A manager that sends a plan older than the node's is like one that does not answer: the link
//! waits, and asks the next one.
//!
//! The link does not follow a second redirect in a row: it waits, and then asks the next manager.

pub(super) mod acks;
pub(super) mod inbox;
mod session;

use std::{sync::Arc, time::Duration};

use weft_model::Backoff;

use self::{
    acks::AckTracker,
    session::{Session, SessionEnd},
};
use super::context::{Context, HealthIssue};

/// The pause before the next attempt.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
/// Each pause is multiplied by a random factor, so that nodes that lost the same leader do not
/// reconnect at the same moment.
const JITTER: std::ops::Range<f64> = 0.8..1.2;

/// What `weft info` shows if this node does not trust the managers.
const UNTRUSTED: &str = "another certificate authority than this node trusts has signed the certificates of the \
                         managers: the swarm has replaced its authority without this node, or was restored from a \
                         backup, or another swarm has taken the addresses of the managers. Run \"weft swarm leave \
                         --force\", then join again";

/// Keeps a session with the leader, until it is dropped. Returns only if no manager's address is
/// known.
pub(super) async fn run(context: Arc<Context>) {
    let mut acks = AckTracker::default();
    if let Some(plan) = context.channels.plans.borrow().as_ref() {
        acks.deliver(plan.version());
    }
    let mut failures = 0_u32;
    // How many sessions ended because the manager had an earlier plan, since the last other one.
    let mut outdated = 0;
    // How many managers had certificates of unknown CAs, since the last session.
    let mut untrusted = 0;
    let mut next_addr = 0;
    let mut leader = None;
    loop {
        let addrs = context.manager_addrs();
        let redirected = leader.take();
        let Some(addr) = redirected.or_else(|| addrs.get(next_addr % addrs.len().max(1)).copied()) else {
            return tracing::error!("no manager's address is known: let this node leave the swarm and join again");
        };
        let mut session = Session::new(&context, &mut acks);
        let end = session.run(addr).await;
        if session.is_established() {
            (failures, outdated, untrusted) = (0, 0, 0);
        }
        match end {
            // Follow one redirect only: two managers may each believe that the other one leads.
            SessionEnd::Redirected(Some(other)) if redirected.is_none() && other != addr => {
                leader = Some(context.reachable(other));
                continue;
            }
            SessionEnd::Redirected(_) => tracing::debug!(%addr, "this manager does not lead"),
            SessionEnd::Outdated(reason) => {
                outdated += 1;
                if outdated == 1 {
                    tracing::warn!(%addr, reason, "this node keeps its plan, and asks other managers");
                }
                if outdated >= addrs.len() {
                    context.set_issue(HealthIssue::Outdated, Some(format!("manager {addr}: {reason}")));
                }
            }
            SessionEnd::Disconnected(reason) => tracing::debug!(%addr, reason, "session with the leader lost"),
            SessionEnd::Untrusted => {
                untrusted += 1;
                if untrusted >= addrs.len() {
                    context.set_issue(HealthIssue::Authority, Some(format!("{UNTRUSTED} (manager {addr})")));
                }
            }
            SessionEnd::Removed(reason) => {
                let text =
                    format!("{reason}: its tasks are stopped; run \"weft swarm leave --force\", then join again");
                context.set_issue(HealthIssue::Removed, Some(text));
                context.channels.plans.send_replace(None);
                acks = AckTracker::default();
                failures = u32::MAX;
            }
        }
        failures = failures.saturating_add(1);
        next_addr += 1;
        tokio::time::sleep(RETRY.delay(failures).mul_f64(crate::host::random_range(JITTER))).await;
    }
}
