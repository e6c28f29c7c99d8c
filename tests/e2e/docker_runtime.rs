//! The docker runtime: tests of the other groups with containers as tasks, and tests of the
//! containers.

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        net::UnixListener,
    },
    panic,
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};
use weft_lab::{CLIENT, Lab, Load, Runtime, Task, contract, dns, dns::RecordType, docker, eventually, netns};

use crate::{
    docker_view, failure,
    fixtures::{HTTP, Loads, WHOAMI, all_answer, assert_even, only, service, task_names, task_of, v4_of, vip},
    harness::{Group, Shape, tests},
    isolation, lookups, mesh, names, node_networks, scaling, secrets, update,
};

/// Length of a MAC address as text.
const MAC_LEN: usize = 17;
/// A port that no service publishes.
const USER_PORT: u16 = 9000;
/// A port of a service whose tasks an engine keeps.
const KEPT_PORT: u16 = 8201;
/// A port of a service that is created while an engine is down.
const MEANWHILE_PORT: u16 = 8123;
/// The time in which the tasks that a restarted engine has stopped must be replaced.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn group() -> Group {
    Group {
        name: "docker_runtime",
        shape: Shape { runtime: Runtime::Docker, ..Shape::default() },
        setup,
        tests: tests![
            mesh::every_node_spreads_connections_evenly_over_ipv4_and_ipv6,
            mesh::tasks_see_the_clients_own_address,
            mesh::each_node_answers_on_localhost_and_on_its_own_addresses,
            mesh::every_node_spreads_datagrams_evenly,
            mesh::large_transfers_arrive_unchanged_in_both_directions,
            mesh::an_unpublished_port_is_closed,
            mesh::a_service_without_a_network_can_publish_a_port,
            mesh::a_published_port_is_chosen_when_none_is_given,
            mesh::tasks_reach_hosts_outside_of_the_cluster,
            names::a_service_is_reached_by_its_name,
            names::a_vip_balances_all_ports_of_its_tasks,
            names::a_vip_answers_ping,
            names::datagrams_to_a_vip_are_answered_from_its_address,
            names::raw_packets_to_a_vip_are_answered_from_its_address,
            names::tasks_dot_service_resolves_to_the_addresses_of_the_tasks,
            names::the_name_and_the_address_of_a_task_resolve,
            names::a_task_reaches_its_own_service,
            names::names_have_ipv6_addresses_only_on_networks_with_ipv6,
            names::a_service_without_a_vip_resolves_to_its_tasks,
            names::unknown_names_and_missing_record_types_have_different_answers,
            names::long_answers_use_edns_or_tcp,
            names::external_names_resolve_through_the_upstream,
            lookups::the_user_chooses_how_tasks_look_up_names,
            secrets::tasks_have_secrets_and_configs,
            docker_exec_reaches_a_service_by_name,
            containers_have_the_names_of_their_tasks,
            docker_view::containers_have_the_published_ports_of_their_service,
            docker_view::containers_are_on_networks_of_the_cluster,
            docker_view::clients_cannot_remove_docker_networks,
            docker_view::commands_about_containers_work_on_tasks,
            docker_view::events_name_networks_of_the_cluster,
            docker_view::the_engines_version_is_announced,
            docker_view::labels_of_the_engine_place_tasks,
            a_task_is_one_ordinary_container,
            the_engine_does_not_answer_names_of_the_cluster,
            a_container_that_a_user_restarts_leaves_no_gap,
            each_node_has_an_engine_of_its_own,
            containers_of_a_user_publish_ports_beside_weft,
            node_networks::a_service_on_network_host_answers_at_the_addresses_of_its_nodes,
            node_networks::a_task_on_network_host_has_the_network_of_its_node,
            node_networks::tasks_on_network_host_continue_while_their_daemon_restarts,
            node_networks::a_killed_task_on_network_host_is_replaced,
            node_networks::a_service_moves_between_network_host_and_the_cluster,
            node_networks::a_task_on_network_bridge_is_an_ordinary_container,
            isolation::names_of_another_network_do_not_resolve,
            isolation::addresses_of_another_network_do_not_answer,
            isolation::packets_with_a_forged_source_are_dropped,
            isolation::frames_with_a_forged_vni_are_dropped,
            isolation::tasks_cannot_reach_the_control_port,
            isolation::tasks_cannot_reach_the_tunnel_port,
            isolation::a_service_on_two_networks_reaches_both,
            isolation::tasks_of_an_internal_network_cannot_send_packets_out,
            scaling::new_tasks_receive_traffic_within_a_second,
            scaling::scaling_down_fails_no_request,
            scaling::scaling_to_zero_and_back_works,
            the_service_is_scaled_back_to_three_tasks,
            update::a_forced_update_replaces_every_task_without_errors,
            update::a_new_image_rolls_out_without_errors,
            update::start_first_never_runs_fewer_tasks,
            update::a_failing_update_pauses_and_gives_the_reason,
            update::a_rollback_restores_the_previous_image,
            scaling::a_removed_service_is_gone_within_a_second,
        ],
    }
}

