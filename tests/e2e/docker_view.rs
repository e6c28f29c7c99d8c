//! The docker client on weft's socket shows containers, networks and events of a node with the
//! docker runtime as users of the cluster know them. [`crate::docker_runtime`] runs these tests.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weft_lab::{Lab, Task, contract, docker, eventually};

use crate::{
    fixtures::{WHOAMI, only, service, task_of},
    mesh,
};

/// How long `docker events` runs at most, in seconds.
const EVENTS_SECONDS: &str = "60";
/// A time in which the events of a container arrive.
const EVENTS_TIMEOUT: Duration = Duration::from_secs(30);

/// The id of the only container that `docker ps` lists with this filter.
fn container_with(lab: &Lab, node: &str, filters: &[&str]) -> Result<String> {
    let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
    let arguments: Vec<_> = ["ps", "--quiet", "--no-trunc"].into_iter().chain(filters).collect();
    let ids = lab.docker_ok(node, &arguments)?;
    let [id] = ids.lines().collect::<Vec<_>>()[..] else { anyhow::bail!("{arguments:?} on {node} lists {ids:?}") };
    Ok(id.to_owned())
}

fn name_filter(task: &Task) -> String {
    format!("name=whoami.{}", task.slot)
}

fn cluster_network(lab: &Lab, name: &str) -> Result<String> {
    Ok(lab.docker_ok("n1", &["network", "inspect", "--format", "{{.Id}}", name])?.trim().to_owned())
}

/// The engine's own id of the docker network of `app`.
fn docker_network(lab: &Lab, node: &str) -> Result<String> {
    let listed = ["network", "ls", "--quiet", "--no-trunc", "--filter", "label=weft.network", "--filter", "name=app"];
    Ok(docker::docker(lab.engine(node)?, &listed)?.trim().to_owned())
}

pub(crate) fn containers_have_the_published_ports_of_their_service(lab: &Lab) -> Result<()> {
    for task in lab.wait_running("n1", "whoami", 3)? {
        let (node, name) = (task.node.as_str(), name_filter(&task));
        let id = container_with(lab, node, &[&name])?;
        let ports = lab.docker_ok(node, &["ps", "--format", "{{.Ports}}", "--filter", &name])?;
        for (public, target) in [(mesh::PORT, "80/tcp"), (mesh::UDP_PORT, "7/udp"), (mesh::TCP_ECHO_PORT, "7/tcp")] {
            ensure!(ports.contains(&format!("0.0.0.0:{public}->{target}")), "{ports}");
            let bound = lab.docker_ok(node, &["port", &id, target])?;
            ensure!(bound.lines().any(|line| line == format!("0.0.0.0:{public}")), "{bound}");
            ensure!(bound.lines().count() == 2, "one address of each family: {bound}");
        }
        let published = format!("publish={}", mesh::PORT);
        ensure!(container_with(lab, node, &[&published, &name])? == id, "another container has the port");
        let none = lab.docker_ok(node, &["ps", "--quiet", "--filter", "publish=1"])?;
        ensure!(none.is_empty(), "no container has port 1: {none}");
    }
    Ok(())
}

pub(crate) fn containers_are_on_networks_of_the_cluster(lab: &Lab) -> Result<()> {
    let app = cluster_network(lab, "app")?;
    for task in lab.wait_running("n1", "whoami", 3)? {
        let (node, name) = (task.node.as_str(), name_filter(&task));
        let id = container_with(lab, node, &["network=app", &name])?;
        ensure!(container_with(lab, node, &[&format!("network={app}"), &name])? == id, "{id} is not on {app}");
        let hidden = docker_network(lab, node)?;
        ensure!(!hidden.is_empty(), "{node} has no docker network of app");

        let text = lab.docker_ok(node, &["inspect", &id])?;
        ensure!(!text.contains(&hidden), "{hidden} is in {text}");
        let inspected: Value = serde_json::from_str(&text)?;
        ensure!(inspected[0]["HostConfig"]["NetworkMode"] == "app", "{text}");
        ensure!(inspected[0]["NetworkSettings"]["Networks"]["app"]["NetworkID"] == app, "{text}");

        let listed =
            lab.docker_ok(node, &["network", "ls", "--no-trunc", "--format", "{{.ID}} {{.Name}} {{.Driver}}"])?;
        let apps: Vec<_> = listed.lines().filter(|line| line.contains(" app")).collect();
        ensure!(apps == [format!("{app} app overlay")], "{node} lists {listed}");
        for text in ["app", &app] {
            let shown: Value = serde_json::from_str(&lab.docker_ok(node, &["network", "inspect", text])?)?;
            ensure!(shown[0]["Id"] == app && shown[0]["Driver"] == "overlay", "{shown}");
            ensure!(shown[0]["Containers"][&id]["Name"] == task.name(), "{shown}");
        }
        let missing = lab.docker(node, &["network", "inspect", &hidden])?;
        ensure!(!missing.status.success(), "the docker network is shown on {node}");
    }
    Ok(())
}

