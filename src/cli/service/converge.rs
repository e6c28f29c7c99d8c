//! Waits until a service has converged, and shows the progress. A service has converged if all
//! tasks of its spec run and no older task runs.
//!
//! The commands that create, update, scale or roll back a service call [`wait`].

use std::{io::IsTerminal as _, process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::super::{
    client::{Client, filters, list, text},
    output::{print_line, print_to_stderr},
};

/// How often the client asks the daemon. The Engine API has no request that waits for a change.
const POLL: Duration = Duration::from_millis(200);
/// How long all tasks must run before the service counts as converged. The docker client uses the
/// monitor period of the update instead, which is 5 s by default.
const STABLE: Duration = Duration::from_secs(1);

/// The state of a service, compared with the goal of the user.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Progress {
    /// Only `running` of `wanted` tasks run, or old tasks still run, or the update has not ended.
    /// `reason` is the error of a task; it may be empty.
    Waiting {
        running: u64,
        wanted: u64,
        reason: String,
    },
    Converged {
        wanted: u64,
    },
    /// The update was paused or rolled back. The text is the reason.
    Failed(String),
}

/// The goal of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Goal {
    /// The service runs the tasks of its present spec. A rollback is a failure.
    Spec,
    /// The service returns to its previous spec.
    Rollback,
}

#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Wait {
    /// Return at once instead of waiting until the service has converged
    #[arg(short, long)]
    pub detach: bool,
    /// Do not show progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Waits until the service has converged, unless the flags say not to wait. The exit code is 1 if
