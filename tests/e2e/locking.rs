//! Locked managers: a manager needs the unlock key after a restart, and its data plane does not.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{CLIENT, Lab, Role, api, contract, eventually};

use crate::{
    failure,
    fixtures::{HTTP, Loads, WHOAMI, all_answer, service, task_names},
    harness::{Group, Shape, tests},
    mesh,
};

/// The time in which a manager must follow a change of the lock.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(20);
/// The port of a service that is created afterwards.
const LATER_PORT: u16 = 8097;
const LOCKED: &str = "Swarm is encrypted and needs to be unlocked before it can be used.";

pub(crate) fn group() -> Group {
    Group {
        name: "locking",
        shape: Shape { init: false, ..Shape::default() },
        setup,
        tests: tests![
            a_locked_manager_serves_published_ports_and_manages_nothing_until_it_is_unlocked,
            a_rotated_key_reaches_all_managers_and_one_that_was_down_needs_the_former_key,
        ],
    }
}

fn setup(lab: &Lab) -> Result<()> {
    let mut arguments = Lab::init_arguments();
    arguments.push("--autolock".to_owned());
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let printed = lab.weft_ok("n1", &arguments)?;
    ensure!(printed.contains(&key(lab)?), "the key is not printed: {printed}");
    let token = lab.join_token("n1", Role::Worker)?;
    for node in ["n2", "n3"] {
        lab.join(node, &token)?;
    }
    lab.wait_ready("n1", 3)?;
    failure::setup(lab)
}

fn key(lab: &Lab) -> Result<String> {
    let key = lab.weft_ok("n1", &["swarm", "unlock-key", "--quiet"])?.trim().to_owned();
    ensure!(key.starts_with("SWMKEY-1-"), "{key}");
    Ok(key)
}

/// Unlocks a node. Returns the error, or an empty text.
fn unlock(lab: &Lab, node: &str, key: &str) -> Result<String> {
    let output = lab.weft_with_input(node, &["swarm", "unlock"], &format!("{key}\n"))?;
    let error = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    ensure!(output.status.success() == error.is_empty(), "{}: {error}", output.status);
    Ok(error)
}

fn restart(lab: &Lab, node: &str) -> Result<()> {
    lab.kill_daemon(node)?;
    lab.start(node)
}

/// Whether the keys of the node are encrypted on its disk, and which change of the lock it has
/// followed.
fn disk(node: &str) -> Result<(bool, Value)> {
    let dir = contract::data_dir(node).join("swarm");
    let identity = fs::read(dir.join("identity.pem")).context("the node has a certificate")?;
    let readable = identity.windows(11).any(|window| window == b"PRIVATE KEY");
    let lock = match fs::read_to_string(dir.join("lock.json")) {
        Ok(text) => serde_json::from_str(&text)?,
        Err(_) => Value::Null,
    };
    Ok((!readable, lock))
}

/// Waits until the managers have followed the same change of the lock.
fn wait_for_lock(nodes: &[&str], encrypted: bool, after: u64) -> Result<u64> {
    let version = eventually(FOLLOW_TIMEOUT, "the managers follow the lock", || {
        let mut versions = Vec::new();
        for node in nodes {
            let (is_encrypted, lock) = disk(node).map_err(|e| format!("{e:#}"))?;
            let version = lock["version"].as_u64().unwrap_or(0);
            let replaced = lock["stale_identity"] == false && lock["stale_log_key"] == false;
            if is_encrypted != encrypted || !replaced || version <= after {
                return Err(format!("{node}: {is_encrypted} {lock}"));
            }
            versions.push(version);
        }
        versions.dedup();
        if let [version] = versions[..] { Ok(version) } else { Err(format!("{versions:?}")) }
    });
    Ok(version)
}

