//! Each test tells one story.

use weft_model::{
    Command, ServiceId,
    spec::{Availability, Constraint, FailureAction, NodeAttribute, RestartCondition, ServiceMode, UpdateOrder},
    state::{NodeStatus, Task, TaskState, Traffic, UpdateState},
};

use super::sim::{Pace, Sim};
use crate::fixture::{network_spec, service_spec, tcp};

/// A service whose tasks all serve.
fn serving(sim: &mut Sim, replicas: u64) -> ServiceId {
    let network = sim.cluster.network(network_spec("app")).unwrap();
    let mut spec = service_spec("web", replicas, &[&network]);
    spec.endpoint.ports.push(tcp(Some(8080), 80));
    let id = sim.create(spec);
    all_serve(sim, &id, replicas);
    id
}

fn all_serve(sim: &mut Sim, service: &ServiceId, replicas: u64) {
    let wanted = usize::try_from(replicas).unwrap();
    sim.run_until("all replicas to serve", |sim| {
        sim.active(service).len() == wanted && sim.fewest_backends(service) == wanted
    });
}

fn scale(sim: &mut Sim, service: &ServiceId, replicas: u64) {
    sim.cluster.update(service, |spec| spec.mode = ServiceMode::Replicated { replicas }).unwrap();
    sim.settle();
}

fn availability(sim: &mut Sim, hostname: &str, availability: Availability) {
    let node = sim.state().nodes.values().find(|n| n.hostname.as_str() == hostname).unwrap();
    let (id, version, mut spec) = (node.id.clone(), node.meta.version, node.spec.clone());
    spec.availability = availability;
    sim.ask(Command::UpdateNode { id, version, spec });
}

/// Rolls the service, and runs on as long as it lasts; somebody must answer all the time.
fn roll(sim: &mut Sim, service: &ServiceId, at_least: usize) {
    while !sim.state().services[service].update.as_ref().is_some_and(|u| u.state != UpdateState::Updating) {
        sim.tick();
        let backends = sim.fewest_backends(service);
        assert!(backends >= at_least, "{backends} backends left");
    }
}

fn update_of(sim: &Sim, service: &ServiceId) -> (UpdateState, String) {
    let update = sim.state().services[service].update.clone().unwrap();
    (update.state, update.message)
}

#[test]
fn replicas_are_spread_and_serve() {
    let mut sim = Sim::new(2);
    let service = serving(&mut sim, 6);
    for node in sim.node_ids() {
        assert_eq!(sim.state().tasks_on(&node).count(), 2);
    }
    let mut slots: Vec<_> = sim.active(&service).iter().map(|t| t.slot.clone()).collect();
    slots.sort();
    slots.dedup();
    assert_eq!(slots.len(), 6);
}

#[test]
fn scaling_down_drains_and_forgets() {
    let mut sim = Sim::new(2);
    let service = serving(&mut sim, 5);
    scale(&mut sim, &service, 2);
    let draining = sim.state().tasks_of(&service).filter(|t| t.traffic == Traffic::Draining);
    assert_eq!(draining.count(), 3);
    sim.run_until("the others to be forgotten", |sim| sim.state().tasks_of(&service).count() == 2);
    let nodes: Vec<_> = sim.active(&service).iter().map(|t| t.node.clone()).collect();
    assert_ne!(nodes[0], nodes[1], "what stays is spread");
    scale(&mut sim, &service, 0);
    sim.run_until("all to be forgotten", |sim| sim.state().tasks.is_empty());
    scale(&mut sim, &service, 3);
    all_serve(&mut sim, &service, 3);
}

