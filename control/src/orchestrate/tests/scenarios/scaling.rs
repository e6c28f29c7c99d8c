//! Creation, scaling and removal of services.

use weft_model::{Command, state::Traffic};

use super::{super::sim::Sim, await_serving, create_serving, scale};

#[test]
fn replicas_are_spread_and_serve() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 6);
    for node in sim.node_ids() {
        assert_eq!(sim.state().tasks_on(&node).count(), 2);
    }
    let mut slots: Vec<_> = sim.active(&service).iter().map(|t| t.slot.clone()).collect();
    slots.sort();
    slots.dedup();
    assert_eq!(slots.len(), 6);
}

#[test]
fn scaling_down_drains_and_deletes_tasks() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 5);
    scale(&mut sim, &service, 2);
    let draining = sim.state().tasks_of(&service).filter(|t| t.traffic == Traffic::Draining);
    assert_eq!(draining.count(), 3);
    sim.run_until("the other tasks to be deleted", |sim| sim.state().tasks_of(&service).count() == 2);
    let nodes: Vec<_> = sim.active(&service).iter().map(|t| t.node.clone()).collect();
    assert_ne!(nodes[0], nodes[1], "the remaining tasks are spread");
    scale(&mut sim, &service, 0);
    sim.run_until("everything to be deleted", |sim| sim.state().tasks.is_empty());
    scale(&mut sim, &service, 3);
    await_serving(&mut sim, &service, 3);
}

#[test]
fn a_removed_service_leaves_nothing_and_frees_its_name_at_once() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 3);
    let spec = sim.state().services[&service].spec.clone();
    sim.submit(Command::RemoveService { id: service.clone() });
    let successor = sim.create(spec);
    await_serving(&mut sim, &successor, 3);
    sim.run_until("the old service to be deleted", |sim| !sim.state().services.contains_key(&service));
    sim.submit(Command::RemoveService { id: successor });
    sim.run_until("everything to be deleted", |sim| sim.state().services.is_empty() && sim.state().tasks.is_empty());
    assert!(!sim.state().allocated.quarantine.is_empty());
    sim.run(31_000);
    assert!(sim.state().allocated.quarantine.is_empty());
}
