//! The tasks of a service, and waiting until they are running or stopped.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Lab;
use crate::{
    api::{self, Task},
    contract, wait,
};

/// The time in which a service must have its number of running tasks.
const TIMEOUT: Duration = Duration::from_secs(60);

impl Lab {
    /// The tasks of a service, including those that have ended. `via` is the manager to ask.
    pub fn tasks(&self, via: &str, service: &str) -> Result<Vec<Task>> {
        api::tasks(&contract::socket(via), service)
    }

    /// Waits until the service has exactly `count` tasks with the desired state `running`, and all
    /// these tasks are running. Returns them.
    pub fn wait_running(&self, via: &str, service: &str, count: usize) -> Result<Vec<Task>> {
        let mut last = String::new();
        let converged = wait::poll(TIMEOUT, || {
            let tasks = self.tasks(via, service).inspect_err(|error| last = format!("{error:#}")).ok()?;
            last = describe(&tasks);
            let desired: Vec<Task> = tasks.into_iter().filter(|task| task.desired == "running").collect();
            (desired.len() == count && desired.iter().all(Task::is_running)).then_some(desired)
        });
        converged.with_context(|| format!("{count} tasks of {service} are not running within {TIMEOUT:?}: {last}"))
    }

    /// Waits until every task of the service with another desired state than `running` has stopped.
    pub fn wait_stopped(&self, via: &str, service: &str) -> Result<()> {
        let mut last = String::new();
        let stopped = wait::poll(TIMEOUT, || {
            let tasks = self.tasks(via, service).inspect_err(|error| last = format!("{error:#}")).ok()?;
            last = describe(&tasks);
            tasks.iter().all(|task| task.desired == "running" || task.state != "running").then_some(())
        });
        stopped.with_context(|| format!("tasks of {service} are not stopped within {TIMEOUT:?}: {last}"))
    }
}

fn describe(tasks: &[Task]) -> String {
    let line = |task: &Task| {
        let Task { service, slot, node, state, desired, error, .. } = task;
        let error = if error.is_empty() { String::new() } else { format!(" ({error})") };
        format!("{service}.{slot} on {node:?} is {state}, desired {desired}{error}")
    };
    tasks.iter().map(line).collect::<Vec<_>>().join("; ")
}