#[test]
fn a_removed_service_leaves_nothing_and_frees_its_name_at_once() {
    let mut sim = Sim::new(2);
    let service = serving(&mut sim, 3);
    let spec = sim.state().services[&service].spec.clone();
    sim.ask(Command::RemoveService { id: service.clone() });
    let again = sim.create(spec);
    all_serve(&mut sim, &again, 3);
    sim.run_until("the old one to be forgotten", |sim| !sim.state().services.contains_key(&service));
    sim.ask(Command::RemoveService { id: again });
    sim.run_until("all to be forgotten", |sim| sim.state().services.is_empty() && sim.state().tasks.is_empty());
    assert!(!sim.state().allocated.quarantine.is_empty());
    sim.run(31_000);
    assert!(sim.state().allocated.quarantine.is_empty());
}

#[test]
fn a_stop_first_update_takes_one_task_at_a_time() {
    let mut sim = Sim::new(2);
    let service = serving(&mut sim, 4);
    sim.cluster.update(&service, |spec| spec.task.container.image = "two".to_owned()).unwrap();
    roll(&mut sim, &service, 3);
    assert_eq!(update_of(&sim, &service), (UpdateState::Completed, "update completed".to_owned()));
    assert!(sim.active(&service).iter().all(|t| t.spec.container.image == "two"));
    assert_eq!(sim.active(&service).len(), 4);
}

#[test]
fn a_start_first_update_never_has_fewer_tasks() {
    let mut sim = Sim::new(2);
    let service = serving(&mut sim, 1);
    sim.cluster
        .update(&service, |spec| {
            spec.update.order = UpdateOrder::StartFirst;
            spec.task.force_update += 1;
        })
        .unwrap();
    roll(&mut sim, &service, 1);
    assert_eq!(update_of(&sim, &service).0, UpdateState::Completed);
    assert!(sim.active(&service).iter().all(|t| t.spec.force_update == 1));
}

#[test]
fn all_at_once_still_leaves_somebody_to_answer() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = Sim::new(2);
        let service = serving(&mut sim, 3);
        sim.cluster
            .update(&service, |spec| {
                spec.update.parallelism = 0;
                spec.update.order = order;
                spec.task.force_update += 1;
            })
            .unwrap();
        roll(&mut sim, &service, 1);
        assert_eq!(update_of(&sim, &service).0, UpdateState::Completed);
        all_serve(&mut sim, &service, 3);
    }
}

#[test]
fn batches_keep_their_distance() {
    let mut sim = Sim::new(2);
    let service = serving(&mut sim, 3);
    let begin_ms = sim.cluster.now_ms;
    sim.cluster
        .update(&service, |spec| {
            spec.update.delay_ms = 20_000;
            spec.task.force_update += 1;
        })
        .unwrap();
    roll(&mut sim, &service, 2);
    assert!(sim.cluster.now_ms >= begin_ms + 40_000);
}

#[test]
fn a_broken_update_pauses_and_a_further_one_goes_on() {
    let mut sim = Sim::new(2);
    sim.broken_images.insert("broken".to_owned());
    let service = serving(&mut sim, 3);
    sim.cluster.update(&service, |spec| spec.task.container.image = "broken".to_owned()).unwrap();
    roll(&mut sim, &service, 2);
    let (state, message) = update_of(&sim, &service);
    assert_eq!(state, UpdateState::Paused);
    assert!(message.starts_with("update paused due to failure or early termination of task "), "{message}");
    sim.run(30_000);
    assert_eq!(sim.active(&service).len(), 2, "the others are left alone");
    sim.cluster.update(&service, |spec| spec.task.container.image = "good".to_owned()).unwrap();
    roll(&mut sim, &service, 2);
    assert_eq!(update_of(&sim, &service).0, UpdateState::Completed);
    all_serve(&mut sim, &service, 3);
}

#[test]
fn a_broken_start_first_update_loses_nobody() {
    let mut sim = Sim::new(2);
    sim.broken_images.insert("broken".to_owned());
    let service = serving(&mut sim, 3);
    sim.cluster
        .update(&service, |spec| {
            spec.update.order = UpdateOrder::StartFirst;
            spec.task.container.image = "broken".to_owned();
        })
        .unwrap();
    roll(&mut sim, &service, 3);
    assert_eq!(update_of(&sim, &service).0, UpdateState::Paused);
    sim.run(30_000);
    assert_eq!(sim.active(&service).len(), 3);
}

