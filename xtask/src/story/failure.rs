//! Failures: a killed daemon, a killed leader, and a lost node.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Task, contract, try_eventually};

use super::{
    CONNECTIONS, PORT,
    show::{counts, outcome, show, under_load},
};
use crate::ui::Ui;

/// The time in which the other managers must elect a new leader.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(15);
/// The time limit within which the cluster marks a lost node as down and replaces its tasks.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(30);

/// Kills the daemon of n3 under load, and restarts it. Returns the number of requests.
pub(super) fn kill_daemon(ui: &Ui, lab: &Lab, probe: &Task) -> Result<u64> {
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    under_load(lab, probe, || {
        println!("  n3$ kill -9 {}", lab.daemon_pid("n3")?);
        lab.kill_daemon("n3")?;
        for addr in contract::addrs("n3") {
            check_spread(ui, lab, SocketAddr::new(addr, PORT), &tasks)?;
        }
        ui.step("restart the daemon of n3", |_| {
            lab.start("n3")?;
            lab.wait_ready("n1", 3)
        })?;
        let after = lab.wait_running("n1", "whoami", 3)?;
        ensure!(ids(&tasks) == ids(&after), "tasks were replaced: {tasks:?} became {after:?}");
        outcome("the tasks", "are the same as before");
        Ok(())
    })
}

/// Kills the daemon of the leader under load, and restarts it. Returns the number of requests.
pub(super) fn kill_leader(ui: &Ui, lab: &Lab, probe: &Task) -> Result<u64> {
    let leader = lab.leader("n1")?;
    let other = lab.nodes().find(|node| *node != leader).context("the lab has another node")?;
    under_load(lab, probe, || {
        println!("  {leader}$ kill -9 {}", lab.daemon_pid(&leader)?);
        lab.kill_daemon(&leader)?;
        let new = ui.step("wait until another manager is the leader", |_| {
            try_eventually(ELECTION_TIMEOUT, "another manager is the leader", || match lab.leader(&other) {
                Ok(new) if new != leader => Ok(new),
                Ok(_) => Err(format!("{other} still reports {leader}")),
                Err(error) => Err(format!("{error:#}")),
            })
        })?;
        show(lab, &other, &["network", "create", "made-by-new-leader"])?;
        show(lab, &other, &["node", "ls"])?;
        ui.step(&format!("restart the daemon of {leader}, which follows {new}"), |_| {
            lab.start(&leader)?;
            lab.wait_ready(&other, 3)?;
            lab.wait_managers(&other, 3)
        })?;
        show(lab, &leader, &["network", "rm", "made-by-new-leader"]).map(|_| ())
    })
}

/// Simulates the loss of n3, or of n2 when n3 is the leader, because later commands use n1. Returns
/// the published addresses of the other nodes.
pub(super) fn lose_node(ui: &Ui, lab: &Lab) -> Result<Vec<SocketAddr>> {
    let leader = lab.leader("n1")?;
    let failed = if leader == "n3" { "n2" } else { "n3" };
    println!("  {failed}: network cable unplugged, daemon and tasks killed");
    lab.power_off(failed)?;
    let tasks = ui.step("wait until three tasks are running on the other nodes", |_| {
        try_eventually(REPLACE_TIMEOUT, "three tasks are running on the other nodes", || {
            let tasks = lab.tasks("n1", "whoami").map_err(|error| format!("{error:#}"))?;
            let running: Vec<Task> = tasks.iter().filter(|t| t.is_running() && t.node != failed).cloned().collect();
            if running.len() == 3 { Ok(running) } else { Err(format!("{tasks:?}")) }
        })
    })?;
    show(lab, "n1", &["node", "ls"])?;
    show(lab, "n1", &["service", "ps", "whoami"])?;
    let addrs = lab.nodes().filter(|node| node != failed).flat_map(|node| contract::addrs(&node));
    let published: Vec<SocketAddr> = addrs.map(|addr| SocketAddr::new(addr, PORT)).collect();
    for addr in &published {
        check_spread(ui, lab, *addr, &tasks)?;
    }
    Ok(published)
}

fn check_spread(ui: &Ui, lab: &Lab, addr: SocketAddr, tasks: &[Task]) -> Result<()> {
    let what = format!("{CONNECTIONS} connections to {addr}");
    let by_task = ui.step_without_result(&what, |_| lab.check_even_spread(CLIENT, addr, tasks, CONNECTIONS))?;
    outcome(&what, &counts(&by_task));
    Ok(())
}

/// Connects the lost node again, and starts its daemon.
pub(super) fn repair_nodes(ui: &Ui, lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let statuses = lab.node_statuses("n1")?;
        if statuses.contains(&(node.clone(), "down".to_owned())) {
            println!("  {node}: network cable plugged in, daemon started");
            lab.power_on(&node)?;
        }
    }
    ui.step("wait until all nodes are ready", |_| lab.wait_ready("n1", lab.options().nodes))
}

fn ids(tasks: &[Task]) -> BTreeSet<&str> {
    tasks.iter().map(|task| task.id.as_str()).collect()
}
