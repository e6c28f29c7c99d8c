//! Things break: daemons, leaders, machines. Traffic goes on, and what was decided comes true.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Cable, Lab, contract, eventually, http};

use crate::{
    connections,
    fixtures::{
        HTTP, Loads, SOON, WHOAMI, all_answer, assert_even, names_follow, network, probe, probe_on, service,
        task_names, vip,
    },
    harness::{Shape, Theme, tests},
    mesh,
};

/// A node is down after 5 missed seconds; its tasks then start elsewhere.
const REPLACED: Duration = Duration::from_secs(30);
/// For the remaining managers to elect a leader.
const ELECTED: Duration = Duration::from_secs(15);

pub(crate) fn daemons() -> Theme {
    Theme {
        name: "failure",
        shape: Shape { managers: 3, ..Shape::default() },
        setup,
        tests: tests![
            traffic_goes_on_without_the_daemon,
            a_returning_daemon_disturbs_nothing,
            a_daemon_that_is_told_to_stop_leaves_traffic_alone,
            drift_is_repaired,
            a_killed_task_is_replaced,
            another_manager_takes_over_from_a_killed_leader,
            connections::connections_to_a_dead_task_end_and_others_go_on,
            connections::connections_outlive_every_daemon,
        ],
    }
}

pub(crate) fn nodes() -> Theme {
    Theme {
        name: "node_loss",
        shape: Shape { managers: 3, ..Shape::default() },
        setup,
        tests: tests![a_lost_nodes_tasks_run_elsewhere_and_the_mesh_forgets_it],
    }
}

pub(crate) fn setup(lab: &Lab) -> Result<()> {
    network(lab, "app", &["--ipv6"])?;
    mesh::setup_service(lab)?;
    probe(lab, "probe", &["app"]).map(|_| ())
}

/// Everyone but the leader's node, so that no election is in the way.
fn follower(lab: &Lab) -> Result<String> {
    let leader = lab.leader("n1")?;
    lab.nodes().find(|node| *node != leader).context("a second node")
}

pub(crate) fn traffic_goes_on_without_the_daemon(lab: &Lab) -> Result<()> {
    let node = follower(lab)?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    ensure!(tasks.iter().any(|task| task.node == node), "no task runs on {node}");
    // One task asks from that very node, one from another.
    let other = lab.nodes().find(|other| *other != node).context("a second node")?;
    let probes = [probe_on(lab, &node, "near", &["app"])?, probe_on(lab, &other, "far", &["app"])?];
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "near")?;
    let vip = SocketAddr::new(vip(lab, &probes[0], "whoami")?, HTTP);
    lab.kill_daemon(&node)?;
    for addr in contract::addrs(&node) {
        assert_even(lab, CLIENT, (addr, mesh::PORT).into(), &tasks, 300);
    }
    // East-west too, from that node and to the tasks of that node.
    for probe in &probes {
        let by_task = lab.within_task(probe, || http::spread(vip, 30))??;
        let seen = by_task.into_keys().collect::<BTreeSet<_>>();
        ensure!(seen == task_names(&tasks), "the task on {} got answers from {seen:?}", probe.node);
    }
    loads.expect_no_errors()?;
    lab.start(&node)?;
    lab.wait_ready("n1", 3)?;
    lab.weft_ok("n1", &["service", "rm", "near", "far"])?;
    Ok(())
}

pub(crate) fn a_returning_daemon_disturbs_nothing(lab: &Lab) -> Result<()> {
    let node = follower(lab)?;
    let before = lab.wait_running("n1", "whoami", 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    lab.kill_daemon(&node)?;
    lab.start(&node)?;
    lab.wait_ready("n1", 3)?;
    // Its word counts again: a change reaches it.
    let other = service(lab, "later", 3, &["-p", "8090:80"], &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(8090), &other, Duration::from_secs(5));
    lab.weft_ok("n1", &["service", "rm", "later"])?;
    let after = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&before) == task_names(&after), "{before:?} became {after:?}");
    loads.expect_no_errors()
}

pub(crate) fn a_daemon_that_is_told_to_stop_leaves_traffic_alone(lab: &Lab) -> Result<()> {
    let node = follower(lab)?;
    let before = lab.wait_running("n1", "whoami", 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    lab.stop_daemon(&node)?;
    for addr in contract::addrs(&node) {
        assert_even(lab, CLIENT, (addr, mesh::PORT).into(), &before, 300);
    }
    lab.start(&node)?;
    lab.wait_ready("n1", 3)?;
    let after = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&before) == task_names(&after), "{before:?} became {after:?}");
    loads.expect_no_errors()
}

