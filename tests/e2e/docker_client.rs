//! The standard docker client controls weft: nodes, networks, services and logs, by its commands
//! and its tables.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, contract, eventually};

use crate::{
    fixtures::{WHOAMI, all_answer},
    harness::{Group, Shape, tests},
    secrets,
};

pub(crate) fn group() -> Group {
    Group {
        name: "docker_client",
        shape: Shape { managers: 2, ..Shape::default() },
        setup,
        tests: tests![
            docker_lists_and_updates_nodes,
            docker_prints_join_tokens,
            docker_creates_lists_and_removes_networks,
            docker_creates_a_service_and_shows_its_tasks,
            docker_scales_updates_and_removes_a_service,
            docker_creates_services_on_networks_of_the_nodes,
            docker_reads_a_services_logs,
            secrets::tasks_have_secrets_and_configs,
            secrets::weft_creates_changes_and_removes_secrets,
            docker_finds_objects_of_any_kind_and_past_events,
            docker_creates_a_service_with_a_placement_and_a_bare_variable,
            secrets::a_stack_brings_its_secrets,
            docker_prints_the_errors_of_weft,
            docker_locks_and_unlocks_managers,
        ],
    }
}

fn setup(lab: &Lab) -> Result<()> {
    lab.docker_ok("n1", &["network", "create", "--driver", "overlay", "app"])?;
    let create = ["service", "create", "--detach", "--name", "web", "--network", "app", "--replicas", "3"];
    lab.docker_ok("n1", &[&create[..], &["--publish", "8080:80", WHOAMI]].concat())?;
    lab.wait_running("n1", "web", 3).map(|_| ())
}

/// The cells of the row of a table that contains this word. Cells are separated by two spaces or
/// more.
fn row(table: &str, word: &str) -> Result<Vec<String>> {
    let line = table.lines().skip(1).find(|line| line.split_whitespace().any(|found| found == word));
    let line = line.with_context(|| format!("no row with {word} in:\n{table}"))?;
    Ok(line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect())
}

