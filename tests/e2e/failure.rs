//! Failures of daemons, leaders, tasks and nodes: traffic continues, and the cluster repairs
//! itself.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Task, contract, eventually, http};

use crate::{
    connections,
    fixtures::{
        FOLLOW_TIMEOUT, HTTP, Loads, WHOAMI, all_answer, assert_even, names_follow, network, probe, probe_on, service,
        task_names, vip,
    },
    harness::{Group, Shape, tests},
    maps, mesh,
};

/// The time in which the tasks of a lost node must be replaced. The node is down after 5 s without
/// heartbeats.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(30);
/// The time in which a node must count as not converged, or as converged again. A plan must be in
/// effect within 15 s.
const CONVERGE_TIMEOUT: Duration = Duration::from_secs(30);
/// A hand-over that waits for a node that does not acknowledge takes 5 s.
const UNHINDERED: Duration = Duration::from_secs(4);
/// The UDP port of the tunnels of a cluster that chose none (RFC 7348).
const TUNNEL_PORT: u16 = 4789;
/// The time in which the other managers must elect a leader.
const ELECTION_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) fn daemons() -> Group {
    Group {
        name: "failure",
        shape: Shape { managers: 3, ..Shape::default() },
        setup,
        tests: tests![
            traffic_continues_while_a_daemon_is_down,
            traffic_continues_while_a_killed_daemon_restarts,
            traffic_continues_while_a_daemon_is_stopped,
            changed_links_are_repaired,
            deleted_map_entries_are_written_again,
            a_node_whose_tunnel_cannot_be_made_gets_no_tasks_and_delays_nothing_until_it_is_mended,
            a_killed_task_is_replaced,
            another_manager_replaces_a_killed_leader,
            connections::connections_to_a_killed_task_are_reset_and_others_continue,
            connections::connections_survive_the_restart_of_every_daemon,
        ],
    }
}

pub(crate) fn nodes() -> Group {
    Group {
        name: "node_loss",
        shape: Shape { managers: 3, ..Shape::default() },
        setup,
        tests: tests![tasks_of_a_lost_node_are_replaced_and_get_no_traffic],
    }
}

pub(crate) fn setup(lab: &Lab) -> Result<()> {
    network(lab, "app", &["--ipv6"])?;
    mesh::setup_service(lab)?;
    probe(lab, "probe", &["app"]).map(|_| ())
}

/// A node whose daemon is not the leader: no election is needed when it ends.
pub(crate) fn follower(lab: &Lab) -> Result<String> {
    let leader = lab.leader("n1")?;
    lab.nodes().find(|node| *node != leader).context("the lab has another node")
}

pub(crate) fn traffic_continues_while_a_daemon_is_down(lab: &Lab) -> Result<()> {
    let node = follower(lab)?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    ensure!(tasks.iter().any(|task| task.node == node), "no task is running on {node}");
    // One probe is on the node without a daemon, the other on a node with one.
    let other = lab.nodes().find(|other| *other != node).context("the lab has another node")?;
    let probes =
        [probe_on(lab, &node, "probe-same-node", &["app"])?, probe_on(lab, &other, "probe-other-node", &["app"])?];
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe-same-node")?;
    let vip = SocketAddr::new(vip(lab, &probes[0], "whoami")?, HTTP);
    lab.kill_daemon(&node)?;
    for addr in contract::addrs(&node) {
        assert_even(lab, CLIENT, (addr, mesh::PORT).into(), &tasks, 300);
    }
    // The VIP works as well, from that node and to the tasks on that node.
    for probe in &probes {
        let by_task = lab.within_task(probe, || http::answers_by_task(vip, 30))??;
        let found = by_task.into_keys().collect::<BTreeSet<_>>();
        ensure!(found == task_names(&tasks), "the probe on {} got answers from {found:?}", probe.node);
    }
    loads.expect_no_errors()?;
    lab.start(&node)?;
    lab.wait_ready("n1", 3)?;
    lab.weft_ok("n1", &["service", "rm", "probe-same-node", "probe-other-node"])?;
    Ok(())
}

pub(crate) fn traffic_continues_while_a_killed_daemon_restarts(lab: &Lab) -> Result<()> {
    let node = follower(lab)?;
    let before = lab.wait_running("n1", "whoami", 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    lab.kill_daemon(&node)?;
    lab.start(&node)?;
    lab.wait_ready("n1", 3)?;
    // The restarted daemon applies new plans.
    let other = service(lab, "later", 3, &["-p", "8090:80"], &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(8090), &other, Duration::from_secs(5));
    lab.weft_ok("n1", &["service", "rm", "later"])?;
    let after = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&before) == task_names(&after), "{before:?} became {after:?}");
    loads.expect_no_errors()
}

