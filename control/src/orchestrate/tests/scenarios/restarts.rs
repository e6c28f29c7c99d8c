//! Tasks that end by themselves.

use weft_model::{
    spec::RestartCondition,
    state::{Task, TaskState},
};

use super::{super::sim::Sim, await_serving, create_serving};
use crate::fixture::{network_spec, service_spec};

#[test]
fn a_crashed_task_is_replaced_after_the_restart_delay() {
    let mut sim = Sim::new(1);
    let service = create_serving(&mut sim, 1);
    let crashed = sim.active(&service)[0].id.clone();
    sim.crash(&crashed);
    let at_ms = sim.cluster.now_ms;
    sim.run_until("another task to run", |sim| sim.active(&service).iter().any(|t| t.id != crashed));
    assert!(sim.cluster.now_ms >= at_ms + 5_000);
    let old = &sim.state().tasks[&crashed];
    assert_eq!((old.desired, old.status.state), (TaskState::Shutdown, TaskState::Failed));
    assert_eq!(sim.active(&service)[0].restarts.total, 1);
}

#[test]
fn the_history_of_a_slot_is_limited() {
    let mut sim = Sim::new(1);
    sim.broken_images.insert("broken".to_owned());
    let mut spec = service_spec("web", 1, &[]);
    spec.task.container.image = "broken".to_owned();
    let service = sim.create(spec);
    sim.run(120_000);
    let ended = sim.state().tasks_of(&service).filter(|t| t.status.state.is_terminal()).count();
    assert_eq!(ended, 5);
}

#[test]
fn a_task_that_failed_too_often_stays_down_until_the_service_changes() {
    let mut sim = Sim::new(1);
    sim.broken_images.insert("broken".to_owned());
    let mut spec = service_spec("web", 1, &[]);
    spec.task.container.image = "broken".to_owned();
    spec.task.restart.max_attempts = 2;
    spec.task.restart.delay_ms = 100;
    let service = sim.create(spec);
    sim.run(60_000);
    let tasks: Vec<&Task> = sim.state().tasks_of(&service).collect();
    assert_eq!(tasks.len(), 3);
    assert!(tasks.iter().all(|t| t.status.state == TaskState::Failed && t.desired == TaskState::Shutdown));
    sim.cluster.update_service(&service, |spec| spec.task.container.image = "good".to_owned());
    await_serving(&mut sim, &service, 1);
}

#[test]
fn a_task_is_not_restarted_with_condition_none() {
    let mut sim = Sim::new(1);
    let network = sim.cluster.add_network(network_spec("app"));
    let mut spec = service_spec("web", 2, &[&network]);
    spec.task.restart.condition = RestartCondition::None;
    let service = sim.create(spec);
    await_serving(&mut sim, &service, 2);
    let crashed = sim.active(&service)[0].id.clone();
    sim.crash(&crashed);
    sim.run(60_000);
    assert_eq!(sim.active(&service).len(), 1);
    assert_eq!(sim.state().tasks_of(&service).count(), 2);
}

#[test]
fn a_rejected_task_is_retried_only_after_the_restart_delay() {
    let mut sim = Sim::new(1);
    let network = sim.cluster.add_network(network_spec("app"));
    let spec = service_spec("web", 1, &[&network]);
    sim.missing_images.insert(spec.task.container.image.clone());
    let delay_ms = spec.task.restart.delay_ms;
    let service = sim.create(spec);
    let rejected = |sim: &Sim| sim.state().tasks_of(&service).filter(|t| t.status.state == TaskState::Rejected).count();
    sim.run_until("the first task to be rejected", |sim| rejected(sim) == 1);
    sim.run(delay_ms - 1_000);
    assert_eq!(rejected(&sim), 1);
    sim.run(2_000);
    assert_eq!(rejected(&sim), 2);
    sim.missing_images.clear();
    await_serving(&mut sim, &service, 1);
}

#[test]
fn a_task_that_fails_at_once_is_restarted_ever_more_slowly() {
    let mut sim = Sim::new(1);
    sim.broken_images.insert("broken".to_owned());
    let mut spec = service_spec("web", 1, &[]);
    spec.task.container.image = "broken".to_owned();
    spec.task.restart.delay_ms = 0;
    let service = sim.create(spec);
    let mut created = std::collections::BTreeSet::new();
    for _ in 0..6_000 {
        sim.tick();
        created.extend(sim.state().tasks_of(&service).map(|t| t.id.clone()));
    }
    // 2 at once, then after 1, 2, 4, 8, 16 and 32 s, then one each minute.
    assert!((14..=18).contains(&created.len()), "{} tasks in ten minutes", created.len());
    let attempts = sim.state().tasks_of(&service).map(|t| t.restarts.total).max();
    assert!(attempts.is_some_and(|attempts| attempts >= 13));
}
