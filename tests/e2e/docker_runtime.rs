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
            mesh::much_data_passes_unchanged_both_ways,
            mesh::a_port_that_nobody_published_stays_closed,
            mesh::a_service_without_a_network_is_published_too,
            mesh::a_port_is_chosen_where_none_is_named,
            mesh::tasks_reach_the_outside,
            names::a_service_is_reached_by_its_name,
            names::a_vip_balances_every_port_that_the_tasks_listen_on,
            names::a_vip_answers_ping,
            names::a_datagram_to_a_vip_is_answered_by_the_vip,
            names::a_raw_packet_to_a_vip_is_answered_by_the_vip,
            names::tasks_dot_a_service_gives_the_tasks_addresses,
            names::a_tasks_own_name_and_its_reverse_resolve,
            names::a_task_reaches_its_own_service,
            names::ipv6_names_exist_where_the_network_has_ipv6,
            names::a_service_without_a_vip_resolves_to_its_tasks,
            names::an_unknown_name_and_a_missing_type_are_told_apart,
            names::long_answers_come_by_edns_or_tcp,
            names::names_from_outside_resolve_through_the_upstream,
            docker_exec_resolves_and_reaches_by_name,
            containers_bear_their_tasks_names,
            isolation::a_service_of_another_network_has_no_name,
            isolation::an_address_of_another_network_does_not_answer,
            isolation::a_forged_source_is_dropped,
            isolation::a_forged_vni_is_dropped,
            isolation::tasks_cannot_reach_the_control_port,
            isolation::tasks_cannot_reach_the_tunnel,
            isolation::a_service_on_two_networks_reaches_both,
            isolation::an_internal_network_has_no_way_out,
            scaling::new_tasks_take_traffic_within_a_second,
            scaling::scaling_down_loses_no_request,
            scaling::scaling_to_zero_and_back_works,
            back_to_three,
            update::forcing_an_update_replaces_every_task_without_an_error,
            update::a_new_image_rolls_out_without_an_error,
            update::starting_first_never_has_fewer_tasks,
            update::a_failing_update_pauses_and_says_why,
            update::a_rollback_returns_to_what_was,
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
            failure::a_daemon_that_is_told_to_stop_leaves_traffic_alone,
            failure::drift_is_repaired,
            failure::a_killed_task_is_replaced,
            failure::another_manager_takes_over_from_a_killed_leader,
            failure::a_lost_nodes_tasks_run_elsewhere_and_the_mesh_forgets_it,
        ],
    }
}

fn setup(lab: &Lab) -> Result<()> {
    docker::make_tools_image(lab.engine().context("an engine")?)?;
    mesh::setup(lab)?;
    names::setup_ipv6(lab)?;
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
