//! Forming a cluster, as the README tells it, and who may be in it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use weft_lab::{Lab, Role, contract, eventually};

use crate::harness::{Shape, Theme, tests};

pub(crate) fn story() -> Theme {
    Theme {
        name: "story",
        shape: Shape { init: false, ..Shape::default() },
        setup: |_| Ok(()),
        tests: tests![a_cluster_forms_from_the_printed_commands, a_lab_left_up_is_in_use_while_a_daemon_runs],
    }
}

pub(crate) fn membership() -> Theme {
    Theme {
        name: "membership",
        shape: Shape::default(),
        setup: |_| Ok(()),
        tests: tests![
            a_wrong_token_is_refused,
            a_rotated_token_stops_working_and_disturbs_nobody,
            a_node_cannot_join_twice,
            a_manager_leaves_only_when_forced,
            a_node_that_joins_again_is_a_new_node,
            a_constraint_on_a_daemons_label_places_tasks_there,
            a_drained_node_gives_its_tasks_away,
        ],
    }
}

/// The words after `swarm join` in a command that was printed for pasting.
fn pasted(printed: &str) -> Result<Vec<String>> {
    let line =
        printed.lines().find(|line| line.contains("swarm join --token")).context("no join command was printed")?;
    let words = line.split_whitespace().skip_while(|word| *word != "swarm");
    Ok(words.map(str::to_owned).collect())
}

fn a_cluster_forms_from_the_printed_commands(lab: &Lab) -> Result<()> {
    let printed = lab.init()?;
    let worker = pasted(&printed)?;
    ensure!(worker.iter().any(|word| word.starts_with("SWMTKN-1-")), "{printed}");
    ensure!(worker.last().is_some_and(|addr| addr == "192.0.2.1:2377"), "{printed}");
    let manager = pasted(&lab.weft_ok("n1", &["swarm", "join-token", "manager"])?)?;
    ensure!(manager != worker, "one token for both roles");

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
    // Any manager takes a write, and all see it.
    lab.weft_ok("n3", &["network", "create", "--driver", "overlay", "app"])?;
    ensure!(lab.weft_ok("n2", &["network", "ls"])?.contains("app"), "n2 does not know the network made on n3");
    Ok(())
}

fn a_lab_left_up_is_in_use_while_a_daemon_runs(lab: &Lab) -> Result<()> {
    let used = Lab::in_use();
    ensure!(used.is_empty(), "this test's own lab is nobody's: {used:?}");
    lab.keep()?;
    let mut nodes: Vec<String> = lab.nodes().collect();
    while let Some(node) = nodes.last() {
        let used = Lab::in_use();
        ensure!(used == nodes, "{used:?} instead of {nodes:?}");
        lab.kill_daemon(node)?;
        nodes.pop();
    }
    ensure!(Lab::in_use().is_empty(), "no daemon runs");
    Ok(())
}

fn a_wrong_token_is_refused(lab: &Lab) -> Result<()> {
    let token = lab.join_token("n1", Role::Worker)?;
    // n3 leaves, to have somebody who wants to join.
    lab.weft_ok("n3", &["swarm", "leave"])?;
    let truncated = &token[..token.len() - 5];
    let current = "print the current one with \"weft swarm join-token\"";
    for (bad, words) in [
        (truncated, ["was it cut off?", current]),
        ("nonsense", ["does not start with SWMTKN-", current]),
        (&altered(&token, DIGEST)?, ["not the one that the join token names", "the token belongs to another swarm"]),
        (&altered(&token, SECRET)?, ["it is mistyped or was rotated", current]),
    ] {
        let said = lab.weft_refused("n3", &["swarm", "join", "--token", bad, "192.0.2.1:2377"])?;
        for word in words {
            ensure!(said.contains(word), "{bad}: no {word:?} in: {said}");
        }
    }
    let said = lab.weft_refused("n3", &["swarm", "join", "--token", &token, "192.0.2.77:2377"])?;
    ensure!(said.contains("192.0.2.77:2377") && said.contains("check the address"), "{said}");
    // Nothing of it stayed.
    lab.join("n3", &token)?;
    eventually(Duration::from_secs(15), "n3 is back", || {
        let statuses = lab.node_statuses("n1").map_err(|error| format!("{error:#}"))?;
        let ready = statuses.iter().any(|(name, status)| name == "n3" && status == "ready");
        if ready { Ok(()) } else { Err(format!("{statuses:?}")) }
    });
    forget_down_nodes(lab)
}

/// The parts of `SWMTKN-1-<digest>-<secret>`.
const DIGEST: usize = 2;
const SECRET: usize = 3;

/// A token with another last character in one of its parts.
fn altered(token: &str, part: usize) -> Result<String> {
    let mut parts: Vec<String> = token.split('-').map(str::to_owned).collect();
    let part = parts.get_mut(part).context("a part of the token")?;
    let last = part.pop().context("a character")?;
    part.push(if last == '0' { '1' } else { '0' });
    Ok(parts.join("-"))
}