pub(crate) fn traffic_continues_while_a_daemon_is_stopped(lab: &Lab) -> Result<()> {
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

/// The name of a node's tunnel device.
fn tunnel(lab: &Lab, node: &str) -> Result<String> {
    let links = lab.exec_ok(node, &["ip", "-oneline", "link", "show", "type", "vxlan"])?;
    let name = links.split(": ").nth(1).context("the node has a tunnel device")?;
    Ok(name.split('@').next().context("the device has a name")?.to_owned())
}

pub(crate) fn changed_links_are_repaired(lab: &Lab) -> Result<()> {
    let node = follower(lab)?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    lab.kill_daemon(&node)?;
    // Delete the tunnel device while the daemon is down.
    let tunnel = tunnel(lab, &node)?;
    lab.exec_ok(&node, &["ip", "link", "delete", &tunnel])?;
    lab.start(&node)?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, Duration::from_secs(15));
    // While the daemon is running, the full resync repairs the device.
    lab.exec_ok(&node, &["ip", "link", "set", &tunnel, "down"])?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, Duration::from_secs(60));
    Ok(())
}

/// Another program has deleted entries: the published ports of one node. No event tells the daemon.
pub(crate) fn deleted_map_entries_are_written_again(lab: &Lab) -> Result<()> {
    let node = follower(lab)?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    let mut ports = maps::ports(&node)?;
    let keys = ports.keys().collect::<Result<Vec<_>, _>>()?;
    ensure!(!keys.is_empty(), "a published port has an entry");
    for key in &keys {
        ports.remove(key)?;
    }
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, Duration::from_secs(60));
    ensure!(keys.iter().all(|key| ports.get(key, 0).is_ok()), "every entry is there again");
    Ok(())
}

/// The status of a node in `node ls`, with the reason.
fn status(lab: &Lab, node: &str) -> Result<String> {
    let format = "{{.Hostname}}: {{.Status}}";
    let lines = lab.weft_ok("n1", &["node", "ls", "--format", format])?;
    let prefix = format!("{node}: ");
    let line = lines.lines().find_map(|line| line.strip_prefix(&prefix));
    line.map(str::to_owned).with_context(|| format!("no {node} in {lines:?}"))
}

fn wait_for_status(lab: &Lab, node: &str, what: &str, expected: impl Fn(&str) -> bool) {
    eventually(CONVERGE_TIMEOUT, what, || match status(lab, node) {
        Ok(status) if expected(&status) => Ok(()),
        Ok(status) => Err(status),
        Err(error) => Err(format!("{error:#}")),
    });
}

