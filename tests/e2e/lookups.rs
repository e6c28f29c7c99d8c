//! How the tasks of a service look up names: the resolvers, search domains, options and host names
//! that the user chose. The groups of names and of the docker runtime have this test.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use weft_lab::{
    CLIENT, Lab, Task, contract,
    dns::{RecordType, ResponseCode},
    eventually,
    name_server::NameServer,
};

use crate::fixtures::{inspect, network, only, service, task_of, tools, vip};

/// The addresses that the chosen resolvers and the hosts file have for names.
const INSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const SEARCHED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 3);
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 4);
/// The time in which an update must replace the only task of a service.
const REPLACE_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn the_user_chooses_how_tasks_look_up_names(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    // A resolver that only tasks of the network can reach, and one outside of the cluster.
    let inside = SocketAddr::new(probe.v4("app"), 53);
    let socket = lab.within_task(&probe, || UdpSocket::bind(inside))??;
    let _inside_server = NameServer::start(socket, &[("inside.test", INSIDE), ("short.corp.test", SEARCHED)])?;
    let outside = SocketAddr::new(contract::v6(CLIENT).into(), 53);
    let socket = lab.within(CLIENT, || UdpSocket::bind(outside))??;
    let _outside_server = NameServer::start(socket, &[("outside.test", OUTSIDE)])?;
    let (inside, outside) = (inside.ip().to_string(), outside.ip().to_string());

    let host = format!("db.test:{HOST}");
    let mut flags = vec!["--network", "app", "--dns", &inside, "--dns-search", "corp.test"];
    flags.extend(["--dns-option", "timeout:3", "--host", &host]);
    let first = only(service(lab, "chosen", 1, &flags, &[tools(lab), "sleep", "infinity"])?)?;
    check_first(lab, &first)?;
    // Names of the cluster, and the resolvers of other services, are the same as before.
    vip(lab, &first, "whoami")?;
    ensure!(lab.lookup(&first, contract::EXTERNAL_NAME, RecordType::A)?.code == ResponseCode::NXDomain, "not asked");
    let other = lab.lookup(&probe, contract::EXTERNAL_NAME, RecordType::A)?;
    ensure!(other.addrs() == [IpAddr::from(contract::EXTERNAL_V4)], "{other:?}");

    let spec = || anyhow::Ok(inspect("n1", "chosen")?["Spec"]["TaskTemplate"]["ContainerSpec"].clone());
    let created = spec()?;
    let dns = json!({"Nameservers": [inside], "Search": ["corp.test"], "Options": ["timeout:3"]});
    ensure!((&created["DNSConfig"], &created["Hosts"]) == (&dns, &json!([format!("{HOST} db.test")])), "{created}");

    let mut update = vec!["service", "update", "--detach", "--dns-rm", &inside, "--dns-add", &outside];
    update.extend(["--dns-search-rm", "corp.test", "--dns-search-add", ".", "--dns-option-rm", "timeout:3"]);
    update.extend(["--dns-option-add", "ndots:1", "--host-rm", "db.test", "chosen"]);
    lab.weft_ok("n1", &update)?;
    let second = replaced(lab, &first);
    check_address(lab, &second, "outside.test", OUTSIDE)?;
    let missing = lab.lookup(&second, "inside.test", RecordType::A)?;
    ensure!(missing.code == ResponseCode::NXDomain, "the earlier resolver is asked no more: {missing:?}");
    let conf = file(&second, "/etc/resolv.conf")?;
    ensure!(words(&conf, "search").is_none_or(|domains| domains.is_empty() || domains == ["."]), "{conf}");
    ensure!(words(&conf, "options").is_some_and(|options| options == ["ndots:1"]), "{conf}");
    let hosts = file(&second, "/etc/hosts")?;
    ensure!(!hosts.contains("db.test"), "{hosts}");
    let shown = lab.weft_ok("n1", &["service", "inspect", "--pretty", "chosen"])?;
    ensure!(shown.contains(&format!(" DNS:\t\t{outside}\n")), "{shown}");

    network(lab, "closed", &["--internal"])?;
    let flags = ["--network", "closed", "--dns", &outside];
    let closed = only(service(lab, "closed", 1, &flags, &[tools(lab), "sleep", "infinity"])?)?;
    let answer = lab.lookup(&closed, "outside.test", RecordType::A)?;
    ensure!(answer.code == ResponseCode::ServFail, "an internal network reaches no resolver outside: {answer:?}");
    lab.weft_ok("n1", &["service", "rm", "closed"])?;
    lab.weft_ok("n1", &["network", "rm", "closed"])?;

    lab.weft_ok("n1", &["service", "rollback", "--detach", "chosen"])?;
    check_first(lab, &replaced(lab, &second))?;
    ensure!(spec()? == created, "{}", spec()?);
    lab.weft_ok("n1", &["service", "rm", "chosen"])?;
    Ok(())
}

/// Checks a task with the settings that the service was created with.
fn check_first(lab: &Lab, task: &Task) -> Result<()> {
    check_address(lab, task, "inside.test", INSIDE)?;
    let conf = file(task, "/etc/resolv.conf")?;
    ensure!(words(&conf, "nameserver").is_some_and(|servers| servers == ["127.0.0.11"]), "{conf}");
    ensure!(words(&conf, "search").is_some_and(|domains| domains == ["corp.test"]), "{conf}");
    let options = words(&conf, "options").context("resolv.conf has options")?;
    ensure!(options.len() == 2 && options.contains(&"timeout:3") && options.contains(&"ndots:0"), "{conf}");
    // The C library uses the search domain and the hosts file.
    for (name, addr) in [("short", SEARCHED), ("db.test", HOST)] {
        let found = lab.task_exec_ok(task, &["getent", "ahostsv4", name])?;
        ensure!(found.starts_with(&format!("{addr} ")), "{name}: {found}");
    }
    Ok(())
}

fn check_address(lab: &Lab, task: &Task, name: &str, addr: Ipv4Addr) -> Result<()> {
    let answer = lab.lookup(task, name, RecordType::A)?;
    ensure!(answer.addrs() == [IpAddr::from(addr)], "{name}: {answer:?}");
    Ok(())
}

/// A file as the task sees it.
fn file(task: &Task, path: &str) -> Result<String> {
    let pid = task.pid.with_context(|| format!("task {} has no process", task.id))?;
    fs::read_to_string(format!("/proc/{pid}/root{path}")).with_context(|| format!("{path} of task {}", task.id))
}

/// The words of a line of resolv.conf after its keyword.
fn words<'a>(conf: &'a str, keyword: &str) -> Option<Vec<&'a str>> {
    let mut lines = conf.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    lines.find(|words| words.first() == Some(&keyword)).map(|words| words[1..].to_vec())
}

/// Waits until another task of its service runs in the place of `old`.
fn replaced(lab: &Lab, old: &Task) -> Task {
    eventually(REPLACE_TIMEOUT, "another task runs", || {
        let tasks = lab.tasks("n1", &old.service).map_err(|error| format!("{error:#}"))?;
        let new = tasks.iter().find(|task| task.id != old.id && task.desired == "running" && task.is_running());
        new.cloned().ok_or_else(|| format!("{tasks:?}"))
    })
}