/// Removes the nodes that left, so that every test finds three.
fn forget_down_nodes(lab: &Lab) -> Result<()> {
    eventually(Duration::from_secs(20), "three nodes are left, all ready", || {
        let nodes = weft_lab::api::get(&contract::socket("n1"), "/nodes").map_err(|error| format!("{error:#}"))?;
        let nodes = nodes.as_array().cloned().unwrap_or_default();
        for node in nodes.iter().filter(|node| node["Status"]["State"] == "down") {
            let id = node["ID"].as_str().unwrap_or_default();
            lab.weft_ok("n1", &["node", "rm", id]).map_err(|error| format!("{error:#}"))?;
        }
        let ready = nodes.iter().filter(|node| node["Status"]["State"] == "ready").count();
        if (ready, nodes.len()) == (3, 3) { Ok(()) } else { Err(format!("{ready} of {} are ready", nodes.len())) }
    });
    Ok(())
}

fn a_rotated_token_stops_working_and_disturbs_nobody(lab: &Lab) -> Result<()> {
    let old = lab.join_token("n1", Role::Worker)?;
    lab.weft_ok("n1", &["swarm", "join-token", "--rotate", "worker"])?;
    let new = lab.join_token("n1", Role::Worker)?;
    ensure!(old != new, "the token is the same");
    lab.wait_ready("n1", 3)?;
    lab.weft_ok("n3", &["swarm", "leave"])?;
    let said = lab.weft_refused("n3", &["swarm", "join", "--token", &old, "192.0.2.1:2377"])?;
    ensure!(said.contains("was rotated; print the current one"), "{said}");
    lab.join("n3", &new)?;
    forget_down_nodes(lab)
}

fn a_node_cannot_join_twice(lab: &Lab) -> Result<()> {
    let token = lab.join_token("n1", Role::Worker)?;
    let said = lab.weft_refused("n2", &["swarm", "join", "--token", &token, "192.0.2.1:2377"])?;
    ensure!(said.contains("already part of a swarm") && said.contains("leave"), "{said}");
    let said = lab.weft_refused("n1", &["swarm", "init", "--advertise-addr", "192.0.2.1"])?;
    ensure!(said.contains("already part of a swarm"), "{said}");
    Ok(())
}

fn a_manager_leaves_only_when_forced(lab: &Lab) -> Result<()> {
    let said = lab.weft_refused("n1", &["swarm", "leave"])?;
    ensure!(said.contains("--force"), "{said}");
    lab.wait_ready("n1", 3)
}

fn a_node_that_joins_again_is_a_new_node(lab: &Lab) -> Result<()> {
    let id = || -> Result<String> {
        let node = weft_lab::api::get(&contract::socket("n1"), "/nodes/n3")?;
        Ok(node["ID"].as_str().context("an id")?.to_owned())
    };
    let before = id()?;
    lab.weft_ok("n3", &["swarm", "leave"])?;
    eventually(Duration::from_secs(15), "n3 is seen to be gone", || {
        let statuses = lab.node_statuses("n1").map_err(|error| format!("{error:#}"))?;
        let down = statuses.contains(&("n3".to_owned(), "down".to_owned()));
        if down { Ok(()) } else { Err(format!("{statuses:?}")) }
    });
    lab.weft_ok("n1", &["node", "rm", &before])?;
    lab.join("n3", &lab.join_token("n1", Role::Worker)?)?;
    forget_down_nodes(lab)?;
    ensure!(id()? != before, "the same id");
    Ok(())
}

/// The lab labels each daemon with the name of its node.
fn a_constraint_on_a_daemons_label_places_tasks_there(lab: &Lab) -> Result<()> {
    let node = weft_lab::api::get(&contract::socket("n1"), "/nodes/n2")?;
    ensure!(node["Description"]["Engine"]["Labels"]["lab-node"] == "n2", "{node}");
    let constraint = ["--constraint", "engine.labels.lab-node==n2"];
    let tasks = crate::fixtures::service(lab, "placed", 3, &constraint, &[crate::fixtures::WHOAMI])?;
    ensure!(tasks.iter().all(|task| task.node == "n2"), "{tasks:?}");
    lab.weft_ok("n1", &["service", "rm", "placed"])?;
    Ok(())
}

fn a_drained_node_gives_its_tasks_away(lab: &Lab) -> Result<()> {
    let tasks = crate::fixtures::service(lab, "moving", 3, &[], &[crate::fixtures::WHOAMI])?;
    ensure!(tasks.iter().any(|task| task.node == "n2"), "the tasks should be spread: {tasks:?}");
    lab.weft_ok("n1", &["node", "update", "--availability", "drain", "n2"])?;
    eventually(Duration::from_secs(30), "three tasks run, none of them on n2", || {
        let tasks = lab.wait_running("n1", "moving", 3).map_err(|error| format!("{error:#}"))?;
        if tasks.iter().all(|task| task.node != "n2") { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
    lab.weft_ok("n1", &["node", "update", "--availability", "active", "n2"])?;
    lab.weft_ok("n1", &["service", "rm", "moving"])?;
    Ok(())
}