/// an update failed.
pub(super) async fn wait(client: &Client, id: &str, goal: Goal, flags: Wait) -> Result<ExitCode> {
    if flags.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let bar = progress_bar(flags);
    let mut stable_since = None;
    let mut last_line = String::new();
    loop {
        match fetch(client, id, goal).await? {
            Progress::Failed(message) => {
                bar.finish_and_clear();
                print_to_stderr(format_args!("service {id} did not converge: {message}"));
                return Ok(ExitCode::FAILURE);
            }
            Progress::Converged { wanted } => {
                bar.set_length(wanted.max(1));
                bar.set_position(wanted.max(1));
                let since = *stable_since.get_or_insert_with(tokio::time::Instant::now);
                if since.elapsed() >= STABLE {
                    bar.finish_and_clear();
                    if !flags.quiet {
                        print_line(format_args!("verify: Service {id} converged"))?;
                    }
                    return Ok(ExitCode::SUCCESS);
                }
            }
            Progress::Waiting { running, wanted, reason } => {
                stable_since = None;
                let line = format!("overall progress: {running} out of {wanted} tasks {reason}");
                bar.set_length(wanted.max(1));
                bar.set_position(running);
                bar.set_message(reason);
                if !flags.quiet && bar.is_hidden() && line != last_line {
                    print_line(line.trim_end())?;
                    last_line = line;
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A progress bar. It is hidden if standard error is not a terminal, or with `--quiet`.
fn progress_bar(flags: Wait) -> ProgressBar {
    if flags.quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("overall progress: {pos} out of {len} tasks {bar:30} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(1).with_style(style)
}

async fn fetch(client: &Client, id: &str, goal: Goal) -> Result<Progress> {
    let service = client.get(&format!("/services/{id}?status=true")).await?;
    let of_service = format!("service={id}");
    let tasks = client.get(&format!("/tasks?{}", filters(std::slice::from_ref(&of_service))?)).await?;
    let current = filters(&[of_service, "_up-to-date=true".to_owned()])?;
    let current = client.get(&format!("/tasks?{current}")).await?;
    let nodes = if is_global(&service) { client.get("/nodes").await? } else { Value::Null };
    Ok(progress(&service, list(&current, ""), list(&tasks, ""), list(&nodes, ""), goal))
}

fn is_global(service: &Value) -> bool {
    service.pointer("/Spec/Mode/Global").is_some_and(|mode| !mode.is_null())
}

/// Computes the progress. `current` are the tasks of the present spec of the service, and `tasks`
/// are all its tasks. `nodes` is used only for a global service.
fn progress(service: &Value, current: &[Value], tasks: &[Value], nodes: &[Value], goal: Goal) -> Progress {
    let update = text(service, "/UpdateStatus/State");
    if matches!(update, "paused" | "rollback_paused") || (update == "rollback_completed" && goal == Goal::Spec) {
        return Progress::Failed(text(service, "/UpdateStatus/Message").to_owned());
    }
    let is_running = |task: &&Value| text(task, "/Status/State") == "running";
    let desired = || current.iter().filter(|task| text(task, "/DesiredState") == "running");
    let running = desired().filter(is_running).count() as u64;
    // A global service keeps its old tasks on paused nodes, and on those that its image is not for.
    let platforms = list(service, "/Spec/TaskTemplate/Placement/Platforms");
    let takes_image =
        |node: &Value| platforms.is_empty() || platforms.iter().any(|platform| is_of_platform(node, platform));
    let keeps = |id: &str| {
        let node = nodes.iter().find(|node| text(node, "/ID") == id);
        node.is_some_and(|node| text(node, "/Spec/Availability") == "pause" || !takes_image(node))
    };
    let is_current = |task: &&Value| current.iter().any(|other| text(other, "/ID") == text(task, "/ID"));
    let is_kept = |task: &&Value| !is_current(task) && keeps(text(task, "/NodeID"));
    let others_run = tasks.iter().filter(is_running).filter(|task| !is_kept(task)).count() as u64 > running;
    let takes_tasks =
        |node: &&Value| text(node, "/Status/State") == "ready" && text(node, "/Spec/Availability") != "drain";
    let wanted = match service.pointer("/Spec/Mode/Replicated/Replicas").and_then(Value::as_u64) {
        Some(replicas) => replicas,
        None => {
            let wanted = (nodes.iter().filter(takes_tasks).count() as u64).min(desired().count() as u64);
            // Without a suitable node there is nothing to wait for.
            wanted.max(u64::from(nodes.iter().any(takes_image)))
        }
    };
    if running == wanted && !others_run && !matches!(update, "updating" | "rollback_started") {
        return Progress::Converged { wanted };
    }
    let reason = desired().map(|t| text(t, "/Status/Err")).find(|e| !e.is_empty()).unwrap_or_default();
    Progress::Waiting { running, wanted, reason: reason.to_owned() }
}

/// Whether a node is of a platform. An empty text of the platform stands for all.
fn is_of_platform(node: &Value, platform: &Value) -> bool {
    // Images and kernels have different names for the same architecture.
    const NAMES: [[&str; 2]; 2] = [["amd64", "x86_64"], ["arm64", "aarch64"]];
    let same = |wanted: &str, found: &str| {
        let is_both = |names: &[&str; 2]| names.contains(&wanted) && names.contains(&found);
        wanted.is_empty() || wanted == found || NAMES.iter().any(is_both)
    };
    same(text(platform, "/OS"), text(node, "/Description/Platform/OS"))
        && same(text(platform, "/Architecture"), text(node, "/Description/Platform/Architecture"))
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
        let waiting = |running| Progress::Waiting { running, wanted: 2, reason: String::new() };
        let check = |update, current: &[Value], all: &[Value], expected: Progress| {
            assert_eq!(progress(&service(update), current, all, &[], Goal::Spec), expected);
        };
        check("", &new, &new, Progress::Converged { wanted: 2 });
        check("", &new, &with_old, waiting(2));
        check("updating", &new, &new, waiting(2));
        // Just after a change, the tasks of the old spec still have the desired state "running".
        check("", &[], &new, waiting(0));
    }

    #[test]
    fn a_global_service_converges_although_a_paused_node_keeps_its_old_task() {
        let service = json!({ "Spec": { "Mode": { "Global": {} } }, "UpdateStatus": { "State": "completed" } });
        let node = |id: &str, availability: &str| json!({ "ID": id, "Status": { "State": "ready" }, "Spec": { "Availability": availability } });
        let on = |id: &str, node: &str| {
            let mut task = task("running", "running");
            (task["ID"], task["NodeID"]) = (id.into(), node.into());
            task
        };
        let new = [on("new", "n1")];
        let all = [on("new", "n1"), on("old", "n2")];
        let check = |second: &str, expected: Progress| {
            let nodes = [node("n1", "active"), node("n2", second)];
            assert_eq!(progress(&service, &new, &all, &nodes, Goal::Spec), expected);
        };
        check("pause", Progress::Converged { wanted: 1 });
        check("active", Progress::Waiting { running: 1, wanted: 1, reason: String::new() });
    }

    #[test]
    fn a_global_service_converges_although_its_image_is_not_for_all_nodes() {
        let mut service = json!({ "Spec": { "Mode": { "Global": {} } }, "UpdateStatus": { "State": "completed" } });
        let node = |id: &str, arch: &str| {
            let platform = json!({ "OS": "linux", "Architecture": arch });
            json!({ "ID": id, "Status": { "State": "ready" }, "Description": { "Platform": platform } })
        };
        let nodes = [node("n1", "x86_64"), node("n2", "aarch64")];
        let on = |id: &str, node: &str| {
            let mut task = task("running", "running");
            (task["ID"], task["NodeID"]) = (id.into(), node.into());
            task
        };
        let mut check = |arch: &str, current: &[Value], all: &[Value], expected: Progress| {
            let placement = json!({ "Platforms": [{ "OS": "linux", "Architecture": arch }] });
            service["Spec"]["TaskTemplate"] = json!({ "Placement": placement });
            assert_eq!(progress(&service, current, all, &nodes, Goal::Spec), expected);
        };
        let (new, olds) = (on("new", "n1"), [on("old-1", "n1"), on("old-2", "n2")]);
        check("amd64", std::slice::from_ref(&new), &[new.clone(), olds[1].clone()], Progress::Converged { wanted: 1 });
        check("amd64", &[], &olds, Progress::Waiting { running: 0, wanted: 1, reason: String::new() });
        check("s390x", &[], &olds, Progress::Converged { wanted: 0 });
    }

    #[test]
    fn a_paused_update_and_an_automatic_rollback_are_failures() {
        let new = [task("running", "running"), task("running", "running")];
        let failed = Progress::Failed("why".into());
        assert_eq!(progress(&service("paused"), &new, &new, &[], Goal::Spec), failed);
        assert_eq!(progress(&service("rollback_completed"), &new, &new, &[], Goal::Spec), failed);
        let converged = Progress::Converged { wanted: 2 };
        assert_eq!(progress(&service("rollback_completed"), &new, &new, &[], Goal::Rollback), converged);
    }
}