/// Another program has the UDP port of the tunnel, so the node cannot create its tunnel device.
pub(crate) fn a_node_whose_tunnel_cannot_be_made_gets_no_tasks_and_delays_nothing_until_it_is_mended(
    lab: &Lab,
) -> Result<()> {
    let node = follower(lab)?;
    let before = lab.wait_running("n1", "whoami", 3)?;
    lab.kill_daemon(&node)?;
    lab.exec_ok(&node, &["ip", "link", "delete", &tunnel(lab, &node)?])?;
    let port = (Ipv4Addr::UNSPECIFIED, TUNNEL_PORT);
    let program = lab.within(&node, || UdpSocket::bind(port))?.context("the port of the tunnel is free")?;
    lab.start(&node)?;
    let reason = "UDP port of the tunnel is in use";
    wait_for_status(lab, &node, "the node does not converge, and the reason is shown", |status| {
        status.starts_with("Ready, not converged: ") && status.contains(reason)
    });
    let inspected = lab.weft_ok("n1", &["node", "inspect", "--pretty", &node])?;
    ensure!(inspected.contains("not converged: ") && inspected.contains(reason), "{inspected}");

    let on_node = |tasks: &[Task]| tasks.iter().filter(|task| task.node == node).count();
    let tasks = service(lab, "later", 6, &["--network", "app"], &[WHOAMI])?;
    ensure!(on_node(&tasks) == 0, "{node} got a task: {tasks:?}");
    lab.weft_ok("n1", &["service", "scale", "--detach", "later=1"])?;
    eventually(UNHINDERED, "five tasks are stopped without an acknowledgement of the node", || {
        let tasks = lab.tasks("n1", "later").map_err(|error| format!("{error:#}"))?;
        if tasks.iter().filter(|task| task.is_running()).count() == 1 { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
    // The network has addresses for the tasks of one round only.
    network(lab, "small", &["--subnet", "10.91.0.0/29"])?;
    for round in 0..3 {
        let name = format!("round-{round}");
        let create =
            ["service", "create", "--detach", "--name", &name, "--replicas", "4", "--network", "small", WHOAMI];
        eventually(Duration::from_secs(10), "the addresses of the round before are free", || {
            lab.weft_ok("n1", &create).map(drop).map_err(|error| format!("{error:#}"))
        });
        let tasks = lab.wait_running("n1", &name, 4)?;
        ensure!(on_node(&tasks) == 0, "{node} got a task: {tasks:?}");
        lab.weft_ok("n1", &["service", "rm", &name])?;
    }
    let kept = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&kept) == task_names(&before), "{before:?} became {kept:?}");

    drop(program);
    wait_for_status(lab, &node, "the node has converged again", |status| status == "Ready");
    all_answer(CLIENT, &lab.published(mesh::PORT), &kept, Duration::from_secs(15));
    lab.weft_ok("n1", &["service", "scale", "--detach", "later=6"])?;
    let tasks = lab.wait_running("n1", "later", 6)?;
    ensure!(on_node(&tasks) > 0, "{node} got no task again: {tasks:?}");
    lab.weft_ok("n1", &["service", "rm", "later"])?;
    eventually(Duration::from_secs(15), "the network is not used", || {
        lab.weft_ok("n1", &["network", "rm", "small"]).map(drop).map_err(|error| format!("{error:#}"))
    });
    Ok(())
}

pub(crate) fn a_killed_task_is_replaced(lab: &Lab) -> Result<()> {
    let tasks = service(lab, "killed", 1, &["-p", "8091:80", "--restart-delay", "100ms"], &[WHOAMI])?;
    let task = tasks.first().context("the service has a task")?;
    weft_lab::process::kill(task.pid.context("the task has a process")?)?;
    let replaced = eventually(Duration::from_secs(15), "another task is running", || {
        let tasks = lab.tasks("n1", "killed").map_err(|error| format!("{error:#}"))?;
        let other = tasks.iter().find(|other| other.id != task.id && other.is_running());
        other.cloned().ok_or_else(|| format!("{tasks:?}"))
    });
    all_answer(CLIENT, &lab.published(8091), &[replaced], Duration::from_secs(2));
    lab.weft_ok("n1", &["service", "rm", "killed"])?;
    Ok(())
}

pub(crate) fn another_manager_replaces_a_killed_leader(lab: &Lab) -> Result<()> {
    let leader = lab.leader("n1")?;
    let other = lab.nodes().find(|node| *node != leader).context("the lab has another node")?;
    let before = lab.wait_running(&other, "whoami", 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    lab.kill_daemon(&leader)?;
    eventually(ELECTION_TIMEOUT, "another manager is the leader", || match lab.leader(&other) {
        Ok(new) if new != leader => Ok(()),
        Ok(_) => Err(format!("{other} still reports {leader}")),
        Err(error) => Err(format!("{error:#}")),
    });
    // Changes are possible through any manager.
    for via in lab.nodes().filter(|node| *node != leader) {
        lab.weft_ok(&via, &["network", "create", "--driver", "overlay", &format!("by-{via}")])?;
    }
    lab.start(&leader)?;
    lab.wait_ready(&leader, 3)?;
    let table = lab.weft_ok(&leader, &["node", "ls"])?;
    ensure!(table.matches("Reachable").count() == 2 && table.contains("Leader"), "{table}");
    let after = lab.wait_running(&leader, "whoami", 3)?;
    ensure!(task_names(&after) == task_names(&before), "tasks were replaced: {before:?} became {after:?}");
    for via in lab.nodes().filter(|node| *node != leader) {
        lab.weft_ok(&leader, &["network", "rm", &format!("by-{via}")])?;
    }
    loads.expect_no_errors()
}

pub(crate) fn tasks_of_a_lost_node_are_replaced_and_get_no_traffic(lab: &Lab) -> Result<()> {
    let failed = follower(lab)?;
    let via = lab.nodes().find(|node| *node != failed).context("the lab has another node")?;
    let others: Vec<String> = lab.nodes().filter(|node| *node != failed).collect();
    let addrs: Vec<_> =
        others.iter().flat_map(|node| contract::addrs(node)).map(|addr| (addr, mesh::PORT).into()).collect();
    // The setup's probe may be on the lost node.
    let probe = probe_on(lab, &via, "second-probe", &["app"])?;
    let before = lab.wait_running(&via, "whoami", 3)?;
    ensure!(before.iter().any(|task| task.node == failed), "no task is on {failed}: {before:?}");
    lab.power_off(&failed)?;
    let tasks = eventually(REPLACE_TIMEOUT, "three tasks are running on the other nodes", || {
        let tasks = lab.tasks(&via, "whoami").map_err(|error| format!("{error:#}"))?;
        let running: Vec<_> = tasks.iter().filter(|task| task.is_running() && task.node != failed).cloned().collect();
        if running.len() == 3 { Ok(running) } else { Err(format!("{tasks:?}")) }
    });
    names_follow(lab, &probe, &tasks, FOLLOW_TIMEOUT);
    all_answer(CLIENT, &addrs, &tasks, Duration::from_secs(2));
    // No connection goes to a task of the lost node.
    for addr in addrs {
        assert_even(lab, CLIENT, addr, &tasks, 300);
    }
    let statuses = lab.node_statuses(&via)?;
    ensure!(statuses.contains(&(failed.clone(), "down".to_owned())), "{statuses:?}");
    // The node returns, but its old tasks do not run again.
    lab.power_on(&failed)?;
    lab.wait_ready(&via, 3)?;
    let after = lab.wait_running(&via, "whoami", 3)?;
    ensure!(task_names(&after) == task_names(&tasks), "tasks were replaced: {after:?}");
    all_answer(CLIENT, &lab.published(mesh::PORT), &after, Duration::from_secs(15));
    Ok(())
}
