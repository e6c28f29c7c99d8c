//! Nodes that do not acknowledge their plans.

use std::collections::BTreeSet;

use weft_model::{
    Command, NodeId,
    state::{TaskState, Traffic},
};

use super::{
    super::sim::{Delays, Sim},
    await_serving, create_serving, scale,
};
use crate::{
    fixture::{service_spec, subnet_spec},
    orchestrate::{convergence::CONVERGE_MS, traffic::ACK_WAIT_MS},
};

#[test]
fn a_node_that_never_acks_delays_a_step_by_the_ack_wait_only() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 3);
    let slow = sim.node_ids()[0].clone();
    sim.set_delays(&slow, Delays { plan_ms: 1_000_000, ..Delays::default() });
    sim.fault_injected = true;
    scale(&mut sim, &service, 1);
    sim.run(4_000);
    assert_eq!(sim.state().tasks_of(&service).filter(|t| t.must_stop()).count(), 0);
    sim.run(1_500);
    assert_eq!(sim.state().tasks_of(&service).filter(|t| t.traffic == Traffic::Drained).count(), 2);
}

#[test]
fn a_new_leader_restarts_the_ack_wait() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 3);
    for node in sim.node_ids() {
        sim.set_delays(&node, Delays { plan_ms: 1_000_000, ..Delays::default() });
    }
    sim.fault_injected = true;
    scale(&mut sim, &service, 1);
    sim.run(4_000);
    sim.change_leader();
    sim.run(4_000);
    assert_eq!(sim.state().tasks_of(&service).filter(|t| t.traffic == Traffic::Drained).count(), 0);
    sim.run(1_500);
    assert_eq!(sim.state().tasks_of(&service).filter(|t| t.traffic == Traffic::Drained).count(), 2);
}

#[test]
fn a_node_that_never_acks_stops_delaying_others_and_gets_no_tasks_until_it_has_caught_up() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 3);
    let stuck = sim.node_ids()[1].clone();
    sim.block_node(&stuck);
    scale(&mut sim, &service, 6);
    sim.run(CONVERGE_MS - 1_000);
    assert!(sim.state().nodes[&stuck].has_converged());
    sim.run(1_500);
    let lag = sim.state().nodes[&stuck].lag.clone().expect("it does not converge");
    assert_eq!(lag.reason, "the node has not acknowledged its plan for 15 s");
    scale(&mut sim, &service, 8);
    sim.run(2_000);
    let on_stuck = |sim: &Sim| {
        let tasks = sim.state().tasks_of(&service).filter(|t| t.node.as_ref() == Some(&stuck));
        tasks.filter(|t| t.desired == TaskState::Running).count()
    };
    assert_eq!((on_stuck(&sim), sim.active(&service).len()), (1, 8), "all new tasks are on other nodes");
    // A hand-over no longer waits for it.
    let other = sim.active(&service).into_iter().find(|t| t.node.as_ref() != Some(&stuck)).expect("a task").id.clone();
    let since_ms = sim.cluster.now_ms;
    sim.submit(Command::SetDesired { id: other.clone(), desired: TaskState::Shutdown });
    sim.run_until("the task to be drained", |sim| sim.state().tasks[&other].must_stop());
    assert!(sim.cluster.now_ms - since_ms < ACK_WAIT_MS);
    sim.revive_node(&stuck);
    sim.run_until("the node to converge", |sim| sim.state().nodes[&stuck].has_converged());
    await_serving(&mut sim, &service, 8);
    scale(&mut sim, &service, 12);
    await_serving(&mut sim, &service, 12);
    assert!(on_stuck(&sim) > 1, "it gets new tasks again");
}

/// A service on a network with five addresses for tasks, one task on each of three nodes. Returns
/// the simulation and the node whose daemon then ends.
fn small_network() -> (Sim, NodeId) {
    let mut sim = Sim::new(2);
    let network = sim.cluster.add_network(subnet_spec("small", "10.9.0.0/29"));
    let service = sim.create(service_spec("web", 3, &[&network]));
    await_serving(&mut sim, &service, 3);
    let failed = sim.node_ids()[1].clone();
    sim.kill_daemon(&failed);
    sim.run(60_000);
    (sim, failed)
}

fn quarantined(sim: &Sim) -> BTreeSet<Option<NodeId>> {
    sim.state().allocated.quarantine.iter().map(|freed| freed.node.clone()).collect()
}

#[test]
fn the_address_of_a_task_whose_daemon_is_gone_comes_back_when_the_node_acks_or_is_removed() {
    let (mut sim, failed) = small_network();
    assert_eq!(quarantined(&sim), BTreeSet::from([Some(failed.clone())]), "its task may still use the address");
    sim.change_leader();
    sim.run(60_000);
    assert_eq!(quarantined(&sim).len(), 1, "also for the next leader");
    sim.revive_node(&failed);
    sim.run_until_within(10_000, "the address to come back", |sim| quarantined(sim).is_empty());

    let (mut sim, failed) = small_network();
    sim.submit(Command::RemoveNode { id: failed, force: false });
    sim.run_until_within(10_000, "the address to come back", |sim| quarantined(sim).is_empty());

    let (mut sim, _) = small_network();
    let [freed] = sim.state().allocated.quarantine.as_slice() else { panic!("one address is in quarantine") };
    sim.cluster.now_ms = freed.freed_ms + 24 * 3_600_000 - 60_000;
    sim.run(55_000);
    assert_eq!(quarantined(&sim).len(), 1, "24 h are not over");
    sim.run_until_within(10_000, "the address to come back", |sim| quarantined(sim).is_empty());
}