pub(crate) fn failures() -> Group {
    Group {
        name: "docker_failure",
        shape: Shape { runtime: Runtime::Docker, managers: 3, ..Shape::default() },
        setup: |lab| {
            lab.create_tools_images()?;
            failure::setup(lab)
        },
        tests: tests![
            failure::traffic_continues_while_a_daemon_is_down,
            failure::traffic_continues_while_a_killed_daemon_restarts,
            failure::traffic_continues_while_a_daemon_is_stopped,
            failure::changed_links_are_repaired,
            failure::a_killed_task_is_replaced,
            failure::another_manager_replaces_a_killed_leader,
            traffic_continues_while_an_engine_is_down,
            failure::tasks_of_a_lost_node_are_replaced_and_get_no_traffic,
            engines_and_daemons_are_killed_in_every_order,
            an_engine_waits_for_a_daemon_whose_socket_the_service_manager_holds,
            an_engine_that_keeps_its_containers_restarts_without_a_trace,
        ],
    }
}

fn setup(lab: &Lab) -> Result<()> {
    lab.create_tools_images()?;
    mesh::setup(lab)?;
    names::setup_ipv6(lab)?;
    isolation::setup(lab)
}

fn docker_exec_reaches_a_service_by_name(lab: &Lab) -> Result<()> {
    let probe = task_of(lab, "probe")?;
    let engine = lab.engine(&probe.node)?;
    let container = format!("probe.{}.{}", probe.slot, probe.id);
    let found = docker::docker(engine, &["exec", &container, "getent", "ahostsv4", "whoami"])?;
    ensure!(found.contains("whoami"), "{found}");
    let body = docker::docker(engine, &["exec", &container, "curl", "--silent", "--max-time", "5", "http://whoami/"])?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&tasks).iter().any(|name| body.contains(name)), "{body}");
    Ok(())
}

fn containers_have_the_names_of_their_tasks(lab: &Lab) -> Result<()> {
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    for node in lab.nodes() {
        let listed = docker::docker(lab.engine(&node)?, &["ps", "--format", "{{.Names}}"])?;
        for task in &tasks {
            let is_listed = listed.lines().any(|line| line == task.name());
            ensure!(is_listed == (task.node == node), "{} is on {}, and {node} has:\n{listed}", task.name(), task.node);
        }
    }
    Ok(())
}

/// As users of Docker know it: one container, whose log, host name and addresses are its own.
fn a_task_is_one_ordinary_container(lab: &Lab) -> Result<()> {
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    for task in &tasks {
        let filter = format!("name=whoami.{}", task.slot);
        let ids = lab.docker_ok(&task.node, &["ps", "--quiet", "--filter", &filter])?;
        let [id] = ids.lines().collect::<Vec<_>>()[..] else { anyhow::bail!("the containers of {filter}: {ids}") };
        lab.docker_ok(&task.node, &["logs", id])?;
        let inspected: Value = serde_json::from_str(&lab.docker_ok(&task.node, &["inspect", id])?)?;
        let app = &inspected[0]["NetworkSettings"]["Networks"]["app"];
        ensure!(app["IPAddress"] == json!(task.v4("app")), "{inspected}");
        ensure!(app["GlobalIPv6Address"] == "", "the network was created without --ipv6: {inspected}");
        let mac = app["MacAddress"].as_str().filter(|mac| mac.len() == MAC_LEN).context("a MAC address")?;
        let link = lab.exec_in_task_netns_ok(task, &["ip", "-oneline", "link", "show", "dev", "eth0"])?;
        ensure!(link.contains(mac), "{link} and {app}");
    }
    let probe = task_of(lab, "probe")?;
    let pid = probe.pid.context("the probe has a process")?;
    let hostname = fs::read_to_string(format!("/proc/{pid}/root/etc/hostname"))?;
    let found = lab.docker_ok(&probe.node, &["inspect", "--format", "{{.Name}}", hostname.trim()])?;
    ensure!(found.trim() == format!("/{}", probe.name()), "{hostname} is {found}");
    for node in lab.nodes() {
        // Tasks of earlier tests may still be stopping.
        eventually(ENGINE_TIMEOUT, &format!("the containers of {node} are its tasks"), || {
            containers_are_tasks(lab, &node).map_err(|error| format!("{error:#}"))
        });
    }
    Ok(())
}

