//! Tests of what the agent does with its tasks when another layer fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Mutex,
};

use anyhow::Context as _;
use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use weft_control::swarm::{KernelAddrs, SwarmConfig};
use weft_dns::Outside;
use weft_model::{
    LogError, LogOptions, LogRecord, LogSource, NodeId, NodePlan, TaskId,
    plan::{AttachedPlan, NetworkPlan, TaskGoal, TaskPlan},
    spec::NodeNetwork,
    state::{ContainerIdentity, TaskState},
};
use weft_overlay::{EncryptionMode, Sandbox};

use super::{
    blocking::run_blocking,
    layer_errors::LayerErrors,
    sandboxes::Sandboxes,
    task::{FinishedStep, PassPoint, Step, TaskRecord},
    *,
};
use crate::runtime::{ObservedContainer, ObservedTask, Phase, RuntimeError, TaskFile, TaskNetns, fixture, identity};

/// Succeeds in every call, and records the calls.
#[derive(Default)]
struct Recording(Mutex<BTreeSet<(&'static str, TaskId)>>);

impl Recording {
    fn record(&self, call: &'static str, task: &TaskId) -> Result<(), RuntimeError> {
        self.0.lock().expect("no test thread panicked").insert((call, task.clone()));
        Ok(())
    }
}

#[async_trait]
impl Executor for Recording {
    async fn fetch(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        self.record("fetch", &task.id)
    }

    async fn prepare(&self, task: &TaskPlan, _: &[NetworkPlan], _: &[TaskFile]) -> Result<(), RuntimeError> {
        self.record("prepare", &task.id)
    }

    async fn start(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        self.record("start", &task.id)
    }

    async fn stop(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.record("stop", task)
    }

    async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.record("remove", task)
    }

    async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError> {
        Ok(vec![])
    }

    fn changed(&self) -> watch::Receiver<u64> {
        watch::channel(0).1
    }
}

struct NoLogs;

impl LogSource for NoLogs {
    fn logs(&self, task: &TaskId, _: &LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError> {
        Err(LogError::NoSuchTask(task.clone()))
    }
}

async fn agent(executor: Arc<Recording>, dir: &Path) -> Agent {
    let swarm = Swarm::open(SwarmConfig {
        data_dir: dir.join("data"),
        hostname: "n1".parse().expect("a valid node name"),
        version: "0".to_owned(),
        logs: Arc::new(NoLogs),
        addrs: Arc::new(KernelAddrs),
    });
    let swarm = swarm.await.expect("an empty data directory opens");
    let mut tasks = Tasks::new(executor.clone());
    tasks.awaits_list = false;
    Agent {
        reporter: Reporter::new(swarm.reports(), RuntimeKind::Process, Labels::new()),
        swarm,
        tasks,
        executor,
        overlay: Overlay::open(EncryptionMode::Auto).expect("netlink is available"),
        links: None,
        started: Instant::now(),
        last_seen: LastSeen::load(dir),
        knows_attached: false,
        networks: None,
        keys: Keys::new(dir, 51820),
        data_plane: DataPlane::new(None, dir.join("pins")),
        resolvers: Resolvers::new(Outside::new(&[]).expect("a resolver")),
    }
}

fn task(number: u128, desired: TaskGoal) -> TaskPlan {
    TaskPlan { id: TaskId::from_random(number), desired, ..fixture::task(|_| ()) }
}

fn plan(generation: u64, tasks: Vec<TaskPlan>) -> NodePlan {
    NodePlan { generation, tasks, ..NodePlan::empty(NodeId::from_random(2), [192, 0, 2, 1].into()) }
}

fn seen(task: &TaskId, phase: Phase) -> (TaskId, ObservedTask) {
    let observed = ObservedTask {
        task: task.clone(),
        phase,
        netns: TaskNetns::Missing,
        resolver: identity::RESOLVER,
        container: task.to_string(),
    };
    (task.clone(), observed)
}

/// The errors of a pass in which one layer failed.
fn one_error() -> LayerErrors {
    let mut errors = LayerErrors::default();
    let failed = errors.collect(Err::<(), _>(anyhow::anyhow!("no such link")));
    assert_eq!(failed.expect("no panic"), None);
    errors
}

#[tokio::test]
async fn tasks_are_prepared_stopped_removed_and_reported_even_if_a_layer_fails() {
    let (tmp, executor) = (tempfile::tempdir().expect("a temporary directory"), Arc::new(Recording::default()));
    let mut agent = agent(Arc::clone(&executor), tmp.path()).await;
    let (unplanned, stopping, new) = (TaskId::from_random(1), task(2, TaskGoal::Stop), task(3, TaskGoal::Run));
    let running = Phase::Running { pid: 7, since_ms: 1 };
    let observed = [seen(&unplanned, Phase::Prepared), seen(&stopping.id, running)].into();
    let plan = plan(9, vec![stopping.clone(), new.clone()]);

    agent.tasks.track(&plan, &observed);
    agent.step_tasks_and_report(&plan, &observed, None, &one_error(), Instant::now());
    while let Some(finished) = agent.tasks.steps.join_next().await {
        agent.tasks.finish_step(finished);
    }

    let want = [("remove", unplanned), ("stop", stopping.id.clone()), ("fetch", new.id.clone()), ("prepare", new.id)];
    assert_eq!(*executor.0.lock().expect("no test thread panicked"), want.into());
    let reports = agent.swarm.reports();
    assert_eq!(reports.borrow().acked, 0, "the kernel does not hold the plan");
    assert_eq!(reports.borrow().tasks.len(), 2, "the tasks are reported");

    agent.step_tasks_and_report(&plan, &observed, None, &LayerErrors::default(), Instant::now());
    assert_eq!(reports.borrow().acked, 9);
    let later = NodePlan { generation: 10, ..plan };
    agent.step_tasks_and_report(&later, &observed, None, &one_error(), Instant::now());
    assert_eq!(reports.borrow().acked, 9, "the kernel still holds the earlier plan");
    let other_membership = NodePlan { node: NodeId::from_random(3), ..later };
    agent.step_tasks_and_report(&other_membership, &observed, None, &one_error(), Instant::now());
    assert_eq!(reports.borrow().acked, 0, "a generation of another membership is not acknowledged");
}

#[tokio::test]
async fn only_the_preparation_of_a_task_starts_before_the_links_are_made() {
    let (tmp, executor) = (tempfile::tempdir().expect("a temporary directory"), Arc::new(Recording::default()));
    let mut agent = agent(Arc::clone(&executor), tmp.path()).await;
    let [new, prepared, stopping] =
        [(1, TaskGoal::Run), (2, TaskGoal::Run), (3, TaskGoal::Stop)].map(|(number, goal)| task(number, goal));
    let unplanned = TaskId::from_random(4);
    let running = Phase::Running { pid: 7, since_ms: 1 };
    let observed =
        [seen(&prepared.id, Phase::Prepared), seen(&stopping.id, running), seen(&unplanned, Phase::Prepared)].into();
    let plan = plan(9, vec![new.clone(), prepared, stopping]);

    agent.tasks.track(&plan, &observed);
    agent.tasks.start_next_steps(&plan, &observed, PassPoint::BeforeLinks, Instant::now());
    while let Some(finished) = agent.tasks.steps.join_next().await {
        agent.tasks.finish_step(finished);
    }

    let want = [("fetch", new.id.clone()), ("prepare", new.id)];
    assert_eq!(*executor.0.lock().expect("no test thread panicked"), want.into());
}

#[tokio::test]
async fn a_removal_that_failed_is_retried_after_its_backoff() {
    let (tmp, executor) = (tempfile::tempdir().expect("a temporary directory"), Arc::new(Recording::default()));
    let mut agent = agent(Arc::clone(&executor), tmp.path()).await;
    let unplanned = TaskId::from_random(1);
    let observed = [seen(&unplanned, Phase::Prepared)].into();
    let plan = plan(9, vec![]);
    agent.tasks.track(&plan, &observed);
    let now = Instant::now();
    let outcome = Err(RuntimeError::NotPrepared);
    agent.tasks.finish_step(Ok(FinishedStep { task: unplanned.clone(), step: Step::Remove, outcome }));
    agent.step_tasks_and_report(&plan, &observed, None, &LayerErrors::default(), now);
    assert!(agent.tasks.steps.is_empty(), "it is not tried again at once");
    let delay = agent.delay_until_retry(now);
    assert!(delay <= RETRY_DELAY && !delay.is_zero(), "{delay:?}");

    agent.step_tasks_and_report(&plan, &observed, None, &LayerErrors::default(), now + FULL_RESYNC);
    assert_eq!(agent.tasks.steps.len(), 1);
}

#[tokio::test]
async fn an_image_fetch_is_cancelled_once_the_task_has_to_stop() {
    let (tmp, executor) = (tempfile::tempdir().expect("a temporary directory"), Arc::new(Recording::default()));
    let mut agent = agent(executor, tmp.path()).await;
    let wanted = task(1, TaskGoal::Run);
    let mut record = TaskRecord::new();
    let cancel = record.begin_step(Step::Prepare);
    agent.tasks.records.insert(wanted.id.clone(), record);
    for (desired, cancelled) in [(TaskGoal::Run, false), (TaskGoal::Stop, true)] {
        let plan = plan(9, vec![TaskPlan { desired, ..wanted.clone() }]);
        agent.step_tasks_and_report(&plan, &BTreeMap::new(), None, &LayerErrors::default(), Instant::now());
        assert_eq!(cancel.is_cancelled(), cancelled, "{desired:?}");
    }
    assert_eq!(agent.tasks.records[&wanted.id].status.state, TaskState::Preparing);
}

#[tokio::test]
async fn a_panic_in_the_data_plane_ends_the_agent_and_an_error_does_not() {
    let panicked = run_blocking("program the data plane", || panic!("a defect")).await;
    assert!(delay_after(panicked.context("reconcile")).is_err());
    assert_eq!(delay_after(Err(anyhow::anyhow!("no such link"))).expect("an error is retried"), RETRY_DELAY);
    assert_eq!(delay_after(Ok(())).expect("no error"), FULL_RESYNC);
}

#[tokio::test]
async fn a_task_on_a_network_of_the_node_starts_without_links_and_gets_none() {
    let (tmp, executor) = (tempfile::tempdir().expect("a temporary directory"), Arc::new(Recording::default()));
    let mut agent = agent(Arc::clone(&executor), tmp.path()).await;
    let on_node = TaskPlan { node_network: Some(NodeNetwork::Host), ..task(1, TaskGoal::Run) };
    let linked = task(2, TaskGoal::Run);
    let at = |task: &TaskId| {
        let (id, observed) = seen(task, Phase::Prepared);
        (id, ObservedTask { netns: TaskNetns::At("/proc/self/ns/net".into()), ..observed })
    };
    let observed = [at(&on_node.id), at(&linked.id)].into();
    let plan = plan(9, vec![on_node.clone(), linked.clone()]);
    assert!(Sandboxes::new(&plan, &observed, None).places.into_keys().eq([linked.id]));

    agent.tasks.track(&plan, &observed);
    agent.step_tasks_and_report(&plan, &observed, None, &LayerErrors::default(), Instant::now());
    while let Some(finished) = agent.tasks.steps.join_next().await {
        agent.tasks.finish_step(finished);
    }
    assert_eq!(*executor.0.lock().expect("no test thread panicked"), [("start", on_node.id)].into());
}

#[test]
fn the_links_of_a_container_of_which_nothing_is_known_are_kept() {
    let container = |number| AttachedPlan { id: TaskId::from_random(number), identity: None, links: Vec::new() };
    let (unknown, stopped) = (container(1), container(2));
    let plan = NodePlan { attached: vec![unknown.clone(), stopped.clone()], ..plan(9, Vec::new()) };
    let observed = ObservedContainer {
        id: stopped.id.clone(),
        identity: ContainerIdentity { container: "c0ffee".to_owned(), name: "shell".to_owned() },
        networks: Vec::new(),
        netns: TaskNetns::Missing,
    };
    let attached = [(stopped.id.clone(), observed)].into();
    let mut sandboxes = Sandboxes::new(&plan, &BTreeMap::new(), Some(&attached));
    assert!(sandboxes.places.is_empty());
    sandboxes.keep_unknown(&plan, Some(&attached));
    let kept = Sandbox::HandOver { netns: None, told: true };
    assert_eq!(sandboxes.places, [(unknown.id.clone(), kept)].into());
    assert!(!sandboxes.is_known(&unknown.id) && sandboxes.is_known(&stopped.id));
}

#[tokio::test]
async fn a_task_that_has_run_and_does_not_exist_any_more_is_not_prepared_again() {
    let (tmp, executor) = (tempfile::tempdir().expect("a temporary directory"), Arc::new(Recording::default()));
    let mut agent = agent(Arc::clone(&executor), tmp.path()).await;
    let vanished = TaskPlan { has_run: true, ..task(1, TaskGoal::Run) };
    let plan = plan(9, vec![vanished.clone()]);
    agent.tasks.track(&plan, &BTreeMap::new());
    agent.step_tasks_and_report(&plan, &BTreeMap::new(), None, &LayerErrors::default(), Instant::now());
    assert!(agent.tasks.steps.is_empty());
    assert_eq!(agent.tasks.records[&vanished.id].status.state, TaskState::Failed);
}
