//! The node agent: makes this node what its plan says, layer by layer, and reports what became of it.
//!
//! Owns the order of things on a node: a task's namespace, then its links, then the mesh's tables and its names, then
//! its process; and the reverse on the way out. Decides nothing about the cluster. One task runs [`Agent::run`]; every
//! event (a new plan, a runtime's change, a link's change, a finished step, a tick) only wakes it, and each wake is one
//! full [`Agent::sync`]. Dropping the future leaves the kernel, the tasks and their traffic as they are.

mod tasks;
mod progress;
mod steps;
mod listening;
mod facts;
mod describe;
mod aside;
mod faults;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};
use weft_control::swarm::{Membership, Swarm};
use weft_mesh::Mesh;
use weft_model::{
    NetworkId, NodeId, NodePlan, TaskId,
    plan::{TaskGoal, TaskPlan},
    report::NodeReport,
    spec::Labels,
};
use weft_overlay::{Endpoint, NodeFacts, Overlay, OverlayState};

use self::{
    faults::Faults,
    progress::Progress,
    steps::{Call, Ears, Finished},
    tasks::{Next, Step, View},
};
use crate::{
    error_chain::error_chain,
    runtime::{Executor, ObservedTask, RuntimeKind},
};

/// How often everything is compared with the kernel though nothing rang.
const FULL_SYNC: Duration = Duration::from_secs(10);
/// The wait before the next attempt when a layer failed.
const RETRY: Duration = Duration::from_millis(500);

/// The layers that an agent drives, and what it is to say of its node.
pub(crate) struct AgentConfig {
    pub(crate) swarm: Swarm,
    pub(crate) executor: Arc<dyn Executor>,
    pub(crate) runtime: RuntimeKind,
    /// `engine.labels` of constraints.
    pub(crate) labels: Labels,
    pub(crate) overlay: Overlay,
    pub(crate) mesh: Mesh,
    /// Where the mesh is opened anew, under the BPF file system.
    pub(crate) pin_dir: PathBuf,
    /// Resolvers for names from outside.
    pub(crate) upstreams: Vec<SocketAddr>,
}

pub(crate) struct Agent {
    swarm: Swarm,
    executor: Arc<dyn Executor>,
    runtime: RuntimeKind,
    labels: Labels,
    overlay: Overlay,
    /// `None` while it works aside, and after this node left: opened anew when it joins again.
    mesh: Option<Mesh>,
    pin_dir: PathBuf,
    /// As they were when they were last right; `None` before they first are.
    links: Option<OverlayState>,
    /// The latest plan that every layer held, by the node that it was for and its generation: another membership's says nothing.
    held: Option<(NodeId, u64)>,
    names: weft_dns::ZoneHandle,
    dns: weft_dns::Server,
    /// What is remembered between two syncs; all of it can be found out again.
    tasks: BTreeMap<TaskId, Progress>,
    /// Steps under way: one of each task, and beside its wait for ports another.
    steps: JoinSet<Finished>,
}

impl Agent {
    pub(crate) fn new(config: AgentConfig) -> Self {
        let AgentConfig { swarm, executor, runtime, labels, overlay, mesh, pin_dir, upstreams } = config;
        let names = weft_dns::ZoneHandle::default();
        let dns = weft_dns::Server::new(names.clone(), upstreams);
        Self {
            swarm,
            executor,
            runtime,
            labels,
            overlay,
            mesh: Some(mesh),
            pin_dir,
            links: None,
            held: None,
            names,
            dns,
            tasks: BTreeMap::new(),
            steps: JoinSet::new(),
        }
    }

