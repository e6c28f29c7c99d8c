//! Networks without free addresses, and services that change their network.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    Command,
    spec::UpdateOrder,
    state::{TaskState, UpdateState},
};

use super::{super::sim::Sim, create_serving};
use crate::{
    fixture::{network_spec, service_spec, subnet_spec},
    plan::plan,
};

#[test]
fn tasks_on_a_full_network_wait_until_an_address_is_free() {
    let mut sim = Sim::new(1);
    // The network has six addresses: for the gateway, the VIP and four tasks.
    let network = sim.cluster.add_network(subnet_spec("tiny", "10.9.0.0/29"));
    let service = sim.create(service_spec("web", 5, &[&network]));
    sim.run_until("four tasks to serve", |sim| sim.active(&service).len() == 4);
    let waiting =
        sim.state().tasks_of(&service).find(|t| t.status.state == TaskState::Pending).expect("a pending task");
    assert_eq!(
        waiting.status.error,
        "no address left in network tiny (10.9.0.0/29): remove services or use a larger subnet"
    );
    let crashed = sim.active(&service)[0].id.clone();
    sim.crash(&crashed);
    sim.run(1_500);
    assert_eq!(sim.active(&service).len(), 3, "a freed address is in quarantine");
    sim.run_until("the address to be used again", |sim| sim.active(&service).len() == 4);
}

#[test]
fn tasks_that_fail_at_once_do_not_use_up_the_addresses_of_their_network() {
    for (subnet, replicas) in [("10.9.0.0/28", 1), ("10.9.0.0/24", 50)] {
        let mut sim = Sim::new(1);
        sim.broken_images.insert("broken".to_owned());
        let network = sim.cluster.add_network(subnet_spec("small", subnet));
        let mut spec = service_spec("bad", replicas, &[&network]);
        spec.task.container.image = "broken".to_owned();
        spec.task.restart.delay_ms = 0;
        sim.create(spec);
        for nth in 0..4 {
            sim.run(2_000);
            let good = sim.create(service_spec(&format!("good{nth}"), 1, &[&network]));
            sim.run_until("the other service to serve", |sim| sim.active(&good).len() == 1);
        }
    }
}

/// The network has addresses for the VIP and for two tasks of each slot. A task that fails at once
/// is followed by one with the address of the task before it.
#[test]
fn the_slots_of_a_crash_loop_take_their_own_addresses_again() {
    let mut sim = Sim::new(2);
    sim.broken_images.insert("broken".to_owned());
    let network = sim.cluster.add_network(subnet_spec("small", "10.9.0.0/28"));
    let mut spec = service_spec("bad", 6, &[&network]);
    spec.task.container.image = "broken".to_owned();
    spec.task.restart.delay_ms = 0;
    let service = sim.create(spec);
    let mut addresses = BTreeMap::<_, BTreeSet<_>>::new();
    let mut tasks = BTreeSet::new();
    for _ in 0..300 {
        sim.tick();
        for task in sim.state().tasks_of(&service) {
            assert_eq!(task.status.error.find("no address left"), None, "{}: {}", task.name, task.status.error);
            tasks.insert(task.id.clone());
            addresses.entry(task.slot.clone()).or_default().extend(task.attachments.iter().map(|a| a.addr.v4));
        }
    }
    assert!(tasks.len() > 6 * 5, "{} tasks", tasks.len());
    assert!(addresses.values().all(|of_slot| of_slot.len() <= 2), "{addresses:?}");
}

#[test]
fn moving_a_service_to_another_network_keeps_its_port_served() {
    let mut sim = Sim::new(2);
    let service = create_serving(&mut sim, 2);
    let other = sim.cluster.add_network(network_spec("other"));
    let old = sim.state().services[&service].endpoints[0].clone();
    sim.cluster.update_service(&service, |spec| {
        spec.update.order = UpdateOrder::StartFirst;
        spec.task.networks[0].network = other.clone();
    });
    assert_eq!(sim.state().services[&service].endpoints.len(), 2);
    while sim.state().services[&service].update.as_ref().is_none_or(|u| u.state != UpdateState::Completed) {
        sim.tick();
        let plan = plan(sim.state(), &sim.node_ids()[0]).expect("the plan of a member");
        let target = plan.services.iter().find(|s| s.mesh == plan.ports[0].mesh).expect("the service of the port");
        assert!(target.backends.iter().any(|b| !b.draining), "the published port has no active backend");
    }
    sim.run(5_000);
    let endpoints = &sim.state().services[&service].endpoints;
    assert_eq!(endpoints.len(), 1);
    assert_eq!(endpoints[0].network, other);
    let used = &sim.state().allocated.addresses[&old.network].used_v6;
    assert!(!used.contains(&old.vip.expect("a VIP").v6), "the former VIP is free again");
    sim.submit(Command::RemoveNetwork { id: old.network });
}