#[test]
fn a_broken_update_rolls_back() {
    let mut sim = Sim::new(2);
    sim.broken_images.insert("broken".to_owned());
    let service = serving(&mut sim, 3);
    let before: Vec<_> = sim.active(&service).iter().map(|t| t.id.clone()).collect();
    sim.cluster
        .update(&service, |spec| {
            spec.update.on_failure = FailureAction::Rollback;
            spec.task.container.image = "broken".to_owned();
        })
        .unwrap();
    sim.run_until("the rollback to end", |sim| {
        let update = sim.state().services[&service].update.as_ref();
        update.is_some_and(|u| u.state == UpdateState::RollbackCompleted)
    });
    assert_eq!(update_of(&sim, &service).1, "rollback completed");
    all_serve(&mut sim, &service, 3);
    let kept = sim.active(&service).iter().filter(|t| before.contains(&t.id)).count();
    assert_eq!(kept, 2, "tasks that were not updated yet are left alone");
}

#[test]
fn a_broken_update_that_shall_go_on_goes_on() {
    let mut sim = Sim::new(2);
    sim.broken_images.insert("broken".to_owned());
    let service = serving(&mut sim, 3);
    sim.cluster
        .update(&service, |spec| {
            spec.update.on_failure = FailureAction::Continue;
            spec.task.container.image = "broken".to_owned();
        })
        .unwrap();
    roll(&mut sim, &service, 0);
    assert_eq!(update_of(&sim, &service).0, UpdateState::Completed);
    assert!(sim.active(&service).is_empty());
}

#[test]
fn a_user_may_roll_back() {
    let mut sim = Sim::new(2);
    let service = serving(&mut sim, 2);
    sim.cluster.update(&service, |spec| spec.task.container.image = "two".to_owned()).unwrap();
    roll(&mut sim, &service, 1);
    let version = sim.state().services[&service].meta.version;
    sim.ask(Command::RollbackService { id: service.clone(), version, message: "asked".to_owned() });
    sim.run_until("the rollback to end", |sim| {
        sim.state().services[&service].update.as_ref().is_some_and(|u| u.state == UpdateState::RollbackCompleted)
    });
    assert!(sim.active(&service).iter().all(|t| t.spec.container.image == "weft/whoami"));
}

#[test]
fn a_new_update_supersedes_a_running_one() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = Sim::new(2);
        let service = serving(&mut sim, 4);
        let image = |image: &'static str| {
            move |spec: &mut weft_model::spec::ServiceSpec| {
                spec.update.order = order;
                spec.update.monitor_ms = 0;
                spec.task.container.image = image.to_owned();
            }
        };
        sim.cluster.update(&service, image("two")).unwrap();
        sim.run(1_500);
        sim.cluster.update(&service, image("three")).unwrap();
        roll(&mut sim, &service, 3);
        all_serve(&mut sim, &service, 4);
        assert!(sim.active(&service).iter().all(|t| t.spec.container.image == "three"));
    }
}

#[test]
fn a_crashed_task_is_followed_by_another_after_the_delay() {
    let mut sim = Sim::new(1);
    let service = serving(&mut sim, 1);
    let crashed = sim.active(&service)[0].id.clone();
    sim.crash(&crashed);
    let at_ms = sim.cluster.now_ms;
    sim.run_until("another to run", |sim| sim.active(&service).iter().any(|t| t.id != crashed));
    assert!(sim.cluster.now_ms >= at_ms + 5_000);
    let old = &sim.state().tasks[&crashed];
    assert_eq!((old.desired, old.status.state), (TaskState::Shutdown, TaskState::Failed));
    assert_eq!(sim.active(&service)[0].attempts, 1);
}

