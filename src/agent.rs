//! The node agent: makes this node what its plan says, layer by layer, and reports what became of it.
//!
//! Owns the order of things on a node: a task's namespace, then its links, then the mesh's tables and its names, then
//! its process; and the reverse on the way out. Decides nothing about the cluster. One task runs [`Agent::run`]; every
//! event (a new plan, a runtime's change, a link's change, a finished step, a tick) only wakes it, and each wake is one
//! full [`Agent::sync`]. Dropping the future leaves the kernel, the tasks and their traffic as they are.

mod describe;
mod listening;
mod tasks;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result};
use tokio::sync::mpsc;
use weft_control::swarm::{Membership, Swarm};
use weft_mesh::{HostRoute, LocalEndpoint, LocalFacts, Mesh, Uplink};
use weft_model::{
    NodePlan, TaskId,
    plan::TaskPlan,
    report::NodeReport,
    state::{TaskState, TaskStatus},
};
use weft_overlay::{Overlay, OverlayState};

use self::tasks::{Next, Step, View};
use crate::runtime::{Executor, ObservedTask, Phase, RuntimeError};

/// How often everything is compared with the kernel though nothing rang.
const FULL_SYNC: Duration = Duration::from_secs(10);
/// The wait before the next attempt when a layer failed.
const RETRY: Duration = Duration::from_millis(500);
/// Steps that finished and wait to be noted. Senders wait when it is full: no step is lost.
const FINISHED_STEPS: usize = 64;

pub(crate) struct Agent {
    swarm: Swarm,
    executor: Arc<dyn Executor>,
    runtime_name: &'static str,
    overlay: Overlay,
    /// `None` after this node left: opened anew when it joins again.
    mesh: Arc<Mutex<Option<Mesh>>>,
    pin_dir: PathBuf,
    names: weft_dns::Names,
    dns: weft_dns::Server,
    work: Work,
}

/// What the agent remembers between two syncs; all of it can be found out again.
struct Work {
    tasks: BTreeMap<TaskId, Progress>,
    finished: mpsc::Sender<Finished>,
    finished_rx: Option<mpsc::Receiver<Finished>>,
}

struct Progress {
    status: TaskStatus,
    in_flight: Option<Step>,
    listening: bool,
    stopping: bool,
}

struct Finished {
    task: TaskId,
    step: Step,
    outcome: Result<(), RuntimeError>,
}

impl Agent {
    pub(crate) fn new(
        swarm: Swarm,
        executor: Arc<dyn Executor>,
        runtime_name: &'static str,
        overlay: Overlay,
        (mesh, pin_dir): (Mesh, PathBuf),
        upstreams: Vec<SocketAddr>,
    ) -> Self {
        let names = weft_dns::Names::default();
        let dns = weft_dns::Server::new(names.clone(), upstreams);
        let (finished, finished_rx) = mpsc::channel(FINISHED_STEPS);
        let work = Work { tasks: BTreeMap::new(), finished, finished_rx: Some(finished_rx) };
        Self {
            swarm,
            executor,
            runtime_name,
            overlay,
            mesh: Arc::new(Mutex::new(Some(mesh))),
            pin_dir,
            names,
            dns,
            work,
        }
    }

