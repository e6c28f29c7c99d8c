//! Networks that are divided, and machines that all stop at once: the side with a quorum goes on,
//! the other side says that it cannot, and afterwards there is one cluster again whose tasks run
//! once.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Cable, Lab, Role, Task, contract, eventually, try_eventually};

use crate::{
    failure,
    fixtures::{Loads, WHOAMI, all_answer, task_names},
    harness::{Group, Shape, tests},
    mesh,
};

/// The time in which the side with a quorum must have a leader, and replaces the tasks of nodes
/// that are down. A node is down after 5 s without heartbeats.
const MAJORITY_TIMEOUT: Duration = Duration::from_secs(40);
/// The time in which all nodes must be one cluster again.
const HEAL_TIMEOUT: Duration = Duration::from_secs(60);
/// Longer than the nodes may be silent before they are down.
const LONG_PARTITION: Duration = Duration::from_secs(12);

pub(crate) fn group() -> Group {
    Group {
        name: "partitions",
        shape: Shape { managers: 3, ..Shape::default() },
        setup: failure::setup,
        tests: tests![
            tasks_of_a_minority_are_replaced_and_do_not_run_twice_afterwards,
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

/// The ids of the tasks that run on a node. Those that have ended are kept for a while.
fn running_tasks(node: &str) -> Result<BTreeSet<String>> {
    let dir = contract::run_dir(node).join("tasks");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut running = BTreeSet::new();
    for entry in entries {
        let path = entry?.path();
        if path.join("running.json").exists() && !path.join("exit.json").exists() {
            running.extend(path.file_name().map(|id| id.to_string_lossy().into_owned()));
        }
    }
    Ok(running)
}

/// Waits until no other task than these runs on any node.
fn no_other_task_runs(lab: &Lab, tasks: &[Task]) {
    let planned: BTreeSet<&String> = tasks.iter().map(|task| &task.id).collect();
    eventually(HEAL_TIMEOUT, "no task runs that is not planned", || {
        for node in all(lab) {
            let running = running_tasks(&node).map_err(|error| format!("{error:#}"))?;
            let other: Vec<_> = running.iter().filter(|id| !planned.contains(id)).collect();
            if !other.is_empty() {
                return Err(format!("{other:?} run on {node}"));
            }
        }
        Ok(())
    });
}

/// Waits until all nodes name the same leader, and all managers are reachable.
fn one_cluster(lab: &Lab) -> Result<()> {
    eventually(HEAL_TIMEOUT, "all nodes have the same leader", || {
        let leaders: Result<BTreeSet<String>> = all(lab).iter().map(|node| lab.leader(node)).collect();
        match leaders {
            Ok(leaders) if leaders.len() == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    lab.wait_ready("n1", all(lab).len())?;
    lab.wait_managers("n1", all(lab).len())
}

pub(crate) fn tasks_of_a_minority_are_replaced_and_do_not_run_twice_afterwards(lab: &Lab) -> Result<()> {
    one_cluster(lab)?;
    let leader = lab.leader("n1")?;
    lab.wait_running("n1", "whoami", 3)?;
    let others: Vec<String> = lab.nodes().filter(|node| *node != leader).collect();
    lab.divide(&[&leader])?;
    let via = &others[0];
    eventually(MAJORITY_TIMEOUT, "the majority has a leader", || match lab.leader(via) {
        Ok(new) if new != leader => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // The former leader answers reads and says that they may be stale, and takes no change.
    eventually(MAJORITY_TIMEOUT, "the former leader knows that it has no quorum", || {
        let output = lab.weft(&leader, &["node", "ls"]).map_err(|error| format!("{error:#}"))?;
        let warning = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() && warning.contains("out of date") { Ok(()) } else { Err(format!("{output:?}")) }
    });
    let refused = lab.weft_refused(&leader, &["service", "scale", "--detach", "whoami=5"])?;
    ensure!(refused.contains("no leader"), "{refused}");
    let tasks = eventually(MAJORITY_TIMEOUT, "three tasks run on the majority", || {
        let tasks = lab.tasks(via, "whoami").map_err(|error| format!("{error:#}"))?;
        let running: Vec<_> = tasks.iter().filter(|task| task.is_running() && task.node != leader).cloned().collect();
        if running.len() == 3 { Ok(running) } else { Err(format!("{tasks:?}")) }
    });
    let addrs: Vec<_> = others.iter().flat_map(|node| contract::addrs(node)).collect();
    let addrs: Vec<_> = addrs.into_iter().map(|addr| (addr, mesh::PORT).into()).collect();
    all_answer(CLIENT, &addrs, &tasks, Duration::from_secs(10));
    lab.unite()?;
    one_cluster(lab)?;
    let after = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&after) == task_names(&tasks), "tasks were replaced again: {tasks:?} became {after:?}");
    let probe = lab.wait_running("n1", "probe", 1)?;
    no_other_task_runs(lab, &[after.clone(), probe].concat());
    all_answer(CLIENT, &lab.published(mesh::PORT), &after, Duration::from_secs(15));
    Ok(())
}

/// No node can reach another, so there is no quorum. Without one, no manager may set a node to
/// down.
pub(crate) fn without_any_quorum_nothing_is_replaced(lab: &Lab) -> Result<()> {
    one_cluster(lab)?;
    let before = lab.wait_running("n1", "whoami", 3)?;
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
    Ok(())
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
