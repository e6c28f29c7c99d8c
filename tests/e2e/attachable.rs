//! Containers that are no tasks, on attachable networks: created and connected with the docker
//! client through weft's socket, restarted and removed through the engine's too.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use weft_lab::{Lab, Runtime, Task, docker, eventually};

use crate::{
    fixtures::{WHOAMI, network, probe_on, service, task_of},
    harness::{Group, Shape, tests},
};

/// The time in which addresses and names follow a change, and in which a freed address leaves its
/// quarantine.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time in which a node's daemon and engine come back.
const RESTART_TIMEOUT: Duration = Duration::from_secs(30);
const CHOSEN: &str = "10.99.0.50";

pub(crate) fn group() -> Group {
    Group {
        name: "docker_attachable",
        shape: Shape { nodes: 2, runtime: Runtime::Docker, ..Shape::default() },
        setup,
        tests: tests![
            containers_services_and_tasks_reach_each_other_by_name,
            a_container_has_the_address_that_the_user_chose,
            a_network_that_is_not_attachable_refuses_in_swarms_words,
            containers_on_an_encrypted_network_reach_each_other,
            a_running_container_is_connected_and_disconnected,
            a_container_keeps_its_address_when_it_is_restarted,
            containers_come_back_after_daemons_and_engines_were_killed,
            a_removed_container_frees_its_address_and_its_network,
            unused_networks_are_pruned,
            a_removed_node_frees_the_addresses_of_its_containers,
        ],
    }
}

fn setup(lab: &Lab) -> Result<()> {
    lab.create_tools_images()?;
    network(lab, "app", &["--attachable", "--subnet", "10.99.0.0/24"])?;
    network(lab, "back", &["--attachable", "--internal", "--subnet", "10.98.0.0/24"])?;
    network(lab, "closed", &[])?;
    let spread = ["--network", "app", "--network", "back", "--mode", "global"];
    lab.weft_ok("n1", &[&["service", "create", "--detach", "--name", "whoami"][..], &spread, &[WHOAMI]].concat())?;
    lab.wait_running("n1", "whoami", 2)?;
    probe_on(lab, "n2", "probe", &["app", "back"]).map(drop)
}

/// Starts a container of the tools that sleeps.
fn run(lab: &Lab, node: &str, name: &str, flags: &[&str]) -> Result<()> {
    let run = [&["run", "--detach", "--name", name][..], flags, &[docker::TOOLS_IMAGE, "sleep", "infinity"]];
    lab.docker_ok(node, &run.concat()).map(drop)
}

/// Starts a container that answers HTTP requests.
fn run_whoami(lab: &Lab, node: &str, name: &str, flags: &[&str]) -> Result<()> {
    let run = [&["run", "--detach", "--name", name][..], flags, &[WHOAMI]];
    lab.docker_ok(node, &run.concat()).map(drop)
}

fn remove(lab: &Lab, node: &str, name: &str) -> Result<()> {
    lab.docker_ok(node, &["rm", "--force", name]).map(drop)
}

/// Waits until an HTTP request of a container to this host succeeds.
fn reaches(lab: &Lab, node: &str, container: &str, host: &str) {
    let url = format!("http://{host}/");
    eventually(CHANGE_TIMEOUT, &format!("{container} on {node} reaches {host}"), || {
        let curl = ["exec", container, "curl", "--silent", "--show-error", "--max-time", "2", &url];
        lab.docker_ok(node, &curl).map(drop).map_err(|error| format!("{error:#}"))
    });
}

fn resolves(lab: &Lab, node: &str, container: &str, name: &str) -> Result<bool> {
    Ok(lab.docker(node, &["exec", container, "getent", "ahostsv4", name])?.status.success())
}

