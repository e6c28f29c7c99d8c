//! Forming a cluster as the README describes it, joining and leaving it, and node availability.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::{Lab, Role, contract, eventually};

use crate::harness::{Group, Shape, tests};

pub(crate) fn story() -> Group {
    Group {
        name: "story",
        shape: Shape { init: false, ..Shape::default() },
        setup: |_| Ok(()),
        tests: tests![a_cluster_forms_from_the_printed_commands, a_lab_left_up_is_in_use_while_a_daemon_runs],
    }
}

pub(crate) fn membership() -> Group {
    Group {
        name: "membership",
        shape: Shape::default(),
        setup: |_| Ok(()),
        tests: tests![
            a_wrong_token_is_refused,
            a_rotated_token_is_refused_and_members_stay_connected,
            a_node_cannot_join_twice,
            a_manager_leaves_only_with_force,
            a_node_that_joins_again_is_a_new_node,
            a_constraint_on_a_daemon_label_selects_the_node,
            tasks_of_a_drained_node_move_to_other_nodes,
        ],
    }
}

/// The words of a printed `swarm join` command, from `swarm` on.
fn join_command(printed: &str) -> Result<Vec<String>> {
    let line =
        printed.lines().find(|line| line.contains("swarm join --token")).context("the output has a join command")?;
    let words = line.split_whitespace().skip_while(|word| *word != "swarm");
    Ok(words.map(str::to_owned).collect())
}

fn a_cluster_forms_from_the_printed_commands(lab: &Lab) -> Result<()> {
    let printed = lab.init()?;
    let worker = join_command(&printed)?;
    ensure!(worker.iter().any(|word| word.starts_with("SWMTKN-1-")), "{printed}");
    ensure!(worker.last().is_some_and(|addr| addr == "192.0.2.1:2377"), "{printed}");
    let manager = join_command(&lab.weft_ok("n1", &["swarm", "join-token", "manager"])?)?;
    ensure!(manager != worker, "both roles have the same token");

    for (node, command) in [("n2", &manager), ("n3", &worker)] {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        lab.weft_ok(node, &words)?;
    }
    lab.wait_ready("n1", 3)?;
    lab.wait_managers("n1", 2)?;
    let table = lab.weft_ok("n1", &["node", "ls"])?;
    let row =
        |node: &str| table.lines().find(|line| line.contains(&format!(" {node} "))).unwrap_or_default().to_owned();
    for title in ["ID", "HOSTNAME", "STATUS", "AVAILABILITY", "MANAGER STATUS"] {
        ensure!(table.lines().next().is_some_and(|line| line.contains(title)), "no column {title}:\n{table}");
    }
    ensure!(row("n1").contains("Leader") && row("n1").contains('*'), "{table}");
    ensure!(row("n2").contains("Reachable") && row("n2").contains("Ready"), "{table}");
    ensure!(row("n3").contains("Active") && !row("n3").contains("Reachable"), "{table}");

    lab.weft_ok("n1", &["node", "promote", "n3"])?;
    eventually(Duration::from_secs(15), "n3 becomes a reachable manager", || {
        let table = lab.weft_ok("n2", &["node", "ls"]).map_err(|error| format!("{error:#}"))?;
        if table.matches("Reachable").count() == 2 { Ok(()) } else { Err(table) }
    });
    // A change through one manager is visible on all.
    lab.weft_ok("n3", &["network", "create", "--driver", "overlay", "app"])?;
    ensure!(
        lab.weft_ok("n2", &["network", "ls"])?.contains("app"),
        "n2 does not list the network that was created on n3"
    );
    Ok(())
}

