//! The story once more with real containers: the same sentences, true of the docker runtime.

use anyhow::{Context, Result, ensure};
use weft_lab::{Lab, Runtime, docker};

use crate::{
    failure,
    fixtures::{task_names, task_of},
    harness::{Shape, Theme, tests},
    isolation, mesh, names, scaling, update,
};

pub(crate) fn theme() -> Theme {
    Theme {
        name: "docker_runtime",
        shape: Shape { runtime: Runtime::Docker, ..Shape::default() },
        setup,
        tests: tests![
            mesh::every_node_answers_evenly_by_ipv4_and_ipv6,
            mesh::replies_show_the_clients_own_address,
            mesh::each_node_answers_on_localhost_and_on_its_own_addresses,
            mesh::udp_reaches_the_tasks_evenly_through_every_node,
            mesh::tasks_reach_the_outside,
            names::a_service_is_reached_by_its_name,
            names::a_vip_balances_every_port_that_the_tasks_listen_on,
            names::a_vip_answers_ping,
            names::tasks_dot_a_service_gives_the_tasks_addresses,
            names::a_task_reaches_its_own_service,
            names::names_from_outside_resolve_through_the_upstream,
            docker_exec_resolves_and_reaches_by_name,
            containers_bear_their_tasks_names,
            isolation::a_service_of_another_network_has_no_name,
            isolation::an_address_of_another_network_does_not_answer,
            isolation::a_forged_source_is_dropped,
            isolation::a_forged_vni_is_dropped,
            isolation::a_service_on_two_networks_reaches_both,
            scaling::new_tasks_take_traffic_within_a_second,
            scaling::scaling_down_loses_no_request,
            back_to_three,
            update::forcing_an_update_replaces_every_task_without_an_error,
            update::a_new_image_rolls_out_without_an_error,
            scaling::a_removed_service_is_gone_within_a_second,
        ],
    }
}

pub(crate) fn failures() -> Theme {
    Theme {
        name: "docker_failure",
        shape: Shape { runtime: Runtime::Docker, managers: 3, ..Shape::default() },
        setup: |lab| {
            docker::make_tools_image(lab.engine().context("an engine")?)?;
            failure::setup(lab)
        },
        tests: tests![
            failure::traffic_goes_on_without_the_daemon,
            failure::a_returning_daemon_disturbs_nothing,
            failure::drift_is_repaired,
            failure::a_killed_task_is_replaced,
            failure::another_manager_takes_over_from_a_killed_leader,
            failure::a_lost_nodes_tasks_run_elsewhere_and_the_mesh_forgets_it,
        ],
    }
}

fn setup(lab: &Lab) -> Result<()> {
    docker::make_tools_image(lab.engine().context("an engine")?)?;
    scaling::setup(lab)?;
    isolation::setup(lab)
}

fn docker_exec_resolves_and_reaches_by_name(lab: &Lab) -> Result<()> {
    let engine = lab.engine().context("an engine")?;
    let probe = task_of(lab, "probe")?;
    let container = format!("probe.{}.{}", probe.slot, probe.id);
    let found = docker::docker(engine, &["exec", &container, "getent", "ahostsv4", "whoami"])?;
    ensure!(found.contains("whoami"), "{found}");
    let body = docker::docker(engine, &["exec", &container, "curl", "--silent", "--max-time", "5", "http://whoami/"])?;
    let tasks = lab.wait_running("n1", "whoami", 3)?;
    ensure!(task_names(&tasks).iter().any(|name| body.contains(name)), "{body}");
    Ok(())
}

fn containers_bear_their_tasks_names(lab: &Lab) -> Result<()> {
    let engine = lab.engine().context("an engine")?;
    let listed = docker::docker(engine, &["ps", "--format", "{{.Names}}"])?;
    for name in task_names(&lab.wait_running("n1", "whoami", 3)?) {
        ensure!(listed.lines().any(|line| line == name), "no {name} in:\n{listed}");
    }
    Ok(())
}

fn back_to_three(lab: &Lab) -> Result<()> {
    lab.weft_ok("n1", &["service", "scale", "whoami=3"])?;
    lab.wait_running("n1", "whoami", 3).map(|_| ())
}