#[test]
fn the_history_of_a_slot_is_bounded() {
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
    sim.cluster.update(&service, |spec| spec.task.container.image = "good".to_owned()).unwrap();
    all_serve(&mut sim, &service, 1);
}

#[test]
fn a_task_that_shall_not_be_restarted_is_not() {
    let mut sim = Sim::new(1);
    let network = sim.cluster.network(network_spec("app")).unwrap();
    let mut spec = service_spec("web", 2, &[&network]);
    spec.task.restart.condition = RestartCondition::None;
    let service = sim.create(spec);
    all_serve(&mut sim, &service, 2);
    let crashed = sim.active(&service)[0].id.clone();
    sim.crash(&crashed);
    sim.run(60_000);
    assert_eq!(sim.active(&service).len(), 1);
    assert_eq!(sim.state().tasks_of(&service).count(), 2);
}

#[test]
fn a_task_that_cannot_be_prepared_is_tried_again_after_the_delay_only() {
    let mut sim = Sim::new(1);
    let network = sim.cluster.network(network_spec("app")).unwrap();
    let spec = service_spec("web", 1, &[&network]);
    sim.missing_images.insert(spec.task.container.image.clone());
    let delay_ms = spec.task.restart.delay_ms;
    let service = sim.create(spec);
    let rejected = |sim: &Sim| sim.state().tasks_of(&service).filter(|t| t.status.state == TaskState::Rejected).count();
    sim.run_until("the first try to be rejected", |sim| rejected(sim) == 1);
    sim.run(delay_ms - 1_000);
    assert_eq!(rejected(&sim), 1);
    sim.run(2_000);
    assert_eq!(rejected(&sim), 2);
    sim.missing_images.clear();
    all_serve(&mut sim, &service, 1);
}

#[test]
fn a_lost_nodes_tasks_run_elsewhere_and_it_returns_empty() {
    let mut sim = Sim::new(2);
    let service = serving(&mut sim, 6);
    let lost = sim.node_ids()[1].clone();
    sim.kill_node(&lost);
    sim.run_until("all to serve again", |sim| sim.active(&service).len() == 6);
    assert!(sim.active(&service).iter().all(|t| t.node.as_ref() != Some(&lost)));
    let orphans = sim.state().tasks_on(&lost).filter(|t| t.status.state == TaskState::Orphaned).count();
    assert_eq!(orphans, 2);
    sim.revive_node(&lost);
    sim.run(5_000);
    assert!(sim.task_processes(&lost).is_empty());
    assert_eq!(sim.active(&service).len(), 6);
}

#[test]
fn draining_moves_tasks_and_always_leaves_somebody_to_answer() {
    for order in [UpdateOrder::StopFirst, UpdateOrder::StartFirst] {
        let mut sim = Sim::new(2);
        let service = serving(&mut sim, 2);
        sim.cluster.update(&service, |spec| spec.update.order = order).unwrap();
        let least = if order == UpdateOrder::StartFirst { 2 } else { 1 };
        for hostname in ["n1", "n2"] {
            availability(&mut sim, hostname, Availability::Drain);
            for _ in 0..100 {
                sim.tick();
                assert!(sim.fewest_backends(&service) >= least);
            }
        }
        all_serve(&mut sim, &service, 2);
        assert!(
            sim.active(&service)
                .iter()
                .all(|t| { sim.state().nodes[t.node.as_ref().unwrap()].spec.availability == Availability::Active })
        );
    }
}

#[test]
fn draining_the_last_node_stops_everything_and_says_why() {
    let mut sim = Sim::new(0);
    let service = serving(&mut sim, 3);
    availability(&mut sim, "n1", Availability::Drain);
    sim.run(10_000);
    assert!(sim.active(&service).is_empty());
    let waiting: Vec<_> = sim.state().tasks_of(&service).filter(|t| t.status.state == TaskState::Pending).collect();
    assert_eq!(waiting.len(), 3);
    assert!(waiting.iter().all(|t| t.status.error == "no suitable node (1 node not available for new tasks)"));
    availability(&mut sim, "n1", Availability::Active);
    all_serve(&mut sim, &service, 3);
}

