//! Services on the networks that each node has by itself: `host`, and with a container engine
//! `bridge`.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use weft_lab::{CLIENT, Lab, Runtime, Task, api, contract, docker, eventually, http, netns};

use crate::{
    fixtures::{HTTP, Loads, WHOAMI, all_answer, inspect, only, probe, service, task_names, tools},
    harness::{Group, Shape, tests},
    mesh,
};

/// The time in which the mesh must lead to the tasks of a service.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The time in which a service must be replaced.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(60);

pub(crate) fn group() -> Group {
    Group {
        name: "node_networks",
        shape: Shape::default(),
        setup,
        tests: tests![
            a_service_on_network_host_answers_at_the_addresses_of_its_nodes,
            a_task_on_network_host_has_the_network_of_its_node,
            tasks_on_network_host_continue_while_their_daemon_restarts,
            a_killed_task_on_network_host_is_replaced,
            a_service_moves_between_network_host_and_the_cluster,
            without_an_engine_a_task_on_network_bridge_waits_and_says_why,
            networks_of_the_nodes_are_shown_and_refused_as_in_swarm,
        ],
    }
}

/// A service on an overlay network, which must not notice the others, and a client task.
pub(crate) fn setup(lab: &Lab) -> Result<()> {
    mesh::setup(lab)?;
    probe(lab, "probe", &["app"]).map(drop)
}

/// Creates a global service on network `host` whose tasks are web servers, and waits until they
/// run.
fn create_host_service(lab: &Lab, name: &str) -> Result<Vec<Task>> {
    let create = ["service", "create", "--detach", "--name", name, "--mode", "global", "--network", "host"];
    lab.weft_ok("n1", &[&create[..], &["--restart-delay", "100ms", WHOAMI]].concat())?;
    lab.wait_running("n1", name, lab.options().nodes)
}

/// Checks that each of these tasks of a global service answers at the addresses of its node.
fn answer_at_their_nodes(tasks: &[Task]) -> Result<()> {
    for task in tasks {
        for addr in contract::addrs(&task.node) {
            all_answer(CLIENT, &[(addr, HTTP).into()], std::slice::from_ref(task), ANSWER_TIMEOUT);
        }
    }
    let nodes: BTreeSet<&str> = tasks.iter().map(|task| task.node.as_str()).collect();
    ensure!(nodes.len() == tasks.len(), "two tasks are on one node: {tasks:?}");
    Ok(())
}