/// Waits until the three tasks of a service run, and the containers of the node are its tasks.
/// Returns the tasks. `when` is for the message of a failure.
fn await_containers(lab: &Lab, node: &str, service: &str, when: &str) -> Vec<Task> {
    eventually(ENGINE_TIMEOUT, &format!("{when}: the containers of {node} are its tasks"), || {
        let tasks = lab.wait_running("n1", service, 3).and_then(|tasks| {
            containers_are_tasks(lab, node)?;
            Ok(tasks)
        });
        tasks.map_err(|error| format!("{error:#}"))
    })
}

/// Checks that the running containers of a node are its tasks, each once.
pub(crate) fn containers_are_tasks(lab: &Lab, node: &str) -> Result<()> {
    let listed = ["ps", "--filter", "label=weft.task", "--format", "{{.Label \"weft.task\"}}"];
    let listed = docker::docker(lab.engine(node)?, &listed)?;
    let planned = ["node", "ps", "--quiet", "--no-trunc", "--filter", "desired-state=running", node];
    let planned = lab.weft_ok("n1", &planned)?;
    let sorted = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    ensure!(listed.lines().count() == sorted(&listed).len(), "twice: {listed}");
    ensure!(sorted(&listed) == sorted(&planned), "{listed} instead of {planned}");
    Ok(())
}

/// The engine's own resolver would answer the host name of a container, also where a service has
/// the same name.
fn the_engine_does_not_answer_names_of_the_cluster(lab: &Lab) -> Result<()> {
    let flags = ["--network", "app", "--hostname", "whoami"];
    let shadow = only(service(lab, "shadow", 1, &flags, &[docker::TOOLS_IMAGE, "sleep", "infinity"])?)?;
    let addr = vip(lab, &task_of(lab, "probe")?, "whoami")?;
    let answer = lab.lookup(&shadow, "whoami", RecordType::A)?;
    ensure!(answer.addrs() == [addr], "{answer:?} instead of {addr}");
    lab.weft_ok("n1", &["service", "rm", "shadow"]).map(drop)
}

/// Its network namespace is another one then. If weft sees the end of the program before the engine
/// has restarted it, weft replaces the task, and the restart fails or is undone. Otherwise it
/// connects the container again.
fn a_container_that_a_user_restarts_leaves_no_gap(lab: &Lab) -> Result<()> {
    let task = lab.wait_running("n1", "whoami", 3)?.remove(0);
    lab.docker(&task.node, &["restart", "--time", "0", &task.container])?;
    let tasks = await_containers(lab, &task.node, "whoami", "restarted");
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, ENGINE_TIMEOUT);
    for task in &tasks {
        // The resolver listens in the namespace that the task has now.
        let answer = lab.lookup(task, contract::EXTERNAL_NAME, RecordType::A)?;
        ensure!(answer.addrs() == [IpAddr::from(contract::EXTERNAL_V4)], "{}: {answer:?}", task.name());
    }
    Ok(())
}

fn each_node_has_an_engine_of_its_own(lab: &Lab) -> Result<()> {
    let mut ids = BTreeSet::new();
    for node in lab.nodes() {
        ids.insert(docker::docker(lab.engine(&node)?, &["info", "--format", "{{.ID}}"])?);
        // The engine finds the sockets of its node's plugins, and no others.
        fs::write(contract::engine_plugins(&node).join(&node), "")?;
        let pid = fs::read_to_string(contract::engine_pid_file(&node))?;
        let plugins = Path::new("/proc").join(pid.trim()).join("root/run/docker/plugins");
        let found: io::Result<BTreeSet<_>> = fs::read_dir(&plugins)?.map(|entry| Ok(entry?.file_name())).collect();
        let found = found?;
        let expected = ["weft.sock".into(), node.clone().into()].into();
        ensure!(found == expected, "the engine of {node} finds the plugins {found:?}");
    }
    ensure!(ids.len() == lab.nodes().count(), "two engines are the same: {ids:?}");
    Ok(())
}

