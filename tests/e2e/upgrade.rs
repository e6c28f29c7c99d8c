//! The upgrade from the previous release, node by node, under load. The groups exist only if the
//! environment names the previous release's binary: `cargo xtask upgrade` builds and sets it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Role, Runtime, Task, contract, docker, eventually};

use crate::{
    failure,
    fixtures::{FOLLOW_TIMEOUT, HTTP, Loads, WHOAMI, all_answer, names_follow, service, task_names, task_of},
    harness::{Group, NEW_WEFT, Shape, tests},
    mesh,
};

/// The environment variable with the path of the previous release's binary.
const PREVIOUS: &str = "WEFT_PREVIOUS";
/// The time in which the leader must raise the feature level after the last manager was upgraded.
const RAISE_TIMEOUT: Duration = Duration::from_secs(20);
/// The time in which tasks that have ended must be replaced and removed.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(30);

/// Empty without a previous release to upgrade from.
pub(crate) fn groups() -> Vec<Group> {
    let Some(previous) = std::env::var_os(PREVIOUS).map(PathBuf::from) else { return Vec::new() };
    let docker = Shape { nodes: 2, runtime: Runtime::Docker, weft: Some(previous.clone()), ..Shape::default() };
    vec![
        Group {
            name: "upgrade",
            shape: Shape { nodes: 4, managers: 3, weft: Some(previous), ..Shape::default() },
            setup: failure::setup,
            tests: tests![nodes_are_upgraded_one_by_one_under_load_and_no_request_is_lost],
        },
        Group {
            name: "docker_upgrade",
            shape: docker,
            setup: |lab| {
                lab.create_tools_images()?;
                failure::setup(lab)
            },
            tests: tests![pairs_of_containers_are_adopted_until_they_end],
        },
    ]
}

/// In 0.1.0, a task of the docker runtime is a pair of containers: one has the network namespace,
/// and the program runs in the other.
fn pairs_of_containers_are_adopted_until_they_end(lab: &Lab) -> Result<()> {
    let before = lab.wait_running("n1", "whoami", 3)?;
    let probe = task_of(lab, "probe")?;
    let containers = || -> Result<usize> {
        let counts = lab.nodes().map(|node| Ok(docker::containers(lab.engine(&node)?)?.len()));
        Ok(counts.collect::<Result<Vec<_>>>()?.into_iter().sum())
    };
    ensure!(containers()? == 8, "four tasks have {} containers", containers()?);
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    for node in ["n2", "n1"] {
        lab.stop_daemon(node)?;
        lab.start_with(node, NEW_WEFT.as_ref())?;
        lab.wait_ready("n1", 2)?;
    }
    let after = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&before) == task_names(&after), "{before:?} became {after:?}");
    loads.expect_no_errors()?;
    names_follow(lab, &probe, &after, FOLLOW_TIMEOUT * 5);

    // Each task that ends is replaced by one container.
    for task in &after {
        weft_lab::process::kill(task.pid.context("the task has a process")?)?;
    }
    let tasks = eventually(REPLACE_TIMEOUT, "other tasks replace those of the pairs", || {
        let tasks = lab.wait_running("n1", "whoami", 3).map_err(|error| format!("{error:#}"))?;
        let remains = |old: &Task| tasks.iter().any(|task| task.id == old.id);
        if after.iter().any(remains) { Err(format!("{tasks:?}")) } else { Ok(tasks) }
    });
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, FOLLOW_TIMEOUT * 5);
    names_follow(lab, &probe, &tasks, FOLLOW_TIMEOUT * 5);
    lab.weft_ok("n1", &["service", "rm", "whoami", "probe"])?;
    eventually(REPLACE_TIMEOUT, "no container is left", || match containers() {
        Ok(0) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    Ok(())
}

pub(crate) fn nodes_are_upgraded_one_by_one_under_load_and_no_request_is_lost(lab: &Lab) -> Result<()> {
    let before = lab.wait_running("n1", "whoami", 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    // The leader last, then the worker.
    let leader = lab.leader("n1")?;
    let mut order: Vec<String> = ["n1", "n2", "n3"].map(str::to_owned).into_iter().filter(|n| *n != leader).collect();
    order.extend([leader, "n4".to_owned()]);
    for (done, node) in order.iter().enumerate() {
        lab.stop_daemon(node)?;
        lab.start_with(node, NEW_WEFT.as_ref())?;
        lab.wait_ready("n1", 4)?;
        lab.wait_managers("n1", 3)?;
        // The mixed cluster works: every node gets plans, and every manager's state has the change.
        let name = format!("mixed-{done}");
        let port = 8090 + u16::try_from(done)?;
        let tasks = service(lab, &name, 4, &["-p", &format!("{port}:{HTTP}")], &[WHOAMI])?;
        all_answer(CLIENT, &lab.published(port), &tasks, FOLLOW_TIMEOUT * 5);
        for manager in ["n1", "n2", "n3"] {
            lab.wait_running(manager, &name, 4)?;
        }
        lab.weft_ok("n1", &["service", "rm", &name])?;
        lab.wait_stopped("n1", &name)?;
    }
    let after = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&before) == task_names(&after), "{before:?} became {after:?}");
    loads.expect_no_errors()?;
    eventually(RAISE_TIMEOUT, "the leader raises the feature level", || {
        let raised = |node: &str| {
            let log = std::fs::read_to_string(contract::log(node)).unwrap_or_default();
            log.contains("all managers support a higher feature level")
        };
        lab.nodes().any(|node| raised(&node)).then_some(()).ok_or_else(|| "no leader has logged it".to_owned())
    });
    // Logs and snapshots of the former release are read again after the level was raised.
    for node in ["n1", "n2", "n3"] {
        lab.stop_daemon(node)?;
        lab.start_with(node, NEW_WEFT.as_ref())?;
        lab.wait_ready("n1", 4)?;
        lab.wait_managers("n1", 3)?;
    }
    ensure!(!lab.join_token("n1", Role::Worker)?.is_empty(), "the tokens are there");
    Ok(())
}