fn a_lab_left_up_is_in_use_while_a_daemon_runs(lab: &Lab) -> Result<()> {
    let used = Lab::in_use();
    ensure!(used.is_empty(), "the lab of a test is in use: {used:?}");
    lab.mark_in_use()?;
    let mut nodes: Vec<String> = lab.nodes().collect();
    while let Some(node) = nodes.last() {
        let used = Lab::in_use();
        ensure!(used == nodes, "{used:?} instead of {nodes:?}");
        lab.kill_daemon(node)?;
        nodes.pop();
    }
    ensure!(Lab::in_use().is_empty(), "the lab is in use, although no daemon is running");
    Ok(())
}

fn a_wrong_token_is_refused(lab: &Lab) -> Result<()> {
    let token = lab.join_token("n1", Role::Worker)?;
    // n3 leaves, so that it can join.
    lab.weft_ok("n3", &["swarm", "leave"])?;
    let truncated = &token[..token.len() - 5];
    let current = "print the current one with \"weft swarm join-token\"";
    for (bad, words) in [
        (truncated, ["was it cut off?", current]),
        ("nonsense", ["does not start with SWMTKN-", current]),
        (
            &altered(&token, DIGEST)?,
            ["the join token does not match the certificate authority", "the token belongs to another swarm"],
        ),
        (&altered(&token, SECRET)?, ["it is mistyped or was rotated", current]),
    ] {
        let message = lab.weft_refused("n3", &["swarm", "join", "--token", bad, "192.0.2.1:2377"])?;
        for word in words {
            ensure!(message.contains(word), "{bad}: no {word:?} in: {message}");
        }
    }
    let message = lab.weft_refused("n3", &["swarm", "join", "--token", &token, "192.0.2.77:2377"])?;
    ensure!(message.contains("192.0.2.77:2377") && message.contains("check the address"), "{message}");
    // The refused attempts have left nothing behind: n3 can join.
    lab.join("n3", &token)?;
    eventually(Duration::from_secs(15), "n3 is ready", || {
        let statuses = lab.node_statuses("n1").map_err(|error| format!("{error:#}"))?;
        let ready = statuses.iter().any(|(name, status)| name == "n3" && status == "ready");
        if ready { Ok(()) } else { Err(format!("{statuses:?}")) }
    });
    remove_down_nodes(lab)
}

/// The parts of `SWMTKN-1-<digest>-<secret>`.
const DIGEST: usize = 2;
const SECRET: usize = 3;

/// A token in which the last character of one part is another.
fn altered(token: &str, part: usize) -> Result<String> {
    let mut parts: Vec<String> = token.split('-').map(str::to_owned).collect();
    let part = parts.get_mut(part).context("the token has this part")?;
    let last = part.pop().context("the part has a character")?;
    part.push(if last == '0' { '1' } else { '0' });
    Ok(parts.join("-"))
}

/// Removes the nodes that are down, so that every test begins with three nodes.
fn remove_down_nodes(lab: &Lab) -> Result<()> {
    eventually(Duration::from_secs(20), "the cluster has three nodes, all ready", || {
        let nodes = weft_lab::api::get(&contract::socket("n1"), "/nodes").map_err(|error| format!("{error:#}"))?;
        let nodes = nodes.as_array().cloned().unwrap_or_default();
        for node in nodes.iter().filter(|node| node["Status"]["State"] == "down") {
            let id = node["ID"].as_str().unwrap_or_default();
            lab.weft_ok("n1", &["node", "rm", id]).map_err(|error| format!("{error:#}"))?;
        }
        let ready = nodes.iter().filter(|node| node["Status"]["State"] == "ready").count();
        if (ready, nodes.len()) == (3, 3) { Ok(()) } else { Err(format!("{ready} of {} nodes are ready", nodes.len())) }
    });
    Ok(())
}