    /// Runs until the swarm is dropped, or a layer is past repair. Cancel-safe: what a sync left undone, the next one does.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut plans = self.swarm.plans();
        let mut runtime = self.executor.changed();
        let mut links = self.overlay.changed();
        let (mut was_member, mut clean) = (false, false);
        loop {
            let plan = plans.borrow_and_update().clone();
            runtime.borrow_and_update();
            links.borrow_and_update();
            let now = Instant::now();
            let outcome = match &plan {
                Some(plan) => {
                    (was_member, clean) = (true, false);
                    self.sync(plan, now).await
                }
                // Left, removed, or left by an earlier daemon that did not get so far.
                None if !clean && (was_member || self.is_no_member()) => {
                    let torn_down = self.tear_down().await;
                    clean = torn_down.is_ok();
                    torn_down
                }
                None => Ok(()),
            };
            let pause = pause(outcome)?.min(self.next_attempt(now));
            tokio::select! {
                changed = plans.changed() => if changed.is_err() { return Ok(()) },
                _ = runtime.changed() => {}
                _ = links.changed() => {}
                Some(done) = self.steps.join_next() => {
                    self.note(done);
                    while let Some(done) = self.steps.try_join_next() {
                        self.note(done);
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// How long until a step that failed may be tried again, of those that rested at `now`.
    fn next_attempt(&self, now: Instant) -> Duration {
        let resting = self.tasks.values().filter_map(|progress| progress.resting(now)).min();
        resting.map_or(FULL_SYNC, |until| until.saturating_duration_since(Instant::now()))
    }

    fn is_no_member(&self) -> bool {
        *self.swarm.membership().borrow() == Membership::None
    }

    /// Goes on past a layer that fails: tasks end, and what became of them is told, whatever the links are like.
    async fn sync(&mut self, plan: &Arc<NodePlan>, now: Instant) -> Result<()> {
        let observed = self.observe().await?;
        self.adopt(plan, &observed);
        let sandboxes: BTreeMap<TaskId, PathBuf> = observed
            .values()
            .filter(|o| plan.tasks.iter().any(|t| t.id == o.task))
            .filter_map(|o| Some((o.task.clone(), o.netns.clone()?)))
            .collect();
        let mut faults = Faults::default();
        let made = self.overlay.reconcile(plan, &sandboxes).await.context("cannot make the links of the plan");
        let links = match faults.collect(made)? {
            Some(made) => Some(made),
            None => self.links.take().map(|last| surviving(last, &sandboxes)),
        };
        if let Some(links) = &links {
            let programmed = self.program(plan, links).await;
            if let Some(report) = faults.collect(programmed)? {
                faults.collect(close_connections(report.gone, links, &sandboxes).await)?;
            }
            for (task, fault) in &links.faults {
                tracing::warn!(%task, error = error_chain(fault), "a task's links are not as they shall be");
            }
        }
        self.links = links;
        self.serve_names(plan, &sandboxes);
        self.settle(plan, &observed, &faults, now);
        faults.into_result()
    }

    /// What follows for the tasks, and for the cluster, from what the layers came to.
    fn settle(&mut self, plan: &NodePlan, observed: &BTreeMap<TaskId, ObservedTask>, faults: &Faults, now: Instant) {
        self.step(plan, observed, faults, now);
        self.report(plan, faults);
    }

    fn endpoints(&self) -> &[Endpoint] {
        self.links.as_ref().map_or(&[], |links| &links.endpoints)
    }

    async fn observe(&self) -> Result<BTreeMap<TaskId, ObservedTask>> {
        let observed = self.executor.observe().await.context("cannot see the tasks of this node")?;
        Ok(observed.into_iter().map(|o| (o.task.clone(), o)).collect())
    }

    /// Opens a record for every task of the plan or the runtime, and closes those of neither.
    fn adopt(&mut self, plan: &NodePlan, observed: &BTreeMap<TaskId, ObservedTask>) {
        let planned: BTreeSet<&TaskId> = plan.tasks.iter().map(|t| &t.id).collect();
        self.tasks
            .retain(|id, progress| planned.contains(id) || observed.contains_key(id) || progress.in_flight.is_some());
        for id in planned.into_iter().chain(observed.keys()) {
            self.tasks.entry(id.clone()).or_insert_with(Progress::new);
        }
    }

    async fn program(&mut self, plan: &Arc<NodePlan>, links: &OverlayState) -> Result<weft_mesh::Report> {
        let facts = facts::of(links);
        let (held, pin_dir, plan) = (self.mesh.take(), self.pin_dir.clone(), Arc::clone(plan));
        let (mesh, report) = aside::blocking("program the data plane", move || {
            let mut mesh = match held.map_or_else(|| Mesh::open(&pin_dir), Ok) {
                Ok(mesh) => mesh,
                Err(error) => return (None, Err(error)),
            };
            let report = mesh.reconcile(&plan, &facts);
            (Some(mesh), report)
        })
        .await?;
        self.mesh = mesh;
        let report = report.context("cannot program the data plane")?;
        if !report.is_unchanged() {
            tracing::debug!(?report, "the data plane follows");
        }
        Ok(report)
    }

    /// A resolver on 127.0.0.11 in every sandbox whose links are up, and in no other.
    fn serve_names(&self, plan: &NodePlan, sandboxes: &BTreeMap<TaskId, PathBuf>) {
        self.names.publish(weft_dns::Zone::from_plan(plan));
        let plumbed: BTreeSet<&TaskId> = self.endpoints().iter().map(|e| &e.task).collect();
        for gone in self.dns.serving().into_iter().filter(|t| !plumbed.contains(t)) {
            self.dns.stop(&gone);
        }
        let serving: BTreeSet<TaskId> = self.dns.serving().into_iter().collect();
        for task in plan.tasks.iter().filter(|t| plumbed.contains(&t.id) && !serving.contains(&t.id)) {
            if let Some(netns) = sandboxes.get(&task.id) {
                let networks = task.attachments.iter().map(|a| a.network.clone()).collect();
                if let Err(error) = self.start_resolver(&task.id, networks, netns) {
                    tracing::warn!(task = %task.id, error = format!("{error:#}"), "no name service for this task yet");
                }
            }
        }
    }

    fn start_resolver(&self, task: &TaskId, networks: Vec<NetworkId>, netns: &Path) -> Result<()> {
        let sockets = weft_overlay::netns::in_netns(netns, weft_dns::open_sockets)
            .context("cannot enter the task's network namespace")?
            .context("cannot listen on 127.0.0.11:53 there")?;
        self.dns.start(task.clone(), networks, sockets).context("cannot serve names there")
    }

    /// Chooses and begins the next step of every task; steps run beside each other and ring when done.
    fn step(&mut self, plan: &NodePlan, observed: &BTreeMap<TaskId, ObservedTask>, faults: &Faults, now: Instant) {
        let plans: BTreeMap<&TaskId, &TaskPlan> = plan.tasks.iter().map(|t| (&t.id, t)).collect();
        let ran: BTreeSet<&TaskId> =
            plan.services.iter().flat_map(|s| &s.backends).map(|backend| &backend.task).collect();
        let serving: BTreeSet<TaskId> = self.dns.serving().into_iter().collect();
        let mut plumbed_links: BTreeMap<TaskId, usize> = BTreeMap::new();
        for endpoint in self.endpoints() {
            *plumbed_links.entry(endpoint.task.clone()).or_default() += 1;
        }
        for (id, progress) in &mut self.tasks {
            let planned = plans.get(id).copied();
            let seen = observed.get(id);
            // One that has taken traffic before an earlier daemon ended goes on taking it.
            progress.listening |= ran.contains(id);
            progress.see(seen);
            if planned.is_none_or(|task| task.desired == TaskGoal::Stop) {
                progress.cut_fetching_short();
            }
            // Waiting for its ports keeps nobody from stopping it.
            if progress.in_flight.is_some_and(|step| step != Step::Listen) {
                continue;
            }
            let links = plumbed_links.get(id).copied().unwrap_or_default();
            let view = View {
                goal: planned.map(|t| t.desired),
                phase: seen.map(|o| &o.phase),
                plumbed: faults.is_empty()
                    && planned.is_some_and(|t| links == t.attachments.len())
                    && serving.contains(id),
                has_run: ran.contains(id),
                listening: progress.listening || progress.in_flight == Some(Step::Listen),
                stopping: progress.stopping,
                reported: progress.status.state,
            };
            match tasks::next(view) {
                Next::Wait => {}
                Next::Do(step) if progress.rests(step, now) => {}
                Next::Ended(ending) => progress.set(ending.state, ending.error, ending.exit_code),
                Next::Do(step) => {
                    let abort = progress.begin(step);
                    let ports = planned.map(|task| listening::ports(plan, task)).unwrap_or_default();
                    let call = Call {
                        executor: Arc::clone(&self.executor),
                        step,
                        task: id.clone(),
                        plan: planned.cloned(),
                        abort,
                        ears: Ears { pid: progress.status.pid, ports },
                    };
                    self.steps.spawn(call.carry_out());
                }
            }
        }
    }

    fn note(&mut self, finished: Result<Finished, JoinError>) {
        // None is cut off while the agent lives, and none panics.
        let Ok(finished) = finished else { return };
        if let Some(progress) = self.tasks.get_mut(&finished.task) {
            progress.finish(&finished, Instant::now());
        }
    }

    fn report(&mut self, plan: &NodePlan, faults: &Faults) {
        if faults.is_empty() {
            self.held = Some((plan.node.clone(), plan.generation));
        }
        let held = self.held.as_ref().filter(|(node, _)| *node == plan.node);
        let acked = held.map_or(0, |(_, generation)| *generation);
        let describe = |facts: &NodeFacts| describe::node(self.runtime, &self.labels, facts);
        let description = self.links.as_ref().map(|links| describe(&links.facts));
        let planned: BTreeSet<&TaskId> = plan.tasks.iter().map(|t| &t.id).collect();
        let tasks = self
            .tasks
            .iter()
            .filter(|(id, _)| planned.contains(id))
            .map(|(id, progress)| (id.clone(), progress.status.clone()))
            .collect();
        self.swarm.reports().send_if_modified(|last| {
            let report = NodeReport { acked, description: description.or_else(|| last.description.clone()), tasks };
            let changed = *last != report;
            *last = report;
            changed
        });
    }

    /// Undoes everything: this node is in no cluster any more. Goes on past a task that cannot be removed, and keeps what
    /// such a task stands on.
    async fn tear_down(&mut self) -> Result<()> {
        // Nothing may come to be, or be called for a task, beside its removal.
        self.tasks.values().for_each(Progress::cut_short);
        while let Some(done) = self.steps.join_next().await {
            self.note(done);
        }
        let mut faults = Faults::default();
        for task in self.observe().await?.into_keys() {
            self.dns.stop(&task);
            let removed = self.executor.remove(&task).await;
            faults.collect(removed.with_context(|| format!("cannot remove task {task}")))?;
        }
        faults.into_result()?;
        self.tasks.clear();
        (self.links, self.held) = (None, None);
        let (mesh, pin_dir) = (self.mesh.take(), self.pin_dir.clone());
        aside::blocking("take the data plane down", move || {
            drop(mesh);
            Mesh::teardown(&pin_dir)
        })
        .await?
        .context("cannot take the data plane down")?;
        self.overlay.teardown().await.context("cannot remove weft's links")?;
        self.names.publish(weft_dns::Zone::default());
        self.swarm.reports().send_replace(NodeReport::default());
        Ok(())
    }
}

/// What is left of links that could not be looked at again: those into sandboxes that are still there.
fn surviving(last: OverlayState, sandboxes: &BTreeMap<TaskId, PathBuf>) -> OverlayState {
    let endpoints = last.endpoints.into_iter().filter(|e| sandboxes.contains_key(&e.task)).collect();
    OverlayState { endpoints, faults: BTreeMap::new(), ..last }
}

/// How long to rest after a sync; an error where another one is of no use.
fn pause(outcome: Result<()>) -> Result<Duration> {
    match outcome {
        Ok(()) => Ok(FULL_SYNC),
        Err(error) if aside::is_final(&error) => Err(error),
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "the node is not yet what its plan says");
            Ok(RETRY)
        }
    }
}

/// Tells the programs of this node's tasks that the other end of their connections is gone: those to these addresses, by
/// network.
async fn close_connections(
    gone: BTreeMap<u32, BTreeSet<IpAddr>>,
    links: &OverlayState,
    sandboxes: &BTreeMap<TaskId, PathBuf>,
) -> Result<()> {
    let of_endpoint =
        |endpoint: &Endpoint| Some((sandboxes.get(&endpoint.task)?.clone(), gone.get(&endpoint.vni.get())?.clone()));
    let work: Vec<(PathBuf, BTreeSet<IpAddr>)> = links.endpoints.iter().filter_map(of_endpoint).collect();
    if work.is_empty() {
        return Ok(());
    }
    aside::blocking("close connections to dead tasks", move || {
        for (sandbox, gone) in work {
            // A task that ends meanwhile has no connections either.
            let closed = weft_overlay::netns::in_netns(&sandbox, || weft_mesh::close_connections(&gone));
            match closed {
                Ok(Ok(0)) => {}
                Ok(Ok(count)) => {
                    tracing::debug!(count, sandbox = %sandbox.display(), "closed connections to dead tasks");
                }
                Ok(Err(error)) => {
                    let error = error_chain(&error);
                    tracing::warn!(error, "connections to dead tasks stay open until their next packet");
                }
                Err(error) => {
                    tracing::debug!(error = error_chain(&error), "a task ended before its connections could be closed");
                }
            }
        }
    })
    .await
}
