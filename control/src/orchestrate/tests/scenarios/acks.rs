//! Nodes that do not acknowledge their plans.

use weft_model::state::Traffic;

use super::{
    super::sim::{Delays, Sim},
    create_serving, scale,
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
