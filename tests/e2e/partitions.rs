//! Networks that are divided, and machines that all stop at once: the side with a quorum goes on,
//! the other side says that it cannot, and afterwards there is one cluster again whose tasks run
//! once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Cable, Direction, Lab, Role, Task, eventually, try_eventually};

use crate::{
    failure,
    fixtures::{HTTP, Loads, WHOAMI, all_answer, probe_on, published_on, service, service_beside, task_names},
    harness::{Group, Shape, tests},
    invariants::{NodeWatch, intact, one_cluster},
    mesh, pauses,
};

/// The time in which the side with a quorum must have a leader, and replaces the tasks of nodes
/// that are down. A node is down after 5 s without heartbeats.
const MAJORITY_TIMEOUT: Duration = Duration::from_secs(40);
/// The node that is no manager.
const WORKER: &str = "n4";
/// The port of the service with a task on each node.
const SPREAD_PORT: u16 = 8085;
/// The port of the service whose tasks are on nodes that are not cut off.
const STEADY_PORT: u16 = 8086;
/// Longer than the nodes may be silent before they are down.
const LONG_PARTITION: Duration = Duration::from_secs(12);

pub(crate) fn group() -> Group {
    Group {
        name: "partitions",
        shape: Shape { nodes: 4, managers: 3, ..Shape::default() },
        setup: failure::setup,
        tests: tests![
            tasks_of_a_leader_without_quorum_are_replaced_and_do_not_run_twice_afterwards,
            a_worker_that_reaches_only_the_former_leader_is_replaced_with_it,
            a_manager_or_a_worker_that_is_cut_off_changes_no_leader,
            a_leader_that_only_sends_or_only_receives_is_replaced,
            pauses::another_manager_leads_while_the_leader_is_paused_and_only_a_long_pause_replaces_tasks,
            pauses::tasks_of_a_paused_worker_are_replaced_and_do_not_run_twice_afterwards,
            without_any_quorum_nothing_is_replaced,
            traffic_continues_while_all_daemons_are_killed_and_return,
        ],
    }
}

pub(crate) fn promotions() -> Group {
    Group {
        name: "promotions",
        shape: Shape { init: false, ..Shape::default() },
        setup: |_| Ok(()),
        tests: tests![the_first_manager_can_be_lost_as_soon_as_three_are_reachable],
    }
}

fn all(lab: &Lab) -> Vec<String> {
    lab.nodes().collect()
}

/// How nodes are cut off.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// From all others, not from each other.
    Divided,
    /// Each of them, in one direction.
    OneWay(Direction),
}

impl Cut {
    fn apply(self, lab: &Lab, apart: &[&str]) -> Result<()> {
        match self {
            Self::Divided => lab.divide(apart),
            Self::OneWay(direction) => apart.iter().try_for_each(|node| lab.cut(node, direction)),
        }
    }

    fn undo(self, lab: &Lab, apart: &[&str]) -> Result<()> {
        match self {
            Self::Divided => lab.unite(),
            Self::OneWay(direction) => apart.iter().try_for_each(|node| lab.mend(node, direction)),
        }
    }
}

/// The services of [`cut_off`] and of the setup, with their numbers of tasks.
const SERVICES: [(&str, usize); 5] = [("spread", 4), ("steady", 3), ("steady-probe", 1), ("whoami", 3), ("probe", 1)];

