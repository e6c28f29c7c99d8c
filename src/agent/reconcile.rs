//! One pass over all layers of the node, and the teardown of all layers after the node left its
//! cluster.
//!
//! [`Agent::run`] calls both. The order of a pass is: observe the tasks, start to prepare new ones,
//! create their links, program the data plane, start the resolvers, start the next step of each
//! task, publish the report. A pass compares the whole plan with the whole state of the node, so
//! the same code handles start-up, changes and repair.
//!
//! Invariant: an error of one layer does not stop the pass. Tasks are stopped and reported even if
//! the links fail. If the runtime cannot list its tasks, the pass goes on with those that it has
//! listed last, under this daemon or an earlier one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use tokio::time::Instant;
use weft_model::{NetworkId, NodePlan, TaskId, error_chain, plan::LocalPlan, report::AttachedReports};
use weft_overlay::{Endpoint, OverlayState, Sandbox};

use super::{
    Agent, data_plane::close_connections, facts::local_facts, layer_errors::LayerErrors, pass_times::PassTimes,
    sandboxes::Sandboxes, task::PassPoint,
};
use crate::runtime::{ObservedTask, Ready, TaskNetns};

/// How long the runtime may take to remove its networks.
const NETWORKS_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a new agent waits until it knows the containers that are no tasks. After that, those
/// that it does not know keep the links that they have.
const ATTACHED_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a new agent waits for the list of its tasks. An engine needs some seconds to start.
const LIST_TIMEOUT: Duration = Duration::from_secs(60);

impl Agent {
    /// Makes this node match `plan`, as far as one pass can. Task steps continue in the background.
    ///
    /// # Errors
    /// The errors of all layers, joined into one. If a layer panicked, returns only the panic,
    /// before the next layers are configured.
    pub(super) async fn reconcile(&mut self, plan: &Arc<NodePlan>, now: Instant) -> Result<()> {
        let mut times = PassTimes::start();
        let mut errors = LayerErrors::default();
        let listed = errors.collect(self.observe().await)?;
        let is_listed = listed.is_some();
        match listed {
            Some(tasks) => self.last_seen.set_tasks(tasks),
            None => errors.collect(self.last_seen.forget_ended().await)?.unwrap_or_default(),
        }
        let age = now.saturating_duration_since(self.started);
        self.tasks.awaits_list &= !is_listed && age <= LIST_TIMEOUT;
        let observed = match self.last_seen.tasks() {
            Some(tasks) => Arc::clone(tasks),
            None if age <= LIST_TIMEOUT => return self.report_without_list(plan, errors),
            None => {
                self.tasks.fail_all(plan, &errors.text());
                Arc::default()
            }
        };
        let attached = self.observe_attached().await;
        if self.last_seen.attached().is_none() && !plan.attached.is_empty() && age < ATTACHED_TIMEOUT {
            errors.collect::<()>(Err(anyhow!("the runtime cannot list the containers that are no tasks")))?;
            return self.report_without_list(plan, errors);
        }
        times.end("tasks");
        self.tasks.track(plan, &observed);
        if errors.is_empty() {
            self.tasks.start_next_steps(plan, &observed, PassPoint::BeforeLinks, now);
        }
        let mut sandboxes = Sandboxes::new(plan, &observed, self.last_seen.attached());
        if !self.knows_attached {
            sandboxes.keep_unknown(plan, self.last_seen.attached());
        }
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
        if is_listed {
            self.last_seen.store(self.links.as_ref().map_or(&[], |links| &links.endpoints));
        }
        times.end("data plane");
        let linked_tasks = self.endpoints().iter().filter_map(|e| Some((e.task.clone(), e.netns_cookie?))).collect();
        self.resolvers.reconcile(plan, zone, &linked_tasks, &sandboxes);
        times.end("names");
        let ready = if errors.is_empty() { self.ready(plan, &sandboxes) } else { Ready::default() };
        self.executor.connect(Some(plan), &ready);
        self.step_tasks_and_report(plan, &observed, attached, &errors, now);
        if let Err(error) = self.remove_networks(Some(plan)).await {
            tracing::warn!(error = format!("{error:#}"), "cannot remove networks of the runtime");
        }
        tracing::debug!(generation = plan.generation, ms = %times, "pass complete");
        errors.into_result()
    }

    /// Starts the next step of each task and publishes the report. If a layer failed, no program is
    /// started and the plan is not acknowledged.
    pub(super) fn step_tasks_and_report(
        &mut self,
        plan: &NodePlan,
        observed: &BTreeMap<TaskId, ObservedTask>,
        attached: Option<AttachedReports>,
        errors: &LayerErrors,
        now: Instant,
    ) {
        let network_ready = if errors.is_empty() { self.startable_tasks(plan, observed) } else { BTreeSet::new() };
        self.tasks.start_next_steps(plan, observed, PassPoint::End { network_ready: &network_ready }, now);
        if errors.is_empty() {
            self.reporter.set_applied(plan);
        }
        let links = self.links.as_ref().map(|links| (links, self.executor.engine_facts()));
        // The report says what the node had when it acknowledged the plan.
        let attached = attached.filter(|_| errors.is_empty());
        self.reporter.publish(plan, links, self.tasks.statuses(plan), attached, errors.text());
    }

