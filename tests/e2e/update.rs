//! Rolling updates: a service changes task by task, and no client sees an error.

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{CLIENT, Lab, Task, eventually};

use crate::{
    fixtures::{Loads, WHOAMI, all_answer, inspect, missing_image, task_names},
    harness::{Shape, Theme, tests},
    mesh, scaling,
};

/// For a rolling update of three tasks, each watched for a second.
const ROLLED: Duration = Duration::from_secs(90);

pub(crate) fn theme() -> Theme {
    Theme {
        name: "update",
        shape: Shape::default(),
        setup: scaling::setup,
        tests: tests![
            forcing_an_update_replaces_every_task_without_an_error,
            a_new_image_rolls_out_without_an_error,
            starting_first_never_has_fewer_tasks,
            a_failing_update_pauses_and_says_why,
            a_rollback_returns_to_what_was,
        ],
    }
}

/// What an update did.
struct Update {
    before: Vec<Task>,
    after: Vec<Task>,
    /// The smallest and the largest number of tasks that ran at a time, as often as could be seen.
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
    eventually(ROLLED, "the update is completed", || {
        let tasks = lab.tasks("n1", "whoami").map_err(|error| format!("{error:#}"))?;
        let count = tasks.iter().filter(|task| task.is_running()).count();
        running = count.min(*running.start())..=count.max(*running.end());
        state_is("completed").map(|_| ())
    });
    let after = lab.wait_running("n1", "whoami", 3)?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &after, Duration::from_secs(1));
    loads.expect_no_errors()?;
    Ok(Update { before, after, running })
}

/// The service's update status, once its state is this one.
fn state_is(expected: &str) -> Result<Value, String> {
    let service = inspect("n1", "whoami").map_err(|error| format!("{error:#}"))?;
    let status = service["UpdateStatus"].clone();
    if status["State"] == expected { Ok(status) } else { Err(status.to_string()) }
}

fn wait_state(expected: &str) -> Result<String> {
    let status = eventually(ROLLED, &format!("the update's state is {expected}"), || state_is(expected));
    Ok(status["Message"].as_str().unwrap_or_default().to_owned())
}

/// The image that the service's spec names now.
fn image() -> Result<String> {
    let service = inspect("n1", "whoami")?;
    let image = service["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"].as_str();
    Ok(image.context("no image in the spec")?.to_owned())
}

fn assert_all_replaced(update: &Update) -> Result<()> {
    let kept: BTreeSet<String> = task_names(&update.before).intersection(&task_names(&update.after)).cloned().collect();
    ensure!(kept.is_empty(), "not replaced: {kept:?}");
    Ok(())
}

pub(crate) fn forcing_an_update_replaces_every_task_without_an_error(lab: &Lab) -> Result<()> {
    assert_all_replaced(&update(lab, &["--force"])?)
}

pub(crate) fn a_new_image_rolls_out_without_an_error(lab: &Lab) -> Result<()> {
    assert_all_replaced(&update(lab, &["--image", "weft/whoami:latest"])?)?;
    // The history of a slot stays.
    let history = lab.weft_ok("n1", &["service", "ps", "whoami"])?;
    ensure!(history.contains("\\_ whoami."), "{history}");
    Ok(())
}

pub(crate) fn starting_first_never_has_fewer_tasks(lab: &Lab) -> Result<()> {
    let update = update(lab, &["--force", "--update-order", "start-first", "--update-parallelism", "2"])?;
    assert_all_replaced(&update)?;
    let Update { before, running, .. } = update;
    ensure!(*running.start() == before.len(), "of {} tasks, {running:?} ran at a time", before.len());
    ensure!(*running.end() > before.len(), "none ran before it took another's place: {running:?}");
    Ok(())
}

pub(crate) fn a_failing_update_pauses_and_says_why(lab: &Lab) -> Result<()> {
    let before = lab.wait_running("n1", "whoami", 3)?;
    let (image, missing) = (image()?, missing_image(lab));
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    let arguments = ["service", "update", "--detach", "--update-order", "stop-first", "--update-parallelism", "1"];
    lab.weft_ok("n1", &[&arguments[..], &["--image", missing, "whoami"]].concat())?;
    let message = wait_state("paused")?;
    ensure!(!message.is_empty(), "a paused update says why");
    let history = lab.weft_ok("n1", &["service", "ps", "--no-trunc", "whoami"])?;
    ensure!(history.contains(missing) && history.contains("Rejected"), "{history}");
    // Two of three still serve.
    loads.expect_no_errors()?;
    let running = lab.tasks("n1", "whoami")?.into_iter().filter(Task::is_running).count();
    ensure!(running + 1 >= before.len(), "{running} tasks are left of {}", before.len());
    // Another update goes on from there: the tasks that still serve are as it wants them.
    lab.weft_ok("n1", &["service", "update", "--detach", "--image", &image, "whoami"])?;
    wait_state("completed")?;
    let after = lab.wait_running("n1", "whoami", 3)?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &after, Duration::from_secs(5));
    Ok(())
}

pub(crate) fn a_rollback_returns_to_what_was(lab: &Lab) -> Result<()> {
    let before = image()?;
    let other = if before == WHOAMI { "weft/whoami:latest" } else { WHOAMI };
    update(lab, &["--image", other])?;
    ensure!(image()? != before, "the image did not change");
    lab.weft_ok("n1", &["service", "rollback", "--detach", "whoami"])?;
    wait_state("rollback_completed")?;
    ensure!(image()? == before, "the image is not what it was");
    lab.wait_running("n1", "whoami", 3).map(|_| ())
}
