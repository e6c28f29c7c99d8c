//! What the agent does about its tasks where the layers beneath them fail.

use std::sync::Mutex;

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use weft_control::swarm::SwarmConfig;
use weft_model::state::TaskState;
use weft_model::{LogError, LogOptions, LogRecord, LogSource};

use super::*;
use crate::runtime::{Phase, RuntimeError, fixture};

/// Does all that it is asked, and notes it.
#[derive(Default)]
struct Noting(Mutex<BTreeSet<(&'static str, TaskId)>>);

impl Noting {
    fn note(&self, call: &'static str, task: &TaskId) -> Result<(), RuntimeError> {
        self.0.lock().unwrap().insert((call, task.clone()));
        Ok(())
    }
}

#[async_trait]
impl Executor for Noting {
    async fn fetch(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        self.note("fetch", &task.id)
    }

    async fn prepare(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        self.note("prepare", &task.id)
    }

    async fn start(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        self.note("start", &task.id)
    }

    async fn stop(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.note("stop", task)
    }

    async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.note("remove", task)
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

async fn agent(executor: Arc<Noting>, dir: &Path) -> Agent {
    let swarm = Swarm::open(SwarmConfig {
        data_dir: dir.join("data"),
        hostname: "n1".parse().unwrap(),
        version: "0".to_owned(),
        logs: Arc::new(NoLogs),
    });
    let names = weft_dns::ZoneHandle::default();
    Agent {
        swarm: swarm.await.unwrap(),
        executor,
        runtime: RuntimeKind::Process,
        labels: Labels::new(),
        overlay: Overlay::open().unwrap(),
        mesh: None,
        pin_dir: dir.join("pins"),
        links: None,
        held: None,
        dns: weft_dns::Server::new(names.clone(), vec![]),
        names,
        tasks: BTreeMap::new(),
        steps: JoinSet::new(),
    }
}

fn task(number: u128, desired: TaskGoal) -> TaskPlan {
    TaskPlan { id: TaskId::from_random(number), desired, ..fixture::task(|_| ()) }
}

fn plan(generation: u64, tasks: Vec<TaskPlan>) -> NodePlan {
    NodePlan { generation, tasks, ..NodePlan::empty(NodeId::from_random(2), [192, 0, 2, 1].into()) }
}

fn seen(task: &TaskId, phase: Phase) -> (TaskId, ObservedTask) {
    let observed = ObservedTask { task: task.clone(), phase, netns: None, container: task.to_string() };
    (task.clone(), observed)
}

#[tokio::test]
async fn tasks_live_and_end_though_a_layer_fails() {
    let (tmp, executor) = (tempfile::tempdir().unwrap(), Arc::new(Noting::default()));
    let mut agent = agent(Arc::clone(&executor), tmp.path()).await;
    let (unwanted, ending, coming) = (TaskId::from_random(1), task(2, TaskGoal::Stop), task(3, TaskGoal::Run));
    let running = Phase::Running { pid: 7, since_ms: 1 };
    let observed = [seen(&unwanted, Phase::Prepared), seen(&ending.id, running)].into();
    let plan = plan(9, vec![ending.clone(), coming.clone()]);

    let mut faults = Faults::default();
    assert_eq!(faults.collect(Err::<(), _>(anyhow::anyhow!("no such link"))).unwrap(), None);
    agent.adopt(&plan, &observed);
    agent.settle(&plan, &observed, &faults, Instant::now());
    while let Some(done) = agent.steps.join_next().await {
        agent.note(done);
    }

    let want =
        [("remove", unwanted), ("stop", ending.id.clone()), ("fetch", coming.id.clone()), ("prepare", coming.id)];
    assert_eq!(*executor.0.lock().unwrap(), want.into());
    let reports = agent.swarm.reports();
    assert_eq!(reports.borrow().acked, 0, "the kernel does not hold the plan");
    assert_eq!(reports.borrow().tasks.len(), 2, "what became of the tasks is told all the same");

    agent.settle(&plan, &observed, &Faults::default(), Instant::now());
    assert_eq!(reports.borrow().acked, 9);
    let later = NodePlan { generation: 10, ..plan };
    agent.settle(&later, &observed, &faults, Instant::now());
    assert_eq!(reports.borrow().acked, 9, "what the kernel held, it said already");
    let elsewhere = NodePlan { node: NodeId::from_random(3), ..later };
    agent.settle(&elsewhere, &observed, &faults, Instant::now());
    assert_eq!(reports.borrow().acked, 0, "another membership's acks are not this one's");
}

#[tokio::test]
async fn a_removal_that_failed_rests_and_wakes_the_agent_in_time() {
    let (tmp, executor) = (tempfile::tempdir().unwrap(), Arc::new(Noting::default()));
    let mut agent = agent(Arc::clone(&executor), tmp.path()).await;
    let unwanted = TaskId::from_random(1);
    let observed = [seen(&unwanted, Phase::Prepared)].into();
    let plan = plan(9, vec![]);
    agent.adopt(&plan, &observed);
    let now = Instant::now();
    let outcome = Err(RuntimeError::NotPrepared);
    agent.note(Ok(Finished { task: unwanted.clone(), step: Step::Remove, outcome }));
    agent.settle(&plan, &observed, &Faults::default(), now);
    assert!(agent.steps.is_empty(), "it is not tried again at once");
    let wait = agent.next_attempt(now);
    assert!(wait <= RETRY && !wait.is_zero(), "{wait:?}");

    agent.settle(&plan, &observed, &Faults::default(), now + FULL_SYNC);
    assert_eq!(agent.steps.len(), 1);
}

#[tokio::test]
async fn an_image_is_not_waited_for_once_its_task_is_unwanted() {
    let (tmp, executor) = (tempfile::tempdir().unwrap(), Arc::new(Noting::default()));
    let mut agent = agent(executor, tmp.path()).await;
    let wanted = task(1, TaskGoal::Run);
    let mut progress = Progress::new();
    let abort = progress.begin(Step::Prepare);
    agent.tasks.insert(wanted.id.clone(), progress);
    for (desired, cut_short) in [(TaskGoal::Run, false), (TaskGoal::Stop, true)] {
        let plan = plan(9, vec![TaskPlan { desired, ..wanted.clone() }]);
        agent.settle(&plan, &BTreeMap::new(), &Faults::default(), Instant::now());
        assert_eq!(abort.is_cancelled(), cut_short, "{desired:?}");
    }
    assert_eq!(agent.tasks[&wanted.id].status.state, TaskState::Preparing);
}

#[tokio::test]
async fn a_panic_in_the_data_plane_ends_the_agent_and_an_error_does_not() {
    let panicked = aside::blocking("program the data plane", || panic!("a defect")).await;
    assert!(pause(panicked.context("sync")).is_err());
    assert_eq!(pause(Err(anyhow::anyhow!("no such link"))).unwrap(), RETRY);
    assert_eq!(pause(Ok(())).unwrap(), FULL_SYNC);
}