/// Removes a service, and waits until none of the nodes listens on the port of its tasks.
fn remove_host_service(lab: &Lab, name: &str) -> Result<()> {
    lab.weft_ok("n1", &["service", "rm", name])?;
    for node in lab.nodes() {
        let addr = SocketAddr::from((contract::v4(&node), HTTP));
        eventually(ANSWER_TIMEOUT, &format!("no program listens on {addr}"), || {
            match lab.within(CLIENT, || http::connect(addr, ANSWER_TIMEOUT)) {
                Ok(Err(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    Ok(())
}

pub(crate) fn a_service_on_network_host_answers_at_the_addresses_of_its_nodes(lab: &Lab) -> Result<()> {
    let beside = lab.wait_running("n1", "whoami", 3)?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    let tasks = create_host_service(lab, "local")?;
    answer_at_their_nodes(&tasks)?;
    let own = contract::addrs(CLIENT);
    for task in &tasks {
        ensure!(task.addrs.is_empty(), "the cluster has given an address to {task:?}");
        let reply = lab.get(CLIENT, (contract::v4(&task.node), HTTP).into(), "/")?;
        ensure!(reply.peer.is_some_and(|peer| own.contains(&peer.ip())), "{reply:?}");
        ensure!(reply.node == task.node, "{reply:?}");
        // On the node itself, and from a task on a network of the cluster.
        for addr in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            ensure!(lab.get(&task.node, (addr, HTTP).into(), "/")?.name == task.name(), "{addr} on {}", task.node);
        }
        let probe = only(lab.wait_running("n1", "probe", 1)?)?;
        let at = SocketAddr::from((contract::v4(&task.node), HTTP));
        ensure!(lab.within_task(&probe, || http::get(at, "/"))??.name == task.name(), "from the probe to {at}");
    }
    remove_host_service(lab, "local")?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &beside, ANSWER_TIMEOUT);
    loads.expect_no_errors()
}

/// A namespace is known by the device and the inode of its file.
fn namespace_of(lab: &Lab, task: &Task) -> Result<String> {
    let pid = task.pid.or(docker_pid(lab, task)?).context("the task has a process")?;
    Ok(fs::read_link(format!("/proc/{pid}/ns/net"))?.display().to_string())
}

fn docker_pid(lab: &Lab, task: &Task) -> Result<Option<u32>> {
    if lab.options().runtime == Runtime::Process {
        return Ok(None);
    }
    let pid = docker::docker(lab.engine(&task.node)?, &["inspect", "--format", "{{.State.Pid}}", &task.container])?;
    Ok(Some(pid.trim().parse()?))
}

pub(crate) fn a_task_on_network_host_has_the_network_of_its_node(lab: &Lab) -> Result<()> {
    let flags = ["--network", "host", "--dns-search", "corp.test", "--host", "db:192.0.2.7"];
    let task = only(service(lab, "tool", 1, &flags, &[tools(lab), "sleep", "infinity"])?)?;
    let of_node = netns::within(&contract::namespace_path(&task.node), || fs::read_link("/proc/thread-self/ns/net"))??;
    ensure!(namespace_of(lab, &task)? == of_node.display().to_string(), "{task:?} is not in {}", of_node.display());
    // It reaches the published ports of its node, as every program of the node does.
    let published = format!("http://127.0.0.1:{}/", mesh::PORT);
    let body = lab.task_exec_ok(&task, &["curl", "--silent", "--fail", "--max-time", "5", &published])?;
    let others = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&others).iter().any(|name| body.contains(name)), "{body}");
    // Its files of names are those of the machine, with what the user chose.
    let pid = task.pid.or(docker_pid(lab, &task)?).context("the task has a process")?;
    let file = |path: &str| fs::read_to_string(format!("/proc/{pid}/root/etc/{path}"));
    let resolv_conf = file("resolv.conf")?;
    ensure!(resolv_conf.lines().any(|line| line == "search corp.test"), "{resolv_conf}");
    ensure!(!resolv_conf.contains("127.0.0.11") && !resolv_conf.contains("127.0.0.12"), "{resolv_conf}");
    let hosts = file("hosts")?;
    ensure!(hosts.lines().any(|line| line.split_whitespace().eq(["192.0.2.7", "db"])), "{hosts}");
    lab.weft_ok("n1", &["service", "rm", "tool"]).map(drop)
}

pub(crate) fn tasks_on_network_host_continue_while_their_daemon_restarts(lab: &Lab) -> Result<()> {
    let before = create_host_service(lab, "local")?;
    answer_at_their_nodes(&before)?;
    lab.kill_daemon("n3")?;
    answer_at_their_nodes(&before)?;
    lab.start("n3")?;
    lab.wait_ready("n1", lab.options().nodes)?;
    // The restarted daemon has taken over its task: it applies a new plan.
    let other = service(lab, "later", 3, &["-p", "8091:80"], &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(8091), &other, ANSWER_TIMEOUT);
    let after = lab.wait_running("n1", "local", lab.options().nodes)?;
    ensure!(task_names(&after) == task_names(&before), "{before:?} became {after:?}");
    answer_at_their_nodes(&after)?;
    lab.weft_ok("n1", &["service", "rm", "later"])?;
    remove_host_service(lab, "local")
}

pub(crate) fn a_killed_task_on_network_host_is_replaced(lab: &Lab) -> Result<()> {
    let before = create_host_service(lab, "local")?;
    let killed = before.first().context("a task")?;
    let pid = killed.pid.or(docker_pid(lab, killed)?).context("the task has a process")?;
    weft_lab::process::kill(pid)?;
    let after = eventually(UPDATE_TIMEOUT, "the task is replaced", || {
        let tasks = lab.wait_running("n1", "local", lab.options().nodes).map_err(|error| format!("{error:#}"))?;
        if tasks.iter().any(|task| task.id == killed.id) { Err(format!("{tasks:?}")) } else { Ok(tasks) }
    });
    answer_at_their_nodes(&after)?;
    remove_host_service(lab, "local")
}

pub(crate) fn a_service_moves_between_network_host_and_the_cluster(lab: &Lab) -> Result<()> {
    let probe = only(lab.wait_running("n1", "probe", 1)?)?;
    let resolves = |name: &str| -> Result<bool> {
        Ok(!lab.lookup(&probe, name, weft_lab::dns::RecordType::A)?.addrs().is_empty())
    };
    let old = service(lab, "mover", 1, &["--network", "app", "--update-monitor", "1s"], &[WHOAMI])?;
    let moved = |change: &[&str], old: &[Task]| -> Result<Vec<Task>> {
        lab.weft_ok("n1", &[&["service", "update", "--detach"], change, &["mover"]].concat())?;
        let tasks = eventually(UPDATE_TIMEOUT, "the task is replaced", || {
            let tasks = lab.wait_running("n1", "mover", 1).map_err(|error| format!("{error:#}"))?;
            if tasks == old { Err(format!("{tasks:?}")) } else { Ok(tasks) }
        });
        Ok(tasks)
    };
    let on_host = moved(&["--network-rm", "app", "--network-add", "host"], &old)?;
    answer_at_their_nodes(&on_host)?;
    eventually(ANSWER_TIMEOUT, "its name does not resolve", || match resolves("mover") {
        Ok(false) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let back = moved(&["--network-rm", "host", "--network-add", "app"], &on_host)?;
    let vip = only(back)?.v4("app");
    ensure!(lab.within_task(&probe, || http::get((vip, HTTP).into(), "/"))??.name.starts_with("mover."));
    eventually(ANSWER_TIMEOUT, "its name resolves", || match resolves("mover") {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    lab.weft_ok("n1", &["service", "rm", "mover"]).map(drop)
}

fn without_an_engine_a_task_on_network_bridge_waits_and_says_why(lab: &Lab) -> Result<()> {
    lab.weft_ok("n1", &["service", "create", "--detach", "--name", "stuck", "--network", "bridge", WHOAMI])?;
    let reason = "no suitable node (no network bridge on 3 nodes without a container engine)";
    eventually(ANSWER_TIMEOUT, "service ps shows why", || {
        let table = lab.weft_ok("n1", &["service", "ps", "--no-trunc", "stuck"]);
        let table = table.map_err(|error| format!("{error:#}"))?;
        if table.contains(reason) { Ok(()) } else { Err(table) }
    });
    lab.weft_ok("n1", &["service", "rm", "stuck"]).map(drop)
}

pub(crate) fn networks_of_the_nodes_are_shown_and_refused_as_in_swarm(lab: &Lab) -> Result<()> {
    let tasks = create_host_service(lab, "local")?;
    let found = api::get(&contract::socket("n1"), "/networks/host?scope=swarm")?;
    let id = found["Id"].as_str().context("the network has an id")?;
    ensure!(found["Driver"] == "host" && found["Containers"].as_object().is_some_and(|map| map.len() == 1), "{found}");
    let shown = inspect("n1", "local")?;
    ensure!(shown["Spec"]["TaskTemplate"]["Networks"][0]["Target"] == id, "{shown}");
    ensure!(shown["Endpoint"]["VirtualIPs"][0] == serde_json::json!({"NetworkID": id}), "{shown}");
    let task = api::get(&contract::socket("n1"), &format!("/tasks/{}", tasks[0].id))?;
    ensure!(task["NetworksAttachments"][0]["Network"]["ID"] == id, "{task}");
    let pretty = lab.weft_ok("n1", &["service", "inspect", "--pretty", "local"])?;
    ensure!(pretty.lines().any(|line| line == "Networks: host"), "{pretty}");
    let by_id: Value = serde_json::from_str(&lab.weft_ok("n1", &["network", "inspect", id])?)?;
    ensure!(by_id[0]["Name"] == "host", "{by_id}");
    remove_host_service(lab, "local")?;
    let create = ["service", "create", "--detach", "--name", "refused"];
    for (flags, words) in [
        (
            &["--network", "none"][..],
            "could not find the corresponding predefined swarm network: network none not found",
        ),
        (
            &["--network", "host", "-p", "8092:80"],
            "a service on network host cannot publish ports: leave the ports out",
        ),
        (&["--network", "host", "--network", "app"], "network host belongs to each node"),
        (&["--network", "name=host,alias=x"], "aliases are only supported for networks of the cluster"),
    ] {
        let message = lab.weft_refused("n1", &[&create[..], flags, &[WHOAMI]].concat())?;
        ensure!(message.contains(words), "{flags:?}: {message}");
    }
    let message = lab.weft_refused("n1", &["network", "create", "--driver", "overlay", "host"])?;
    ensure!(message.contains("operation is not permitted on predefined host network"), "{message}");
    Ok(())
}

/// With a container engine, `bridge` is the default network of the engine.
pub(crate) fn a_task_on_network_bridge_is_an_ordinary_container(lab: &Lab) -> Result<()> {
    let task = only(service(lab, "plain", 1, &["--network", "bridge"], &[WHOAMI])?)?;
    ensure!(task.addrs.is_empty(), "the cluster has given an address to {task:?}");
    let engine = lab.engine(&task.node)?;
    let format = "{{.HostConfig.NetworkMode}} {{.NetworkSettings.Networks.bridge.IPAddress}}";
    let found = docker::docker(engine, &["inspect", "--format", format, &task.container])?;
    let (mode, addr) = found.trim().split_once(' ').context("a mode and an address")?;
    ensure!(mode == "bridge", "{found}");
    let addr = SocketAddr::new(addr.parse()?, HTTP);
    let reply = lab.get(&task.node, addr, "/")?;
    ensure!(reply.name == task.name(), "{reply:?}");
    // Containers of the user are its neighbours.
    let url = format!("http://{addr}/");
    let curl = ["run", "--rm", docker::TOOLS_IMAGE, "curl", "--silent", "--fail", "--max-time", "5", &url];
    let body = lab.docker_ok(&task.node, &curl)?;
    ensure!(body.contains(&task.name()), "{body}");
    lab.weft_ok("n1", &["service", "rm", "plain"]).map(drop)
}
