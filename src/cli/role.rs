//! `node promote` and `node demote`: change the role of nodes, and wait until the managers' log has
//! followed. A node votes only once it has the log.

use std::{cell::RefCell, time::Duration};

use anyhow::Result;
use clap::Args;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    client::{Client, text},
    flags::Role,
    for_each_name,
    node_spec::{change, get},
    output::print_line,
};

/// How often the client asks the daemon. The Engine API has no request that waits for a change.
const POLL: Duration = Duration::from_millis(200);
/// How long the client waits for all nodes together. A node needs some seconds if the log is large.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Args)]
pub(super) struct Nodes {
    /// Names or ids of nodes; self is the node that answers the request
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// Return at once instead of waiting until the nodes vote, or no longer vote
    #[arg(short, long)]
    detach: bool,
}

/// How far a node is with its new role.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Done,
    /// The text says why it waits.
    Waiting(String),
    /// It does not answer, so that it is not worth waiting for. The text says more.
    Stopped(String),
}

/// Changes the role of all nodes first, and then waits: so several promotions are one change of the
/// voters.
pub(super) async fn set(client: &Client, options: &Nodes, role: Role) -> Result<()> {
    let changed = RefCell::new(Vec::new());
    let all = for_each_name(&options.nodes, async |node| {
        let found = get(client, node).await?;
        if text(&found, "/Spec/Role") == role.as_str() && progress(&found, role) == Progress::Done {
            return print_line(format_args!("Node {node} is already a {}.", role.as_str()));
        }
        change(client, node, |spec| {
            spec["Role"] = role.as_str().into();
            Ok(())
        })
        .await?;
        changed.borrow_mut().push((node, text(&found, "/ID").to_owned()));
        Ok(())
    });
    let all = all.await;
    let deadline = if options.detach { Instant::now() } else { Instant::now() + TIMEOUT };
    for (node, id) in changed.into_inner() {
        match wait(client, &id, role, deadline).await {
            Progress::Done if role == Role::Manager => {
                print_line(format_args!("Node {node} promoted to a manager in the swarm."))?;
            }
            Progress::Done => print_line(format_args!("Manager {node} demoted in the swarm."))?,
            Progress::Waiting(why) | Progress::Stopped(why) => {
                print_line(format_args!("Node {node} is not a {} yet: {why}.", role.as_str()))?;
            }
        }
    }
    all
}

async fn wait(client: &Client, id: &str, role: Role, deadline: Instant) -> Progress {
    loop {
        let progress = match get(client, id).await {
            Ok(node) => progress(&node, role),
            Err(_) if role == Role::Worker && is_worker(client).await => Progress::Done,
            // There may be no leader for a moment.
            Err(error) => Progress::Waiting(format!("{error:#}")),
        };
        if !matches!(progress, Progress::Waiting(_)) || Instant::now() >= deadline {
            return progress;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Whether the node that answers is no manager any more: then it was demoted itself.
async fn is_worker(client: &Client) -> bool {
    client.get("/info").await.is_ok_and(|info| info["Swarm"]["ControlAvailable"] == false)
}

/// Reads it from the node as the daemon shows it: a manager that does not vote yet has an unknown
/// reachability, and a worker that still votes has one.
fn progress(node: &Value, role: Role) -> Progress {
    let reachability = text(node, "/ManagerStatus/Reachability");
    let is_done = match role {
        Role::Manager => !matches!(reachability, "" | "unknown"),
        Role::Worker => node["ManagerStatus"].is_null(),
    };
    if is_done {
        return Progress::Done;
    }
    let (state, message) = (text(node, "/Status/State"), text(node, "/Status/Message"));
    let is_stopped = role == Role::Manager && state == "down";
    let why = match (state, message) {
        ("ready", "") => "the managers have not changed their membership yet".to_owned(),
        ("ready", message) => message.to_owned(),
        (state, "") => format!("the node is {state}"),
        (state, message) => format!("the node is {state} ({message})"),
    };
    if is_stopped { Progress::Stopped(why) } else { Progress::Waiting(why) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(node: &Value, role: Role, waits_for: Option<&str>) {
        let want = waits_for.map_or(Progress::Done, |why| Progress::Waiting(why.to_owned()));
        assert_eq!(progress(node, role), want, "{node} {role:?}");
    }

    #[test]
    fn a_promotion_is_done_when_the_node_votes() {
        let node = |state: &str, message: &str, reachability: Option<&str>| {
            let manager = reachability.map(|reachability| json!({ "Reachability": reachability }));
            json!({"Status": {"State": state, "Message": message}, "ManagerStatus": manager})
        };
        let why = "becoming a manager: it does not vote yet";
        check(&node("ready", why, Some("unknown")), Role::Manager, Some(why));
        let stopped = node("down", "", Some("unknown"));
        assert_eq!(progress(&stopped, Role::Manager), Progress::Stopped("the node is down".to_owned()));
        check(&node("ready", "", None), Role::Manager, Some("the managers have not changed their membership yet"));
        check(&node("ready", "", Some("reachable")), Role::Manager, None);
        check(&node("down", "", Some("unreachable")), Role::Manager, None);
        let why = "becoming a worker: it still votes";
        check(&node("ready", why, Some("reachable")), Role::Worker, Some(why));
        check(&node("ready", "", None), Role::Worker, None);
    }
}
