//! The story that the demo tells: what weft does, shown by doing it. Every sentence is checked; the first that is not true
//! ends the demo with an error.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{
    CLIENT, Lab, Load, Task, contract,
    dns::{self, RecordType, ResponseCode},
    http,
};

use crate::ui::Ui;

const PORT: u16 = 8080;
/// New connections to each address, to see them spread.
const CONNECTIONS: usize = 300;
/// How long nothing must answer to count as unreachable.
const SILENCE: Duration = Duration::from_millis(500);

/// Tells it all. Returns the summary.
pub(crate) fn tell(ui: &Ui, lab: &Lab) -> Result<String> {
    chapter("Three machines become a cluster");
    cluster(ui, lab)?;
    chapter("A service: three tasks, one published port");
    let tasks = service(ui, lab)?;
    chapter("Every node answers on that port, over IPv4 and IPv6, and the tasks see the real client");
    let requests = mesh(ui, lab, &tasks)?;
    chapter("Inside the network, services find each other by name");
    names(ui, lab, &tasks)?;
    chapter("Another network is another world, even with the same subnet");
    isolation(ui, lab, &tasks)?;
    chapter("More tasks, fewer tasks: clients notice nothing");
    let scaled = scaling(ui, lab)?;
    chapter("A daemon is killed: its node goes on carrying traffic");
    let crashed = crash(ui, lab)?;
    Ok(format!(
        "What you saw, on one machine, with the real thing:\n\
         \x20 - a cluster of {} nodes, three of them managers, formed with two commands and a token\n\
         \x20 - {requests} connections through every node, IPv4 and IPv6, spread evenly over the tasks by eBPF\n\
         \x20 - names and virtual addresses inside a network, and nothing of it visible from another\n\
         \x20 - {scaled} requests while the service grew and shrank: 0 errors\n\
         \x20 - {crashed} requests while a daemon was killed and came back: 0 errors\n",
        lab.nodes().count()
    ))
}

fn chapter(title: &str) {
    println!("\n{title}");
}

/// Runs a weft command and shows it with what it printed.
fn show(lab: &Lab, node: &str, arguments: &[&str]) -> Result<String> {
    println!("  {node}$ weft {}", arguments.join(" "));
    let output = lab.weft_ok(node, arguments)?;
    quote(&output);
    Ok(output)
}

fn quote(output: &str) {
    for line in output.lines().filter(|line| !line.trim().is_empty()) {
        println!("      {}", line.trim_end());
    }
}

fn cluster(ui: &Ui, lab: &Lab) -> Result<()> {
    println!("  n1$ weft swarm init --advertise-addr {}", contract::v4("n1"));
    quote(&lab.init()?);
    for (node, role) in [("n2", weft_lab::Role::Manager), ("n3", weft_lab::Role::Worker)] {
        let token = lab.join_token("n1", role)?;
        println!("  {node}$ weft swarm join --token {}… {}:2377", &token[..16.min(token.len())], contract::v4("n1"));
        quote(&lab.join(node, &token)?);
    }
    ui.step("the nodes get ready", |_| lab.wait_ready("n1", 3))?;
    show(lab, "n1", &["node", "promote", "n3"])?;
    ui.step("n3 becomes a manager", |_| lab.wait_managers("n1", 3))?;
    show(lab, "n1", &["node", "ls"]).map(|_| ())
}

fn service(ui: &Ui, lab: &Lab) -> Result<Vec<Task>> {
    show(lab, "n1", &["network", "create", "--driver", "overlay", "--subnet", "10.20.0.0/24", "app"])?;
    let create = ["service", "create", "--detach", "--name", "whoami", "--network", "app"];
    show(lab, "n1", &[&create[..], &["--replicas", "3", "-p", "8080:80", "weft/whoami"]].concat())?;
    let tasks = ui.step("the tasks start", |_| lab.wait_running("n1", "whoami", 3))?;
    show(lab, "n1", &["service", "ps", "whoami"])?;
    Ok(tasks)
}

fn mesh(ui: &Ui, lab: &Lab, tasks: &[Task]) -> Result<usize> {
    let example = format!("http://{}:{PORT}/", contract::v4("n1"));
    println!("  client$ curl {example}");
    quote(&lab.exec_ok(CLIENT, &["curl", "--silent", "--show-error", "--max-time", "5", &example])?);
    let mut total = 0;
    for addr in lab.published(PORT) {
        let label = format!("{CONNECTIONS} connections to {addr}");
        let by_task = ui.quiet(&label, |_| Ok(lab.within(CLIENT, || http::spread(addr, CONNECTIONS))??))?;
        ensure!(by_task.len() == tasks.len(), "only {by_task:?} answered at {addr}");
        let reply = lab.get(CLIENT, addr, "/")?;
        let peer = reply.peer.context("no peer in the reply")?.ip();
        ensure!(contract::addrs(CLIENT).contains(&peer), "the task saw {peer} instead of the client");
        println!("  {label:<48} {}   client seen as {peer}", counts(&by_task));
        total += CONNECTIONS;
    }
    for node in lab.nodes() {
        let addr = SocketAddr::from(([127, 0, 0, 1], PORT));
        let reply = lab.get(&node, addr, "/")?;
        println!("  {:<48} {}", format!("{node}$ curl http://localhost:{PORT}/"), reply.name);
    }
    Ok(total)
}

