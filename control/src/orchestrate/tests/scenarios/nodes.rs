//! Nodes that fail, drain, pause or leave, and global services.

use std::cell::Cell;

use weft_model::{
    Command, ServiceId,
    spec::{Availability, Constraint, NodeAttribute, Platform, ServiceMode, UpdateOrder},
    state::{NodeDescription, NodeStatus, TaskState, UpdateState},
};

use super::{super::sim::Sim, await_serving, await_update, create_serving, scale, set_availability, update_status};
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

/// Creates a global service, and waits until it has a task on each of the `nodes` nodes.
fn create_global(sim: &mut Sim, nodes: usize) -> ServiceId {
    let mut spec = service_spec("agent", 0, &[]);
    spec.mode = ServiceMode::Global;
    let service = sim.create(spec);
    sim.run_until("one task on each node", |sim| sim.active(&service).len() == nodes);
    service
}

#[test]
fn an_update_of_a_global_service_skips_a_paused_node_until_it_is_active() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = Sim::new(2);
        let service = create_global(&mut sim, 3);
        set_availability(&mut sim, "n3", Availability::Pause);
        let n3 = sim.cluster.node_named("n3").id.clone();
        sim.cluster.update_service(&service, |spec| {
            spec.update.order = order;
            spec.task.force_update = 1;
        });
        let updated = |sim: &Sim| sim.active(&service).iter().filter(|t| t.spec.force_update == 1).count();
        sim.run_until("the update to complete", |sim| {
            sim.state().services[&service].update.as_ref().is_some_and(|u| u.state == UpdateState::Completed)
        });
        assert_eq!((updated(&sim), sim.active(&service).len()), (2, 3));
        assert_eq!(sim.state().tasks_on(&n3).count(), 1, "the paused node keeps the task that it had");
        sim.run(60_000);
        assert_eq!(updated(&sim), 2);
        set_availability(&mut sim, "n3", Availability::Active);
        sim.run_until("the last task to be updated", |sim| updated(sim) == 3);
    }
}

#[test]
fn a_node_that_is_paused_during_an_update_does_not_hold_it_up() {
    let mut sim = Sim::new(2);
    let service = create_global(&mut sim, 3);
    // Its tasks no longer fit on n3, and there is no task of the new spec on it when it is paused.
    let n3 = sim.cluster.node_named("n3").id.clone();
    let mut description = crate::fixture::description(&[]);
    description.memory_bytes = 1 << 20;
    sim.submit(Command::DescribeNode { node: n3, description: Box::new(description) });
    sim.cluster.update_service(&service, |spec| {
        spec.update.parallelism = 0;
        spec.task.resources.reserve_memory_bytes = 1 << 30;
    });
    sim.run_until("two tasks to be updated", |sim| {
        sim.active(&service).iter().filter(|t| t.spec.resources.reserve_memory_bytes > 0).count() == 2
    });
    sim.run(1_000);
    set_availability(&mut sim, "n3", Availability::Pause);
    await_update(&mut sim, &service, 2);
    assert_eq!(update_status(&sim, &service), (UpdateState::Completed, "update completed".to_owned()));
}

#[test]
fn a_drained_node_is_emptied_although_there_is_no_other_place() {
    let mut sim = Sim::new(0);
    let service = create_serving(&mut sim, 2);
    sim.cluster.update_service(&service, |spec| {
        spec.update.order = UpdateOrder::StartFirst;
        spec.update.monitor_ms = 8_000;
    });
    set_availability(&mut sim, "n1", Availability::Drain);
    sim.run(7_000);
    assert_eq!(sim.active(&service).len(), 2, "the tasks stay while there may be another place");
    let n1 = sim.node_ids()[0].clone();
    sim.run_until("the node to be empty", |sim| sim.task_processes(&n1).is_empty());
    sim.run(10_000);
    let waiting: Vec<_> = sim.state().tasks_of(&service).filter(|t| t.status.state == TaskState::Pending).collect();
    assert_eq!(waiting.len(), 2);
    assert!(waiting.iter().all(|t| t.status.error == "no suitable node (1 node not available for new tasks)"));
    set_availability(&mut sim, "n1", Availability::Active);
    await_serving(&mut sim, &service, 2);
}

