//! Rollouts that cannot proceed as asked: on paused nodes, after a failed update, and when a task
//! must leave a node and has no other place.

use std::{
    collections::BTreeSet,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{CLIENT, Lab, Task, contract, docker, eventually, scaled};

use crate::{
    fixtures::{WHOAMI, all_answer, inspect, missing_image, only, service, task_names},
    harness::{Group, Shape, tests},
    invariants::running_tasks,
};

/// The time limit for a rollout of three tasks, each monitored for a second.
const ROLLOUT_TIMEOUT: Duration = Duration::from_secs(60);
/// The time in which the mesh must lead to the tasks of a service.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an update watches a new task, if the test measures this time.
const MONITOR: Duration = Duration::from_secs(2);

pub(crate) fn group() -> Group {
    Group {
        name: "rollouts",
        shape: Shape::default(),
        setup: |_| Ok(()),
        tests: tests![
            an_update_of_a_global_service_skips_a_paused_node_until_it_is_active,
            after_an_automatic_rollback_there_is_no_previous_spec,
            an_impossible_rollback_pauses_and_gives_the_reason,
            a_drained_node_is_emptied_although_there_is_no_other_place,
            a_node_that_fails_a_constraint_is_emptied_although_there_is_no_other_place,
        ],
    }
}

/// Waits until the last update of the service has this state. Returns the message of its status.
fn wait_state(service: &str, expected: &str) -> String {
    let status = eventually(ROLLOUT_TIMEOUT, &format!("the update of {service} is {expected}"), || {
        let status = inspect("n1", service).map_err(|error| format!("{error:#}"))?["UpdateStatus"].take();
        if status["State"] == expected { Ok(status) } else { Err(status.to_string()) }
    });
    status["Message"].as_str().unwrap_or_default().to_owned()
}

/// The spec of a service, and the version that each change of it raises.
fn spec_and_version(service: &str) -> Result<(Value, Value)> {
    let service = inspect("n1", service)?;
    Ok((service["Spec"].clone(), service["Version"].clone()))
}

fn set_availability(lab: &Lab, node: &str, availability: &str) -> Result<()> {
    lab.weft_ok("n1", &["node", "update", "--availability", availability, node]).map(drop)
}

/// The names of the tasks on these nodes.
fn on(tasks: &[Task], nodes: &[&str]) -> BTreeSet<String> {
    let tasks: Vec<Task> = tasks.iter().filter(|task| nodes.contains(&task.node.as_str())).cloned().collect();
    task_names(&tasks)
}

/// Runs `weft` until it ends, but not for longer than a rollout may take.
fn weft_until_converged(lab: &Lab, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("timeout");
    command.arg(scaled(ROLLOUT_TIMEOUT).as_secs().to_string()).arg(&lab.options().weft);
    command.args(["-H", &docker::docker_host(&contract::socket("n1"))]).args(arguments).stdin(Stdio::null());
    let output = command.output().context("cannot run weft")?;
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    ensure!(output.status.success(), "weft {}: {}\n{text}", arguments.join(" "), output.status);
    Ok(())
}

fn an_update_of_a_global_service_skips_a_paused_node_until_it_is_active(lab: &Lab) -> Result<()> {
    let create = ["service", "create", "--detach", "--name", "agent", "--mode", "global", "-p", "8080:80"];
    lab.weft_ok("n1", &[&create[..], &["--update-monitor", "1s", WHOAMI]].concat())?;
    for order in ["stop-first", "start-first"] {
        let before = lab.wait_running("n1", "agent", 3)?;
        set_availability(lab, "n3", "pause")?;
        // The command itself must end, too.
        weft_until_converged(lab, &["service", "update", "--force", "--update-order", order, "agent"])?;
        wait_state("agent", "completed");
        let during = lab.wait_running("n1", "agent", 3)?;
        ensure!(on(&during, &["n3"]) == on(&before, &["n3"]), "n3 did not keep its task: {before:?}, {during:?}");
        ensure!(
            on(&during, &["n1", "n2"]).is_disjoint(&task_names(&before)),
            "n1 and n2 were not updated: {before:?}, {during:?}"
        );
        all_answer(CLIENT, &lab.published(8080), &during, ANSWER_TIMEOUT);
        set_availability(lab, "n3", "active")?;
        eventually(ROLLOUT_TIMEOUT, "n3 is updated", || {
            let tasks = lab.wait_running("n1", "agent", 3).map_err(|error| format!("{error:#}"))?;
            if on(&tasks, &["n3"]).is_disjoint(&task_names(&before)) { Ok(()) } else { Err(format!("{tasks:?}")) }
        });
        wait_state("agent", "completed");
        let after = lab.wait_running("n1", "agent", 3)?;
        ensure!(on(&after, &["n1", "n2"]) == on(&during, &["n1", "n2"]), "{during:?} became {after:?}");
        all_answer(CLIENT, &lab.published(8080), &after, ANSWER_TIMEOUT);
    }
    lab.weft_ok("n1", &["service", "rm", "agent"]).map(drop)
}

fn after_an_automatic_rollback_there_is_no_previous_spec(lab: &Lab) -> Result<()> {
    let flags = ["--update-failure-action", "rollback", "--update-monitor", "1s", "--rollback-monitor", "1s"];
    let before = service(lab, "returned", 2, &flags, &[WHOAMI])?;
    lab.weft_ok("n1", &["service", "update", "--detach", "--image", missing_image(lab), "returned"])?;
    wait_state("returned", "rollback_completed");
    let tasks = lab.wait_running("n1", "returned", 2)?;
    ensure!(!task_names(&tasks).is_disjoint(&task_names(&before)), "no task was kept: {before:?}, {tasks:?}");
    let restored = spec_and_version("returned")?;
    ensure!(restored.0["TaskTemplate"]["ContainerSpec"]["Image"] == WHOAMI, "{restored:?}");
    for command in [
        &["service", "update", "--rollback", "returned"][..],
        &["service", "update", "--rollback", "--detach", "returned"],
        &["service", "rollback", "--detach", "returned"],
    ] {
        let message = lab.weft_refused("n1", command)?;
        ensure!(message.contains("does not have a previous spec"), "weft {}: {message}", command.join(" "));
    }
    // What is refused changes neither the spec nor a task.
    ensure!(spec_and_version("returned")? == restored, "the spec changed");
    let after = lab.wait_running("n1", "returned", 2)?;
    ensure!(task_names(&after) == task_names(&tasks), "{tasks:?} became {after:?}");
    lab.weft_ok("n1", &["service", "rm", "returned"]).map(drop)
}

fn an_impossible_rollback_pauses_and_gives_the_reason(lab: &Lab) -> Result<()> {
    let flags = ["-p", "8081:80", "--update-failure-action", "rollback", "--update-monitor", "60s"];
    let flags = [&flags[..], &["--rollback-monitor", "1s", "--restart-delay", "100ms"]].concat();
    let old = only(service(lab, "owner", 1, &flags, &[WHOAMI])?)?;
    let ports = ["--publish-rm", "80", "--publish-add", "8082:80"];
    lab.weft_ok("n1", &[&["service", "update", "--detach", "--force"], &ports[..], &["owner"]].concat())?;
    let thief = service(lab, "thief", 1, &["-p", "8081:80"], &[WHOAMI])?;
    let new = eventually(ROLLOUT_TIMEOUT, "the new task of owner runs", || {
        let tasks = lab.wait_running("n1", "owner", 1).map_err(|error| format!("{error:#}"))?;
        let task = only(tasks).map_err(|error| format!("{error:#}"))?;
        if task.id == old.id { Err(format!("{task:?}")) } else { Ok(task) }
    });
    // The update watches this task for a minute after it serves.
    ensure!(inspect("n1", "owner")?["UpdateStatus"]["State"] == "updating", "the update has ended");
    weft_lab::process::kill(new.pid.context("the task has a process")?)?;
    let message = wait_state("owner", "rollback_paused");
    let reason = "cannot roll back: port 8081/tcp is already published by service thief";
    ensure!(message.contains(reason) && message.contains(&new.id), "{message}");
    let pretty = lab.weft_ok("n1", &["service", "inspect", "--pretty", "owner"])?;
    ensure!(pretty.contains("rollback_paused") && pretty.contains(reason), "{pretty}");
    // Both services go on, and the owner still has the new port.
    let owner = lab.wait_running("n1", "owner", 1)?;
    all_answer(CLIENT, &lab.published(8082), &owner, ANSWER_TIMEOUT);
    all_answer(CLIENT, &lab.published(8081), &thief, ANSWER_TIMEOUT);
    // The spec before the update was not forgotten.
    lab.weft_ok("n1", &["service", "rm", "thief"])?;
    lab.weft_ok("n1", &["service", "rollback", "--detach", "owner"])?;
    wait_state("owner", "rollback_completed");
    let owner = lab.wait_running("n1", "owner", 1)?;
    all_answer(CLIENT, &lab.published(8081), &owner, ANSWER_TIMEOUT);
    lab.weft_ok("n1", &["service", "rm", "owner"]).map(drop)
}

/// A service with the order `start-first`, whose tasks can run only on n3, because only n3 has the
/// label. `empty` makes n3 unsuitable, and `restore` undoes this. Checks that the old task stays
/// for the monitor time of the update and then ends, and that the new one is pending for `reason`.
fn check_emptied(lab: &Lab, empty: &[&str], restore: &[&str], reason: &str) -> Result<()> {
    lab.weft_ok("n1", &["node", "update", "--label-add", "disk=ssd", "n3"])?;
    let monitor = format!("{}s", MONITOR.as_secs());
    let flags = ["--update-order", "start-first", "--update-monitor", &monitor];
    let flags = [&flags[..], &["--constraint", "node.labels.disk==ssd", "-p", "8083:80"]].concat();
    let old = only(service(lab, "stuck", 1, &flags, &[WHOAMI])?)?;
    ensure!(old.node == "n3", "{old:?}");
    all_answer(CLIENT, &lab.published(8083), std::slice::from_ref(&old), ANSWER_TIMEOUT);
    let start = Instant::now();
    lab.weft_ok("n1", &[&["node", "update"], empty, &["n3"]].concat())?;
    let mut waited_beside_the_old = false;
    let new = eventually(ROLLOUT_TIMEOUT, "the old task has ended and the new one is pending", || {
        let tasks = lab.tasks("n1", "stuck").map_err(|error| format!("{error:#}"))?;
        let pending = tasks.iter().find(|task| task.state == "pending" && task.desired == "running");
        let is_old = |task: &&Task| task.id == old.id && task.desired == "running";
        if tasks.iter().any(|task| is_old(&task)) {
            waited_beside_the_old |= pending.is_some();
            return Err(format!("the old task is not told to end: {tasks:?}"));
        }
        let ended = tasks.iter().all(|task| task.id != old.id || task.state == "shutdown");
        pending.filter(|_| ended).cloned().ok_or_else(|| format!("{tasks:?}"))
    });
    ensure!(start.elapsed() >= MONITOR, "the old task was not kept for the monitor time: {:?}", start.elapsed());
    ensure!(waited_beside_the_old, "the new task was not created before the old one was stopped");
    ensure!(new.error == reason, "{new:?}");
    let history = lab.weft_ok("n1", &["service", "ps", "--no-trunc", "stuck"])?;
    ensure!(history.contains(reason), "{history}");
    eventually(ANSWER_TIMEOUT, "n3 is empty", || {
        let running = running_tasks("n3").map_err(|error| format!("{error:#}"))?;
        if running.is_empty() { Ok(()) } else { Err(format!("{running:?}")) }
    });
    // The pending task starts as soon as there is a place.
    lab.weft_ok("n1", &[&["node", "update"], restore, &["n3"]].concat())?;
    let after = lab.wait_running("n1", "stuck", 1)?;
    ensure!(on(&after, &["n3"]).contains(&new.name()), "{new:?} became {after:?}");
    all_answer(CLIENT, &lab.published(8083), &after, ANSWER_TIMEOUT);
    lab.weft_ok("n1", &["service", "rm", "stuck"])?;
    lab.weft_ok("n1", &["node", "update", "--label-rm", "disk", "n3"]).map(drop)
}

fn a_drained_node_is_emptied_although_there_is_no_other_place(lab: &Lab) -> Result<()> {
    let reason =
        "no suitable node (1 node not available for new tasks; scheduling constraints not satisfied on 2 nodes)";
    check_emptied(lab, &["--availability", "drain"], &["--availability", "active"], reason)
}

fn a_node_that_fails_a_constraint_is_emptied_although_there_is_no_other_place(lab: &Lab) -> Result<()> {
    let reason = "no suitable node (scheduling constraints not satisfied on 3 nodes)";
    // A label that is removed, and one that changes.
    check_emptied(lab, &["--label-rm", "disk"], &["--label-add", "disk=ssd"], reason)?;
    check_emptied(lab, &["--label-add", "disk=hdd"], &["--label-add", "disk=ssd"], reason)
}