fn a_locked_manager_serves_published_ports_and_manages_nothing_until_it_is_unlocked(lab: &Lab) -> Result<()> {
    let key = key(lab)?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    ensure!(disk("n1")?.0 && !disk("n2")?.0, "managers are locked, workers are not");
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    restart(lab, "n1")?;
    let info = lab.weft_ok("n1", &["info"])?;
    ensure!(info.contains("Swarm: locked") && info.contains(LOCKED), "{info}");
    for command in
        [&["service", "ls"][..], &["node", "ls"], &["swarm", "unlock-key"], &["service", "scale", "whoami=1"]]
    {
        let refused = lab.weft_refused("n1", command)?;
        ensure!(refused.contains(LOCKED), "{command:?}: {refused}");
    }
    let refused = lab.weft_refused("n1", &["swarm", "leave"])?;
    ensure!(refused.contains("unlock it first or use \"--force\""), "{refused}");
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, Duration::from_secs(5));

    let refused = unlock(lab, "n1", "SWMKEY-1-BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc")?;
    ensure!(refused.contains("swarm could not be unlocked: invalid key provided"), "{refused}");
    let refused = unlock(lab, "n1", "nonsense")?;
    ensure!(refused.contains("invalid key string"), "{refused}");
    let refused = unlock(lab, "n2", &key)?;
    ensure!(refused.contains("swarm is not locked"), "{refused}");
    restart(lab, "n2")?;
    ensure!(lab.weft_ok("n1", &["info"])?.contains("Swarm: locked"), "a wrong key changes nothing");
    ensure!(unlock(lab, "n1", &key)?.is_empty(), "the key is refused");
    ensure!(unlock(lab, "n1", &key)?.contains("swarm is not locked"), "it is unlocked");

    lab.wait_ready("n1", 3)?;
    let after = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&tasks) == task_names(&after), "{tasks:?} became {after:?}");
    loads.expect_no_errors()?;
    let later = service(lab, "later", 3, &["-p", &format!("{LATER_PORT}:{HTTP}")], &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(LATER_PORT), &later, Duration::from_secs(5));
    lab.weft_ok("n1", &["service", "rm", "later"])?;
    lab.wait_stopped("n1", "later")
}

fn a_rotated_key_reaches_all_managers_and_one_that_was_down_needs_the_former_key(lab: &Lab) -> Result<()> {
    let former = key(lab)?;
    lab.weft_ok("n1", &["node", "promote", "n2", "n3"])?;
    lab.wait_managers("n1", 3)?;
    let version = wait_for_lock(&["n1", "n2", "n3"], true, 0)?;
    lab.kill_daemon("n3")?;
    let printed = lab.weft_ok("n1", &["swarm", "unlock-key", "--rotate"])?;
    let new = key(lab)?;
    ensure!(printed.contains("Successfully rotated manager unlock key.") && printed.contains(&new), "{printed}");
    ensure!(new != former, "the key is the former one");
    let rotated = wait_for_lock(&["n1", "n2"], true, version)?;
    restart(lab, "n2")?;
    ensure!(unlock(lab, "n2", &former)?.contains("invalid key provided"), "the former key unlocks n2");
    ensure!(unlock(lab, "n2", &new)?.is_empty(), "the new key does not unlock n2");
    lab.start("n3")?;
    ensure!(unlock(lab, "n3", &new)?.contains("needs the key of before"), "n3 does not know the new key");
    ensure!(unlock(lab, "n3", &former)?.is_empty(), "the former key does not unlock n3");
    lab.wait_ready("n1", 3)?;
    lab.wait_managers("n1", 3)?;
    ensure!(wait_for_lock(&["n1", "n2", "n3"], true, version)? == rotated, "there was another change");

    let refused = lab.weft_refused("n1", &["swarm", "init", "--force-new-cluster", "--autolock"])?;
    ensure!(refused.contains("keeps its settings"), "{refused}");
    let printed = lab.weft_ok("n2", &["swarm", "update", "--autolock=false"])?;
    ensure!(!printed.contains("SWMKEY"), "{printed}");
    wait_for_lock(&["n1", "n2", "n3"], false, rotated)?;
    restart(lab, "n3")?;
    lab.wait_managers("n3", 3)?;
    for command in [&["swarm", "unlock-key"][..], &["swarm", "unlock-key", "--rotate"]] {
        let refused = lab.weft_refused("n1", command)?;
        ensure!(refused.contains("no unlock key is set") || refused.contains("autolock is not turned on"), "{refused}");
    }
    let printed = lab.weft_ok("n3", &["swarm", "update", "--autolock"])?;
    ensure!(printed.contains("Swarm updated.") && printed.contains(&key(lab)?), "{printed}");
    wait_for_lock(&["n1", "n2", "n3"], true, rotated)?;
    let swarm = api::get(&contract::socket("n1"), "/swarm")?;
    ensure!(swarm["Spec"]["EncryptionConfig"]["AutoLockManagers"] == true, "{swarm}");
    lab.wait_running("n1", "whoami", 3).map(drop)
}
