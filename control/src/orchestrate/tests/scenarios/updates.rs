//! Rolling updates and rollbacks.

use weft_model::{
    Command, Rejection, ServiceId,
    spec::{FailureAction, RegistryAuth, RestartCondition, ServiceSpec, UpdateOrder},
    state::UpdateState,
};

use super::{super::sim::Sim, await_serving, await_update, create_serving, update_status};
use crate::fixture::{network_spec, service_spec, tcp};

fn rollback_by_user(sim: &Sim, service: &ServiceId) -> Command {
    let version = sim.state().services[service].meta.version;
    Command::RollbackService { id: service.clone(), version, message: "asked".to_owned(), automatic: false }
}

fn await_rollback(sim: &mut Sim, service: &ServiceId) {
    sim.run_until("the rollback to end", |sim| {
        sim.state().services[service].update.as_ref().is_some_and(|u| u.state == UpdateState::RollbackCompleted)
    });
}

#[test]
fn a_stop_first_update_replaces_one_task_at_a_time() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 4);
    sim.cluster.update_service(&service, |spec| spec.task.container.image = "two".to_owned());
    await_update(&mut sim, &service, 3);
    assert_eq!(update_status(&sim, &service), (UpdateState::Completed, "update completed".to_owned()));
    assert!(sim.active(&service).iter().all(|t| t.spec.container.image == "two"));
    assert_eq!(sim.active(&service).len(), 4);
}

#[test]
fn a_start_first_update_never_has_fewer_tasks() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 1);
    sim.cluster.update_service(&service, |spec| {
        spec.update.order = UpdateOrder::StartFirst;
        spec.task.force_update += 1;
    });
    await_update(&mut sim, &service, 1);
    assert_eq!(update_status(&sim, &service).0, UpdateState::Completed);
    assert!(sim.active(&service).iter().all(|t| t.spec.force_update == 1));
}

#[test]
fn a_new_leader_ends_the_watch_of_a_task_only_once_its_node_has_reported() {
    let mut sim = Sim::new(1);
    let service = create_serving(&mut sim, 1);
    sim.cluster.update_service(&service, |spec| spec.task.container.image = "two".to_owned());
    sim.run_until("the new task to get traffic", |sim| {
        sim.active(&service).iter().any(|t| t.spec.container.image == "two")
    });
    let node = sim.active(&service)[0].node.clone().expect("a node");
    sim.silence_node(&node);
    sim.change_leader();
    sim.run(30_000);
    assert_eq!(update_status(&sim, &service).0, UpdateState::Updating, "the task may have failed meanwhile");
    sim.revive_node(&node);
    await_update(&mut sim, &service, 0);
    assert_eq!(update_status(&sim, &service).0, UpdateState::Completed);
}

#[test]
fn an_update_of_all_tasks_at_once_keeps_one_serving() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = Sim::new(2);
        let service = create_serving(&mut sim, 3);
        sim.cluster.update_service(&service, |spec| {
            spec.update.parallelism = 0;
            spec.update.order = order;
            spec.task.force_update += 1;
        });
        await_update(&mut sim, &service, 1);
        assert_eq!(update_status(&sim, &service).0, UpdateState::Completed);
        await_serving(&mut sim, &service, 3);
    }
}

#[test]
fn an_update_waits_between_two_batches() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 3);
    let started_ms = sim.cluster.now_ms;
    sim.cluster.update_service(&service, |spec| {
        spec.update.delay_ms = 20_000;
        spec.task.force_update += 1;
    });
    await_update(&mut sim, &service, 2);
    assert!(sim.cluster.now_ms >= started_ms + 40_000);
}

#[test]
fn a_failing_update_pauses_and_the_next_update_continues() {
    let mut sim = Sim::new(2);
    sim.broken_images.insert("broken".to_owned());
    let service = create_serving(&mut sim, 3);
    sim.cluster.update_service(&service, |spec| spec.task.container.image = "broken".to_owned());
    await_update(&mut sim, &service, 2);
    let (state, message) = update_status(&sim, &service);
    assert_eq!(state, UpdateState::Paused);
    assert!(message.starts_with("update paused due to failure or early termination of task "), "{message}");
    sim.run(30_000);
    assert_eq!(sim.active(&service).len(), 2, "the other tasks are not replaced");
    sim.cluster.update_service(&service, |spec| spec.task.container.image = "good".to_owned());
    await_update(&mut sim, &service, 2);
    assert_eq!(update_status(&sim, &service).0, UpdateState::Completed);
    await_serving(&mut sim, &service, 3);
}

#[test]
fn a_failing_start_first_update_keeps_all_old_tasks() {
    let mut sim = Sim::new(2);
    sim.broken_images.insert("broken".to_owned());
    let service = create_serving(&mut sim, 3);
    sim.cluster.update_service(&service, |spec| {
        spec.update.order = UpdateOrder::StartFirst;
        spec.task.container.image = "broken".to_owned();
    });
    await_update(&mut sim, &service, 3);
    assert_eq!(update_status(&sim, &service).0, UpdateState::Paused);
    sim.run(30_000);
    assert_eq!(sim.active(&service).len(), 3);
}

