//! Things break: a daemon, the leader, a whole node.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Cable, Lab, Task, contract, try_eventually};

use super::{
    CONNECTIONS, PORT,
    stage::{counts, outcome, show, under_load},
};
use crate::ui::Ui;

/// Until the managers that are left have elected one of them.
const ELECTED: Duration = Duration::from_secs(15);
/// Until a lost node counts as down and its tasks run elsewhere.
const REPLACED: Duration = Duration::from_secs(30);

/// n3 loses its daemon, and gets it back.
pub(super) fn crashed(ui: &Ui, lab: &Lab, friend: &Task) -> Result<u64> {
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    under_load(lab, friend, || {
        println!("  n3$ kill -9 {}", lab.daemon_pid("n3")?);
        lab.kill_daemon("n3")?;
        for addr in contract::addrs("n3") {
            let addr = SocketAddr::new(addr, PORT);
            let what = format!("{CONNECTIONS} connections to {addr}");
            let by_task = ui.quiet(&what, |_| lab.spread_evenly(CLIENT, addr, &tasks, CONNECTIONS))?;
            outcome(&what, &counts(&by_task));
        }
        ui.step("n3's daemon starts again", |_| {
            lab.start("n3")?;
            lab.wait_ready("n1", 3)
        })?;
        let after = lab.wait_running("n1", "whoami", 3)?;
        ensure!(ids(&tasks) == ids(&after), "the tasks should be the same ones");
        outcome("the tasks", "are the ones that ran before");
        Ok(())
    })
}

pub(super) fn led_by_another(ui: &Ui, lab: &Lab, friend: &Task) -> Result<u64> {
    let leader = lab.leader("n1")?;
    let other = lab.nodes().find(|node| *node != leader).context("a second node")?;
    under_load(lab, friend, || {
        println!("  {leader}$ kill -9 {}", lab.daemon_pid(&leader)?);
        lab.kill_daemon(&leader)?;
        let new = ui.step("another manager leads", |_| {
            try_eventually(ELECTED, "another manager leads", || match lab.leader(&other) {
                Ok(new) if new != leader => Ok(new),
                Ok(_) => Err("the old one still counts".to_owned()),
                Err(error) => Err(format!("{error:#}")),
            })
        })?;
        show(lab, &other, &["network", "create", "made-meanwhile"])?;
        show(lab, &other, &["node", "ls"])?;
        ui.step(&format!("{leader} comes back, and follows {new}"), |_| {
            lab.start(&leader)?;
            lab.wait_ready(&other, 3)?;
            lab.wait_managers(&other, 3)
        })?;
        show(lab, &leader, &["network", "rm", "made-meanwhile"]).map(|_| ())
    })
}

/// n3 is lost, unless it leads: then n2 is. n1 remains, to be asked. Returns where the service is reached from then on.
pub(super) fn lost(ui: &Ui, lab: &Lab) -> Result<Vec<SocketAddr>> {
    let leader = lab.leader("n1")?;
    let lost = if leader == "n3" { "n2" } else { "n3" };
    println!("  {lost}: cable pulled, daemon and tasks killed");
    lab.power_off(lost)?;
    let tasks = ui.step("three tasks run on the nodes that are left", |_| {
        try_eventually(REPLACED, "three tasks run on the nodes that are left", || {
            let tasks = lab.tasks("n1", "whoami").map_err(|error| format!("{error:#}"))?;
            let running: Vec<Task> = tasks.iter().filter(|t| t.is_running() && t.node != lost).cloned().collect();
            if running.len() == 3 { Ok(running) } else { Err(format!("{tasks:?}")) }
        })
    })?;
    show(lab, "n1", &["node", "ls"])?;
    show(lab, "n1", &["service", "ps", "whoami"])?;
    let rest = lab.nodes().filter(|node| node != lost).flat_map(|node| contract::addrs(&node));
    let rest: Vec<SocketAddr> = rest.map(|addr| SocketAddr::new(addr, PORT)).collect();
    for addr in &rest {
        let what = format!("{CONNECTIONS} connections to {addr}");
        let by_task = ui.quiet(&what, |_| lab.spread_evenly(CLIENT, *addr, &tasks, CONNECTIONS))?;
        outcome(&what, &counts(&by_task));
    }
    Ok(rest)
}

/// The lost node comes back, without the tasks that it lost.
pub(super) fn found_again(ui: &Ui, lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        let statuses = lab.node_statuses("n1")?;
        if statuses.contains(&(node.clone(), "down".to_owned())) {
            println!("  {node}: cable plugged, daemon started");
            lab.set_cable(&node, Cable::Plugged)?;
            lab.start(&node)?;
        }
    }
    ui.step("all nodes are ready", |_| lab.wait_ready("n1", lab.options().nodes))
}

fn ids(tasks: &[Task]) -> BTreeSet<&str> {
    tasks.iter().map(|task| task.id.as_str()).collect()
}
