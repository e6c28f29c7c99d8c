//! Services and networks that many tests want, and the waits that go with them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{Lab, Runtime, Task, api, contract, dns, docker, eventually, http};

pub(crate) const WHOAMI: &str = "weft/whoami";
/// Where whoami serves HTTP inside a task.
pub(crate) const HTTP: u16 = 80;
/// "Within a second": what the mesh and the names are allowed to lag behind.
pub(crate) const SOON: Duration = Duration::from_secs(1);
/// How long nothing must have come before it counts as never coming.
pub(crate) const SILENCE: Duration = Duration::from_millis(500);

pub(crate) fn network(lab: &Lab, name: &str, flags: &[&str]) -> Result<()> {
    let mut arguments = vec!["network", "create", "--driver", "overlay"];
    arguments.extend(flags);
    arguments.push(name);
    lab.weft_ok("n1", &arguments).map(|_| ())
}

/// Creates a service and waits until its tasks run.
pub(crate) fn service(lab: &Lab, name: &str, replicas: usize, flags: &[&str], image: &[&str]) -> Result<Vec<Task>> {
    let count = replicas.to_string();
    let mut arguments = vec!["service", "create", "--detach", "--name", name, "--replicas", &count];
    arguments.extend(flags);
    arguments.extend(image);
    lab.weft_ok("n1", &arguments)?;
    lab.wait_running("n1", name, replicas)
}

/// One idle task with the machine's tools in it, to ask from.
pub(crate) fn probe(lab: &Lab, name: &str, networks: &[&str]) -> Result<Task> {
    let flags: Vec<&str> = networks.iter().flat_map(|network| ["--network", *network]).collect();
    let image = match lab.options().runtime {
        Runtime::Process => "host",
        Runtime::Docker => docker::TOOLS_IMAGE,
    };
    let tasks = service(lab, name, 1, &flags, &[image, "sleep", "infinity"])?;
    tasks.into_iter().next().context("one task")
}

pub(crate) fn only(tasks: Vec<Task>) -> Result<Task> {
    ensure!(tasks.len() == 1, "one task, not {tasks:?}");
    tasks.into_iter().next().context("one task")
}

/// The one running task of a service that another test or the setup created.
pub(crate) fn task_of(lab: &Lab, service: &str) -> Result<Task> {
    only(lab.wait_running("n1", service, 1)?)
}

/// What `weft/whoami` calls a task.
pub(crate) fn task_name(task: &Task) -> String {
    format!("{}.{}.{}", task.service, task.slot, task.id)
}

pub(crate) fn task_names(tasks: &[Task]) -> BTreeSet<String> {
    tasks.iter().map(task_name).collect()
}

/// The IPv4 addresses of tasks on a network.
pub(crate) fn v4_of(tasks: &[Task], network: &str) -> BTreeSet<IpAddr> {
    tasks.iter().map(|task| task.v4(network)).collect()
}

/// As [`v4_of`], the IPv6 addresses.
pub(crate) fn v6_of(tasks: &[Task], network: &str) -> BTreeSet<IpAddr> {
    tasks.iter().map(|task| task.v6(network)).collect()
}

/// The VIP that a service's name resolves to inside `probe`.
pub(crate) fn vip(lab: &Lab, probe: &Task, service: &str) -> Result<IpAddr> {
    let answer = lab.within_task(probe, || dns::lookup(dns::IN_TASK, service, dns::RecordType::A))??;
    ensure!(answer.records.len() == 1, "{service} should have one address: {answer:?}");
    answer.addrs().first().copied().context("an address")
}

/// Waits until, at one address after the other, all of these tasks have answered, and nobody else does.
pub(crate) fn all_answer(lab: &Lab, host: &str, addrs: &[SocketAddr], tasks: &[Task], deadline: Duration) {
    let expected = task_names(tasks);
    for addr in addrs {
        let what = format!("all of {expected:?} answer {host} at {addr}");
        eventually(deadline, &what, || {
            let rounds = expected.len() * 4;
            let seen = lab.within(host, || http::spread(*addr, rounds)).map_err(|error| error.to_string())?;
            let seen: BTreeSet<String> = seen.map_err(|error| error.to_string())?.into_keys().collect();
            if seen == expected { Ok(()) } else { Err(format!("answers came from {seen:?}")) }
        });
    }
}

/// How often each task answered `count` new connections; every one of them must succeed.
#[track_caller]
pub(crate) fn assert_even(lab: &Lab, host: &str, addr: SocketAddr, tasks: &[Task], count: usize) {
    let by_task = lab.within(host, || http::spread(addr, count)).expect("the namespace exists");
    let by_task = by_task.unwrap_or_else(|error| panic!("{host} to {addr}: {error}"));
    assert_eq!(by_task.keys().cloned().collect::<BTreeSet<_>>(), task_names(tasks), "at {addr}");
    let share = count / tasks.len();
    for (task, answers) in &by_task {
        let even = share * 8 / 10..=share * 12 / 10;
        assert!(even.contains(answers), "{task} answered {answers} of {count} at {addr}: {by_task:?}");
    }
}

/// Asks the resolver inside a task.
pub(crate) fn ask(lab: &Lab, task: &Task, name: &str, record: dns::RecordType) -> Result<dns::Answer> {
    lab.within_task(task, || dns::lookup(dns::IN_TASK, name, record))?
}

/// A field of a service as the API tells it.
pub(crate) fn inspect(via: &str, service: &str) -> Result<serde_json::Value> {
    api::get(&contract::socket(via), &format!("/services/{service}"))
}
