//! How the story is told: headings, commands with what they print, and clients that ask all the while.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Load, Task, contract, dns::RecordType, try_eventually};

use super::PORT;
use crate::ui::Ui;

/// For a daemon that is back to serve names again.
const NAMES_ARE_BACK: Duration = Duration::from_secs(5);

pub(super) fn chapter(title: &str) {
    println!("\n{title}");
}

/// Runs a weft command and shows it with what it printed.
pub(super) fn show(lab: &Lab, node: &str, arguments: &[&str]) -> Result<String> {
    println!("  {node}$ weft {}", arguments.join(" "));
    let output = lab.weft_ok(node, arguments)?;
    quote(&output);
    Ok(output)
}

/// As [`show`], where nobody needs what it printed.
pub(super) fn run(lab: &Lab, node: &str, arguments: &[String]) -> Result<()> {
    show(lab, node, &arguments.iter().map(String::as_str).collect::<Vec<_>>()).map(|_| ())
}

/// Runs a program of the machine in a host's namespace and shows it with what it printed.
pub(super) fn show_exec(lab: &Lab, host: &str, command: &[&str]) -> Result<()> {
    println!("  {host}$ {}", command.join(" "));
    quote(&lab.exec_ok(host, command)?);
    Ok(())
}

/// As [`show_exec`], inside a task.
pub(super) fn show_in_task(lab: &Lab, task: &Task, command: &[&str]) -> Result<()> {
    println!("  {}$ {}", task.service, command.join(" "));
    quote(&lab.task_exec_ok(task, command)?);
    Ok(())
}

pub(super) fn quote(output: &str) {
    for line in output.lines().filter(|line| !line.trim().is_empty()) {
        println!("      {}", line.trim_end());
    }
}

/// What was done on the left, what came of it on the right.
pub(super) fn outcome(what: &str, result: &str) {
    println!("  {what:<50} {result}");
}

/// `whoami.1 ×101`, without the tasks' ids.
pub(super) fn counts(by_task: &BTreeMap<String, usize>) -> String {
    let short = |name: &String| name.rsplit_once('.').map_or(name.as_str(), |(short, _)| short).to_owned();
    by_task.iter().map(|(name, count)| format!("{} ×{count}", short(name))).collect::<Vec<_>>().join("  ")
}

/// A service of one task with this machine's programs in it.
pub(super) fn probe(ui: &Ui, lab: &Lab, name: &str, networks: &[&str]) -> Result<Task> {
    let mut arguments = vec!["service", "create", "--detach", "--name", name];
    arguments.extend(networks.iter().flat_map(|network| ["--network", *network]));
    arguments.extend(["host", "sleep", "infinity"]);
    show(lab, "n1", &arguments)?;
    let tasks = ui.quiet("the task starts", |_| lab.wait_running("n1", name, 1))?;
    tasks.into_iter().next().context("one task")
}

/// Where a task finds a service, by its name. Names may pause while a daemon is away, and until it serves them again.
pub(super) fn vip(lab: &Lab, task: &Task, service: &str) -> Result<IpAddr> {
    try_eventually(NAMES_ARE_BACK, &format!("{} finds {service}", task.service), || {
        let answer = lab.ask(task, service, RecordType::A).map_err(|error| format!("{error:#}"))?;
        answer.addrs().first().copied().ok_or_else(|| format!("{service} has no address: {answer:?}"))
    })
}

/// Runs `action` while clients open new connections: one from outside to every node, one from a task to the VIP. How many
/// there were, all of them answered.
pub(super) fn under_load(lab: &Lab, friend: &Task, action: impl FnOnce() -> Result<()>) -> Result<u64> {
    let vip = SocketAddr::new(vip(lab, friend, "whoami")?, 80);
    let outside = Load::start(&contract::namespace_path(CLIENT), &lab.published(PORT));
    let inside = Load::start(&lab.task_namespace(friend)?, &[vip]);
    let result = action();
    let reports = [outside.stop()?, inside.stop()?];
    result?;
    for report in &reports {
        ensure!(
            report.errors == 0,
            "{} of {} requests failed; {:?}",
            report.errors,
            report.requests,
            report.first_error
        );
    }
    let [outside, inside] = reports.map(|report| report.requests);
    println!("  meanwhile {outside} requests through all nodes, {inside} from the friend to the VIP: 0 errors");
    Ok(outside + inside)
}
