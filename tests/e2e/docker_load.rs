//! Many containers while engines and daemons are killed: no container is there twice or without a
//! task, and no address stays in use.

use std::{collections::BTreeSet, panic, thread, time::Duration};

use anyhow::{Result, ensure};
use weft_lab::{CLIENT, Lab, Runtime, Task, docker, eventually};

use crate::{
    docker_runtime::containers_are_tasks,
    fixtures::{HTTP, WHOAMI, all_answer, inspect, network, rounds_or},
    harness::{Group, Shape, tests},
};

const SERVICE: &str = "load";
const TASKS: usize = 50;
const PORT: u16 = 8200;
/// All addresses of a /26 for hosts, without the gateway and the VIP.
const SUBNET: &str = "10.92.0.0/26";
const ADDRS: usize = 60;
/// How many tasks have followed a change when a node is hit.
const CHANGED: usize = 5;
/// How many changes are hit, unless the environment says otherwise.
const ROUNDS: usize = 2;
/// The time in which the tasks must be as they should after a node was hit. Each container takes
/// about half a second of a processor, and there may be as many as the service has tasks.
const TIMEOUT: Duration = Duration::from_secs(180);

pub(crate) fn group() -> Group {
    Group {
        name: "docker_load",
        shape: Shape { runtime: Runtime::Docker, managers: 3, ..Shape::default() },
        setup,
        tests: tests![no_kill_leaves_a_container_or_an_address_behind],
    }
}

fn setup(lab: &Lab) -> Result<()> {
    network(lab, "many", &["--subnet", SUBNET])?;
    let publish = format!("{PORT}:{HTTP}");
    let create = ["service", "create", "--detach", "--name", SERVICE, "--replicas", "0", "--network", "many"];
    let flags = ["--publish", &publish, "--restart-delay", "100ms", "--stop-grace-period", "1s"];
    // Tasks of a node that is hit fail, which must not pause the update.
    let update = ["--update-parallelism", "10", "--update-failure-action", "continue", "--update-monitor", "1s"];
    let rollback =
        ["--rollback-parallelism", "10", "--rollback-failure-action", "continue", "--rollback-monitor", "1s"];
    lab.weft_ok("n1", &[&create[..], &flags, &update, &rollback, &[WHOAMI]].concat()).map(drop)
}

/// A change of the service that replaces, starts or stops all its tasks.
#[derive(Debug, Clone, Copy)]
enum Change {
    Start,
    Update,
    Rollback,
    Stop,
}

impl Change {
    /// In this order, each change begins where the one before has ended.
    const ALL: [Self; 4] = [Self::Start, Self::Update, Self::Rollback, Self::Stop];

    fn begin(self, lab: &Lab, via: &str) -> Result<()> {
        let arguments: &[&str] = match self {
            Self::Start => &["scale", "--detach", &format!("{SERVICE}={TASKS}")],
            Self::Update => &["update", "--detach", "--env-add", "UPDATED=1", SERVICE],
            Self::Rollback => &["update", "--detach", "--rollback", SERVICE],
            Self::Stop => &["scale", "--detach", &format!("{SERVICE}=0")],
        };
        lab.weft_ok(via, &[&["service"], arguments].concat()).map(drop)
    }

    /// The number of tasks in the end.
    fn tasks(self) -> usize {
        if matches!(self, Self::Stop) { 0 } else { TASKS }
    }
}

/// What is killed on a node and started again, in this order.
#[derive(Debug, Clone, Copy)]
enum Part {
    Engine,
    Daemon,
}

impl Part {
    fn kill(self, lab: &Lab, node: &str) -> Result<()> {
        match self {
            Self::Engine => lab.kill_engine(node),
            Self::Daemon => lab.kill_daemon(node),
        }
    }

    fn start(self, lab: &Lab, node: &str) -> Result<()> {
        match self {
            Self::Engine => lab.start_engine(node),
            Self::Daemon => lab.start(node),
        }
    }
}

/// The parts in the order in which they are killed, and in the order in which they are started.
const HITS: [(&[Part], &[Part]); 6] = [
    (&[Part::Daemon, Part::Engine], &[Part::Daemon, Part::Engine]),
    (&[Part::Engine], &[Part::Engine]),
    (&[Part::Daemon], &[Part::Daemon]),
    (&[Part::Engine, Part::Daemon], &[Part::Engine, Part::Daemon]),
    (&[Part::Daemon, Part::Engine], &[Part::Engine, Part::Daemon]),
    (&[Part::Engine, Part::Daemon], &[Part::Daemon, Part::Engine]),
];