#[test]
fn a_failing_update_rolls_back() {
    let mut sim = Sim::new(2);
    sim.broken_images.insert("broken".to_owned());
    let service = create_serving(&mut sim, 3);
    let before: Vec<_> = sim.active(&service).iter().map(|t| t.id.clone()).collect();
    sim.cluster.update_service(&service, |spec| {
        spec.update.on_failure = FailureAction::Rollback;
        spec.task.container.image = "broken".to_owned();
    });
    sim.run_until("the rollback to end", |sim| {
        let update = sim.state().services[&service].update.as_ref();
        update.is_some_and(|u| u.state == UpdateState::RollbackCompleted)
    });
    assert_eq!(update_status(&sim, &service).1, "rollback completed");
    await_serving(&mut sim, &service, 3);
    let kept = sim.active(&service).iter().filter(|t| before.contains(&t.id)).count();
    assert_eq!(kept, 2, "tasks that were not updated yet are kept");
}

#[test]
fn a_failing_update_continues_if_the_config_says_so() {
    let mut sim = Sim::new(2);
    sim.broken_images.insert("broken".to_owned());
    let service = create_serving(&mut sim, 3);
    sim.cluster.update_service(&service, |spec| {
        spec.update.on_failure = FailureAction::Continue;
        spec.task.container.image = "broken".to_owned();
    });
    await_update(&mut sim, &service, 0);
    assert_eq!(update_status(&sim, &service).0, UpdateState::Completed);
    assert!(sim.active(&service).is_empty());
}

#[test]
fn a_user_can_roll_back() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 2);
    sim.cluster.update_service(&service, |spec| spec.task.container.image = "two".to_owned());
    await_update(&mut sim, &service, 1);
    let command = rollback_by_user(&sim, &service);
    sim.submit(command);
    await_rollback(&mut sim, &service);
    assert!(sim.active(&service).iter().all(|t| t.spec.container.image == "weft/whoami"));
}

#[test]
fn a_new_update_supersedes_a_running_one() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = Sim::new(2);
        let service = create_serving(&mut sim, 4);
        let image = |image: &'static str| {
            move |spec: &mut ServiceSpec| {
                spec.update.order = order;
                spec.update.monitor_ms = 0;
                spec.task.container.image = image.to_owned();
            }
        };
        sim.cluster.update_service(&service, image("two"));
        sim.run(1_500);
        sim.cluster.update_service(&service, image("three"));
        await_update(&mut sim, &service, 3);
        await_serving(&mut sim, &service, 4);
        assert!(sim.active(&service).iter().all(|t| t.spec.container.image == "three"));
    }
}

#[test]
fn after_an_automatic_rollback_there_is_no_spec_to_roll_back_to() {
    let mut sim = Sim::new(1);
    sim.broken_images.insert("broken".to_owned());
    let service = create_serving(&mut sim, 2);
    sim.cluster.update_service(&service, |spec| {
        spec.update.on_failure = FailureAction::Rollback;
        spec.task.container.image = "broken".to_owned();
    });
    await_rollback(&mut sim, &service);
    assert_eq!(sim.state().services[&service].previous, None);
    let command = rollback_by_user(&sim, &service);
    assert_eq!(sim.cluster.apply(command), Err(Rejection::NothingToRollBack { id: service.to_string() }));
}

#[test]
fn a_rollback_to_a_port_of_another_service_pauses_and_can_be_asked_for_later() {
    let mut sim = Sim::new(1);
    sim.broken_images.insert("broken".to_owned());
    let service = create_serving(&mut sim, 2);
    sim.cluster.update_service(&service, |spec| {
        spec.update.on_failure = FailureAction::Rollback;
        spec.task.container.image = "broken".to_owned();
        spec.endpoint.ports[0] = tcp(Some(8081), 80);
    });
    let mut spec = service_spec("thief", 1, &[]);
    spec.endpoint.ports.push(tcp(Some(8080), 80));
    let thief = sim.create(spec);
    await_update(&mut sim, &service, 0);
    let (state, message) = update_status(&sim, &service);
    assert_eq!(state, UpdateState::RollbackPaused);
    let expected = "cannot roll back: port 8080/tcp is already published by service thief: choose another port or \
                    remove that service";
    assert!(message.ends_with(expected), "{message}");
    sim.run(60_000);
    assert_eq!(update_status(&sim, &service), (state, message), "it stays paused");
    sim.submit(Command::RemoveService { id: thief });
    let command = rollback_by_user(&sim, &service);
    sim.submit(command);
    await_rollback(&mut sim, &service);
    await_serving(&mut sim, &service, 2);
}