fn containers_of_a_user_publish_ports_beside_weft(lab: &Lab) -> Result<()> {
    let run = ["run", "--detach", "--name", "user", "--publish", &format!("{USER_PORT}:{HTTP}"), WHOAMI];
    // weft's socket leads to the engine.
    lab.docker_ok("n1", &run)?;
    let published = contract::addrs("n1").map(|addr| SocketAddr::new(addr, USER_PORT));
    for (host, addr) in [CLIENT, "n2", "n1"].into_iter().flat_map(|host| published.map(|addr| (host, addr))) {
        // The container is running a moment before its program listens.
        eventually(Duration::from_secs(5), &format!("the user's container answers {host} at {addr}"), || {
            lab.get(host, addr, "/").map(drop).map_err(|error| format!("{error:#}"))
        });
    }
    // It notices nothing of services that come and go, nor of the daemon.
    let user = Load::start(&contract::namespace_path(CLIENT), &published);
    let tasks = service(lab, "beside", 3, &["-p", &format!("{MEANWHILE_PORT}:{HTTP}")], &[WHOAMI])?;
    all_answer(CLIENT, &lab.published(MEANWHILE_PORT), &tasks, Duration::from_secs(5));
    lab.kill_daemon("n1")?;
    lab.start("n1")?;
    lab.wait_ready("n1", 3)?;
    lab.weft_ok("n1", &["service", "rm", "beside"])?;
    lab.wait_stopped("n1", "beside")?;
    user.stop()?.expect_no_errors();
    // And weft nothing of the container.
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, Duration::from_secs(5));
    // Containers of the user reach the published ports of their node and of others.
    for node in ["n1", "n2"] {
        let url = format!("http://{}:{}/", contract::v4(node), mesh::PORT);
        let curl = ["run", "--rm", docker::TOOLS_IMAGE, "curl", "--silent", "--fail", "--max-time", "5", &url];
        let body = lab.docker_ok("n1", &curl)?;
        ensure!(task_names(&tasks).iter().any(|name| body.contains(name)), "{url}: {body}");
    }
    lab.docker_ok("n1", &["rm", "--force", "user"]).map(drop)
}