#[test]
fn a_global_service_follows_the_nodes() {
    let mut sim = Sim::new(2);
    let mut spec = service_spec("agent", 0, &[]);
    spec.mode = ServiceMode::Global;
    let service = sim.create(spec);
    sim.run_until("one on each node", |sim| sim.active(&service).len() == 3);
    availability(&mut sim, "n2", Availability::Drain);
    sim.run_until("none on n2", |sim| sim.active(&service).len() == 2);
    availability(&mut sim, "n2", Availability::Active);
    sim.run_until("one on each node", |sim| sim.active(&service).len() == 3);
    sim.cluster.update(&service, |spec| spec.task.force_update = 1).unwrap();
    roll(&mut sim, &service, 2);
    let lost = sim.node_ids()[2].clone();
    sim.kill_node(&lost);
    sim.run(10_000);
    assert_eq!(sim.active(&service).len(), 2);
    sim.revive_node(&lost);
    sim.run_until("one on each node", |sim| sim.active(&service).len() == 3);
    sim.ask(Command::RemoveService { id: service.clone() });
    sim.run_until("all to be forgotten", |sim| sim.state().tasks.is_empty() && sim.state().services.is_empty());
}

#[test]
fn a_node_that_never_acks_holds_nobody_up_for_long() {
    let mut sim = Sim::new(2);
    let service = serving(&mut sim, 3);
    let slow = sim.node_ids()[0].clone();
    sim.set_pace(&slow, Pace { plan_ms: 1_000_000, ..Pace::default() });
    sim.disturbed = true;
    scale(&mut sim, &service, 1);
    sim.run(4_000);
    assert_eq!(sim.state().tasks_of(&service).filter(|t| t.must_stop()).count(), 0);
    sim.run(1_500);
    assert_eq!(sim.state().tasks_of(&service).filter(|t| t.traffic == Traffic::Drained).count(), 2);
}

#[test]
fn a_new_leader_grants_the_wait_anew() {
    let mut sim = Sim::new(2);
    let service = serving(&mut sim, 3);
    for node in sim.node_ids() {
        sim.set_pace(&node, Pace { plan_ms: 1_000_000, ..Pace::default() });
    }
    sim.disturbed = true;
    scale(&mut sim, &service, 1);
    sim.run(4_000);
    sim.change_leader();
    sim.run(4_000);
    assert_eq!(sim.state().tasks_of(&service).filter(|t| t.traffic == Traffic::Drained).count(), 0);
    sim.run(1_500);
    assert_eq!(sim.state().tasks_of(&service).filter(|t| t.traffic == Traffic::Drained).count(), 2);
}

#[test]
fn a_full_network_says_so_and_fills_up_when_there_is_room() {
    let mut sim = Sim::new(1);
    // Six addresses: the gateway, the VIP and four tasks.
    let network = sim.cluster.network(crate::fixture::subnet_spec("tiny", "10.9.0.0/29")).unwrap();
    let service = sim.create(service_spec("web", 5, &[&network]));
    sim.run_until("four to serve", |sim| sim.active(&service).len() == 4);
    let waiting = sim.state().tasks_of(&service).find(|t| t.status.state == TaskState::Pending).unwrap();
    assert_eq!(
        waiting.status.error,
        "no address left in network tiny (10.9.0.0/29): remove services or use a larger subnet"
    );
    let crashed = sim.active(&service)[0].id.clone();
    sim.crash(&crashed);
    sim.run(20_000);
    assert_eq!(sim.active(&service).len(), 3, "a freed address waits");
    sim.run(20_000);
    assert_eq!(sim.active(&service).len(), 4);
}

