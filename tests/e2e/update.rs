//! Rolling updates: the tasks of a service are replaced one after the other, and no request fails.

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{CLIENT, Lab, Task, eventually};

use crate::{
    fixtures::{Loads, WHOAMI, all_answer, inspect, missing_image, task_names},
    harness::{Group, Shape, tests},
    mesh, scaling,
};

/// The time limit for a rolling update of three tasks, each monitored for a second.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(90);

pub(crate) fn group() -> Group {
    Group {
        name: "update",
        shape: Shape::default(),
        setup: scaling::setup,
        tests: tests![
            a_forced_update_replaces_every_task_without_errors,
            a_new_image_rolls_out_without_errors,
            start_first_never_runs_fewer_tasks,
            a_failing_update_pauses_and_gives_the_reason,
            a_rollback_restores_the_previous_image,
        ],
    }
}

/// The tasks before, during and after an update.
struct Update {
    before: Vec<Task>,
    after: Vec<Task>,
    /// The smallest and the largest number of running tasks among all polls.
    running: RangeInclusive<usize>,
}

/// Updates the service under load.
fn update(lab: &Lab, arguments: &[&str]) -> Result<Update> {
    let before = lab.wait_running("n1", "whoami", 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    lab.weft_ok(
        "n1",
        &[&["service", "update", "--detach", "--update-monitor", "1s"], arguments, &["whoami"]].concat(),
    )?;
    let mut running = before.len()..=before.len();
    eventually(UPDATE_TIMEOUT, "the update is completed", || {
        let tasks = lab.tasks("n1", "whoami").map_err(|error| format!("{error:#}"))?;
        let count = tasks.iter().filter(|task| task.is_running()).count();
        running = count.min(*running.start())..=count.max(*running.end());
        status_if("completed").map(|_| ())
    });
    let after = lab.wait_running("n1", "whoami", 3)?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &after, Duration::from_secs(1));
    loads.expect_no_errors()?;
    Ok(Update { before, after, running })
}

/// The service's update status if it has this state, otherwise the status as an error.
fn status_if(expected: &str) -> Result<Value, String> {
    let service = inspect("n1", "whoami").map_err(|error| format!("{error:#}"))?;
    let status = service["UpdateStatus"].clone();
    if status["State"] == expected { Ok(status) } else { Err(status.to_string()) }
}

/// Waits until the update has this state. Returns the message of its status.
fn wait_state(expected: &str) -> Result<String> {
    let status = eventually(UPDATE_TIMEOUT, &format!("the update is {expected}"), || status_if(expected));
    Ok(status["Message"].as_str().unwrap_or_default().to_owned())
}

/// The image in the service's current spec.
fn image() -> Result<String> {
    let service = inspect("n1", "whoami")?;
    let image = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].as_str();
    Ok(image.context("the spec has an image")?.to_owned())
}

fn assert_all_replaced(update: &Update) -> Result<()> {
    let old: BTreeSet<String> = task_names(&update.before).intersection(&task_names(&update.after)).cloned().collect();
    ensure!(old.is_empty(), "tasks were not replaced: {old:?}");
    Ok(())
}

pub(crate) fn a_forced_update_replaces_every_task_without_errors(lab: &Lab) -> Result<()> {
    assert_all_replaced(&update(lab, &["--force"])?)
}

pub(crate) fn a_new_image_rolls_out_without_errors(lab: &Lab) -> Result<()> {
    assert_all_replaced(&update(lab, &["--image", "weft/whoami:latest"])?)?;
    // `service ps` shows the old tasks of a slot as well.
    let history = lab.weft_ok("n1", &["service", "ps", "whoami"])?;
    ensure!(history.contains("\\_ whoami."), "{history}");
    Ok(())
}

pub(crate) fn start_first_never_runs_fewer_tasks(lab: &Lab) -> Result<()> {
    let update = update(lab, &["--force", "--update-order", "start-first", "--update-parallelism", "2"])?;
    assert_all_replaced(&update)?;
    let Update { before, running, .. } = update;
    ensure!(
        *running.start() == before.len(),
        "{} tasks before, but {running:?} running tasks during the update",
        before.len()
    );
    ensure!(*running.end() > before.len(), "no new task was started before an old one was stopped: {running:?}");
    Ok(())
}

pub(crate) fn a_failing_update_pauses_and_gives_the_reason(lab: &Lab) -> Result<()> {
    let before = lab.wait_running("n1", "whoami", 3)?;
    let (image, missing) = (image()?, missing_image(lab));
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    let arguments = ["service", "update", "--detach", "--update-order", "stop-first", "--update-parallelism", "1"];
    lab.weft_ok("n1", &[&arguments[..], &["--image", missing, "whoami"]].concat())?;
    let message = wait_state("paused")?;
    ensure!(!message.is_empty(), "the paused update gives no reason");
    let history = lab.weft_ok("n1", &["service", "ps", "--no-trunc", "whoami"])?;
    ensure!(history.contains(missing) && history.contains("Rejected"), "{history}");
    // Two of three tasks still answer.
    loads.expect_no_errors()?;
    let running = lab.tasks("n1", "whoami")?.into_iter().filter(Task::is_running).count();
    ensure!(running + 1 >= before.len(), "{running} of {} tasks are running", before.len());
    // An update to the previous image continues from there: two tasks have that image already.
    lab.weft_ok("n1", &["service", "update", "--detach", "--image", &image, "whoami"])?;
    wait_state("completed")?;
    let after = lab.wait_running("n1", "whoami", 3)?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &after, Duration::from_secs(5));
    Ok(())
}

pub(crate) fn a_rollback_restores_the_previous_image(lab: &Lab) -> Result<()> {
    let before = image()?;
    let other = if before == WHOAMI { "weft/whoami:latest" } else { WHOAMI };
    update(lab, &["--image", other])?;
    ensure!(image()? != before, "the image did not change");
    lab.weft_ok("n1", &["service", "rollback", "--detach", "whoami"])?;
    wait_state("rollback_completed")?;
    ensure!(image()? == before, "the previous image was not restored");
    lab.wait_running("n1", "whoami", 3).map(|_| ())
}