fn no_longer_resolves(lab: &Lab, probe: &Task, name: &str) {
    eventually(CHANGE_TIMEOUT, &format!("{name} does not resolve any more"), || {
        match resolves(lab, &probe.node, &probe.container, name) {
            Ok(false) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
}

/// The address of a container on a network, as its engine shows it.
fn addr(lab: &Lab, node: &str, container: &str, network: &str) -> Result<IpAddr> {
    let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
    let shown = docker::docker(lab.engine(node)?, &["inspect", "--format", &format, container])?;
    shown.trim().parse().with_context(|| format!("{container} has the address {shown} on {network}"))
}

/// The names of the containers that a node shows on a network.
fn shown_on(lab: &Lab, node: &str, network: &str) -> Result<String> {
    lab.docker_ok(node, &["network", "inspect", "--format", "{{range .Containers}}{{.Name}} {{end}}", network])
}

fn containers_services_and_tasks_reach_each_other_by_name(lab: &Lab) -> Result<()> {
    run(lab, "n1", "box", &["--network", "app", "--network-alias", "chest"])?;
    run_whoami(lab, "n2", "deck", &["--network", "app", "--network-alias", "boat"])?;
    let id = lab.docker_ok("n2", &["inspect", "--format", "{{.Id}}", "deck"])?;
    let short_id = &id[..12];
    for host in ["whoami", "deck", "boat", "deck.app", short_id, &addr(lab, "n2", "deck", "app")?.to_string()] {
        reaches(lab, "n1", "box", host);
    }
    let probe = task_of(lab, "probe")?;
    for host in ["deck", "boat", "deck.app"] {
        reaches(lab, &probe.node, &probe.container, host);
    }
    ensure!(shown_on(lab, "n1", "app")?.contains("box"), "the network shows its container");
    let network = lab.docker_ok("n1", &["network", "inspect", "--format", "{{.Id}}", "app"])?;
    let format = "{{range $name, $on := .NetworkSettings.Networks}}{{$name}} {{$on.NetworkID}}{{end}}";
    let shown = lab.docker_ok("n1", &["inspect", "--format", format, "box"])?;
    ensure!(shown.trim() == format!("app {}", network.trim()), "the container is on {shown} instead of {network}");
    let listed = lab.docker_ok("n1", &["ps", "--filter", "network=app", "--format", "{{.Names}}"])?;
    ensure!(listed.lines().any(|name| name == "box"), "{listed}");
    ensure!(lab.docker_ok("n1", &["network", "inspect", "--format", "{{.Attachable}}", "app"])?.trim() == "true");
    remove(lab, "n1", "box")?;
    remove(lab, "n2", "deck")?;
    no_longer_resolves(lab, &probe, "deck");
    Ok(())
}

fn a_container_has_the_address_that_the_user_chose(lab: &Lab) -> Result<()> {
    for (node, name) in [("n1", "first"), ("n2", "second")] {
        // The second one takes the address of the first, which was removed a moment ago.
        run_whoami(lab, node, name, &["--network", "app", "--ip", CHOSEN])?;
        ensure!(addr(lab, node, name, "app")? == CHOSEN.parse::<IpAddr>()?, "{name} has another address");
        let probe = task_of(lab, "probe")?;
        reaches(lab, &probe.node, &probe.container, CHOSEN);
        let taken =
            lab.docker("n1", &["run", "--network", "app", "--ip", CHOSEN, docker::TOOLS_IMAGE, "sleep", "1"])?;
        let text = String::from_utf8_lossy(&taken.stderr);
        ensure!(!taken.status.success() && text.contains("Address already in use"), "{text}");
        remove(lab, node, name)?;
    }
    let subnets = ["--subnet", "10.97.0.0/24", "--subnet", "fd00:97::/64"];
    network(lab, "dual", &[&["--attachable", "--ipv6"][..], &subnets].concat())?;
    let (v4, v6) = ("10.97.0.51", "fd00:97::51");
    run_whoami(lab, "n1", "both", &["--network", "dual", "--ip", v4, "--ip6", v6])?;
    run(lab, "n2", "box", &["--network", "dual"])?;
    for host in [v4, &format!("[{v6}]")] {
        reaches(lab, "n2", "box", host);
    }
    remove(lab, "n1", "both")?;
    remove(lab, "n2", "box")?;
    lab.weft_ok("n1", &["network", "rm", "dual"]).map(drop)
}

fn a_network_that_is_not_attachable_refuses_in_swarms_words(lab: &Lab) -> Result<()> {
    for node in ["n1", "n2"] {
        let refused = lab.docker(node, &["run", "--rm", "--network", "closed", docker::TOOLS_IMAGE, "sleep", "1"])?;
        let text = String::from_utf8_lossy(&refused.stderr);
        let words = "Could not attach to network closed: rpc error: code = PermissionDenied desc = network closed not \
                     manually attachable";
        ensure!(!refused.status.success() && text.contains(words), "{node}: {text}");
        // The names of tasks have dots.
        let listed = docker::docker(lab.engine(node)?, &["ps", "--all", "--format", "{{.Names}}"])?;
        ensure!(listed.lines().all(|name| name.contains('.')), "{node} has a container: {listed}");
    }
    Ok(())
}

fn containers_on_an_encrypted_network_reach_each_other(lab: &Lab) -> Result<()> {
    network(lab, "secret", &["--attachable", "--opt", "encrypted"])?;
    run(lab, "n1", "box", &["--network", "secret"])?;
    run_whoami(lab, "n2", "deck", &["--network", "secret"])?;
    reaches(lab, "n1", "box", "deck");
    remove(lab, "n1", "box")?;
    remove(lab, "n2", "deck")?;
    lab.docker_ok("n1", &["network", "rm", "secret"]).map(drop)
}

fn a_running_container_is_connected_and_disconnected(lab: &Lab) -> Result<()> {
    // On no network of the cluster, its lookups end with a timeout.
    run(lab, "n1", "box", &["--dns-opt", "timeout:1", "--dns-opt", "attempts:1"])?;
    let probe = task_of(lab, "probe")?;
    for round in 0..2 {
        lab.docker_ok("n1", &["network", "connect", "--alias", "chest", "app", "box"])?;
        reaches(lab, "n1", "box", "whoami");
        lab.docker_ok("n1", &["network", "connect", "back", "box"])?;
        reaches(lab, "n1", "box", "whoami.back");
        eventually(CHANGE_TIMEOUT, "the task finds the container", || {
            match resolves(lab, &probe.node, &probe.container, "chest") {
                Ok(true) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        lab.docker_ok("n1", &["network", "disconnect", "app", "box"])?;
        // The other network goes on.
        reaches(lab, "n1", "box", "whoami");
        ensure!(!shown_on(lab, "n1", "app")?.contains("box"), "round {round}: the network still shows the container");
        lab.docker_ok("n1", &["network", "disconnect", "back", "box"])?;
        eventually(CHANGE_TIMEOUT, "the container is on no network of the cluster", || {
            match resolves(lab, "n1", "box", "whoami") {
                Ok(false) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
    remove(lab, "n1", "box")
}

fn a_container_keeps_its_address_when_it_is_restarted(lab: &Lab) -> Result<()> {
    run_whoami(lab, "n2", "deck", &["--network", "app"])?;
    lab.docker_ok("n2", &["network", "connect", "back", "deck"])?;
    let before = addr(lab, "n2", "deck", "app")?;
    let probe = task_of(lab, "probe")?;
    for socket in ["weft's socket", "the engine's socket"] {
        if socket == "weft's socket" {
            lab.docker_ok("n2", &["restart", "--time", "0", "deck"])?;
        } else {
            docker::docker(lab.engine("n2")?, &["restart", "--time", "0", "deck"])?;
        }
        ensure!(addr(lab, "n2", "deck", "app")? == before, "{socket}: the container has another address");
        for host in ["deck", "deck.back"] {
            reaches(lab, &probe.node, &probe.container, host);
        }
    }
    lab.docker_ok("n2", &["kill", "deck"])?;
    no_longer_resolves(lab, &probe, "deck");
    lab.docker_ok("n2", &["start", "deck"])?;
    reaches(lab, &probe.node, &probe.container, "deck");
    ensure!(addr(lab, "n2", "deck", "app")? == before, "the container has another address");
    docker::docker(lab.engine("n2")?, &["rm", "--force", "deck"]).map(drop)
}

fn containers_come_back_after_daemons_and_engines_were_killed(lab: &Lab) -> Result<()> {
    run_whoami(lab, "n2", "deck", &["--network", "app", "--restart", "always"])?;
    let before = addr(lab, "n2", "deck", "app")?;
    run(lab, "n1", "box", &["--network", "app"])?;
    lab.kill_daemon("n2")?;
    reaches(lab, "n1", "box", &before.to_string());
    lab.start("n2")?;
    lab.wait_ready("n1", 2)?;
    reaches(lab, "n1", "box", "deck");
    lab.kill_engine("n2")?;
    lab.start_engine("n2")?;
    eventually(RESTART_TIMEOUT, "the engine has started the container again", || {
        match addr(lab, "n2", "deck", "app") {
            Ok(addr) if addr == before => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    reaches(lab, "n1", "box", "deck");
    // An engine without its driver needs more than a minute to stop the container.
    lab.docker_ok("n2", &["kill", "deck"])?;
    lab.kill_daemon("n2")?;
    // It is removed while no daemon follows its engine.
    docker::docker(lab.engine("n2")?, &["rm", "--force", "deck"])?;
    lab.start("n2")?;
    lab.wait_ready("n1", 2)?;
    eventually(RESTART_TIMEOUT, "the address of the removed container is free", || {
        let again = run_whoami(lab, "n2", "again", &["--network", "app", "--ip", &before.to_string()]);
        again.map_err(|error| {
            let _ = remove(lab, "n2", "again");
            format!("{error:#}")
        })
    });
    reaches(lab, "n1", "box", "again");
    remove(lab, "n2", "again")?;
    remove(lab, "n1", "box")
}

fn a_removed_container_frees_its_address_and_its_network(lab: &Lab) -> Result<()> {
    network(lab, "brief", &["--attachable"])?;
    run(lab, "n2", "box", &["--network", "brief"])?;
    let refused = lab.docker("n1", &["network", "rm", "brief"])?;
    let text = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && text.contains("in use by container box on node n2"), "{text}");
    lab.docker_ok("n2", &["stop", "--time", "0", "box"])?;
    ensure!(!lab.docker("n1", &["network", "rm", "brief"])?.status.success(), "a stopped container keeps its network");
    docker::docker(lab.engine("n2")?, &["rm", "box"])?;
    lab.docker_ok("n1", &["network", "rm", "brief"]).map(drop)
}

fn unused_networks_are_pruned(lab: &Lab) -> Result<()> {
    network(lab, "unused", &["--attachable", "--label", "a=b"])?;
    network(lab, "used", &["--attachable", "--label", "a=b"])?;
    run(lab, "n2", "box", &["--network", "used"])?;
    lab.docker_ok("n2", &["stop", "--time", "0", "box"])?;
    let pruned = lab.docker_ok("n1", &["network", "prune", "--force", "--filter", "label=a=b"])?;
    ensure!(pruned.split_whitespace().any(|word| word == "unused"), "{pruned}");
    ensure!(!pruned.split_whitespace().any(|word| word == "used"), "{pruned}");
    // The engine keeps the network of a stopped container.
    lab.docker_ok("n2", &["network", "prune", "--force"])?;
    lab.docker_ok("n2", &["start", "box"])?;
    lab.docker_ok("n2", &["stop", "--time", "0", "box"])?;
    // Its own socket lets it remove the network of a stopped container, like one of its own. Then
    // this container cannot start any more, and others can.
    docker::docker(lab.engine("n2")?, &["network", "prune", "--force"])?;
    remove(lab, "n2", "box")?;
    run(lab, "n2", "box", &["--network", "used"])?;
    run_whoami(lab, "n1", "new", &["--network", "used"])?;
    reaches(lab, "n2", "box", "new");
    remove(lab, "n1", "new")?;
    remove(lab, "n2", "box")?;
    lab.docker_ok("n1", &["network", "rm", "used"]).map(drop)
}

fn a_removed_node_frees_the_addresses_of_its_containers(lab: &Lab) -> Result<()> {
    network(lab, "last", &["--attachable"])?;
    run(lab, "n2", "box", &["--network", "last"])?;
    lab.weft_ok("n1", &["service", "rm", "whoami", "probe"])?;
    lab.kill_daemon("n2")?;
    ensure!(!lab.docker("n1", &["network", "rm", "last"])?.status.success(), "the node may still run its container");
    lab.weft_ok("n1", &["node", "rm", "--force", "n2"])?;
    lab.docker_ok("n1", &["network", "rm", "last"])?;
    let name = service(lab, "after", 1, &["--network", "app"], &[WHOAMI])?;
    ensure!(name.len() == 1, "the cluster goes on");
    Ok(())
}