/// Not even those of a network whose containers have all ended.
pub(crate) fn clients_cannot_remove_docker_networks(lab: &Lab) -> Result<()> {
    lab.weft_ok("n1", &["network", "create", "--driver", "overlay", "brief"])?;
    let on_n2 = ["--network", "brief", "--constraint", "engine.labels.lab-node==n2"];
    only(service(lab, "brief", 1, &on_n2, &[WHOAMI])?)?;
    lab.weft_ok("n1", &["service", "scale", "--detach", "brief=0"])?;
    let on_engine = ["network", "ls", "--quiet", "--no-trunc", "--filter", "label=weft.network", "--filter"];
    let find = || docker::docker(lab.engine("n2")?, &[&on_engine[..], &["name=brief"]].concat());
    eventually(EVENTS_TIMEOUT, "the task has ended", || {
        let left = lab.docker_ok("n2", &["ps", "--quiet", "--filter", "network=brief"]);
        let left = left.map_err(|error| format!("{error:#}"))?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let hidden = find()?.trim().to_owned();
    ensure!(!hidden.is_empty(), "n2 has no docker network of brief");
    for text in ["brief", &hidden] {
        let refused = lab.docker("n2", &["network", "rm", text])?;
        ensure!(!refused.status.success(), "{text} was removed");
    }
    docker::docker(lab.engine("n2")?, &["network", "create", "spare"])?;
    lab.docker_ok("n2", &["network", "prune", "--force"])?;
    let left = docker::docker(lab.engine("n2")?, &["network", "ls", "--quiet", "--filter", "name=spare"])?;
    ensure!(left.is_empty(), "the user's network was not removed");
    ensure!(find()?.trim() == hidden, "the docker network of brief was removed");
    lab.weft_ok("n1", &["service", "rm", "brief"])?;
    lab.weft_ok("n1", &["network", "rm", "brief"])?;
    eventually(EVENTS_TIMEOUT, "the docker network goes with the cluster's", || {
        let left = find().map_err(|error| format!("{error:#}"))?;
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    Ok(())
}

pub(crate) fn commands_about_containers_work_on_tasks(lab: &Lab) -> Result<()> {
    let task = lab.wait_running("n1", "whoami", 3)?.remove(0);
    let node = task.node.as_str();
    let id = container_with(lab, node, &[&name_filter(&task)])?;
    let top = lab.docker_ok(node, &["top", &id])?;
    ensure!(top.contains("whoami"), "{top}");
    let stats = lab.docker_ok(node, &["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", &id])?;
    ensure!(stats.starts_with(&task.name()), "{stats}");
    lab.docker_ok(node, &["logs", &id])?;
    let probe = task_of(lab, "probe")?;
    let filter = format!("name={}", probe.name());
    let id = container_with(lab, &probe.node, &[&filter])?;
    // What a program in a container knows of itself: its host name.
    let pid = probe.pid.context("the probe has a process")?;
    let hostname = std::fs::read_to_string(format!("/proc/{pid}/root/etc/hostname"))?;
    let found = lab.docker_ok(&probe.node, &["inspect", "--format", "{{.Id}}", hostname.trim()])?;
    ensure!(found.trim() == id, "{hostname} is {found}");
    let command = ["curl", "--silent", "--max-time", "5", "http://whoami/"];
    let body = lab.docker_ok(&probe.node, &[&["exec", &id][..], &command].concat())?;
    ensure!(body.contains("name: whoami."), "{body}");
    let used = lab.docker_ok(node, &["system", "df", "--verbose"])?;
    ensure!(used.contains(&task.name()), "{used}");
    Ok(())
}

/// The lines of `docker events` as they come.
fn follow_events(lab_node: &str, filters: &[&str]) -> Result<mpsc::Receiver<Value>> {
    let mut child = Command::new("timeout")
        .args([EVENTS_SECONDS, "docker", "--host", &docker::docker_host(&contract::socket(lab_node)), "events"])
        .args(filters.iter().flat_map(|filter| ["--filter", filter]))
        .args(["--format", "{{json .}}"])
        .env_remove("DOCKER_HOST")
        .env_remove("DOCKER_CONTEXT")
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run the docker client")?;
    let lines = BufReader::new(child.stdout.take().context("the output is piped")?).lines();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for event in lines.map_while(Result::ok).filter_map(|line| serde_json::from_str(&line).ok()) {
            if sender.send(event).is_err() {
                break;
            }
        }
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    });
    Ok(receiver)
}

/// On a manager and on a worker.
pub(crate) fn events_name_networks_of_the_cluster(lab: &Lab) -> Result<()> {
    let app = cluster_network(lab, "app")?;
    for node in ["n1", "n2"] {
        let here = format!("engine.labels.lab-node=={node}");
        only(service(lab, "eventful", 1, &["--network", "app", "--constraint", &here], &[WHOAMI])?)?;
        let hidden = docker_network(lab, node)?;
        let events = follow_events(node, &["type=network", "network=app"])?;
        let mut seen = Vec::new();
        eventually(EVENTS_TIMEOUT, &format!("{node} shows that containers come and go"), || {
            // The first changes may come before the client listens.
            let update = ["service", "update", "--detach", "--force", "eventful"];
            lab.weft_ok("n1", &update).map_err(|error| format!("{error:#}"))?;
            while let Ok(event) = events.recv_timeout(Duration::from_secs(3)) {
                seen.push(event);
            }
            let has = |action: &str| seen.iter().any(|event| event["Action"] == action && event["Actor"]["ID"] == app);
            if has("connect") && has("disconnect") { Ok(()) } else { Err(format!("{seen:?}")) }
        });
        let attributes = &seen[0]["Actor"]["Attributes"];
        ensure!(attributes["name"] == "app" && attributes["type"] == "overlay", "{seen:?}");
        ensure!(!format!("{seen:?}").contains(&hidden), "{hidden} is in {seen:?}");
        lab.weft_ok("n1", &["service", "rm", "eventful"])?;
    }
    Ok(())
}

pub(crate) fn the_engines_version_is_announced(lab: &Lab) -> Result<()> {
    let format = ["version", "--format", "{{.Server.APIVersion}}"];
    for node in lab.nodes() {
        // The client asks in the version that it has agreed on with the server.
        let announced = lab.docker_ok(&node, &format)?;
        let engine = docker::docker(lab.engine(&node)?, &format)?;
        ensure!(announced == engine, "weft announces {announced}, and the engine {engine}");
    }
    let shown = lab.docker_ok("n1", &["version"])?;
    ensure!(shown.contains("weft") && shown.contains("containerd"), "{shown}");
    Ok(())
}

pub(crate) fn labels_of_the_engine_place_tasks(lab: &Lab) -> Result<()> {
    let shown = lab.docker_ok("n1", &["node", "inspect", "--format", "{{json .Description.Engine.Labels}}", "n2"])?;
    ensure!(shown.contains(r#""lab-engine":"n2""#) && shown.contains(r#""lab-node":"n2""#), "{shown}");
    let there = ["--constraint", "engine.labels.lab-engine==n2"];
    let tasks = service(lab, "labelled", 2, &there, &[WHOAMI])?;
    ensure!(tasks.iter().all(|task| task.node == "n2"), "{tasks:?}");
    lab.weft_ok("n1", &["service", "rm", "labelled"]).map(drop)
}
