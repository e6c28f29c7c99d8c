//! Services and networks that many tests use, and waiting for them.

use std::{
    collections::BTreeSet,
    env,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    panic,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Map, PerCpuArray};
use weft_ebpf_common::DropReason;
use weft_lab::{CLIENT, Lab, Load, Runtime, Task, api, contract, dns, docker, eventually, http, netns, unscaled};

use crate::maps;

/// The time in which a restarted daemon must resolve names again.
const NAMES_TIMEOUT: Duration = Duration::from_secs(5);
pub(crate) const WHOAMI: &str = "weft/whoami";
/// The port of whoami's HTTP server in a task.
pub(crate) const HTTP: u16 = 80;
/// The time in which the mesh and the names must follow a change.
pub(crate) const FOLLOW_TIMEOUT: Duration = Duration::from_secs(1);
/// A packet that has not arrived after this time counts as dropped.
pub(crate) const DROP_TIMEOUT: Duration = Duration::from_millis(500);

/// The environment variable with the number of rounds of tests that repeat something.
const ROUNDS_VARIABLE: &str = "WEFT_LAB_ROUNDS";

/// How often a test repeats something: as often as the environment says, or this often.
pub(crate) fn rounds_or(default: usize) -> Result<usize> {
    let Ok(text) = env::var(ROUNDS_VARIABLE) else { return Ok(default) };
    let rounds: NonZeroUsize = text.parse().with_context(|| format!("{ROUNDS_VARIABLE}={text:?} is no count"))?;
    Ok(rounds.get())
}

pub(crate) fn network(lab: &Lab, name: &str, flags: &[&str]) -> Result<()> {
    let mut arguments = vec!["network", "create", "--driver", "overlay"];
    arguments.extend(flags);
    arguments.push(name);
    lab.weft_ok("n1", &arguments).map(|_| ())
}

/// How many packets the programs of a node have dropped for a reason, since its maps exist.
pub(crate) fn dropped(node: &str, reason: DropReason) -> Result<u64> {
    let counters = PerCpuArray::<_, u64>::try_from(Map::PerCpuArray(maps::data(node, "DROPS")?))?;
    Ok(counters.get(&(reason as u32), 0)?.iter().sum())
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

/// Creates a service of whoami on the network `app`, with its HTTP port published, whose tasks are
/// on none of the nodes `apart`.
pub(crate) fn service_beside(lab: &Lab, name: &str, port: u16, apart: &[&str]) -> Result<Vec<Task>> {
    let port = format!("{port}:{HTTP}");
    let constraints: Vec<String> = apart.iter().map(|node| format!("engine.labels.lab-node!={node}")).collect();
    let mut flags = vec!["-p", &port, "--network", "app"];
    flags.extend(constraints.iter().flat_map(|constraint| ["--constraint", constraint]));
    service(lab, name, 3, &flags, &[WHOAMI])
}

/// Creates a service with one idle probe task that contains the machine's tools. Tests send
/// requests from it. Returns the task.
pub(crate) fn probe(lab: &Lab, name: &str, networks: &[&str]) -> Result<Task> {
    let flags: Vec<&str> = networks.iter().flat_map(|network| ["--network", *network]).collect();
    only(service(lab, name, 1, &flags, &[tools(lab), "sleep", "infinity"])?)
}

/// Like [`probe`], on this node.
pub(crate) fn probe_on(lab: &Lab, node: &str, name: &str, networks: &[&str]) -> Result<Task> {
    let constraint = format!("engine.labels.lab-node=={node}");
    let mut flags = vec!["--constraint", &constraint];
    flags.extend(networks.iter().flat_map(|network| ["--network", *network]));
    only(service(lab, name, 1, &flags, &[tools(lab), "sleep", "infinity"])?)
}

/// The image that contains the machine's tools.
pub(crate) fn tools(lab: &Lab) -> &'static str {
    match lab.options().runtime {
        Runtime::Process => "host",
        Runtime::Docker => docker::TOOLS_IMAGE,
    }
}

/// An image that no node has, and that no node can pull. The test contacts no registry outside of
/// the machine.
pub(crate) fn missing_image(lab: &Lab) -> &'static str {
    match lab.options().runtime {
        Runtime::Process => "weft/no-such-image",
        Runtime::Docker => "localhost:1/none",
    }
}

/// Clients that open new connections in the background: from outside, and from a task to the VIP.
pub(crate) struct Loads {
    outside: Load,
    inside: Load,
}

impl Loads {
    /// `probe` is the service whose task connects to the VIP of `whoami`.
    pub(crate) fn start(lab: &Lab, published: &[SocketAddr], probe: &str) -> Result<Self> {
        Self::start_to(lab, "whoami", published, probe)
    }

    /// Like [`Loads::start`], to the VIP of this service.
    pub(crate) fn start_to(lab: &Lab, service: &str, published: &[SocketAddr], probe: &str) -> Result<Self> {
        let probe = task_of(lab, probe)?;
        // Names do not resolve while a daemon restarts.
        let vip = eventually(NAMES_TIMEOUT, &format!("{service} resolves in the probe"), || {
            vip(lab, &probe, service).map_err(|error| format!("{error:#}"))
        });
        let vip = SocketAddr::new(vip, HTTP);
        Ok(Self {
            outside: Load::start(&contract::namespace_path(CLIENT), published),
            inside: Load::start(&lab.task_namespace(&probe)?, &[vip]),
        })
    }

