//! Managers that are lost: less than half of them, more than half, and all machines. The cluster is
//! taken on by those that are left, formed again by one survivor, or restored from a backup.

use std::{fs, io, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weft_lab::{CLIENT, Lab, Role, api, contract, eventually};

use crate::{
    connections::KeepAlive,
    failure,
    fixtures::{HTTP, Loads, WHOAMI, all_answer, all_answer_within, service, task_names, task_of, vip},
    harness::{Group, Shape, tests},
    invariants::{intact, one_cluster},
    mesh,
};

/// The time in which nodes that were lost must be part of the cluster again.
const RETURN_TIMEOUT: Duration = Duration::from_secs(40);
/// The port of a service that is created afterwards.
const LATER_PORT: u16 = 8095;

pub(crate) fn group() -> Group {
    Group {
        name: "disasters",
        shape: Shape { managers: 3, ..Shape::default() },
        setup: failure::setup,
        tests: tests![
            a_lost_minority_of_managers_is_replaced,
            a_survivor_of_a_lost_majority_forms_the_cluster_again_without_disturbing_traffic,
            a_power_cut_of_all_machines_changes_nothing_but_the_tasks,
            a_backup_restores_the_cluster_after_the_loss_of_all_machines,
        ],
    }
}

/// What must stay the same: the id of the cluster, its join tokens and its settings.
fn identity(via: &str) -> Result<Value> {
    let swarm = api::get(&contract::socket(via), "/swarm")?;
    Ok(json!([swarm["ID"], swarm["JoinTokens"], swarm["Spec"]]))
}

fn later_service(lab: &Lab, name: &str) -> Result<()> {
    let tasks = service(lab, name, 3, &["-p", &format!("{LATER_PORT}:{HTTP}")], &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(LATER_PORT), &tasks, Duration::from_secs(5));
    lab.weft_ok("n1", &["service", "rm", name])?;
    lab.wait_stopped("n1", name)
}

pub(crate) fn a_lost_minority_of_managers_is_replaced(lab: &Lab) -> Result<()> {
    let before = identity("n1")?;
    lab.power_off("n3")?;
    eventually(RETURN_TIMEOUT, "n3 is down", || {
        let nodes = lab.node_statuses("n1").map_err(|e| format!("{e:#}"))?;
        nodes.contains(&("n3".to_owned(), "down".to_owned())).then_some(()).ok_or_else(|| format!("{nodes:?}"))
    });
    lab.weft_ok("n1", &["node", "demote", "n3"])?;
    eventually(RETURN_TIMEOUT, "n3 is removed", || {
        lab.weft_ok("n1", &["node", "rm", "--force", "n3"]).map(drop).map_err(|e| format!("{e:#}"))
    });
    // A new machine with the same name and address.
    empty("n3")?;
    lab.power_on("n3")?;
    lab.join("n3", &lab.join_token("n1", Role::Manager)?)?;
    lab.wait_ready("n1", 3)?;
    lab.wait_managers("n1", 3)?;
    ensure!(identity("n3")? == before, "the cluster has changed");
    lab.wait_running("n1", "whoami", 3)?;
    later_service(lab, "after-minority")
}

pub(crate) fn a_survivor_of_a_lost_majority_forms_the_cluster_again_without_disturbing_traffic(
    lab: &Lab,
) -> Result<()> {
    let before = (identity("n1")?, lab.wait_running("n1", "whoami", 3)?);
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    let mut connections = open_connections(lab)?;
    let mut still_answer = |when: &str| connections.iter_mut().try_for_each(|one| one.check().context(when.to_owned()));
    lab.kill_daemon("n2")?;
    lab.kill_daemon("n3")?;
    let refused = lab.weft_refused("n1", &["service", "scale", "--detach", "whoami=4"])?;
    ensure!(refused.contains("no leader"), "{refused}");
    still_answer("without a quorum")?;
    lab.weft_ok("n1", &["swarm", "init", "--force-new-cluster"])?;
    still_answer("in the new cluster")?;
    // Together the other two have a quorum of the former log.
    lab.start("n2")?;
    lab.start("n3")?;
    lab.wait_ready("n1", 3)?;
    lab.wait_managers("n1", 1)?;
    ensure!(identity("n1")? == before.0, "the cluster has changed");
    let after = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&before.1) == task_names(&after), "{:?} became {after:?}", before.1);
    still_answer("with the former managers as workers")?;
    loads.expect_no_errors()?;
    lab.weft_ok("n1", &["node", "promote", "n2", "n3"])?;
    lab.wait_managers("n1", 3)?;
    later_service(lab, "after-majority")
}

/// Connections through each node, from outside and from a task.
fn open_connections(lab: &Lab) -> Result<Vec<KeepAlive>> {
    let addrs = lab.published(mesh::PORT);
    let open = |from: &str| addrs.iter().map(|addr| KeepAlive::open(from, *addr)).collect::<io::Result<Vec<_>>>();
    let mut connections = lab.within(CLIENT, || open("the client"))??;
    let probe = task_of(lab, "probe")?;
    let vip = SocketAddr::new(vip(lab, &probe, "whoami")?, HTTP);
    connections.push(lab.within_task(&probe, || KeepAlive::open("a task", vip))??);
    Ok(connections)
}