fn a_rotated_token_is_refused_and_members_stay_connected(lab: &Lab) -> Result<()> {
    let old = lab.join_token("n1", Role::Worker)?;
    lab.weft_ok("n1", &["swarm", "join-token", "--rotate", "worker"])?;
    let new = lab.join_token("n1", Role::Worker)?;
    ensure!(old != new, "the token was not rotated");
    lab.wait_ready("n1", 3)?;
    lab.weft_ok("n3", &["swarm", "leave"])?;
    let message = lab.weft_refused("n3", &["swarm", "join", "--token", &old, "192.0.2.1:2377"])?;
    ensure!(message.contains("was rotated; print the current one"), "{message}");
    lab.join("n3", &new)?;
    remove_down_nodes(lab)
}

fn a_node_cannot_join_twice(lab: &Lab) -> Result<()> {
    let token = lab.join_token("n1", Role::Worker)?;
    let message = lab.weft_refused("n2", &["swarm", "join", "--token", &token, "192.0.2.1:2377"])?;
    ensure!(message.contains("already part of a swarm") && message.contains("leave"), "{message}");
    let message = lab.weft_refused("n1", &["swarm", "init", "--advertise-addr", "192.0.2.1"])?;
    ensure!(message.contains("already part of a swarm"), "{message}");
    Ok(())
}

fn a_manager_leaves_only_with_force(lab: &Lab) -> Result<()> {
    let message = lab.weft_refused("n1", &["swarm", "leave"])?;
    ensure!(message.contains("--force"), "{message}");
    lab.wait_ready("n1", 3)
}

fn a_node_that_joins_again_is_a_new_node(lab: &Lab) -> Result<()> {
    let id = || -> Result<String> {
        let node = weft_lab::api::get(&contract::socket("n1"), "/nodes/n3")?;
        Ok(node["ID"].as_str().context("the node has an id")?.to_owned())
    };
    let before = id()?;
    lab.weft_ok("n3", &["swarm", "leave"])?;
    eventually(Duration::from_secs(15), "n3 is down", || {
        let statuses = lab.node_statuses("n1").map_err(|error| format!("{error:#}"))?;
        let down = statuses.contains(&("n3".to_owned(), "down".to_owned()));
        if down { Ok(()) } else { Err(format!("{statuses:?}")) }
    });
    lab.weft_ok("n1", &["node", "rm", &before])?;
    lab.join("n3", &lab.join_token("n1", Role::Worker)?)?;
    remove_down_nodes(lab)?;
    ensure!(id()? != before, "n3 has the same id as before");
    Ok(())
}

/// In a lab the label `lab-node` of each daemon is the name of its node.
fn a_constraint_on_a_daemon_label_selects_the_node(lab: &Lab) -> Result<()> {
    let node = weft_lab::api::get(&contract::socket("n1"), "/nodes/n2")?;
    ensure!(node["Description"]["Engine"]["Labels"]["lab-node"] == "n2", "{node}");
    let constraint = ["--constraint", "engine.labels.lab-node==n2"];
    let tasks = crate::fixtures::service(lab, "placed", 3, &constraint, &[crate::fixtures::WHOAMI])?;
    ensure!(tasks.iter().all(|task| task.node == "n2"), "{tasks:?}");
    lab.weft_ok("n1", &["service", "rm", "placed"])?;
    Ok(())
}

fn tasks_of_a_drained_node_move_to_other_nodes(lab: &Lab) -> Result<()> {
    let tasks = crate::fixtures::service(lab, "moving", 3, &[], &[crate::fixtures::WHOAMI])?;
    ensure!(tasks.iter().any(|task| task.node == "n2"), "no task is on n2: {tasks:?}");
    lab.weft_ok("n1", &["node", "update", "--availability", "drain", "n2"])?;
    eventually(Duration::from_secs(30), "three tasks are running, none of them on n2", || {
        let tasks = lab.wait_running("n1", "moving", 3).map_err(|error| format!("{error:#}"))?;
        if tasks.iter().all(|task| task.node != "n2") { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
    lab.weft_ok("n1", &["node", "update", "--availability", "active", "n2"])?;
    lab.weft_ok("n1", &["service", "rm", "moving"])?;
    Ok(())
}