    /// Ends the clients.
    ///
    /// # Panics
    /// When a request failed, or a SYN was lost.
    pub(crate) fn expect_no_errors(self) -> Result<()> {
        let (outside, inside) = (self.outside.stop(), self.inside.stop());
        outside?.expect_no_errors();
        inside?.expect_no_errors();
        Ok(())
    }
}

pub(crate) fn only(tasks: Vec<Task>) -> Result<Task> {
    ensure!(tasks.len() == 1, "expected one task: {tasks:?}");
    tasks.into_iter().next().context("the list has one task")
}

/// A published port at the IPv4 and IPv6 addresses of these nodes.
pub(crate) fn published_on(nodes: &[&str], port: u16) -> Vec<SocketAddr> {
    nodes.iter().flat_map(|node| contract::addrs(node)).map(|addr| (addr, port).into()).collect()
}

/// The only running task of a service that the setup or another test has created.
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

/// The IPv6 addresses of tasks on a network.
pub(crate) fn v6_of(tasks: &[Task], network: &str) -> BTreeSet<IpAddr> {
    tasks.iter().map(|task| task.v6(network)).collect()
}

/// The VIP of a service, as its name resolves in `probe`.
pub(crate) fn vip(lab: &Lab, probe: &Task, service: &str) -> Result<IpAddr> {
    let answer = lab.within_task(probe, || dns::lookup(dns::IN_TASK, service, dns::RecordType::A))??;
    ensure!(answer.records.len() == 1, "{service} must resolve to one address: {answer:?}");
    answer.addrs().first().copied().context("the answer has an address")
}

/// Waits until exactly these tasks answer at each of the addresses. The deadline is for all
/// addresses together.
pub(crate) fn all_answer(host: &str, addrs: &[SocketAddr], tasks: &[Task], deadline: Duration) {
    all_answer_within(&contract::namespace_path(host), host, addrs, tasks, deadline);
}

/// Like [`all_answer`], from a network namespace. Errors contain its `name`.
pub(crate) fn all_answer_within(netns: &Path, name: &str, addrs: &[SocketAddr], tasks: &[Task], deadline: Duration) {
    let expected = task_names(tasks);
    let rounds = expected.len() * 4;
    in_parallel(addrs, |addr| {
        let what = format!("all of {expected:?} answer {name} at {addr}");
        eventually(deadline, &what, || {
            let found =
                netns::within(netns, || http::answers_by_task(*addr, rounds)).map_err(|error| error.to_string())?;
            let found: BTreeSet<String> = found.map_err(|error| error.to_string())?.into_keys().collect();
            if found == expected { Ok(()) } else { Err(format!("answers came from {found:?}")) }
        });
    });
}

/// Waits until `name` resolves in `probe` to exactly these addresses. A task is running before the
/// other nodes know that it is ready, so the first answers can be without its address.
pub(crate) fn resolves_to(lab: &Lab, probe: &Task, name: &str, expected: &BTreeSet<IpAddr>, deadline: Duration) {
    let record = if expected.iter().all(IpAddr::is_ipv6) { dns::RecordType::AAAA } else { dns::RecordType::A };
    eventually(deadline, &format!("{name} resolves to {expected:?}"), || {
        let answer = lab.lookup(probe, name, record).map_err(|error| format!("{error:#}"))?;
        let found: BTreeSet<IpAddr> = answer.addrs().into_iter().collect();
        if found == *expected { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}

/// Waits until `tasks.whoami` resolves in `probe` to the IPv4 addresses of exactly these tasks.
pub(crate) fn names_follow(lab: &Lab, probe: &Task, tasks: &[Task], deadline: Duration) {
    resolves_to(lab, probe, "tasks.whoami", &v4_of(tasks, "app"), deadline);
}

/// Runs `action` for all values at the same time.
///
/// # Panics
/// When one of them panics.
pub(crate) fn in_parallel<T: Sync>(all: &[T], action: impl Fn(&T) + Sync) {
    thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(|| action(one))).collect();
        for thread in threads {
            if let Err(panic) = thread.join() {
                panic::resume_unwind(panic);
            }
        }
    });
}

/// The part of [`FOLLOW_TIMEOUT`] that remains since an event, as a time on a normal machine.
pub(crate) fn time_left(event: Instant) -> Duration {
    FOLLOW_TIMEOUT.saturating_sub(unscaled(event.elapsed()))
}

/// Like [`Lab::check_even_spread`].
///
/// # Panics
/// On its errors.
#[track_caller]
pub(crate) fn assert_even(lab: &Lab, host: &str, addr: SocketAddr, tasks: &[Task], count: usize) {
    if let Err(error) = lab.check_even_spread(host, addr, tasks, count) {
        panic!("{error:#}");
    }
}

/// A service, as the API describes it.
pub(crate) fn inspect(via: &str, service: &str) -> Result<serde_json::Value> {
    api::get(&contract::socket(via), &format!("/services/{service}"))
}
