//! Functions that all chapters call: they print headings, commands with their output and results,
//! create a probe task, and run load during an action.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Load, Task, contract, dns::RecordType, try_eventually};

use super::PORT;
use crate::ui::Ui;

/// The time in which a restarted daemon must resolve names again.
const NAMES_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn chapter(title: &str) {
    println!("\n{title}");
}

/// Runs a weft command on a node, and prints it with its output. Returns the output.
pub(super) fn show(lab: &Lab, node: &str, arguments: &[&str]) -> Result<String> {
    println!("  {node}$ weft {}", arguments.join(" "));
    let output = lab.weft_ok(node, arguments)?;
    print_indented(&output);
    Ok(output)
}

/// Runs a program of this machine on a host, and prints it with its output.
pub(super) fn show_exec(lab: &Lab, host: &str, command: &[&str]) -> Result<()> {
    println!("  {host}$ {}", command.join(" "));
    print_indented(&lab.exec_ok(host, command)?);
    Ok(())
}

/// Runs a program inside of a task, and prints it with its output.
pub(super) fn show_in_task(lab: &Lab, task: &Task, command: &[&str]) -> Result<()> {
    println!("  {}$ {}", task.service, command.join(" "));
    print_indented(&lab.task_exec_ok(task, command)?);
    Ok(())
}

fn print_indented(output: &str) {
    for line in output.lines().filter(|line| !line.trim().is_empty()) {
        println!("      {}", line.trim_end());
    }
}

/// Prints what was done in the left column, and its result in the right one.
pub(super) fn outcome(what: &str, result: &str) {
    println!("  {what:<52} {result}");
}

/// `whoami.1 ×101`: the tasks without their ids, each with its number.
pub(super) fn counts(by_task: &BTreeMap<String, usize>) -> String {
    let short = |name: &String| name.rsplit_once('.').map_or(name.as_str(), |(short, _)| short).to_owned();
    by_task.iter().map(|(name, count)| format!("{} ×{count}", short(name))).collect::<Vec<_>>().join("  ")
}

/// Creates a service with one idle probe task that has the programs of this machine. The story
/// sends requests from it.
pub(super) fn create_probe(ui: &Ui, lab: &Lab, name: &str, networks: &[&str]) -> Result<Task> {
    let mut arguments = vec!["service", "create", "--detach", "--name", name];
    arguments.extend(networks.iter().flat_map(|network| ["--network", *network]));
    arguments.extend(["host", "sleep", "infinity"]);
    show(lab, "n1", &arguments)?;
    let what = format!("wait until the task of {name} is running");
    let tasks = ui.step_without_result(&what, |_| lab.wait_running("n1", name, 1))?;
    tasks.into_iter().next().context("one task is running")
}

/// The VIP of a service, as its name resolves in a task. Waits, because names do not resolve while
/// a daemon restarts.
pub(super) fn vip(lab: &Lab, task: &Task, service: &str) -> Result<IpAddr> {
    try_eventually(NAMES_TIMEOUT, &format!("{service} resolves in {}", task.service), || {
        let answer = lab.lookup(task, service, RecordType::A).map_err(|error| format!("{error:#}"))?;
        answer.addrs().first().copied().ok_or_else(|| format!("{service} has no address: {answer:?}"))
    })
}

/// Runs `action` while clients open new connections: some from outside to every node, some from a
/// task to the VIP. Returns the number of requests.
///
/// # Errors
/// When `action` or any request fails.
pub(super) fn under_load(lab: &Lab, probe: &Task, action: impl FnOnce() -> Result<()>) -> Result<u64> {
    let vip = SocketAddr::new(vip(lab, probe, "whoami")?, 80);
    let outside = Load::start(&contract::namespace_path(CLIENT), &lab.published(PORT));
    let inside = Load::start(&lab.task_namespace(probe)?, &[vip]);
    let result = action();
    let reports = [outside.stop()?, inside.stop()?];
    result?;
    for report in &reports {
        ensure!(
            report.errors == 0,
            "{} of {} requests failed; the first error: {:?}",
            report.errors,
            report.requests,
            report.first_error
        );
    }
    let [outside, inside] = reports.map(|report| report.requests);
    println!("  at the same time: {outside} requests to all nodes, {inside} from the probe to the VIP, 0 errors");
    Ok(outside + inside)
}
