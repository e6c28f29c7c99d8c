//! Waiting until a service is what was asked for.

use std::{io::IsTerminal as _, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::super::{
    client::{Client, filters, list, text},
    output::{note, out_line},
};

/// How often the cluster is asked: it has no call that waits.
const POLL: Duration = Duration::from_millis(200);
/// How long all tasks must have been running before the service counts as converged. The docker client waits 5 s.
const STABLE: Duration = Duration::from_secs(1);

/// What the cluster says of the service at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    /// Tasks that run as they should, of all.
    Waiting {
        running: u64,
        wanted: u64,
        reason: String,
    },
    Converged {
        wanted: u64,
    },
    /// The update was paused or rolled back.
    Failed(String),
}

/// What was asked for: a rollback is then no failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    Spec,
    Rollback,
}

/// Whether to wait, and whether to say so.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Wait {
    /// Return at once instead of waiting until the tasks run as asked
    #[arg(short, long)]
    pub detach: bool,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Waits, with progress, unless told not to; exit code 1 where an update failed.
pub(super) async fn unless_detached(client: &Client, id: &str, goal: Goal, wait: Wait) -> Result<ExitCode> {
    if wait.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let bar = progress(wait);
    let mut stable_since = None;
    let mut last = String::new();
    loop {
        let standing = ask(client, id, goal).await?;
        match &standing {
            Standing::Failed(message) => {
                bar.finish_and_clear();
                note(format_args!("service {id} did not converge: {message}"));
                return Ok(ExitCode::FAILURE);
            }
            Standing::Converged { wanted } => {
                bar.set_length((*wanted).max(1));
                bar.set_position((*wanted).max(1));
                let since = *stable_since.get_or_insert_with(tokio::time::Instant::now);
                if since.elapsed() >= STABLE {
                    bar.finish_and_clear();
                    if !wait.quiet {
                        out_line(format_args!("verify: Service {id} converged"))?;
                    }
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Standing::Waiting { running, wanted, reason } => {
                stable_since = None;
                bar.set_length((*wanted).max(1));
                bar.set_position(*running);
                bar.set_message(reason.clone());
                let line = format!("overall progress: {running} out of {wanted} tasks {reason}");
                if !wait.quiet && bar.is_hidden() && line != last {
                    out_line(line.trim_end())?;
                    last = line;
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn progress(wait: Wait) -> ProgressBar {
    if wait.quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("overall progress: {pos} out of {len} tasks {bar:30} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(1).with_style(style)
}

async fn ask(client: &Client, id: &str, goal: Goal) -> Result<Standing> {
    let service = client.get(&format!("/services/{id}?status=true")).await?;
    let of_service = format!("service={id}");
    let tasks = client.get(&format!("/tasks?{}", filters(std::slice::from_ref(&of_service))?)).await?;
    let current = filters(&[of_service, "_up-to-date=true".to_owned()])?;
    let current = client.get(&format!("/tasks?{current}")).await?;
    let nodes = if is_global(&service) { client.get("/nodes").await? } else { Value::Null };
    Ok(standing(&service, list(&current, ""), list(&tasks, ""), list(&nodes, ""), goal))
}

fn is_global(service: &Value) -> bool {
    service.pointer("/Spec/Mode/Global").is_some_and(|mode| !mode.is_null())
}

/// `current` are the tasks of the service's present spec, `tasks` all of them.
fn standing(service: &Value, current: &[Value], tasks: &[Value], nodes: &[Value], goal: Goal) -> Standing {
    let update = text(service, "/UpdateStatus/State");
    if matches!(update, "paused" | "rollback_paused") || (update == "rollback_completed" && goal == Goal::Spec) {
        return Standing::Failed(text(service, "/UpdateStatus/Message").to_owned());
    }
    let is_running = |task: &&Value| text(task, "/Status/State") == "running";
    let wanted_now = || current.iter().filter(|task| text(task, "/DesiredState") == "running");
    let running = wanted_now().filter(is_running).count() as u64;
    let leftover = tasks.iter().filter(is_running).count() as u64 > running;
    let eligible =
        |node: &&Value| text(node, "/Status/State") == "ready" && text(node, "/Spec/Availability") != "drain";
    let wanted = match service.pointer("/Spec/Mode/Replicated/Replicas").and_then(Value::as_u64) {
        Some(replicas) => replicas,
        None => (nodes.iter().filter(eligible).count() as u64).min(wanted_now().count() as u64).max(1),
    };
    if running == wanted && !leftover && !matches!(update, "updating" | "rollback_started") {
        return Standing::Converged { wanted };
    }
    let reason = wanted_now().map(|t| text(t, "/Status/Err")).find(|e| !e.is_empty()).unwrap_or_default();
    Standing::Waiting { running, wanted, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(update: &str) -> Value {
        json!({ "Spec": { "Mode": { "Replicated": { "Replicas": 2 } } }, "UpdateStatus": { "State": update, "Message": "why" } })
    }

    fn task(desired: &str, state: &str) -> Value {
        json!({ "DesiredState": desired, "Status": { "State": state } })
    }

    #[test]
    fn a_service_has_converged_when_its_new_tasks_run_and_its_old_ones_do_not() {
        let new = [task("running", "running"), task("running", "running")];
        let with_old = [&new[..], &[task("shutdown", "running")]].concat();
        let waiting = |running| Standing::Waiting { running, wanted: 2, reason: String::new() };
        let check = |update, current: &[Value], all: &[Value], expected: Standing| {
            assert_eq!(standing(&service(update), current, all, &[], Goal::Spec), expected);
        };
        check("", &new, &new, Standing::Converged { wanted: 2 });
        check("", &new, &with_old, waiting(2));
        check("updating", &new, &new, waiting(2));
        // Just after a change nothing but the tasks' version tells that they are outdated.
        check("", &[], &new, waiting(0));
    }

    #[test]
    fn a_paused_update_has_failed_and_a_rollback_only_where_none_was_asked() {
        let new = [task("running", "running"), task("running", "running")];
        let failed = Standing::Failed("why".into());
        assert_eq!(standing(&service("paused"), &new, &new, &[], Goal::Spec), failed);
        assert_eq!(standing(&service("rollback_completed"), &new, &new, &[], Goal::Spec), failed);
        let converged = Standing::Converged { wanted: 2 };
        assert_eq!(standing(&service("rollback_completed"), &new, &new, &[], Goal::Rollback), converged);
    }
}
