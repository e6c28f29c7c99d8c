//! Scenarios: each test submits a few changes and checks the resulting cluster state.

mod scaling;
mod updates;
mod restarts;
mod nodes;
mod networks;
mod acks;

use weft_model::{
    ServiceId,
    spec::{Availability, ServiceMode},
    state::UpdateState,
};

use super::sim::Sim;
use crate::fixture::{network_spec, service_spec, tcp};

/// Creates a service with a published port, and waits until all its tasks serve.
fn create_serving(sim: &mut Sim, replicas: u64) -> ServiceId {
    let network = sim.cluster.add_network(network_spec("app"));
    let mut spec = service_spec("web", replicas, &[&network]);
    spec.endpoint.ports.push(tcp(Some(8080), 80));
    let id = sim.create(spec);
    await_serving(sim, &id, replicas);
    id
}

/// Advances the simulated time until all replicas serve, on all nodes.
fn await_serving(sim: &mut Sim, service: &ServiceId, replicas: u64) {
    let wanted = usize::try_from(replicas).expect("a small number");
    sim.run_until("all replicas to serve", |sim| {
        sim.active(service).len() == wanted && sim.fewest_backends(service) == wanted
    });
}

fn scale(sim: &mut Sim, service: &ServiceId, replicas: u64) {
    sim.cluster.update_service(service, |spec| spec.mode = ServiceMode::Replicated { replicas });
    sim.settle();
}

fn set_availability(sim: &mut Sim, hostname: &str, availability: Availability) {
    sim.update_node(hostname, |spec| spec.availability = availability);
}

/// Advances the simulated time until the update of the service has ended. At every step at least
/// `at_least` backends must serve.
fn await_update(sim: &mut Sim, service: &ServiceId, at_least: usize) {
    let end_ms = sim.cluster.now_ms + 600_000;
    while !sim.state().services[service].update.as_ref().is_some_and(|u| u.state != UpdateState::Updating) {
        assert!(sim.cluster.now_ms < end_ms, "the update does not end: {:?}", sim.state().services[service].update);
        sim.tick();
        let backends = sim.fewest_backends(service);
        assert!(backends >= at_least, "{backends} backends left");
    }
}

/// The state and the message of the service's update.
fn update_status(sim: &Sim, service: &ServiceId) -> (UpdateState, String) {
    let update = sim.state().services[service].update.clone().expect("an update status");
    (update.state, update.message)
}