/// Each round hits one node in the middle of a change. 24 rounds have each change with each hit.
fn no_kill_leaves_a_container_or_an_address_behind(lab: &Lab) -> Result<()> {
    let nodes: Vec<String> = lab.nodes().collect();
    let rounds = rounds_or(ROUNDS)?;
    for round in 0..rounds {
        let change = Change::ALL[round % Change::ALL.len()];
        let (kills, starts) = HITS[(round + round / Change::ALL.len()) % HITS.len()];
        let (node, via) = (&nodes[round % nodes.len()], &nodes[(round + 1) % nodes.len()]);
        let what = format!("{change:?}, {node} hit at {kills:?}, started {starts:?}");
        let before: BTreeSet<String> = running(lab, via)?.into_iter().map(|task| task.id).collect();
        change.begin(lab, via)?;
        eventually(TIMEOUT, &format!("{what}: the first tasks follow"), || {
            let now: BTreeSet<String> =
                running(lab, via).map_err(|error| format!("{error:#}"))?.into_iter().map(|task| task.id).collect();
            let changed = now.symmetric_difference(&before).count();
            if changed >= CHANGED { Ok(()) } else { Err(format!("{changed} of {TASKS}")) }
        });
        kills.iter().try_for_each(|part| part.kill(lab, node))?;
        start_together(lab, node, starts)?;
        lab.wait_ready(via, nodes.len())?;
        let tasks = eventually(TIMEOUT, &format!("{what}: the service is as it should be"), || {
            settled(lab, via, change).map_err(|error| format!("{error:#}"))
        });
        if !tasks.is_empty() {
            all_answer(CLIENT, &lab.published(PORT), &tasks, TIMEOUT);
        }
    }
    lab.weft_ok("n1", &["service", "scale", "--detach", &format!("{SERVICE}={ADDRS}")])?;
    eventually(TIMEOUT, "each address of the network is free for a task", || {
        let tasks = running(lab, "n1").map_err(|error| format!("{error:#}"))?;
        if tasks.len() == ADDRS { Ok(()) } else { Err(format!("{} tasks run", tasks.len())) }
    });
    lab.weft_ok("n1", &["service", "rm", SERVICE])?;
    eventually(TIMEOUT, "the network is not used", || {
        lab.weft_ok("n1", &["network", "rm", "many"]).map(drop).map_err(|error| format!("{error:#}"))
    });
    for node in &nodes {
        eventually(TIMEOUT, &format!("{node} has no container and no network of weft"), || {
            let engine = lab.engine(node).map_err(|error| format!("{error:#}"))?;
            let list = |arguments: &[&str]| docker::docker(engine, arguments).map_err(|error| format!("{error:#}"));
            let containers = list(&["ps", "--all", "--quiet"])?;
            let networks = list(&["network", "ls", "--quiet", "--filter", "driver=weft"])?;
            if containers.is_empty() && networks.is_empty() { Ok(()) } else { Err(format!("{containers}{networks}")) }
        });
    }
    Ok(())
}

/// Starts the parts one after the other. None waits until the one before serves: an engine does not
/// serve before the daemon has answered for the endpoints that the engine had when it was killed.
fn start_together(lab: &Lab, node: &str, parts: &[Part]) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = parts.iter().map(|part| scope.spawn(|| part.start(lab, node))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic)))
    })
}

/// The tasks of the service that run and are to run.
fn running(lab: &Lab, via: &str) -> Result<Vec<Task>> {
    let tasks = lab.tasks(via, SERVICE)?;
    Ok(tasks.into_iter().filter(|task| task.desired == "running" && task.is_running()).collect())
}

/// The tasks of the service, once they are as many as they should be after this change, each with
/// the spec of the change, and each with one container.
fn settled(lab: &Lab, via: &str, change: Change) -> Result<Vec<Task>> {
    let tasks = running(lab, via)?;
    ensure!(tasks.len() == change.tasks(), "{} of {} tasks run", tasks.len(), change.tasks());
    let expected = match change {
        Change::Update => Some("completed"),
        Change::Rollback => Some("rollback_completed"),
        Change::Start | Change::Stop => None,
    };
    if let Some(expected) = expected {
        let status = &inspect(via, SERVICE)?["UpdateStatus"];
        ensure!(status["State"] == expected, "the update is {status}");
    }
    for node in lab.nodes() {
        containers_are_tasks(lab, &node)?;
    }
    Ok(tasks)
}
