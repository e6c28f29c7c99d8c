//! The node agent: makes this node match its plan, layer by layer, and reports the result.
//!
//! The daemon creates one [`Agent`] and awaits [`Agent::run`]. That loop waits for an event: a new
//! plan, a change in the runtime, a change of a link, the end of a task step, or a timeout. An
//! event only wakes the loop. Each iteration of the loop is one full pass over all layers
//! ([`reconcile`]), or the teardown of all layers after the node has left its cluster.
//!
//! The agent must not decide anything about the cluster: all decisions come in the plan.
//!
//! Invariants that others rely on:
//! - A task's program starts only after its network namespace, its links, the data plane and its
//!   resolver are ready. There is one exception: engines before version 28 make the namespace so
//!   late that the resolver of a container can be ready some milliseconds after its program.
//! - The agent does not need its memory after a restart: a new agent finds the state of the node in
//!   the kernel and in the runtime, or in a file if the runtime does not answer ([`last_seen`]).
//! - Dropping the future of [`Agent::run`] leaves the kernel, the tasks and their traffic as they
//!   are.
//!
//! Tasks (tokio): the one that runs the loop, and one for each task step ([`task`]).

mod blocking;
mod layer_errors;
mod facts;
mod keys;
mod data_plane;
mod resolvers;
mod task;
mod describe;
mod last_seen;
mod sandboxes;
mod report;
mod pass_times;
mod reconcile;
#[cfg(test)]
mod name_replies;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Result;
use tokio::time::Instant;
use weft_control::swarm::{Membership, Swarm};
use weft_dns::Outside;
use weft_mesh::Mesh;
use weft_model::{NetworkId, spec::Labels};
use weft_overlay::{Overlay, OverlayState};

use self::{
    data_plane::DataPlane, keys::Keys, last_seen::LastSeen, report::Reporter, resolvers::Resolvers, task::Tasks,
};
use crate::runtime::{Executor, RuntimeKind};

/// Interval of the full resync: a pass without an event, which repairs changes that caused no
/// event.
const FULL_RESYNC: Duration = Duration::from_secs(10);
/// Delay before the next pass after a layer failed.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The layers that an agent controls, and the properties of the node that it reports.
pub(crate) struct AgentConfig {
    pub(crate) swarm: Swarm,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) runtime: RuntimeKind,
    /// The node's `engine.labels`, for placement constraints.
    pub(crate) labels: Labels,
    pub(crate) overlay: Overlay,
    pub(crate) mesh: Mesh,
    /// A directory in the BPF file system. The agent opens the mesh there again when the node joins
    /// a cluster after it has left one.
    pub(crate) pin_dir: PathBuf,
    /// Answers names outside of the cluster.
    pub(crate) outside: Outside,
    /// The node's WireGuard keys are in a folder of this one.
    pub(crate) data_dir: PathBuf,
    /// The UDP port of the first of the node's two WireGuard links.
    pub(crate) wireguard_port: u16,
}

pub(crate) struct Agent {
    swarm: Swarm,
    executor: Arc<dyn Executor>,
    overlay: Overlay,
    /// The result of the last successful reconcile of the overlay; `None` before the first one.
    links: Option<OverlayState>,
    started: Instant,
    last_seen: LastSeen,
    /// The runtime has listed all containers that are no tasks once. From then on it knows each of
    /// them, and before, the plan can have running containers that are not in `last_seen`.
    knows_attached: bool,
    /// The networks of the plan when the runtime removed those of others last.
    networks: Option<BTreeSet<NetworkId>>,
    keys: Keys,
    data_plane: DataPlane,
    resolvers: Resolvers,
    tasks: Tasks,
    reporter: Reporter,
}

impl Agent {
    pub(crate) fn new(config: AgentConfig) -> Self {
        let AgentConfig { swarm, executor, runtime, labels, overlay, mesh, pin_dir, outside, .. } = config;
        Self {
            keys: Keys::new(&config.data_dir, config.wireguard_port),
            reporter: Reporter::new(swarm.reports(), runtime, labels),
            tasks: Tasks::new(Arc::clone(&executor)),
            resolvers: Resolvers::new(outside),
            data_plane: DataPlane::new(Some(mesh), pin_dir),
            links: None,
            started: Instant::now(),
            last_seen: LastSeen::load(&config.data_dir),
            knows_attached: false,
            networks: None,
            overlay,
            executor,
            swarm,
        }
    }

    /// Runs until the swarm is dropped. Cancel-safe: if a pass is interrupted, the next agent
    /// completes it.
    ///
    /// # Errors
    /// If a layer panicked: its state is unknown, and the daemon must be started again.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut plans = self.swarm.plans();
        let mut runtime = self.executor.changed();
        let mut links = self.overlay.changed();
        let (mut was_member, mut torn_down) = (false, false);
        loop {
            let plan = plans.borrow_and_update().clone();
            runtime.borrow_and_update();
            links.borrow_and_update();
            let now = Instant::now();
            let outcome = match &plan {
                Some(plan) => {
                    (was_member, torn_down) = (true, false);
                    self.reconcile(plan, now).await
                }
                // The node has left its cluster or was removed from it. This may have happened
                // under an earlier daemon that did not complete the teardown.
                None if !torn_down && (was_member || self.is_in_no_cluster()) => {
                    let outcome = self.teardown().await;
                    torn_down = outcome.is_ok();
                    outcome
                }
                None => Ok(()),
            };
            let delay = delay_after(outcome)?.min(self.delay_until_retry(now));
            tokio::select! {
                changed = plans.changed() => if changed.is_err() { return Ok(()) },
                _ = runtime.changed() => {}
                _ = links.changed() => {}
                () = self.tasks.step_finished() => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// The delay until the earliest retry of a failed task step, or [`FULL_RESYNC`] if there is
    /// none. Ignores retries that were due at `now`, because the pass at `now` has already started
    /// them.
    fn delay_until_retry(&self, now: Instant) -> Duration {
        let retry_at = self.tasks.next_retry(now);
        retry_at.map_or(FULL_RESYNC, |retry_at| retry_at.saturating_duration_since(Instant::now()))
    }

    fn is_in_no_cluster(&self) -> bool {
        *self.swarm.membership().borrow() == Membership::None
    }
}

/// The delay until the next pass if no event comes before.
///
/// # Errors
/// If a layer panicked: no other pass may follow.
fn delay_after(outcome: Result<()>) -> Result<Duration> {
    match outcome {
        Ok(()) => Ok(FULL_RESYNC),
        Err(error) if blocking::is_panic(&error) => Err(error),
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "reconcile failed, retrying");
            Ok(RETRY_DELAY)
        }
    }
}