fn docker_lists_and_updates_nodes(lab: &Lab) -> Result<()> {
    let table = lab.docker_ok("n1", &["node", "ls"])?;
    ensure!(row(&table, "n1")?.iter().any(|cell| cell == "Leader"), "{table}");
    ensure!(row(&table, "n2")?.iter().any(|cell| cell == "Reachable"), "{table}");
    ensure!(row(&table, "n3")?.iter().any(|cell| cell == "Ready"), "{table}");
    lab.docker_ok("n1", &["node", "update", "--label-add", "zone=a", "n3"])?;
    let labels = lab.docker_ok("n1", &["node", "inspect", "--format", "{{json .Spec.Labels}}", "n3"])?;
    ensure!(labels.contains(r#""zone":"a""#), "{labels}");
    let pretty = lab.docker_ok("n1", &["node", "inspect", "--pretty", "n3"])?;
    ensure!(pretty.contains("192.0.2.3"), "{pretty}");
    Ok(())
}

fn docker_prints_join_tokens(lab: &Lab) -> Result<()> {
    let printed = lab.docker_ok("n1", &["swarm", "join-token", "worker"])?;
    ensure!(printed.contains("docker swarm join --token SWMTKN-1-") && printed.contains("192.0.2.1:2377"), "{printed}");
    Ok(())
}

fn docker_creates_lists_and_removes_networks(lab: &Lab) -> Result<()> {
    lab.docker_ok("n2", &["network", "create", "--driver", "overlay", "--subnet", "10.77.0.0/24", "spare"])?;
    let table = lab.docker_ok("n1", &["network", "ls"])?;
    let cells = row(&table, "spare")?;
    ensure!(cells[2..] == ["overlay", "swarm"], "{table}");
    let subnet = ["network", "inspect", "--format", "{{(index .IPAM.Config 0).Subnet}}", "spare"];
    ensure!(lab.docker_ok("n1", &subnet)?.trim() == "10.77.0.0/24", "the network has another subnet");
    lab.docker_ok("n1", &["network", "rm", "spare"])?;
    ensure!(row(&lab.docker_ok("n1", &["network", "ls"])?, "spare").is_err(), "the network is still listed");
    Ok(())
}

fn docker_creates_a_service_and_shows_its_tasks(lab: &Lab) -> Result<()> {
    let tasks = lab.wait_running("n1", "web", 3)?;
    all_answer(CLIENT, &lab.published(8080), &tasks, Duration::from_secs(5));
    let table = lab.docker_ok("n1", &["service", "ls"])?;
    let cells = row(&table, "web")?;
    ensure!(cells[2..4] == ["replicated", "3/3"] && table.contains("*:8080->80/tcp"), "{table}");
    let table = lab.docker_ok("n1", &["service", "ps", "web"])?;
    for slot in ["web.1", "web.2", "web.3"] {
        let cells = row(&table, slot)?;
        ensure!(cells[4] == "Running" && cells[5].starts_with("Running "), "{table}");
    }
    let pretty = lab.docker_ok("n1", &["service", "inspect", "--pretty", "web"])?;
    ensure!(pretty.contains("Replicas:") && pretty.contains("PublishedPort = 8080"), "{pretty}");
    ensure!(
        row(&lab.docker_ok("n1", &["node", "ps", "n1"])?, &format!("web.{}", slot_on(lab, "n1")?)).is_ok(),
        "node ps does not list the task on n1"
    );
    Ok(())
}

fn slot_on(lab: &Lab, node: &str) -> Result<u64> {
    let tasks = lab.wait_running("n1", "web", 3)?;
    tasks
        .iter()
        .find(|task| task.node == node)
        .map(|task| task.slot)
        .with_context(|| format!("a task of web is on {node}"))
}

fn docker_scales_updates_and_removes_a_service(lab: &Lab) -> Result<()> {
    let create = ["service", "create", "--detach", "--name", "brief", "--publish", "8082:80", WHOAMI];
    lab.docker_ok("n1", &create)?;
    lab.wait_running("n1", "brief", 1)?;
    lab.docker_ok("n2", &["service", "scale", "--detach", "brief=4"])?;
    let before = lab.wait_running("n1", "brief", 4)?;
    lab.docker_ok("n1", &["service", "update", "--detach", "--force", "--update-parallelism", "4", "brief"])?;
    eventually(Duration::from_secs(60), "all tasks are replaced", || {
        let after = lab.wait_running("n1", "brief", 4).map_err(|error| format!("{error:#}"))?;
        let old = after.iter().filter(|task| before.iter().any(|old| old.id == task.id)).count();
        if old == 0 { Ok(()) } else { Err(format!("{old} tasks are not replaced")) }
    });
    lab.docker_ok("n1", &["service", "rm", "brief"])?;
    let missing = lab.docker("n1", &["service", "inspect", "brief"])?;
    ensure!(!missing.status.success(), "the service still exists");
    ensure!(String::from_utf8_lossy(&missing.stderr).contains("no such service: brief"), "{missing:?}");
    Ok(())
}

/// The docker client looks up the networks of a service with `scope=swarm`, and sends their ids.
fn docker_creates_services_on_networks_of_the_nodes(lab: &Lab) -> Result<()> {
    let create = ["service", "create", "--detach", "--name", "local", "--mode", "global", "--network"];
    lab.docker_ok("n1", &[&create[..], &["host", WHOAMI]].concat())?;
    for task in lab.wait_running("n1", "local", 3)? {
        all_answer(CLIENT, &contract::addrs(&task.node).map(|addr| (addr, 80).into()), &[task], Duration::from_secs(5));
    }
    let target = ["service", "inspect", "--format", "{{(index .Spec.TaskTemplate.Networks 0).Target}}", "local"];
    let id = lab.docker_ok("n1", &target)?;
    let found =
        lab.docker_ok("n1", &["network", "inspect", "--format", "{{.Name}} {{.Driver}} {{.Scope}}", id.trim()])?;
    ensure!(found.trim() == "host host swarm", "{found}");
    let pretty = lab.docker_ok("n1", &["service", "inspect", "--pretty", "local"])?;
    ensure!(pretty.contains("Networks: host"), "{pretty}");
    lab.docker_ok("n1", &["service", "update", "--detach", "--network-rm", "host", "--network-add", "app", "local"])?;
    eventually(Duration::from_secs(60), "the tasks are on the network app", || {
        let tasks = lab.wait_running("n1", "local", 3).map_err(|error| format!("{error:#}"))?;
        if tasks.iter().all(|task| !task.addrs.is_empty()) { Ok(()) } else { Err(format!("{tasks:?}")) }
    });
    lab.docker_ok("n1", &["service", "rm", "local"])?;
    let refused = lab.docker("n1", &[&create[..], &["none", WHOAMI]].concat())?;
    let message = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && message.contains("network") && message.contains("none"), "{message}");
    Ok(())
}

fn docker_reads_a_services_logs(lab: &Lab) -> Result<()> {
    // The tasks are on all nodes, and one manager returns the logs of all.
    let logs = lab.docker_ok("n1", &["service", "logs", "web"])?;
    for slot in 1..=3 {
        ensure!(logs.contains(&format!("web.{slot}.")), "the logs have no line of web.{slot}:\n{logs}");
    }
    Ok(())
}

/// The nodes have no container engine.
fn docker_finds_objects_of_any_kind_and_past_events(lab: &Lab) -> Result<()> {
    let name_of = |object| lab.docker_ok("n1", &["inspect", "--format", "{{.Spec.Name}}", object]);
    ensure!(name_of("web")?.trim() == "web", "the service is not found");
    let hostname = lab.docker_ok("n1", &["inspect", "--format", "{{.Description.Hostname}}", "n3"])?;
    ensure!(hostname.trim() == "n3", "{hostname}");
    for node in ["n1", "n3"] {
        let missing = lab.docker(node, &["inspect", "missing"])?;
        let message = String::from_utf8_lossy(&missing.stderr);
        ensure!(!missing.status.success() && message.to_lowercase().contains("no such object: missing"), "{message}");
    }
    let past = ["events", "--since", "1h", "--until", "0s", "--filter", "type=service", "--filter", "service=web"];
    let events = lab.docker_ok("n1", &past)?;
    ensure!(events.contains("service create") && events.contains("name=web"), "{events}");
    let none = [&past[..5], &["--filter", "container=web"]].concat();
    let events = lab.docker_ok("n1", &none)?;
    ensure!(events.is_empty(), "{events}");
    Ok(())
}

fn docker_creates_a_service_with_a_placement_and_a_bare_variable(lab: &Lab) -> Result<()> {
    let create = ["service", "create", "--detach", "--name", "placed", "--env", "WEFT_TEST_NOT_SET"];
    let placement = ["--constraint", "node.role == Worker", "--constraint", "node.ip != 192.0.2.1"];
    lab.docker_ok("n1", &[&create[..], &placement, &["--placement-pref", "spread=node.hostname", WHOAMI]].concat())?;
    let tasks = lab.wait_running("n1", "placed", 1)?;
    ensure!(tasks.iter().all(|task| task.node == "n3"), "{tasks:?}");
    lab.docker_ok("n1", &["service", "rm", "placed"]).map(drop)
}

fn docker_prints_the_errors_of_weft(lab: &Lab) -> Result<()> {
    let refused =
        lab.docker("n1", &["service", "create", "--detach", "--name", "second", "--publish", "8080:80", WHOAMI])?;
    let message = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && message.contains("8080") && message.contains("web"), "{message}");
    let refused = lab.docker("n3", &["node", "ls"])?;
    let message = String::from_utf8_lossy(&refused.stderr);
    ensure!(!refused.status.success() && message.contains("not a swarm manager"), "{message}");
    Ok(())
}