/// What users have created, without the fields that the cluster changes by itself.
fn created(via: &str) -> Result<Value> {
    let list = |path: &str, keys: &[&str]| -> Result<Value> {
        let objects = api::get(&contract::socket(via), path)?;
        let objects = objects.as_array().with_context(|| format!("{path} is no list"))?;
        ensure!(!objects.is_empty(), "{path} is empty");
        Ok(objects.iter().map(|object| keys.iter().map(|key| object[*key].clone()).collect::<Value>()).collect())
    };
    let services = list("/services", &["ID", "Spec", "Endpoint"])?;
    let networks = list("/networks", &["Id", "Name", "IPAM", "Options"])?;
    let nodes = list("/nodes", &["ID", "Spec"])?;
    Ok(json!([services, networks, nodes]))
}

/// All machines lose power at the same time, and keep their disks.
pub(crate) fn a_power_cut_of_all_machines_changes_nothing_but_the_tasks(lab: &Lab) -> Result<()> {
    let before = (identity("n1")?, created("n1")?);
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    for node in lab.nodes() {
        lab.power_off(&node)?;
    }
    for node in lab.nodes() {
        lab.power_on(&node)?;
    }
    one_cluster(lab)?;
    let after = eventually(RETURN_TIMEOUT, "other tasks run", || {
        let after = lab.wait_running("n1", "whoami", 3).map_err(|e| format!("{e:#}"))?;
        if task_names(&after).is_disjoint(&task_names(&tasks)) { Ok(after) } else { Err(format!("{after:?}")) }
    });
    ensure!((identity("n1")?, created("n1")?) == before, "the cluster has changed");
    all_answer(CLIENT, &lab.published(mesh::PORT), &after, Duration::from_secs(10));
    let probe = task_of(lab, "probe")?;
    let vip = SocketAddr::new(vip(lab, &probe, "whoami")?, HTTP);
    all_answer_within(&lab.task_namespace(&probe)?, "the probe", &[vip], &after, Duration::from_secs(5));
    intact(lab, &[("whoami", 3), ("probe", 1)])?;
    later_service(lab, "after-power-cut")
}

pub(crate) fn a_backup_restores_the_cluster_after_the_loss_of_all_machines(lab: &Lab) -> Result<()> {
    let (before, former) = (identity("n1")?, task_names(&lab.wait_running("n1", "whoami", 3)?));
    let dir = tempfile::tempdir().context("a temporary directory")?;
    let (file, passphrase) = (dir.path().join("backup"), dir.path().join("passphrase"));
    fs::write(&passphrase, "correct horse battery\n")?;
    let wrong = dir.path().join("wrong");
    fs::write(&wrong, "wrong horse battery\n")?;
    let text = |path: &Path| path.display().to_string();
    let with = |passphrase: &Path| ["--passphrase-file".to_owned(), text(passphrase)];
    let [flag, path] = with(&passphrase);
    lab.weft_ok("n1", &["backup", "create", &flag, &path, &text(&file)])?;
    let refused = lab.weft_refused("n1", &["backup", "create", &flag, &path, &text(&file)])?;
    ensure!(refused.contains("cannot write"), "an existing file is kept: {refused}");
    for node in lab.nodes() {
        lab.power_off(&node)?;
        empty(&node)?;
    }
    for node in lab.nodes() {
        lab.power_on(&node)?;
    }
    let addr = contract::v4("n1").to_string();
    let [_, wrong] = with(&wrong);
    let restore = |passphrase: &str| {
        ["backup", "restore", "--advertise-addr", &addr, &flag, passphrase, &text(&file)].map(str::to_owned)
    };
    let run = |passphrase: &str, ok: bool| {
        let arguments = restore(passphrase);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        if ok { lab.weft_ok("n1", &arguments) } else { lab.weft_refused("n1", &arguments) }
    };
    let refused = run(&wrong, false)?;
    ensure!(refused.contains("passphrase is wrong"), "{refused}");
    run(&path, true)?;
    ensure!(identity("n1")? == before, "the restored cluster differs");
    for (node, role) in [("n2", Role::Manager), ("n3", Role::Worker)] {
        lab.join(node, &lab.join_token("n1", role)?)?;
    }
    // The former nodes are down after their heartbeat timeout, and their tasks are replaced.
    let tasks = eventually(RETURN_TIMEOUT, "all tasks run on the new machines", || {
        let tasks = lab.wait_running("n1", "whoami", 3).map_err(|e| format!("{e:#}"))?;
        let old = task_names(&tasks).intersection(&former).count();
        if old == 0 { Ok(tasks) } else { Err(format!("{old} tasks are on lost machines")) }
    });
    lab.wait_ready("n1", 3)?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, Duration::from_secs(10));
    // The former n2 is still in the list.
    let info = api::get(&contract::socket("n2"), "/info")?;
    lab.weft_ok("n1", &["node", "demote", info["Swarm"]["NodeID"].as_str().context("n2 is a member")?])?;
    later_service(lab, "after-restore")
}

/// Empties the data directory of a node whose daemon does not run, as on a new machine.
fn empty(node: &str) -> Result<()> {
    let dir = contract::data_dir(node);
    fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))
}