/// Cuts nodes off whose absence leaves a quorum, until their tasks are replaced, and connects them
/// again. The clients reach the others all the time, and their tasks. `meanwhile` is called with a
/// manager of the quorum, once there is a leader.
fn cut_off(lab: &Lab, apart: &[&str], cut: Cut, meanwhile: impl FnOnce(&str) -> Result<()>) -> Result<()> {
    let nodes = all(lab);
    let others: Vec<&str> = nodes.iter().map(String::as_str).filter(|node| !apart.contains(node)).collect();
    // The managers are the first nodes.
    let via = *others.first().context("a manager is left")?;
    let port = format!("{SPREAD_PORT}:{HTTP}");
    let spread = service(lab, "spread", 4, &["-p", &port, "--network", "app"], &[WHOAMI])?;
    ensure!(lab.nodes().all(|node| spread.iter().any(|task| task.node == node)), "not one on each node: {spread:?}");
    // Clients of this service need only nodes that are not cut off.
    let steady = service_beside(lab, "steady", STEADY_PORT, apart)?;
    all_answer(CLIENT, &published_on(&others, STEADY_PORT), &steady, Duration::from_secs(5));
    probe_on(lab, via, "steady-probe", &["app"])?;
    let loads = Loads::start_to(lab, "steady", &published_on(&others, STEADY_PORT), "steady-probe")?;
    let watch = NodeWatch::start(via);

    cut.apply(lab, apart)?;
    eventually(MAJORITY_TIMEOUT, "the majority has a leader", || match lab.leader(via) {
        Ok(leader) if !apart.contains(&leader.as_str()) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    meanwhile(via)?;
    lab.weft_ok(via, &["network", "create", "--driver", "overlay", "by-the-majority"])?;
    let replaced = eventually(MAJORITY_TIMEOUT, "all tasks run on the majority", || {
        let tasks = lab.tasks(via, "spread").map_err(|error| format!("{error:#}"))?;
        let is_left = |task: &&Task| task.is_running() && !apart.contains(&task.node.as_str());
        let running: Vec<Task> = tasks.iter().filter(is_left).cloned().collect();
        if running.len() == spread.len() { Ok(running) } else { Err(format!("{tasks:?}")) }
    });
    let mut kept = spread.iter().filter(|task| !apart.contains(&task.node.as_str()));
    ensure!(kept.all(|task| replaced.contains(task)), "tasks of the majority were replaced: {replaced:?}");
    all_answer(CLIENT, &published_on(&others, SPREAD_PORT), &replaced, Duration::from_secs(10));

    cut.undo(lab, apart)?;
    one_cluster(lab)?;
    let after = intact(lab, &SERVICES)?;
    ensure!(task_names(&after) == task_names(&replaced), "tasks were replaced again: {replaced:?} became {after:?}");
    all_answer(CLIENT, &lab.published(SPREAD_PORT), &after, Duration::from_secs(15));
    let after = lab.wait_running("n1", "steady", 3)?;
    ensure!(task_names(&after) == task_names(&steady), "tasks were replaced: {steady:?} became {after:?}");
    watch.expect_down(apart)?;
    loads.expect_no_errors()?;
    for node in apart.iter().filter(|node| **node != WORKER) {
        lab.weft_ok(node, &["network", "inspect", "by-the-majority"])?;
    }
    lab.weft_ok("n1", &["service", "rm", "spread", "steady", "steady-probe"])?;
    lab.weft_ok("n1", &["network", "rm", "by-the-majority"]).map(drop)
}

pub(crate) fn tasks_of_a_leader_without_quorum_are_replaced_and_do_not_run_twice_afterwards(lab: &Lab) -> Result<()> {
    one_cluster(lab)?;
    let leader = lab.leader("n1")?;
    cut_off(lab, &[&leader], Cut::Divided, |_| {
        // The former leader answers reads and says that they may be stale, and takes no change.
        eventually(MAJORITY_TIMEOUT, "the former leader knows that it has no quorum", || {
            let output = lab.weft(&leader, &["node", "ls"]).map_err(|error| format!("{error:#}"))?;
            let warning = String::from_utf8_lossy(&output.stderr).into_owned();
            if output.status.success() && warning.contains("out of date") { Ok(()) } else { Err(format!("{output:?}")) }
        });
        let refused = lab.weft_refused(&leader, &["service", "scale", "--detach", "whoami=5"])?;
        ensure!(refused.contains("no leader"), "{refused}");
        Ok(())
    })
}

pub(crate) fn a_worker_that_reaches_only_the_former_leader_is_replaced_with_it(lab: &Lab) -> Result<()> {
    one_cluster(lab)?;
    let leader = lab.leader("n1")?;
    cut_off(lab, &[&leader, WORKER], Cut::Divided, |_| Ok(()))
}

pub(crate) fn a_manager_or_a_worker_that_is_cut_off_changes_no_leader(lab: &Lab) -> Result<()> {
    one_cluster(lab)?;
    let leader = lab.leader("n1")?;
    let manager = failure::follower(lab)?;
    for node in [manager.as_str(), WORKER] {
        let leader = || lab.leader(&leader);
        let before = leader()?;
        cut_off(lab, &[node], Cut::Divided, |_| {
            ensure!(leader()? == before, "another manager leads");
            Ok(())
        })?;
    }
    Ok(())
}

/// A leader that receives nothing sends heartbeats that arrive for a while. One that sends nothing
/// receives that another leads.
pub(crate) fn a_leader_that_only_sends_or_only_receives_is_replaced(lab: &Lab) -> Result<()> {
    for direction in [Direction::ToHost, Direction::FromHost] {
        one_cluster(lab)?;
        let leader = lab.leader("n1")?;
        cut_off(lab, &[&leader], Cut::OneWay(direction), |_| Ok(()))
            .with_context(|| format!("{leader} was cut off {direction:?}"))?;
    }
    Ok(())
}

/// No node can reach another, so there is no quorum. Without one, no manager may set a node to
/// down.
pub(crate) fn without_any_quorum_nothing_is_replaced(lab: &Lab) -> Result<()> {
    one_cluster(lab)?;
    let before = lab.wait_running("n1", "whoami", 3)?;
    let watch = NodeWatch::start("n1");
    for node in all(lab) {
        lab.set_cable(&node, Cable::Unplugged)?;
    }
    // No leader appears for longer than a node may be silent.
    let found = try_eventually(LONG_PARTITION, "a node that is alone makes a change", || {
        let refused = lab.weft(&all(lab)[0], &["network", "create", "impossible"]);
        match refused {
            Ok(output) if output.status.success() => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    ensure!(found.is_err(), "a node that is alone has made a change");
    for node in all(lab) {
        lab.set_cable(&node, Cable::Plugged)?;
    }
    one_cluster(lab)?;
    // What a node had written before it knew that it was alone may take effect now.
    lab.weft("n1", &["network", "rm", "impossible"])?;
    let after = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&after) == task_names(&before), "tasks were replaced: {before:?} became {after:?}");
    all_answer(CLIENT, &lab.published(mesh::PORT), &after, Duration::from_secs(15));
    watch.expect_down(&[])
}

pub(crate) fn traffic_continues_while_all_daemons_are_killed_and_return(lab: &Lab) -> Result<()> {
    one_cluster(lab)?;
    let before = lab.wait_running("n1", "whoami", 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    for node in all(lab) {
        lab.kill_daemon(&node)?;
    }
    for node in all(lab) {
        lab.start(&node)?;
    }
    one_cluster(lab)?;
    let after = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&after) == task_names(&before), "tasks were replaced: {before:?} became {after:?}");
    loads.expect_no_errors()
}

/// A manager that is shown as reachable is a voter: with three of them, any one can be lost.
pub(crate) fn the_first_manager_can_be_lost_as_soon_as_three_are_reachable(lab: &Lab) -> Result<()> {
    lab.init()?;
    let (manager, worker) = (lab.join_token("n1", Role::Manager)?, lab.join_token("n1", Role::Worker)?);
    lab.join("n2", &manager)?;
    lab.join("n3", &worker)?;
    lab.wait_ready("n1", 3)?;
    lab.weft_ok("n1", &["node", "promote", "n3"])?;
    lab.wait_managers("n1", 3)?;
    lab.set_cable("n1", Cable::Unplugged)?;
    eventually(MAJORITY_TIMEOUT, "the other two have a leader", || match lab.leader("n2") {
        Ok(new) if new != "n1" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    eventually(MAJORITY_TIMEOUT, "the lost manager can be demoted", || {
        lab.weft_ok("n2", &["node", "demote", "n1"]).map(drop).map_err(|error| format!("{error:#}"))
    });
    lab.wait_managers("n2", 2)?;
    lab.set_cable("n1", Cable::Plugged)?;
    lab.wait_ready("n2", 3)?;
    lab.wait_managers("n2", 2)?;
    let create = ["service", "create", "--detach", "--name", "web", "--replicas", "3", WHOAMI];
    lab.weft_ok("n2", &create)?;
    lab.wait_running("n2", "web", 3).map(drop)
}