pub(crate) fn drift_is_repaired(lab: &Lab) -> Result<()> {
    let node = follower(lab)?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    lab.kill_daemon(&node)?;
    // Someone tidies up what they do not know: the tunnel.
    let links = lab.exec_ok(&node, &["ip", "-oneline", "link", "show", "type", "vxlan"])?;
    let tunnel = links.split(": ").nth(1).context("no tunnel device")?.split('@').next().context("a name")?.to_owned();
    lab.exec_ok(&node, &["ip", "link", "delete", &tunnel])?;
    lab.start(&node)?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, Duration::from_secs(15));
    // And while the daemon runs: the sync finds it.
    lab.exec_ok(&node, &["ip", "link", "set", &tunnel, "down"])?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, Duration::from_secs(60));
    Ok(())
}

pub(crate) fn a_killed_task_is_replaced(lab: &Lab) -> Result<()> {
    let tasks = service(lab, "mortal", 1, &["-p", "8091:80", "--restart-delay", "100ms"], &[WHOAMI])?;
    let task = tasks.first().context("one task")?;
    weft_lab::process::kill(task.pid.context("a process")?)?;
    let replaced = eventually(Duration::from_secs(15), "another task runs", || {
        let tasks = lab.tasks("n1", "mortal").map_err(|error| format!("{error:#}"))?;
        let other = tasks.iter().find(|other| other.id != task.id && other.is_running());
        other.cloned().ok_or_else(|| format!("{tasks:?}"))
    });
    all_answer(CLIENT, &lab.published(8091), &[replaced], Duration::from_secs(2));
    lab.weft_ok("n1", &["service", "rm", "mortal"])?;
    Ok(())
}

pub(crate) fn another_manager_takes_over_from_a_killed_leader(lab: &Lab) -> Result<()> {
    let leader = lab.leader("n1")?;
    let other = lab.nodes().find(|node| *node != leader).context("a second node")?;
    let before = lab.wait_running(&other, "whoami", 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    lab.kill_daemon(&leader)?;
    eventually(ELECTED, "another manager leads", || match lab.leader(&other) {
        Ok(new) if new != leader => Ok(()),
        Ok(_) => Err("the killed one is still said to lead".to_owned()),
        Err(error) => Err(format!("{error:#}")),
    });
    // Writes go on, through any manager.
    for via in lab.nodes().filter(|node| *node != leader) {
        lab.weft_ok(&via, &["network", "create", "--driver", "overlay", &format!("by-{via}")])?;
    }
    lab.start(&leader)?;
    lab.wait_ready(&leader, 3)?;
    let table = lab.weft_ok(&leader, &["node", "ls"])?;
    ensure!(table.matches("Reachable").count() == 2 && table.contains("Leader"), "{table}");
    let after = lab.wait_running(&leader, "whoami", 3)?;
    ensure!(task_names(&after) == task_names(&before), "the tasks stay: {before:?} became {after:?}");
    for via in lab.nodes().filter(|node| *node != leader) {
        lab.weft_ok(&leader, &["network", "rm", &format!("by-{via}")])?;
    }
    loads.expect_no_errors()
}

pub(crate) fn a_lost_nodes_tasks_run_elsewhere_and_the_mesh_forgets_it(lab: &Lab) -> Result<()> {
    let lost = follower(lab)?;
    let via = lab.nodes().find(|node| *node != lost).context("a second node")?;
    let rest: Vec<String> = lab.nodes().filter(|node| *node != lost).collect();
    let addrs: Vec<_> =
        rest.iter().flat_map(|node| contract::addrs(node)).map(|addr| (addr, mesh::PORT).into()).collect();
    // Beside the probe of the setup, which may be lost too.
    let survivor = probe_on(lab, &via, "survivor", &["app"])?;
    lab.power_off(&lost)?;
    let tasks = eventually(REPLACED, "three tasks run on the nodes that are left", || {
        let tasks = lab.tasks(&via, "whoami").map_err(|error| format!("{error:#}"))?;
        let running: Vec<_> = tasks.iter().filter(|task| task.is_running() && task.node != lost).cloned().collect();
        if running.len() == 3 { Ok(running) } else { Err(format!("{tasks:?}")) }
    });
    names_follow(lab, &survivor, &tasks, SOON);
    all_answer(CLIENT, &addrs, &tasks, Duration::from_secs(2));
    // Not one connection goes to where nobody is.
    for addr in addrs {
        assert_even(lab, CLIENT, addr, &tasks, 300);
    }
    let statuses = lab.node_statuses(&via)?;
    ensure!(statuses.contains(&(lost.clone(), "down".to_owned())), "{statuses:?}");
    // It returns, without the tasks that it lost.
    lab.set_cable(&lost, Cable::Plugged)?;
    lab.start(&lost)?;
    lab.wait_ready(&via, 3)?;
    let after = lab.wait_running(&via, "whoami", 3)?;
    ensure!(task_names(&after) == task_names(&tasks), "the tasks stay where they are: {after:?}");
    all_answer(CLIENT, &lab.published(mesh::PORT), &after, Duration::from_secs(15));
    Ok(())
}