fn docker_locks_and_unlocks_managers(lab: &Lab) -> Result<()> {
    let printed = lab.docker_ok("n1", &["swarm", "update", "--autolock=true"])?;
    let key = lab.docker_ok("n2", &["swarm", "unlock-key", "--quiet"])?.trim().to_owned();
    ensure!(key.starts_with("SWMKEY-1-") && printed.contains(&key), "{printed}");
    let identity = contract::data_dir("n2").join("swarm/identity.pem");
    eventually(Duration::from_secs(20), "the keys of n2 are encrypted", || {
        let stored = fs::read(&identity).map_err(|error| error.to_string())?;
        if stored.starts_with(b"weft sealed file") { Ok(()) } else { Err("in the clear".to_owned()) }
    });
    lab.kill_daemon("n2")?;
    lab.start("n2")?;
    let info = lab.docker_ok("n2", &["info"])?;
    ensure!(info.contains("Swarm: locked"), "{info}");
    let refused = String::from_utf8_lossy(&lab.docker("n2", &["service", "ls"])?.stderr).into_owned();
    ensure!(refused.contains("Swarm is encrypted and needs to be unlocked"), "{refused}");
    let wrong = format!("SWMKEY-1-{}\n", "A".repeat(43));
    let refused = lab.docker_with_input("n2", &["swarm", "unlock"], &wrong)?;
    let error = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && error.contains("invalid key provided"), "{error}");
    let unlocked = lab.docker_with_input("n2", &["swarm", "unlock"], &format!("{key}\n"))?;
    ensure!(unlocked.status.success(), "{}", String::from_utf8_lossy(&unlocked.stderr));
    lab.wait_managers("n2", 2)?;
    let printed = lab.docker_ok("n2", &["swarm", "unlock-key", "--rotate"])?;
    ensure!(printed.contains("Successfully rotated manager unlock key.") && !printed.contains(&key), "{printed}");
    lab.docker_ok("n1", &["swarm", "update", "--autolock=false"]).map(drop)
}
