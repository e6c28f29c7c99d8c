//! Services and networks that many tests want, and the waits that go with them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    panic,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Load, Runtime, Task, api, contract, dns, docker, eventually, http, netns};

/// For a daemon that is back to serve names again.
const NAMES_ARE_BACK: Duration = Duration::from_secs(5);
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
    only(service(lab, name, 1, &flags, &[tools(lab), "sleep", "infinity"])?)
}

/// As [`probe`], on a node of the test's choice.
pub(crate) fn probe_on(lab: &Lab, node: &str, name: &str, networks: &[&str]) -> Result<Task> {
    let constraint = format!("engine.labels.lab-node=={node}");
    let mut flags = vec!["--constraint", &constraint];
    flags.extend(networks.iter().flat_map(|network| ["--network", *network]));
    only(service(lab, name, 1, &flags, &[tools(lab), "sleep", "infinity"])?)
}

/// The image that has the machine's tools in it.
pub(crate) fn tools(lab: &Lab) -> &'static str {
    match lab.options().runtime {
        Runtime::Process => "host",
        Runtime::Docker => docker::TOOLS_IMAGE,
    }
}

/// An image that no node has and none can get, without asking anybody far away.
pub(crate) fn missing_image(lab: &Lab) -> &'static str {
    match lab.options().runtime {
        Runtime::Process => "weft/no-such-image",
        Runtime::Docker => "localhost:1/none",
    }
}

/// Clients that open new connections all the while: from outside, and from a task to the VIP.
pub(crate) struct Loads {
    outside: Load,
    east_west: Load,
}

impl Loads {
    /// `probe` is a service whose task asks `whoami` at its VIP.
    pub(crate) fn start(lab: &Lab, published: &[SocketAddr], probe: &str) -> Result<Self> {
        let probe = task_of(lab, probe)?;
        // Names may pause while a daemon is away, and until it serves them again.
        let vip = eventually(NAMES_ARE_BACK, "the probe finds whoami", || {
            vip(lab, &probe, "whoami").map_err(|error| format!("{error:#}"))
        });
        let vip = SocketAddr::new(vip, HTTP);
        Ok(Self {
            outside: Load::start(&contract::namespace_path(CLIENT), published),
            east_west: Load::start(&lab.task_namespace(&probe)?, &[vip]),
        })
    }

    /// Ends the clients. None of them may have seen an error.
    pub(crate) fn expect_no_errors(self) -> Result<()> {
        let (outside, east_west) = (self.outside.stop(), self.east_west.stop());
        outside?.expect_no_errors();
        east_west?.expect_no_errors();
        Ok(())
    }
}

pub(crate) fn only(tasks: Vec<Task>) -> Result<Task> {
    ensure!(tasks.len() == 1, "one task, not {tasks:?}");
    tasks.into_iter().next().context("one task")
}

/// The one running task of a service that another test or the setup created.
pub(crate) fn task_of(lab: &Lab, service: &str) -> Result<Task> {
    only(lab.wait_running("n1", service, 1)?)
}

pub(crate) fn task_names(tasks: &[Task]) -> BTreeSet<String> {
    tasks.iter().map(Task::name).collect()
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

/// Waits until, at all of the addresses, all of these tasks have answered, and nobody else does. One deadline for all.
pub(crate) fn all_answer(host: &str, addrs: &[SocketAddr], tasks: &[Task], deadline: Duration) {
    all_answer_within(&contract::namespace_path(host), host, addrs, tasks, deadline);
}

/// As [`all_answer`], seen from a network namespace: `whose` names it.
pub(crate) fn all_answer_within(netns: &Path, whose: &str, addrs: &[SocketAddr], tasks: &[Task], deadline: Duration) {
    let expected = task_names(tasks);
    let rounds = expected.len() * 4;
    at_once(addrs, |addr| {
        let what = format!("all of {expected:?} answer {whose} at {addr}");
        eventually(deadline, &what, || {
            let seen = netns::within(netns, || http::spread(*addr, rounds)).map_err(|error| error.to_string())?;
            let seen: BTreeSet<String> = seen.map_err(|error| error.to_string())?.into_keys().collect();
            if seen == expected { Ok(()) } else { Err(format!("answers came from {seen:?}")) }
        });
    });
}

/// Waits until `tasks.whoami`, asked from `probe`, gives the IPv4 addresses of exactly these tasks.
pub(crate) fn names_follow(lab: &Lab, probe: &Task, tasks: &[Task], deadline: Duration) {
    let expected = v4_of(tasks, "app");
    eventually(deadline, "tasks.whoami gives the addresses of the running tasks", || {
        let answer = lab.ask(probe, "tasks.whoami", dns::RecordType::A).map_err(|error| format!("{error:#}"))?;
        let found: BTreeSet<IpAddr> = answer.addrs().into_iter().collect();
        if found == expected { Ok(()) } else { Err(format!("{found:?} instead of {expected:?}")) }
    });
}

/// Does it for all at the same time; a panic of one is a panic here.
pub(crate) fn at_once<T: Sync>(all: &[T], action: impl Fn(&T) + Sync) {
    thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(|| action(one))).collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                panic::resume_unwind(panic);
            }
        }
    });
}

/// What is left of a second that began when something happened.
pub(crate) fn soon_after(event: Instant) -> Duration {
    SOON.saturating_sub(event.elapsed())
}

/// As [`Lab::spread_evenly`], which must find it so.
#[track_caller]
pub(crate) fn assert_even(lab: &Lab, host: &str, addr: SocketAddr, tasks: &[Task], count: usize) {
    if let Err(error) = lab.spread_evenly(host, addr, tasks, count) {
        panic!("{error:#}");
    }
}

/// A field of a service as the API tells it.
pub(crate) fn inspect(via: &str, service: &str) -> Result<serde_json::Value> {
    api::get(&contract::socket(via), &format!("/services/{service}"))
}
