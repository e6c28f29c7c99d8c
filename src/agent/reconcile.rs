//! One pass over all layers of the node, and the teardown of all layers after the node left its
//! cluster.
//!
//! [`Agent::run`] calls both. The order of a pass is: observe the tasks, start to prepare new ones,
//! create their links, program the data plane, start the resolvers, start the next step of each
//! task, publish the report. A pass compares the whole plan with the whole state of the node, so
//! the same code handles start-up, changes and repair.
//!
//! Invariant: an error of the links, the data plane or the resolvers does not stop the pass. Tasks
//! are stopped and reported even if the links fail. Only a runtime that cannot list its tasks ends
//! the pass early.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow};
use tokio::time::Instant;
use weft_model::{NetworkId, NodePlan, TaskId, error_chain, plan::TaskPlan};
use weft_overlay::{Endpoint, OverlayState};

use super::{
    Agent, data_plane::close_connections, facts::local_facts, layer_errors::LayerErrors, pass_times::PassTimes,
    sandboxes::Sandboxes, task::PassPoint,
};
use crate::runtime::{ObservedTask, TaskNetns};

impl Agent {
    /// Makes this node match `plan`, as far as one pass can. Task steps continue in the background.
    ///
    /// # Errors
    /// The errors of all layers, joined into one. If a layer panicked, returns only the panic,
    /// before the next layers are configured.
    pub(super) async fn reconcile(&mut self, plan: &Arc<NodePlan>, now: Instant) -> Result<()> {
        let mut times = PassTimes::start();
        let observed = self.observe().await?;
        times.end("tasks");
        self.tasks.track(plan, &observed);
        self.tasks.start_next_steps(plan, &observed, PassPoint::BeforeLinks, now);
        let sandboxes = Sandboxes::new(plan, &observed);
        let mut errors = LayerErrors::default();
        let linked = match self.keys.reconcile(plan) {
            Ok(keys) => self.overlay.reconcile(plan, &sandboxes.places, &keys).await.map_err(Into::into),
            Err(error) => Err(error),
        };
        let linked = linked.context("cannot configure the links of the plan");
        times.end("links");
        let links = match errors.collect(linked)? {
            Some(links) => Some(links),
            None => self.links.take().map(|last| without_removed_sandboxes(last, &sandboxes)),
        };
        let zone = weft_dns::Zone::from_plan(plan);
        if let Some(links) = &links {
            let programmed = self.data_plane.reconcile(plan, local_facts(links, plan, &zone, &sandboxes)).await;
            if let Some(report) = errors.collect(programmed)? {
                errors.collect(close_connections(report.gone, links, &sandboxes).await)?;
            }
            if let Some(error) = &links.encryption_fault {
                errors.collect::<()>(Err(anyhow!("cannot configure encryption: {}", error_chain(error))))?;
            }
            for (task, error) in links.faults.iter().filter(|(_, error)| !error.is_of_ended_task()) {
                tracing::warn!(%task, error = error_chain(error), "cannot configure task links");
            }
        }
        self.links = links;
        times.end("data plane");
        let linked_tasks =
            self.endpoints().iter().filter(|e| e.netns_cookie.is_some()).map(|e| e.task.clone()).collect();
        self.resolvers.reconcile(plan, zone, &linked_tasks, &sandboxes);
        times.end("names");
        if errors.is_empty() {
            self.executor.connect(plan, &self.handed_over(plan));
        }
        self.step_tasks_and_report(plan, &observed, &errors, now);
        self.remove_networks(Some(plan)).await;
        tracing::debug!(generation = plan.generation, ms = %times, "pass complete");
        errors.into_result()
    }

    /// Starts the next step of each task and publishes the report. If a layer failed, no program is
    /// started and the plan is not acknowledged.
    pub(super) fn step_tasks_and_report(
        &mut self,
        plan: &NodePlan,
        observed: &BTreeMap<TaskId, ObservedTask>,
        errors: &LayerErrors,
        now: Instant,
    ) {
        let network_ready = if errors.is_empty() { self.startable_tasks(plan, observed) } else { BTreeSet::new() };
        self.tasks.start_next_steps(plan, observed, PassPoint::End { network_ready: &network_ready }, now);
        if errors.is_empty() {
            self.reporter.set_applied(plan);
        }
        self.reporter.publish(plan, self.links.as_ref(), self.tasks.statuses(plan), errors.text());
    }