/// Containers run on without their engine, and traffic goes on, also under a daemon that starts in
/// this time and cannot ask which tasks it has. The engine does not keep containers (live restore):
/// when it starts, it stops those of before.
fn traffic_continues_while_an_engine_is_down(lab: &Lab) -> Result<()> {
    let node = failure::follower(lab)?;
    let before = lab.wait_running("n1", "whoami", 3)?;
    let own = before.iter().find(|task| task.node == node);
    let netns = lab.task_namespace(own.with_context(|| format!("no task is running on {node}"))?)?;
    let ending = service(lab, "ending", 3, &["--restart-delay", "100ms"], &[WHOAMI])?;
    let loads = Loads::start(lab, &lab.published(mesh::PORT), "probe")?;
    lab.kill_engine(&node)?;
    the_node_follows_the_plan(lab, &node, &netns, &before)?;
    lab.kill_daemon(&node)?;
    lab.start(&node)?;
    lab.wait_ready("n1", 3)?;
    the_node_follows_the_plan(lab, &node, &netns, &before)?;
    loads.expect_no_errors()?;
    a_task_that_ends_without_its_engine_is_replaced(lab, &ending, &node)?;
    lab.start_engine(&node)?;
    let after = eventually(ENGINE_TIMEOUT, "other tasks replace those of the engine", || {
        let tasks = lab.wait_running("n1", "whoami", 3).map_err(|error| format!("{error:#}"))?;
        let remains = |old: &Task| old.node == node && tasks.iter().any(|task| task.id == old.id);
        if before.iter().any(remains) { Err(format!("{tasks:?}")) } else { Ok(tasks) }
    });
    all_answer(CLIENT, &lab.published(mesh::PORT), &after, Duration::from_secs(5));
    let labels = ["node", "inspect", "--format", "{{json .Description.Engine.Labels}}", &node];
    let labels = lab.docker_ok("n1", &labels)?;
    ensure!(labels.contains(r#""lab-start":"2""#), "the labels of the restarted engine are {labels}");
    // The tasks may be on other nodes now. The node may get some again once it has converged.
    eventually(ENGINE_TIMEOUT, "the node has converged", || {
        let table = lab.weft_ok("n1", &["node", "ls"]).map_err(|error| format!("{error:#}"))?;
        if table.contains("not converged") { Err(table) } else { Ok(()) }
    });
    for replicas in [2, 3] {
        lab.weft_ok("n1", &["service", "scale", &format!("whoami={replicas}")])?;
        lab.wait_running("n1", "whoami", replicas)?;
    }
    task_of(lab, "probe").map(drop)
}

/// `netns` is of a task on the node, and `tasks` are those of the published service.
fn the_node_follows_the_plan(lab: &Lab, node: &str, netns: &Path, tasks: &[Task]) -> Result<()> {
    for addr in contract::addrs(node) {
        assert_even(lab, CLIENT, (addr, mesh::PORT).into(), tasks, 300);
    }
    let during = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(tasks) == task_names(&during), "{tasks:?} became {during:?}");
    let elsewhere = format!("engine.labels.lab-node!={node}");
    let flags = ["--constraint", &elsewhere, "--network", "app", "--publish", &format!("{MEANWHILE_PORT}:{HTTP}")];
    let new = service(lab, "meanwhile", 2, &flags, &[WHOAMI])?;
    all_answer(CLIENT, &contract::addrs(node).map(|addr| (addr, MEANWHILE_PORT).into()), &new, ENGINE_TIMEOUT);
    let names = [
        ("tasks.meanwhile", v4_of(&new, "app")),
        (contract::EXTERNAL_NAME, [IpAddr::from(contract::EXTERNAL_V4)].into()),
    ];
    for (name, expected) in names {
        eventually(ENGINE_TIMEOUT, &format!("{name} resolves to {expected:?} on {node}"), || {
            let answer = netns::within(netns, || dns::lookup(dns::IN_TASK, name, RecordType::A));
            let answer = answer.flatten().map_err(|error| format!("{error:#}"))?;
            let found: BTreeSet<IpAddr> = answer.addrs().into_iter().collect();
            if found == expected { Ok(()) } else { Err(format!("{answer:?}")) }
        });
    }
    lab.weft_ok("n1", &["service", "rm", "meanwhile"]).map(drop)
}

/// No engine says that the task ends.
fn a_task_that_ends_without_its_engine_is_replaced(lab: &Lab, tasks: &[Task], node: &str) -> Result<()> {
    let task = tasks.iter().find(|task| task.node == node).with_context(|| format!("no task is on {node}"))?;
    weft_lab::process::kill(task.pid.context("the task has a process")?)?;
    eventually(ENGINE_TIMEOUT, "another task replaces one that has ended without its engine", || {
        let tasks = lab.wait_running("n1", "ending", 3).map_err(|error| format!("{error:#}"))?;
        if tasks.iter().any(|other| other.id == task.id) { Err(format!("{tasks:?}")) } else { Ok(()) }
    });
    lab.weft_ok("n1", &["service", "rm", "ending"]).map(drop)
}

/// An engine that was killed stops its containers when it starts again, so the tasks are replaced.
/// No container may be there twice, and none that is no task.
fn engines_and_daemons_are_killed_in_every_order(lab: &Lab) -> Result<()> {
    let node = failure::follower(lab)?;
    for order in ["the daemon first", "the engine first"] {
        lab.kill_daemon(&node)?;
        lab.kill_engine(&node)?;
        if order == "the daemon first" {
            lab.start(&node)?;
            lab.start_engine(&node)?;
        } else {
            lab.start_engine(&node)?;
            lab.start(&node)?;
        }
        lab.wait_ready("n1", 3)?;
        let tasks = await_containers(lab, &node, "whoami", order);
        all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, Duration::from_secs(10));
    }
    task_of(lab, "probe").map(drop)
}