    /// The tasks that can be started: those that have their network, those whose network is made
    /// while they are started, and those on a network of the node, for which nothing is made.
    fn startable_tasks(&self, plan: &NodePlan, observed: &BTreeMap<TaskId, ObservedTask>) -> BTreeSet<TaskId> {
        let without = observed.values().filter(|observed| observed.netns == TaskNetns::Missing);
        let without = without.map(|observed| observed.task.clone());
        let on_node = plan.tasks.iter().filter(|task| task.node_network.is_some()).map(|task| task.id.clone());
        self.tasks_with_network(plan).into_iter().chain(without).chain(on_node).collect()
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
        plan.local()
            .filter(|t| links.get(t.id).copied().unwrap_or_default() == t.links.len())
            .filter(|t| serving.contains(t.id) || without_netns.contains(t.id))
            .map(|t| t.id.clone())
            .collect()
    }

    /// The tasks and containers of this pass whose start waits for their network and whose network
    /// is ready, with the names of the task sides that the engine moves; and the running containers
    /// that are no tasks and have all their links.
    fn ready(&self, plan: &NodePlan, sandboxes: &Sandboxes) -> Ready {
        let is_waiting =
            |local: &LocalPlan<'_>| matches!(sandboxes.places.get(local.id), Some(Sandbox::HandOver { .. }));
        if plan.attached.is_empty() && !plan.local().any(|local| is_waiting(&local)) {
            return Ready::default();
        }
        let with_network = self.tasks_with_network(plan);
        let mut ready = Ready::default();
        for local in plan.local().filter(|local| with_network.contains(local.id) && sandboxes.is_known(local.id)) {
            if is_waiting(&local) {
                let names = local.links.iter().map(|(index, _)| weft_overlay::handed_over(local.id, *index as usize));
                ready.handed_over.insert(local.id.clone(), names.collect());
            } else if local.task.is_none() {
                ready.in_place.insert(local.id.clone());
            }
        }
        ready
    }

    /// Removes what the runtime has of networks that are not in the plan. Those that containers
    /// still use are tried again in the next pass.
    async fn remove_networks(&mut self, plan: Option<&NodePlan>) -> Result<()> {
        let networks: BTreeSet<NetworkId> =
            plan.into_iter().flat_map(|plan| &plan.networks).map(|network| network.id.clone()).collect();
        if self.networks.as_ref() == Some(&networks) {
            return Ok(());
        }
        let removal = tokio::time::timeout(NETWORKS_TIMEOUT, self.executor.remove_networks(plan));
        let are_removed = removal.await.context("the runtime does not answer")?.context("cannot remove networks")?;
        self.networks = are_removed.then_some(networks);
        Ok(())
    }

    /// The runtime could not list its tasks since the node has joined its cluster, or since this
    /// agent has started under another release. They may run, so nothing is changed yet.
    fn report_without_list(&self, plan: &NodePlan, errors: LayerErrors) -> Result<()> {
        self.reporter.publish(plan, None, self.tasks.statuses(plan), None, errors.text());
        errors.into_result()
    }

    fn endpoints(&self) -> &[Endpoint] {
        self.links.as_ref().map_or(&[], |links| &links.endpoints)
    }

    /// What the engine says of the containers that are no tasks, for the report. `None` if they
    /// could not be listed: then those of the last list keep their links.
    async fn observe_attached(&mut self) -> Option<AttachedReports> {
        let observed = match self.executor.observe_attached().await {
            Ok(observed) => observed,
            Err(error) => {
                tracing::debug!(error = error_chain(&error), "cannot list the containers that are no tasks");
                return None;
            }
        };
        self.knows_attached |= observed.complete;
        Some(self.last_seen.update_attached(observed, self.started.elapsed() >= ATTACHED_TIMEOUT))
    }

    async fn observe(&self) -> Result<Arc<BTreeMap<TaskId, ObservedTask>>> {
        let observed = self.executor.observe().await.context("cannot list the tasks of this node")?;
        Ok(Arc::new(observed.into_iter().map(|o| (o.task.clone(), o)).collect()))
    }

    /// Removes all tasks, links, programs, maps and names, after this node has left its cluster.
    ///
    /// If a task cannot be removed, the other tasks are still removed, and the links and the data
    /// plane are kept until the next attempt. They are not kept if the runtime cannot list its
    /// tasks: that can last, and the published ports of the former cluster must not.
    pub(super) async fn teardown(&mut self) -> Result<()> {
        // A step in progress could create a task, or call the runtime for one, during its removal.
        self.executor.connect(None, &Ready::default());
        self.tasks.cancel_steps().await;
        let mut errors = LayerErrors::default();
        let listed = errors.collect(self.observe().await)?;
        for task in listed.iter().flat_map(|observed| observed.keys()) {
            self.resolvers.stop(task);
            let removed = self.executor.remove(task).await;
            errors.collect(removed.with_context(|| format!("cannot remove task {task}")))?;
        }
        if listed.is_some() {
            std::mem::take(&mut errors).into_result()?;
            self.remove_networks(None).await?;
        }
        self.tasks.clear();
        self.last_seen.clear()?;
        self.knows_attached = false;
        self.links = None;
        self.reporter.clear_applied();
        self.data_plane.teardown().await?;
        self.overlay.teardown().await.context("cannot remove weft's links")?;
        self.keys.clear()?;
        self.resolvers.clear_zone();
        self.reporter.clear_report();
        errors.into_result()
    }
}

/// The links of the last successful reconcile, without the endpoints whose sandbox no longer
/// exists. Used after the overlay failed.
fn without_removed_sandboxes(last: OverlayState, sandboxes: &Sandboxes) -> OverlayState {
    let endpoints = last.endpoints.into_iter().filter(|e| sandboxes.places.contains_key(&e.task)).collect();
    OverlayState { endpoints, faults: BTreeMap::new(), encryption_fault: None, ..last }
}
