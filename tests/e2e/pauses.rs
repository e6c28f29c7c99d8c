//! Daemons that are paused for longer than a node may be silent, as by a debugger, a suspended
//! machine, or a disk that does not answer. Their tasks and their data planes continue.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Task, eventually, try_eventually};

use crate::{
    fixtures::{HTTP, Loads, WHOAMI, all_answer, probe_on, published_on, service, service_beside, task_names},
    invariants::{NodeWatch, intact, one_cluster},
    mesh,
};

/// The port of the service with a task on each node.
const PORT: u16 = 8085;
/// The port of the service without a task on the paused node.
const STEADY_PORT: u16 = 8086;
/// Longer than a node may be silent before it is down, which is 5 s.
const LONG_PAUSE: Duration = Duration::from_secs(7);
/// The time in which the other managers must elect a leader.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// The time in which the tasks of a paused node must be replaced.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(30);

/// A service with a task on each node.
fn create_spread(lab: &Lab) -> Result<Vec<Task>> {
    let published = format!("{PORT}:{HTTP}");
    let flags = ["-p", &published, "--network", "app"];
    let tasks = service(lab, "spread", lab.options().nodes, &flags, &[WHOAMI])?;
    ensure!(lab.nodes().all(|node| tasks.iter().any(|task| task.node == node)), "not one on each node: {tasks:?}");
    all_answer(CLIENT, &lab.published(PORT), &tasks, Duration::from_secs(5));
    Ok(tasks)
}

/// A manager that is not this node.
fn other_manager(lab: &Lab, node: &str) -> Result<String> {
    let managers = lab.options().managers;
    lab.nodes().take(managers).find(|other| other != node).context("the lab has another manager")
}

/// Pauses a daemon until its node is down and its task is replaced. All nodes serve a service that
/// has no task on the paused node, all the time. `before` are the tasks of the service with a task
/// on each node: when the node is down, connections to its task are reset, though it still answers.
fn pause_until_replaced(lab: &Lab, paused: &str, before: &[Task]) -> Result<()> {
    let via = other_manager(lab, paused)?;
    let steady = service_beside(lab, "steady", STEADY_PORT, &[paused])?;
    probe_on(lab, &via, "steady-probe", &["app"])?;
    all_answer(CLIENT, &lab.published(STEADY_PORT), &steady, Duration::from_secs(5));
    let loads = Loads::start_to(lab, "steady", &lab.published(STEADY_PORT), "steady-probe")?;
    let watch = NodeWatch::start(&via);
    lab.pause_daemon(paused)?;
    let replaced = eventually(REPLACE_TIMEOUT, "the tasks of the paused node run on others", || {
        let tasks = lab.tasks(&via, "spread").map_err(|error| format!("{error:#}"))?;
        let running: Vec<Task> = tasks.iter().filter(|t| t.is_running() && t.node != paused).cloned().collect();
        if running.len() == before.len() { Ok(running) } else { Err(format!("{tasks:?}")) }
    });
    let mut kept = before.iter().filter(|task| task.node != paused);
    ensure!(kept.all(|task| replaced.contains(task)), "tasks of other nodes were replaced: {replaced:?}");
    let nodes: Vec<String> = lab.nodes().filter(|node| node != paused).collect();
    let others: Vec<&str> = nodes.iter().map(String::as_str).collect();
    all_answer(CLIENT, &published_on(&others, PORT), &replaced, Duration::from_secs(10));
    lab.resume_daemon(paused)?;
    one_cluster(lab)?;
    let services = [("spread", before.len()), ("steady", 3), ("steady-probe", 1), ("whoami", 3), ("probe", 1)];
    let after = intact(lab, &services)?;
    ensure!(task_names(&after) == task_names(&replaced), "{replaced:?} became {after:?}");
    let after = lab.wait_running("n1", "steady", 3)?;
    ensure!(task_names(&after) == task_names(&steady), "{steady:?} became {after:?}");
    all_answer(CLIENT, &lab.published(PORT), &replaced, Duration::from_secs(5));
    watch.expect_down(&[paused])?;
    loads.expect_no_errors()?;
    lab.weft_ok("n1", &["service", "rm", "spread", "steady", "steady-probe"]).map(drop)
}

pub(crate) fn another_manager_leads_while_the_leader_is_paused_and_only_a_long_pause_replaces_tasks(
    lab: &Lab,
) -> Result<()> {
    one_cluster(lab)?;
    let before = create_spread(lab)?;
    let leader = lab.leader("n1")?;
    let via = other_manager(lab, &leader)?;
    probe_on(lab, &via, "spread-probe", &["app"])?;
    let loads = Loads::start_to(lab, "spread", &lab.published(PORT), "spread-probe")?;
    let watch = NodeWatch::start(&via);
    lab.pause_daemon(&leader)?;
    eventually(ELECTION_TIMEOUT, "another manager leads", || match lab.leader(&via) {
        Ok(new) if new != leader => Ok(()),
        other => Err(format!("{other:?}")),
    });
    lab.resume_daemon(&leader)?;
    one_cluster(lab)?;
    let after = intact(lab, &[("spread", before.len()), ("spread-probe", 1), ("whoami", 3), ("probe", 1)])?;
    ensure!(task_names(&after) == task_names(&before), "{before:?} became {after:?}");
    watch.expect_down(&[])?;
    loads.expect_no_errors()?;
    lab.weft_ok("n1", &["service", "rm", "spread-probe"])?;

    // No new leader knows whether the node of the former one returns.
    pause_until_replaced(lab, &lab.leader("n1")?, &after)
}

pub(crate) fn tasks_of_a_paused_worker_are_replaced_and_do_not_run_twice_afterwards(lab: &Lab) -> Result<()> {
    one_cluster(lab)?;
    let before = create_spread(lab)?;
    pause_until_replaced(lab, "n4", &before)
}

/// A manager that was paused has received no message of any node, and its own node is silent as
/// well.
pub(crate) fn a_single_manager_that_was_paused_takes_no_node_for_down(lab: &Lab) -> Result<()> {
    let services = [("whoami", 3), ("probe", 1)];
    let before = intact(lab, &services)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    let watch = NodeWatch::start("n1");
    lab.pause_daemon("n1")?;
    let resumed = try_eventually(LONG_PAUSE, "the daemon continues", || match lab.is_daemon_paused("n1") {
        Ok(false) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    ensure!(resumed.is_err(), "the daemon did not stay paused");
    lab.resume_daemon("n1")?;
    lab.wait_ready("n1", 3)?;
    let later = service(lab, "later", 3, &["-p", &format!("{PORT}:{HTTP}")], &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(PORT), &later, Duration::from_secs(5));
    lab.weft_ok("n1", &["service", "rm", "later"])?;
    let after = intact(lab, &services)?;
    ensure!(task_names(&after) == task_names(&before), "{before:?} became {after:?}");
    watch.expect_down(&[])?;
    loads.expect_no_errors()
}
