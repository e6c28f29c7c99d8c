//! Nodes that fail, drain, pause or leave, and global services.

use weft_model::{
    Command,
    spec::{Availability, Constraint, NodeAttribute, ServiceMode, UpdateOrder},
    state::{NodeStatus, TaskState},
};

use super::{super::sim::Sim, await_serving, await_update, create_serving, scale, set_availability};
use crate::fixture::service_spec;

#[test]
fn tasks_of_a_lost_node_move_and_the_node_returns_without_tasks() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 6);
    let failed = sim.node_ids()[1].clone();
    sim.kill_node(&failed);
    sim.run_until("all replicas to serve again", |sim| sim.active(&service).len() == 6);
    assert!(sim.active(&service).iter().all(|t| t.node.as_ref() != Some(&failed)));
    let orphans = sim.state().tasks_on(&failed).filter(|t| t.status.state == TaskState::Orphaned).count();
    assert_eq!(orphans, 2);
    sim.revive_node(&failed);
    sim.run(5_000);
    assert!(sim.task_processes(&failed).is_empty());
    assert_eq!(sim.active(&service).len(), 6);
}

#[test]
fn draining_a_node_moves_its_tasks_and_keeps_one_serving() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = Sim::new(2);
        let service = create_serving(&mut sim, 2);
        sim.cluster.update_service(&service, |spec| spec.update.order = order);
        let least = if order == UpdateOrder::StartFirst { 2 } else { 1 };
        for hostname in ["n1", "n2"] {
            set_availability(&mut sim, hostname, Availability::Drain);
            for _ in 0..100 {
                sim.tick();
                assert!(sim.fewest_backends(&service) >= least);
            }
        }
        await_serving(&mut sim, &service, 2);
        assert!(sim.active(&service).iter().all(|t| {
            sim.state().nodes[t.node.as_ref().expect("an active task has a node")].spec.availability
                == Availability::Active
        }));
    }
}

#[test]
fn draining_the_last_node_stops_all_tasks_and_reports_why() {
    let mut sim = Sim::new(0);
    let service = create_serving(&mut sim, 3);
    set_availability(&mut sim, "n1", Availability::Drain);
    sim.run(10_000);
    assert!(sim.active(&service).is_empty());
    let waiting: Vec<_> = sim.state().tasks_of(&service).filter(|t| t.status.state == TaskState::Pending).collect();
    assert_eq!(waiting.len(), 3);
    assert!(waiting.iter().all(|t| t.status.error == "no suitable node (1 node not available for new tasks)"));
    set_availability(&mut sim, "n1", Availability::Active);
    await_serving(&mut sim, &service, 3);
}

#[test]
fn a_global_service_has_one_task_on_each_available_node() {
    let mut sim = Sim::new(2);
    let mut spec = service_spec("agent", 0, &[]);
    spec.mode = ServiceMode::Global;
    let service = sim.create(spec);
    sim.run_until("one task on each node", |sim| sim.active(&service).len() == 3);
    set_availability(&mut sim, "n2", Availability::Drain);
    sim.run_until("no task on n2", |sim| sim.active(&service).len() == 2);
    set_availability(&mut sim, "n2", Availability::Active);
    sim.run_until("one task on each node", |sim| sim.active(&service).len() == 3);
    sim.cluster.update_service(&service, |spec| spec.task.force_update = 1);
    await_update(&mut sim, &service, 2);
    let failed = sim.node_ids()[2].clone();
    sim.kill_node(&failed);
    sim.run(10_000);
    assert_eq!(sim.active(&service).len(), 2);
    sim.revive_node(&failed);
    sim.run_until("one task on each node", |sim| sim.active(&service).len() == 3);
    sim.submit(Command::RemoveService { id: service.clone() });
    sim.run_until("everything to be deleted", |sim| sim.state().tasks.is_empty() && sim.state().services.is_empty());
}

#[test]
fn a_paused_node_keeps_its_tasks_and_gets_no_more() {
    let mut sim = Sim::new(1);
    let service = create_serving(&mut sim, 2);
    set_availability(&mut sim, "n2", Availability::Pause);
    scale(&mut sim, &service, 6);
    await_serving(&mut sim, &service, 6);
    let n2 = sim.cluster.node_named("n2");
    assert_eq!(n2.status, NodeStatus::Ready);
    assert_eq!(sim.active(&service).iter().filter(|t| t.node.as_ref() == Some(&n2.id)).count(), 1);
}

#[test]
fn a_removed_node_leaves_nothing_behind() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 3);
    let mut spec = service_spec("agent", 0, &[]);
    spec.mode = ServiceMode::Global;
    let agent = sim.create(spec);
    sim.run_until("one task on each node", |sim| sim.active(&agent).len() == 3);
    let gone = sim.cluster.node_named("n3").id.clone();
    sim.kill_node(&gone);
    sim.submit(Command::RemoveNode { id: gone, force: false });
    await_serving(&mut sim, &service, 3);
    assert_eq!(sim.state().tasks_of(&agent).count(), 2, "the slot of the removed node is deleted");
}

#[test]
fn tasks_leave_a_node_that_no_longer_satisfies_the_constraints() {
    let mut sim = Sim::new(1);
    let label = |sim: &mut Sim, hostname: &str, disk: &str| {
        sim.update_node(hostname, |spec| _ = spec.labels.insert("disk".to_owned(), disk.to_owned()));
    };
    label(&mut sim, "n2", "ssd");
    let mut spec = service_spec("db", 2, &[]);
    let attribute = NodeAttribute::Label("disk".to_owned());
    spec.task.placement.constraints.push(Constraint { attribute, equal: true, value: "ssd".to_owned() });
    let service = sim.create(spec);
    await_serving(&mut sim, &service, 2);
    label(&mut sim, "n1", "ssd");
    label(&mut sim, "n2", "disk");
    sim.run(10_000);
    await_serving(&mut sim, &service, 2);
    let n1 = sim.cluster.node_named("n1");
    assert!(sim.active(&service).iter().all(|t| t.node.as_ref() == Some(&n1.id)));
}