#[test]
fn moving_to_another_network_loses_nobody() {
    let mut sim = Sim::new(2);
    let service = serving(&mut sim, 2);
    let other = sim.cluster.network(network_spec("other")).unwrap();
    let old = sim.state().services[&service].endpoints[0].clone();
    sim.cluster
        .update(&service, |spec| {
            spec.update.order = UpdateOrder::StartFirst;
            spec.task.networks[0].network = other.clone();
        })
        .unwrap();
    assert_eq!(sim.state().services[&service].endpoints.len(), 2);
    while sim.state().services[&service].update.as_ref().is_none_or(|u| u.state != UpdateState::Completed) {
        sim.tick();
        let plan = crate::plan::plan(sim.state(), &sim.node_ids()[0]).unwrap();
        let entrance = plan.services.iter().find(|s| s.mesh == plan.ports[0].mesh).unwrap();
        assert!(entrance.backends.iter().any(|b| !b.draining), "the port leads to nobody");
    }
    sim.run(5_000);
    let endpoints = &sim.state().services[&service].endpoints;
    assert_eq!(endpoints.len(), 1);
    assert_eq!(endpoints[0].network, other);
    assert!(sim.state().allocated.quarantine.iter().any(|f| Some(f.addr) == old.vip));
    sim.ask(Command::RemoveNetwork { id: old.network });
}

#[test]
fn a_paused_node_keeps_its_tasks_and_gets_no_more() {
    let mut sim = Sim::new(1);
    let service = serving(&mut sim, 2);
    availability(&mut sim, "n2", Availability::Pause);
    scale(&mut sim, &service, 6);
    all_serve(&mut sim, &service, 6);
    let n2 = sim.state().nodes.values().find(|n| n.hostname.as_str() == "n2").unwrap();
    assert_eq!(n2.status, NodeStatus::Ready);
    assert_eq!(sim.active(&service).iter().filter(|t| t.node.as_ref() == Some(&n2.id)).count(), 1);
}

#[test]
fn a_removed_node_leaves_nothing_behind() {
    let mut sim = Sim::new(2);
    let service = serving(&mut sim, 3);
    let mut spec = service_spec("agent", 0, &[]);
    spec.mode = ServiceMode::Global;
    let agent = sim.create(spec);
    sim.run_until("one on each node", |sim| sim.active(&agent).len() == 3);
    let gone = sim.state().nodes.values().find(|n| n.hostname.as_str() == "n3").unwrap().id.clone();
    sim.kill_node(&gone);
    sim.ask(Command::RemoveNode { id: gone, force: false });
    all_serve(&mut sim, &service, 3);
    assert_eq!(sim.state().tasks_of(&agent).count(), 2, "its slot of a global service is forgotten");
}

#[test]
fn a_node_that_no_longer_satisfies_the_constraints_is_left() {
    let mut sim = Sim::new(1);
    let label = |sim: &mut Sim, hostname: &str, disk: &str| {
        let node = sim.state().nodes.values().find(|n| n.hostname.as_str() == hostname).unwrap();
        let (id, version, mut spec) = (node.id.clone(), node.meta.version, node.spec.clone());
        spec.labels.insert("disk".to_owned(), disk.to_owned());
        sim.ask(Command::UpdateNode { id, version, spec });
    };
    label(&mut sim, "n2", "ssd");
    let mut spec = service_spec("db", 2, &[]);
    let attribute = NodeAttribute::Label("disk".to_owned());
    spec.task.placement.constraints.push(Constraint { attribute, equal: true, value: "ssd".to_owned() });
    let service = sim.create(spec);
    all_serve(&mut sim, &service, 2);
    label(&mut sim, "n1", "ssd");
    label(&mut sim, "n2", "disk");
    sim.run(10_000);
    all_serve(&mut sim, &service, 2);
    let n1 = sim.state().nodes.values().find(|n| n.hostname.as_str() == "n1").unwrap();
    assert!(sim.active(&service).iter().all(|t| t.node.as_ref() == Some(&n1.id)));
}