#[test]
fn a_drained_node_is_emptied_although_the_tasks_fail_elsewhere() {
    for max_attempts in [0, 1] {
        let mut sim = Sim::new(1);
        let service = create_serving(&mut sim, 2);
        sim.cluster.update_service(&service, |spec| {
            spec.update.order = UpdateOrder::StartFirst;
            spec.task.restart.max_attempts = max_attempts;
            spec.task.force_update += 1;
        });
        await_update(&mut sim, &service, 2);
        await_serving(&mut sim, &service, 2);
        sim.fault_injected = true;
        sim.broken_images.insert("weft/whoami".to_owned());
        set_availability(&mut sim, "n1", Availability::Drain);
        let n1 = sim.cluster.node_named("n1").id.clone();
        sim.run_until("the node to be empty", |sim| sim.task_processes(&n1).is_empty());
    }
}

#[test]
fn a_task_leaves_a_node_that_no_longer_satisfies_the_constraints_although_no_node_does() {
    let mut sim = Sim::new(1);
    sim.update_node("n2", |spec| _ = spec.labels.insert("disk".to_owned(), "ssd".to_owned()));
    let mut spec = service_spec("db", 1, &[]);
    let attribute = NodeAttribute::Label("disk".to_owned());
    spec.task.placement.constraints.push(Constraint { attribute, equal: true, value: "ssd".to_owned() });
    spec.update.order = UpdateOrder::StartFirst;
    let service = sim.create(spec);
    await_serving(&mut sim, &service, 1);
    sim.update_node("n2", |spec| _ = spec.labels.remove("disk"));
    sim.run(20_000);
    assert!(sim.active(&service).is_empty());
    let waiting = sim.state().tasks_of(&service).find(|t| t.status.state == TaskState::Pending);
    assert_eq!(
        waiting.expect("a pending task").status.error,
        "no suitable node (scheduling constraints not satisfied on 2 nodes)"
    );
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

#[test]
fn a_global_service_runs_on_the_nodes_of_its_platforms() {
    let mut sim = Sim::new(2);
    let arm = sim.node_ids()[1].clone();
    let description = Box::new(NodeDescription { arch: "aarch64".to_owned(), ..crate::fixture::description(&[]) });
    sim.submit(Command::DescribeNode { node: arm.clone(), description });
    let linux = |arch: &str| Platform { os: "linux".to_owned(), arch: arch.to_owned() };
    let mut spec = service_spec("web", 1, &[]);
    spec.mode = ServiceMode::Global;
    spec.task.placement.platforms = vec![linux("amd64")];
    let service = sim.create(spec);
    sim.run_until("two nodes to run it", |sim| sim.active(&service).len() == 2);
    assert!(sim.active(&service).iter().all(|t| t.node.as_ref() != Some(&arm)));
    sim.cluster.update_service(&service, |spec| spec.task.placement.platforms.push(linux("arm64")));
    sim.run_until("all nodes to run it", |sim| sim.active(&service).len() == 3);
    // The task of a node that the new image is not for stays as it is.
    let old = sim.state().tasks_on(&arm).next().expect("a task").id.clone();
    sim.cluster.update_service(&service, |spec| spec.task.placement.platforms.truncate(1));
    sim.run_until("the update to be completed", |sim| {
        sim.state().services[&service].update.as_ref().is_some_and(|status| status.state == UpdateState::Completed)
    });
    let current = |sim: &Sim| {
        let service = &sim.state().services[&service];
        sim.active(&service.id).iter().filter(|t| t.is_current(service)).count()
    };
    assert_eq!((sim.active(&service).len(), current(&sim)), (3, 2));
    // Once it has ended, the node gets no other one.
    sim.crash(&old);
    sim.run(60_000);
    assert_eq!((sim.active(&service).len(), current(&sim)), (2, 2));
}

/// Tasks that serve are not ended for an image that no node can run.
#[test]
fn an_image_for_a_platform_of_no_node_pauses_the_update_of_one_task() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = Sim::new(2);
        let mut spec = service_spec("web", 4, &[]);
        spec.update.order = order;
        let service = sim.create(spec);
        sim.run_until("four tasks to serve", |sim| sim.active(&service).len() == 4);
        sim.cluster.update_service(&service, |spec| {
            spec.task.container.image = "other".to_owned();
            spec.task.placement.platforms = vec![Platform { os: "linux".to_owned(), arch: "s390x".to_owned() }];
        });
        let fewest = Cell::new(usize::MAX);
        let count = |sim: &Sim| fewest.set(fewest.get().min(sim.active(&service).len()));
        sim.run_until("the update to be paused", |sim| {
            count(sim);
            sim.state().services[&service].update.as_ref().is_some_and(|status| status.state == UpdateState::Paused)
        });
        sim.run(120_000);
        count(&sim);
        let expected = if order == UpdateOrder::StopFirst { 3 } else { 4 };
        assert_eq!(fewest.get(), expected, "{order:?}");
    }
}