/// `whoami.1 ×101`, without the tasks' ids.
fn counts(by_task: &BTreeMap<String, usize>) -> String {
    let short = |name: &String| name.rsplit_once('.').map_or(name.as_str(), |(short, _)| short).to_owned();
    by_task.iter().map(|(name, count)| format!("{} ×{count}", short(name))).collect::<Vec<_>>().join("  ")
}

/// A task with this machine's programs in it.
fn probe(ui: &Ui, lab: &Lab, name: &str, network: &str) -> Result<Task> {
    show(
        lab,
        "n1",
        &["service", "create", "--detach", "--name", name, "--network", network, "host", "sleep", "infinity"],
    )?;
    let tasks = ui.quiet("the task starts", |_| lab.wait_running("n1", name, 1))?;
    tasks.into_iter().next().context("one task")
}

fn ask(lab: &Lab, task: &Task, name: &str) -> Result<dns::Answer> {
    lab.within_task(task, || dns::lookup(dns::IN_TASK, name, RecordType::A))?
}

fn names(ui: &Ui, lab: &Lab, tasks: &[Task]) -> Result<()> {
    let friend = probe(ui, lab, "friend", "app")?;
    let vip = ask(lab, &friend, "whoami")?.addrs().first().copied().context("whoami has no address")?;
    println!("  friend$ whoami          is {vip}, balanced over all tasks");
    let addrs: BTreeSet<IpAddr> = ask(lab, &friend, "tasks.whoami")?.addrs().into_iter().collect();
    ensure!(addrs.len() == tasks.len(), "tasks.whoami gave {addrs:?}");
    let list = addrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    println!("  friend$ tasks.whoami    is {list}");
    println!("  friend$ curl http://whoami/");
    quote(&lab.task_exec_ok(&friend, &["curl", "--silent", "--show-error", "--max-time", "5", "http://whoami/"])?);
    let outside = ask(lab, &friend, contract::OUTSIDE_NAME)?;
    ensure!(outside.addrs() == [IpAddr::V4(contract::OUTSIDE_V4)], "{outside:?}");
    println!("  friend$ {}    is {}, asked of the outside world", contract::OUTSIDE_NAME, contract::OUTSIDE_V4);
    Ok(())
}

fn isolation(ui: &Ui, lab: &Lab, tasks: &[Task]) -> Result<()> {
    show(lab, "n1", &["network", "create", "--driver", "overlay", "--subnet", "10.20.0.0/24", "other"])?;
    let stranger = probe(ui, lab, "stranger", "other")?;
    let answer = ask(lab, &stranger, "whoami")?;
    ensure!(answer.code == ResponseCode::NXDomain, "the stranger resolved whoami: {answer:?}");
    println!("  stranger$ whoami        does not exist");
    for task in tasks {
        let addr = SocketAddr::new(task.v4("app"), 80);
        let reached = lab.within_task(&stranger, || http::connect(addr, SILENCE))?;
        ensure!(reached.is_err(), "the stranger reached {addr}");
    }
    println!("  stranger$ the tasks' addresses do not answer: {} tried", tasks.len());
    Ok(())
}

/// Runs `action` while clients open new connections to every node; how many there were, all of them answered.
fn under_load(lab: &Lab, action: impl FnOnce() -> Result<()>) -> Result<u64> {
    let load = Load::start(&contract::namespace_path(CLIENT), &lab.published(PORT));
    let result = action();
    let report = load.stop()?;
    result?;
    ensure!(report.errors == 0, "{} of {} requests failed; {:?}", report.errors, report.requests, report.first_error);
    println!("  {} requests meanwhile through all nodes: 0 errors", report.requests);
    Ok(report.requests)
}

fn scaling(ui: &Ui, lab: &Lab) -> Result<u64> {
    under_load(lab, || {
        for replicas in [5, 2] {
            show(lab, "n1", &["service", "scale", "--detach", &format!("whoami={replicas}")])?;
            ui.step(&format!("{replicas} tasks, and no other"), |_| {
                lab.wait_running("n1", "whoami", replicas)?;
                lab.wait_stopped("n1", "whoami")
            })?;
        }
        Ok(())
    })
}

fn crash(ui: &Ui, lab: &Lab) -> Result<u64> {
    let tasks = lab.wait_running("n1", "whoami", 2)?;
    under_load(lab, || {
        println!("  n3$ kill -9 {}", lab.daemon_pid("n3")?);
        lab.kill_daemon("n3")?;
        let addr = SocketAddr::from((contract::v4("n3"), PORT));
        let by_task =
            ui.quiet("requests through n3", |_| Ok(lab.within(CLIENT, || http::spread(addr, CONNECTIONS))??))?;
        ensure!(by_task.len() == tasks.len(), "only {by_task:?} answered at {addr}");
        let label = format!("{CONNECTIONS} connections to n3 without its daemon");
        println!("  {label:<48} {}", counts(&by_task));
        ui.step("n3's daemon starts again", |_| {
            lab.start("n3")?;
            lab.wait_ready("n1", 3)
        })?;
        let after = lab.wait_running("n1", "whoami", 2)?;
        let ids = |tasks: &[Task]| tasks.iter().map(|task| task.id.clone()).collect::<BTreeSet<_>>();
        ensure!(ids(&tasks) == ids(&after), "the tasks should be the same ones");
        Ok(())
    })
}