    /// Runs until the swarm is dropped. Cancel-safe: what a sync left undone, the next one does.
    pub(crate) async fn run(mut self) -> Result<()> {
        let mut plans = self.swarm.plans();
        let mut runtime = self.executor.changed();
        let mut links = self.overlay.changed();
        let mut finished = self.work.finished_rx.take().context("the agent runs once")?;
        let (mut was_member, mut clean) = (false, false);
        loop {
            let plan = plans.borrow_and_update().clone();
            runtime.borrow_and_update();
            links.borrow_and_update();
            let next = match &plan {
                Some(plan) => {
                    (was_member, clean) = (true, false);
                    self.sync(plan).await
                }
                // Left, removed, or left by an earlier daemon that did not get so far.
                None if !clean && (was_member || self.is_no_member()) => {
                    let torn_down = self.tear_down().await;
                    clean = torn_down.is_ok();
                    torn_down
                }
                None => Ok(()),
            };
            let pause = match next {
                Ok(()) => FULL_SYNC,
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the node is not yet what its plan says");
                    RETRY
                }
            };
            tokio::select! {
                changed = plans.changed() => if changed.is_err() { return Ok(()) },
                _ = runtime.changed() => {}
                _ = links.changed() => {}
                Some(done) = finished.recv() => {
                    self.note(done);
                    while let Ok(done) = finished.try_recv() {
                        self.note(done);
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn is_no_member(&self) -> bool {
        *self.swarm.membership().borrow() == Membership::None
    }

    async fn sync(&mut self, plan: &Arc<NodePlan>) -> Result<()> {
        let observed = self.observe().await?;
        self.adopt(plan, &observed);
        let sandboxes: BTreeMap<TaskId, PathBuf> = observed
            .values()
            .filter(|o| plan.tasks.iter().any(|t| t.id == o.task))
            .filter_map(|o| Some((o.task.clone(), o.netns.clone()?)))
            .collect();
        let links = self.overlay.reconcile(plan, &sandboxes).await.context("overlay")?;
        let report = self.program(plan, &links).await?;
        close_connections(report.gone, &links, &sandboxes).await?;
        for (task, fault) in &links.faults {
            tracing::warn!(%task, error = %fault, "a task's links are not as they shall be");
        }
        self.serve_names(plan, &sandboxes, &links);
        self.step(plan, &observed, &links);
        self.report(plan, &links);
        Ok(())
    }

    async fn observe(&self) -> Result<BTreeMap<TaskId, ObservedTask>> {
        let observed = self.executor.observe().await.context("runtime")?;
        Ok(observed.into_iter().map(|o| (o.task.clone(), o)).collect())
    }

    /// Opens a record for every task of the plan or the runtime, and closes those of neither.
    fn adopt(&mut self, plan: &NodePlan, observed: &BTreeMap<TaskId, ObservedTask>) {
        let planned: BTreeSet<&TaskId> = plan.tasks.iter().map(|t| &t.id).collect();
        self.work
            .tasks
            .retain(|id, progress| planned.contains(id) || observed.contains_key(id) || progress.in_flight.is_some());
        for id in planned.into_iter().chain(observed.keys()) {
            self.work.tasks.entry(id.clone()).or_insert_with(|| Progress {
                status: tasks::accepted(now_ms()),
                in_flight: None,
                listening: false,
                stopping: false,
            });
        }
    }

    async fn program(&self, plan: &Arc<NodePlan>, links: &OverlayState) -> Result<weft_mesh::Report> {
        let facts = facts(links);
        let (mesh, pin_dir, plan) = (Arc::clone(&self.mesh), self.pin_dir.clone(), Arc::clone(plan));
        let report = tokio::task::spawn_blocking(move || {
            let mut mesh = mesh.lock().expect("a panic in the mesh is not survivable");
            let mesh = match &mut *mesh {
                Some(mesh) => mesh,
                left => left.insert(Mesh::open(&pin_dir)?),
            };
            mesh.reconcile(&plan, &facts)
        })
        .await
        .context("mesh")?
        .context("mesh")?;
        if !report.is_unchanged() {
            tracing::debug!(?report, "the data plane follows");
        }
        Ok(report)
    }
}

impl Agent {
    /// A resolver on 127.0.0.11 in every sandbox whose links are up, and in no other.
    fn serve_names(&self, plan: &NodePlan, sandboxes: &BTreeMap<TaskId, PathBuf>, links: &OverlayState) {
        self.names.publish(weft_dns::Zone::from_plan(plan));
        let plumbed: BTreeSet<&TaskId> = links.endpoints.iter().map(|e| &e.task).collect();
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

    fn start_resolver(
        &self,
        task: &TaskId,
        networks: Vec<weft_model::NetworkId>,
        netns: &std::path::Path,
    ) -> Result<()> {
        let sockets = weft_overlay::netns::in_netns(netns, weft_dns::open_sockets)
            .context("resolver")?
            .context("resolver: bind 127.0.0.11:53")?;
        self.dns.start(task.clone(), networks, sockets).context("resolver")
    }

    /// Chooses and begins the next step of every task; steps run beside each other and ring when done.
    fn step(&mut self, plan: &NodePlan, observed: &BTreeMap<TaskId, ObservedTask>, links: &OverlayState) {
        let plans: BTreeMap<&TaskId, &TaskPlan> = plan.tasks.iter().map(|t| (&t.id, t)).collect();
        let ran: BTreeSet<&TaskId> =
            plan.services.iter().flat_map(|s| &s.backends).map(|backend| &backend.task).collect();
        let serving: BTreeSet<TaskId> = self.dns.serving().into_iter().collect();
        for (id, progress) in &mut self.work.tasks {
            let planned = plans.get(id).copied();
            let seen = observed.get(id);
            // One that has taken traffic before an earlier daemon ended goes on taking it.
            progress.listening |= ran.contains(id);
            progress.see(seen);
            // Waiting for its ports keeps nobody from stopping it.
            if progress.in_flight.is_some_and(|step| step != Step::Listen) {
                continue;
            }
            let plumbed_links = links.endpoints.iter().filter(|e| e.task == *id).count();
            let view = View {
                goal: planned.map(|t| t.desired),
                phase: seen.map(|o| &o.phase),
                plumbed: planned.is_some_and(|t| plumbed_links == t.attachments.len()) && serving.contains(id),
                has_run: ran.contains(id),
                listening: progress.listening || progress.in_flight == Some(Step::Listen),
                stopping: progress.stopping,
                reported: progress.status.state,
            };
            match tasks::next(view) {
                Next::Wait => {}
                Next::Ended(ending) => progress.set(ending.state, ending.error, ending.exit_code),
                Next::Do(step) => {
                    progress.begin(step);
                    let call = carry_out(
                        Arc::clone(&self.executor),
                        step,
                        id.clone(),
                        planned.cloned(),
                        Ears {
                            pid: progress.status.pid,
                            ports: planned.map(|task| listening::ports(plan, task)).unwrap_or_default(),
                        },
                    );
                    let (finished, task) = (self.work.finished.clone(), id.clone());
                    tokio::spawn(async move {
                        let outcome = call.await;
                        // The receiver lives as long as the agent: without it nobody is left to tell.
                        let _ = finished.send(Finished { task, step, outcome }).await;
                    });
                }
            }
        }
    }

    fn note(&mut self, finished: Finished) {
        let Some(progress) = self.work.tasks.get_mut(&finished.task) else { return };
        if progress.in_flight == Some(finished.step) {
            progress.in_flight = None;
        }
        progress.listening |= finished.step == Step::Listen;
        if let Err(error) = finished.outcome {
            tracing::warn!(task = %finished.task, step = ?finished.step, error = %error, "a step of a task failed");
            match finished.step {
                Step::Prepare => progress.set(TaskState::Rejected, error.to_string(), None),
                Step::Start => progress.set(TaskState::Failed, error.to_string(), None),
                Step::Stop => progress.stopping = false,
                Step::Listen | Step::Remove => {}
            }
        }
    }

    fn report(&mut self, plan: &NodePlan, links: &OverlayState) {
        let description = describe::node(self.runtime_name, &links.facts);
        let planned: BTreeSet<&TaskId> = plan.tasks.iter().map(|t| &t.id).collect();
        let tasks = self
            .work
            .tasks
            .iter()
            .filter(|(id, _)| planned.contains(id))
            .map(|(id, progress)| (id.clone(), progress.status.clone()))
            .collect();
        let report = NodeReport { acked: plan.generation, description: Some(description), tasks };
        self.swarm.reports().send_if_modified(|last| {
            let changed = *last != report;
            *last = report;
            changed
        });
    }

    /// Undoes everything: this node is in no cluster any more.
    async fn tear_down(&mut self) -> Result<()> {
        for task in self.observe().await?.into_keys() {
            self.dns.stop(&task);
            self.executor.remove(&task).await.with_context(|| format!("remove task {task}"))?;
        }
        self.work.tasks.clear();
        let (mesh, pin_dir) = (Arc::clone(&self.mesh), self.pin_dir.clone());
        tokio::task::spawn_blocking(move || {
            mesh.lock().expect("a panic in the mesh is not survivable").take();
            Mesh::unpin_all(&pin_dir)
        })
        .await
        .context("mesh")?
        .context("mesh")?;
        self.overlay.teardown().await.context("overlay")?;
        self.names.publish(weft_dns::Zone::default());
        self.swarm.reports().send_replace(NodeReport::default());
        Ok(())
    }
}

impl Progress {
    fn begin(&mut self, step: Step) {
        self.in_flight = Some(step);
        match step {
            Step::Prepare => self.advance(TaskState::Preparing),
            Step::Start => self.advance(TaskState::Starting),
            Step::Stop => self.stopping = true,
            Step::Listen | Step::Remove => {}
        }
    }

    /// Takes over what the runtime shows.
    fn see(&mut self, seen: Option<&ObservedTask>) {
        let Some(seen) = seen else { return };
        if self.status.state.is_terminal() {
            return;
        }
        self.status.container = Some(seen.container.clone());
        self.advance(tasks::observed(&seen.phase, self.listening, self.status.state));
        if let Phase::Running { pid, since_ms } = seen.phase {
            self.status.pid = Some(pid);
            // The same after a restart of the daemon: nothing happened to the task.
            self.status.since_ms = since_ms;
        }
    }

    fn advance(&mut self, state: TaskState) {
        if state > self.status.state {
            self.set(state, String::new(), None);
        }
    }

    fn set(&mut self, state: TaskState, error: String, exit_code: Option<i32>) {
        self.status.state = state;
        self.status.since_ms = now_ms();
        self.status.message = state.as_str().to_owned();
        self.status.error = error;
        self.status.exit_code = exit_code;
    }
}

/// Where to listen for a task that has started.
struct Ears {
    pid: Option<u32>,
    ports: Vec<u16>,
}

async fn carry_out(
    executor: Arc<dyn Executor>,
    step: Step,
    id: TaskId,
    plan: Option<TaskPlan>,
    ears: Ears,
) -> Result<(), RuntimeError> {
    match (step, plan) {
        (Step::Listen, _) => {
            if let Some(pid) = ears.pid {
                listening::wait(pid, &ears.ports).await;
            }
            Ok(())
        }
        (Step::Prepare, Some(plan)) => executor.prepare(&plan).await,
        (Step::Start, Some(plan)) => executor.start(&plan).await,
        (Step::Stop, _) => executor.stop(&id).await,
        (_, _) => executor.remove(&id).await,
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Tells the programs of this node's tasks that the other end of their connections is gone: those to these addresses, by
/// network.
async fn close_connections(
    gone: BTreeMap<u32, BTreeSet<IpAddr>>,
    links: &OverlayState,
    sandboxes: &BTreeMap<TaskId, PathBuf>,
) -> Result<()> {
    let of_endpoint = |endpoint: &weft_overlay::Endpoint| {
        Some((sandboxes.get(&endpoint.task)?.clone(), gone.get(&endpoint.vni.get())?.clone()))
    };
    let work: Vec<(PathBuf, BTreeSet<IpAddr>)> = links.endpoints.iter().filter_map(of_endpoint).collect();
    if work.is_empty() {
        return Ok(());
    }
    tokio::task::spawn_blocking(move || {
        for (sandbox, gone) in work {
            // A task that ends meanwhile has no connections either.
            let closed = weft_overlay::netns::in_netns(&sandbox, || weft_mesh::close_connections(&gone));
            match closed {
                Ok(Ok(0)) => {}
                Ok(Ok(count)) => {
                    tracing::debug!(count, sandbox = %sandbox.display(), "closed connections to dead tasks");
                }
                Ok(Err(error)) => tracing::warn!(%error, "connections to dead tasks stay open until their next packet"),
                Err(error) => tracing::debug!(%error, "a task ended before its connections could be closed"),
            }
        }
    })
    .await
    .context("closing connections")
}

/// What the overlay found and made, in the mesh's words.
fn facts(links: &OverlayState) -> LocalFacts {
    let node = &links.facts;
    let uplink = |uplink: &weft_overlay::Uplink| Uplink {
        ifindex: uplink.ifindex,
        addresses: uplink.addresses.iter().map(ipnetwork::IpNetwork::ip).collect(),
    };
    let route =
        |way: &weft_overlay::Way| HostRoute { destination: way.destination, ifindex: way.ifindex, source: way.source };
    let endpoint = |endpoint: &weft_overlay::Endpoint| LocalEndpoint {
        task: endpoint.task.clone(),
        network: endpoint.network.clone(),
        ifindex: endpoint.host_ifindex,
        netns_cookie: endpoint.netns_cookie,
    };
    LocalFacts {
        netns_cookie: node.netns_cookie,
        tunnel_ifindex: links.tunnel_ifindex,
        task_mtu: links.mtu,
        uplinks: node.uplinks.iter().map(uplink).collect(),
        routes: node.ways.iter().map(route).collect(),
        endpoints: links.endpoints.iter().map(endpoint).collect(),
    }
}