    /// The tasks that can be started: those that have their network, and those whose network is
    /// made while they are started.
    fn startable_tasks(&self, plan: &NodePlan, observed: &BTreeMap<TaskId, ObservedTask>) -> BTreeSet<TaskId> {
        let without = observed.values().filter(|observed| observed.netns == TaskNetns::Missing);
        self.tasks_with_network(plan).into_iter().chain(without.map(|observed| observed.task.clone())).collect()
    }

    /// The tasks that have all their links and a resolver. A task without a namespace has no
    /// resolver yet.
    fn tasks_with_network(&self, plan: &NodePlan) -> BTreeSet<TaskId> {
        let mut links: BTreeMap<&TaskId, usize> = BTreeMap::new();
        let mut without_netns = BTreeSet::new();
        for endpoint in self.endpoints() {
            *links.entry(&endpoint.task).or_default() += 1;
            if endpoint.netns_cookie.is_none() {
                without_netns.insert(&endpoint.task);
            }
        }
        let serving = self.resolvers.serving();
        plan.tasks
            .iter()
            .filter(|t| links.get(&t.id).copied().unwrap_or_default() == t.attachments.len())
            .filter(|t| serving.contains(&t.id) || without_netns.contains(&t.id))
            .map(|t| t.id.clone())
            .collect()
    }

    /// The tasks whose network is ready, with the names of the task sides that an engine may move.
    fn handed_over(&self, plan: &NodePlan) -> BTreeMap<TaskId, Vec<String>> {
        let ready = self.tasks_with_network(plan);
        let names = |task: &TaskPlan| {
            (0..task.attachments.len()).map(|index| weft_overlay::handed_over(&task.id, index)).collect()
        };
        plan.tasks.iter().filter(|task| ready.contains(&task.id)).map(|task| (task.id.clone(), names(task))).collect()
    }

    /// What is left of the runtime's networks is in nobody's way, so an error is only logged. The
    /// next change of the networks is another attempt.
    async fn remove_networks(&mut self, plan: Option<&NodePlan>) {
        let networks: BTreeSet<NetworkId> =
            plan.into_iter().flat_map(|plan| &plan.networks).map(|network| network.id.clone()).collect();
        if self.networks.as_ref() == Some(&networks) {
            return;
        }
        match self.executor.remove_networks(plan).await {
            Ok(()) => self.networks = Some(networks),
            Err(error) => tracing::warn!(error = error_chain(&error), "cannot remove networks of the runtime"),
        }
    }

    fn endpoints(&self) -> &[Endpoint] {
        self.links.as_ref().map_or(&[], |links| &links.endpoints)
    }

    async fn observe(&self) -> Result<BTreeMap<TaskId, ObservedTask>> {
        let observed = self.executor.observe().await.context("cannot list the tasks of this node")?;
        Ok(observed.into_iter().map(|o| (o.task.clone(), o)).collect())
    }

    /// Removes all tasks, links, programs, maps and names, after this node has left its cluster.
    ///
    /// If a task cannot be removed, the other tasks are still removed, and the links and the data
    /// plane are kept until the next attempt.
    pub(super) async fn teardown(&mut self) -> Result<()> {
        // A step in progress could create a task, or call the runtime for one, during its removal.
        self.tasks.cancel_steps().await;
        let mut errors = LayerErrors::default();
        for task in self.observe().await?.into_keys() {
            self.resolvers.stop(&task);
            let removed = self.executor.remove(&task).await;
            errors.collect(removed.with_context(|| format!("cannot remove task {task}")))?;
        }
        errors.into_result()?;
        self.remove_networks(None).await;
        self.tasks.clear();
        self.links = None;
        self.reporter.clear_applied();
        self.data_plane.teardown().await?;
        self.overlay.teardown().await.context("cannot remove weft's links")?;
        self.keys.clear()?;
        self.resolvers.clear_zone();
        self.reporter.clear_report();
        Ok(())
    }
}

/// The links of the last successful reconcile, without the endpoints whose sandbox no longer
/// exists. Used after the overlay failed.
fn without_removed_sandboxes(last: OverlayState, sandboxes: &Sandboxes) -> OverlayState {
    let endpoints = last.endpoints.into_iter().filter(|e| sandboxes.places.contains_key(&e.task)).collect();
    OverlayState { endpoints, faults: BTreeMap::new(), encryption_fault: None, ..last }
}