/// The engine asks the driver of each endpoint that it had when it was killed. If nobody listened,
/// it would try again for 15 s, and then forget the endpoint without telling the driver.
fn an_engine_waits_for_a_daemon_whose_socket_the_service_manager_holds(lab: &Lab) -> Result<()> {
    let node = failure::follower(lab)?;
    lab.kill_daemon(&node)?;
    lab.kill_engine(&node)?;
    let path = contract::engine_plugins(&node).join("weft.sock");
    fs::remove_file(&path)?;
    let plugin = UnixListener::bind(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    let held = fs::symlink_metadata(&path)?.ino();
    thread::scope(|scope| {
        let engine = scope.spawn(|| lab.start_engine(&node));
        let mut asks = [PollFd::new(&plugin, PollFlags::IN)];
        let limit = Timespec::try_from(ENGINE_TIMEOUT)?;
        ensure!(poll(&mut asks, Some(&limit))? == 1, "the engine does not ask the driver");
        ensure!(!engine.is_finished(), "the engine does not wait for the driver");
        lab.start_with_socket(&node, &plugin)?;
        engine.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })?;
    let log = fs::read_to_string(contract::engine_dir(&node).join("dockerd.log"))?;
    let refused = log
        .lines()
        .rev()
        .take_while(|line| !line.contains("Starting up"))
        .find(|line| line.contains("weft.sock") && line.contains("connection refused"));
    ensure!(refused.is_none(), "{refused:?}");
    lab.wait_ready("n1", 3)?;
    let tasks = await_containers(lab, &node, "whoami", "started");
    all_answer(CLIENT, &lab.published(mesh::PORT), &tasks, ENGINE_TIMEOUT);
    ensure!(fs::symlink_metadata(&path)?.ino() == held, "the daemon has replaced the service manager's socket");
    lab.kill_daemon(&node)?;
    lab.start(&node)?;
    lab.wait_ready("n1", 3)
}

/// With live restore the engine takes its containers over again, and asks the driver nothing.
fn an_engine_that_keeps_its_containers_restarts_without_a_trace(lab: &Lab) -> Result<()> {
    const KEEP: &[&str] = &["--live-restore"];
    let node = failure::follower(lab)?;
    // Each node has a task of this service.
    let publish = format!("{KEPT_PORT}:{HTTP}");
    let create = ["service", "create", "--detach", "--name", "kept", "--mode", "global", "--network", "app"];
    lab.weft_ok("n1", &[&create[..], &["--publish", &publish, WHOAMI]].concat())?;
    let settled = |when: &str| await_containers(lab, &node, "kept", when);
    settled("created");
    lab.kill_engine(&node)?;
    lab.start_engine_with(&node, KEEP)?;
    let tasks = settled("started with live restore");
    all_answer(CLIENT, &lab.published(KEPT_PORT), &tasks, ENGINE_TIMEOUT);
    task_of(lab, "probe")?;

    let loads = Loads::start_to(lab, "kept", &lab.published(KEPT_PORT), "probe")?;
    lab.kill_engine(&node)?;
    lab.start_engine_with(&node, KEEP)?;
    let after = settled("restarted with live restore");
    lab.kill_daemon(&node)?;
    lab.kill_engine(&node)?;
    // The engine takes longer than the heartbeats of the node may be missing.
    lab.start(&node)?;
    lab.start_engine_with(&node, KEEP)?;
    lab.wait_ready("n1", 3)?;
    let last = settled("restarted with the daemon");
    ensure!(task_names(&tasks) == task_names(&after), "{tasks:?} became {after:?}");
    ensure!(task_names(&tasks) == task_names(&last), "{tasks:?} became {last:?}");
    loads.expect_no_errors()?;
    for task in &last {
        let answer = lab.lookup(task, contract::EXTERNAL_NAME, RecordType::A)?;
        ensure!(answer.addrs() == [IpAddr::from(contract::EXTERNAL_V4)], "{}: {answer:?}", task.name());
    }
    lab.kill_engine(&node)?;
    lab.start_engine(&node)?;
    settled("started without live restore");
    lab.weft_ok("n1", &["service", "rm", "kept"]).map(drop)
}

fn the_service_is_scaled_back_to_three_tasks(lab: &Lab) -> Result<()> {
    lab.weft_ok("n1", &["service", "scale", "whoami=3"])?;
    lab.wait_running("n1", "whoami", 3).map(|_| ())
}