#[test]
fn a_rollback_to_a_network_that_was_removed_pauses() {
    let mut sim = Sim::new(1);
    sim.broken_images.insert("broken".to_owned());
    let service = create_serving(&mut sim, 1);
    let other = sim.cluster.add_network(network_spec("other"));
    let former = sim.state().services[&service].endpoints[0].network.clone();
    sim.cluster.update_service(&service, |spec| {
        spec.update.on_failure = FailureAction::Rollback;
        spec.task.container.image = "broken".to_owned();
        spec.task.networks[0].network = other;
    });
    while sim.cluster.apply(Command::RemoveNetwork { id: former.clone() }).is_err() {
        sim.tick();
    }
    await_update(&mut sim, &service, 0);
    let (state, message) = update_status(&sim, &service);
    assert_eq!(state, UpdateState::RollbackPaused);
    assert!(message.ends_with(&format!("cannot roll back: no such network: {former}")), "{message}");
}

#[test]
fn an_update_whose_tasks_have_no_place_pauses_or_rolls_back() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        for on_failure in [FailureAction::Pause, FailureAction::Rollback, FailureAction::Continue] {
            let mut sim = Sim::new(1);
            let service = create_serving(&mut sim, 2);
            sim.cluster.update_service(&service, |spec| {
                (spec.update.order, spec.update.on_failure) = (order, on_failure);
                spec.task.resources.reserve_memory_bytes = 1 << 40;
            });
            let (ends, because) = match on_failure {
                FailureAction::Pause => (UpdateState::Paused, "update paused because task "),
                FailureAction::Rollback => (UpdateState::RollbackCompleted, "rollback completed"),
                FailureAction::Continue => (UpdateState::Completed, "update completed"),
            };
            sim.run_until("the update to end", |sim| {
                sim.state().services[&service].update.as_ref().is_some_and(|u| u.state == ends)
            });
            let message = update_status(&sim, &service).1;
            assert!(message.starts_with(because), "{message}");
            let has_reason = message.ends_with("has no place: no suitable node (insufficient resources on 2 nodes)");
            assert_eq!(has_reason, on_failure == FailureAction::Pause, "{message}");
            if on_failure == FailureAction::Rollback {
                await_serving(&mut sim, &service, 2);
            }
        }
    }
}

fn credentials(password: &str) -> Option<RegistryAuth> {
    Some(RegistryAuth { username: "ann".to_owned(), password: password.to_owned(), ..RegistryAuth::default() })
}

#[test]
fn other_credentials_alone_replace_no_task_that_has_its_image() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 3);
    let ids = |sim: &Sim| sim.active(&service).iter().map(|t| t.id.clone()).collect::<Vec<_>>();
    let before = ids(&sim);
    sim.cluster.update_service(&service, |spec| spec.task.registry_auth = credentials("new"));
    sim.run(60_000);
    assert_eq!((ids(&sim), &sim.state().services[&service].update), (before.clone(), &None));
    super::scale(&mut sim, &service, 4);
    await_serving(&mut sim, &service, 4);
    let has_new =
        |sim: &Sim| sim.active(&service).iter().filter(|t| t.spec.registry_auth == credentials("new")).count();
    assert_eq!(has_new(&sim), 1);
    // The next update of the spec replaces all of them.
    sim.cluster.update_service(&service, |spec| spec.task.force_update += 1);
    await_update(&mut sim, &service, 3);
    assert_eq!(has_new(&sim), 4);
}

#[test]
fn a_task_without_its_image_is_tried_again_with_other_credentials() {
    let mut sim = Sim::new(1);
    sim.missing_images.insert("private".to_owned());
    let mut spec = service_spec("web", 1, &[]);
    spec.task.container.image = "private".to_owned();
    spec.task.restart.condition = RestartCondition::None;
    let service = sim.create(spec);
    sim.run(60_000);
    assert!(sim.active(&service).is_empty(), "the restart policy allows no other task");
    sim.missing_images.clear();
    sim.cluster.update_service(&service, |spec| spec.task.registry_auth = credentials("right"));
    sim.run_until("the task to run", |sim| sim.active(&service).len() == 1);
    // It has its image then, so other credentials do not restart it once it has ended.
    let task = sim.active(&service)[0].id.clone();
    sim.cluster.update_service(&service, |spec| spec.task.registry_auth = credentials("newer"));
    sim.crash(&task);
    sim.run(60_000);
    assert!(sim.active(&service).is_empty());
}

#[test]
fn a_rollback_brings_the_former_credentials_back() {
    let mut sim = Sim::new(1);
    let service = create_serving(&mut sim, 1);
    sim.cluster.update_service(&service, |spec| spec.task.registry_auth = credentials("old"));
    sim.cluster.update_service(&service, |spec| {
        spec.task.registry_auth = credentials("new");
        spec.task.container.image = "two".to_owned();
    });
    await_update(&mut sim, &service, 0);
    sim.submit(rollback_by_user(&sim, &service));
    await_rollback(&mut sim, &service);
    assert_eq!(sim.active(&service)[0].spec.registry_auth, credentials("old"));
}
