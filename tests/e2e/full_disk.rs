//! Nodes whose disks are full: the other nodes and all traffic go on, and the node takes part again
//! once there is room.

use std::{
    ffi::CStr,
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};
use weft_lab::{CLIENT, Lab, contract, eventually};

use crate::{
    failure,
    fixtures::{HTTP, Loads, WHOAMI, all_answer, task_names},
    harness::{Group, Shape, tests},
    invariants::{NodeWatch, one_cluster},
    mesh,
};

/// The size of the file system with the node's data.
const SIZE: &CStr = c"size=64m";
/// Octets that are written at a time until the file system is full.
const BLOCK: usize = 4096;
/// The port of the service that is created meanwhile.
const LATER_PORT: u16 = 8096;
const RETURN_TIMEOUT: Duration = Duration::from_secs(60);
/// The time in which the cluster must accept a change. It may have to elect a leader first.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(15);
/// How many services are created and removed on a full disk: more changes than fit into what the
/// file system may have reserved.
const ROUNDS: usize = 8;
/// The node that is no manager.
const WORKER: &str = "n4";

pub(crate) fn group() -> Group {
    Group {
        name: "full_disk",
        shape: Shape { nodes: 4, managers: 3, ..Shape::default() },
        setup,
        tests: tests![
            a_follower_with_a_full_disk_stops_neither_traffic_nor_changes,
            a_leader_with_a_full_disk_is_replaced_and_stops_neither_traffic_nor_changes,
            a_worker_with_a_full_disk_gets_and_loses_tasks_as_before,
        ],
    }
}

/// Gives each node a small file system for its data. The removal of the lab unmounts them.
fn setup(lab: &Lab) -> Result<()> {
    for node in lab.nodes() {
        lab.kill_daemon(&node)?;
        mount_small(&contract::data_dir(&node))?;
    }
    for node in lab.nodes() {
        lab.start(&node)?;
    }
    one_cluster(lab)?;
    failure::setup(lab)
}

/// Puts a data directory on a small file system. Its daemon must not run.
fn mount_small(dir: &Path) -> Result<()> {
    let before = dir.with_extension("before");
    fs::rename(dir, &before)?;
    fs::create_dir(dir)?;
    mount("tmpfs", dir, "tmpfs", MountFlags::empty(), Some(SIZE))
        .with_context(|| format!("cannot mount a file system at {}", dir.display()))?;
    copy(&before, dir)?;
    fs::remove_dir_all(&before)?;
    Ok(())
}

/// Fills the file system of a node's data. Returns the file that does it.
fn fill(node: &str) -> Result<PathBuf> {
    let path = contract::data_dir(node).join("filler");
    let mut file = File::create(&path)?;
    loop {
        match file.write_all(&[1; BLOCK]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(path),
            Err(error) => return Err(error).context("cannot fill the file system"),
        }
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            fs::create_dir(&target)?;
            fs::set_permissions(&target, entry.metadata()?.permissions())?;
            copy(&source, &target)?;
        } else {
            fs::copy(&source, &target).with_context(|| format!("cannot copy {}", source.display()))?;
        }
    }
    Ok(())
}

/// Fills the disk of a node, makes changes through another manager, and makes room again. No
/// request fails, no node is down and no task is replaced. `meanwhile` is called after the changes.
fn with_a_full_disk(lab: &Lab, node: &str, via: &str, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = lab.wait_running(via, "whoami", 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    let watch = NodeWatch::start(via);
    let filler = fill(node)?;
    for round in 0..ROUNDS {
        let name = format!("while-full-{round}");
        let port = format!("{LATER_PORT}:{HTTP}");
        let create = ["service", "create", "--detach", "--name", &name, "--replicas", "4", "-p", &port, WHOAMI];
        eventually(CHANGE_TIMEOUT, "a change is possible", || {
            lab.weft_ok(via, &create).map(drop).map_err(|error| format!("{error:#}"))
        });
        let created = lab.wait_running(via, &name, 4)?;
        all_answer(CLIENT, &lab.published(LATER_PORT), &created, Duration::from_secs(10));
        lab.weft_ok(via, &["service", "rm", &name])?;
        lab.wait_stopped(via, &name)?;
    }
    meanwhile()?;
    fs::remove_file(&filler)?;
    one_cluster(lab)?;
    let after = lab.wait_running(via, "whoami", 3)?;
    ensure!(task_names(&after) == task_names(&before), "tasks were replaced: {before:?} became {after:?}");
    watch.expect_down(&[])?;
    loads.expect_no_errors()
}

/// The manager that was full takes part again: with it and `via` there is a quorum.
fn makes_a_quorum(lab: &Lab, node: &str, via: &str) -> Result<()> {
    let managers = lab.nodes().take(lab.options().managers);
    let other = managers.into_iter().find(|other| other != node && other != via).context("a third manager")?;
    lab.kill_daemon(&other)?;
    eventually(RETURN_TIMEOUT, "the node that was full makes a quorum", || {
        lab.weft_ok(via, &["network", "create", "with-the-third"]).map(drop).map_err(|error| format!("{error:#}"))
    });
    lab.start(&other)?;
    one_cluster(lab)?;
    lab.weft_ok(via, &["network", "rm", "with-the-third"]).map(drop)
}

pub(crate) fn a_follower_with_a_full_disk_stops_neither_traffic_nor_changes(lab: &Lab) -> Result<()> {
    let (node, via) = (failure::follower(lab)?, lab.leader("n1")?);
    with_a_full_disk(lab, &node, &via, || Ok(()))?;
    makes_a_quorum(lab, &node, &via)
}

pub(crate) fn a_leader_with_a_full_disk_is_replaced_and_stops_neither_traffic_nor_changes(lab: &Lab) -> Result<()> {
    let (node, via) = (lab.leader("n1")?, failure::follower(lab)?);
    with_a_full_disk(lab, &node, &via, || {
        let leader = lab.leader(&via)?;
        ensure!(leader != node, "{node} leads with a full disk");
        Ok(())
    })?;
    makes_a_quorum(lab, &node, &via)
}

pub(crate) fn a_worker_with_a_full_disk_gets_and_loses_tasks_as_before(lab: &Lab) -> Result<()> {
    with_a_full_disk(lab, WORKER, "n1", || Ok(()))
}
