//! Tests of the replacement of WireGuard keys. The simulator checks after each step that no node
//! sends to a key without a device, or from a key that another node does not know.

use proptest::prelude::*;
use weft_model::{
    Command, NetworkId, NodeId,
    spec::NetworkSpec,
    state::{KeyStage, TaskState},
    wireguard::EncryptionSupport,
};

use super::{
    properties::delays,
    sim::{Delays, Sim},
};
use crate::{
    fixture::{description, network_spec, service_spec},
    orchestrate::convergence::CONVERGE_MS,
    plan::plan,
};

/// The shortest period that the cluster accepts.
const ROTATION_MS: u64 = 10_000;

/// A cluster of one manager and `workers` workers that replaces keys every [`ROTATION_MS`].
fn cluster(workers: usize) -> Sim {
    let mut sim = Sim::new(workers);
    let (version, mut spec) = (sim.cluster.settings().meta.version, sim.cluster.settings().spec.clone());
    spec.key_rotation_ms = ROTATION_MS;
    sim.cluster.ok(Command::UpdateCluster { version, spec });
    sim
}

fn create_encrypted(sim: &mut Sim) -> NetworkId {
    let network = sim.cluster.add_network(NetworkSpec { encrypted: true, ..network_spec("secret") });
    sim.settle();
    network
}

fn all_active(sim: &Sim) -> bool {
    sim.state().nodes.values().all(|node| node.keys.keys.len() == 1 && node.keys.active().is_some())
}

#[test]
fn nodes_have_keys_only_while_a_network_is_encrypted() {
    let mut sim = cluster(2);
    sim.run(2_000);
    assert!(sim.node_ids().iter().all(|node| sim.keys_of(node).is_empty()));
    assert!(plan(sim.state(), &sim.node_ids()[0]).expect("the plan of a member").encryption.is_none());
    let network = create_encrypted(&mut sim);
    sim.run_until("one active key on each node", all_active);
    let of_first = plan(sim.state(), &sim.node_ids()[0]).expect("the plan of a member");
    let encryption = of_first.encryption.expect("a plan with keys");
    assert_eq!((encryption.own.len(), encryption.peers.len()), (1, 2));
    assert!(encryption.active.is_some() && encryption.peers.iter().all(|peer| peer.active.is_some()));
    sim.submit(Command::RemoveNetwork { id: network });
    assert!(sim.state().nodes.values().all(|node| node.keys.keys.is_empty()));
    sim.run_until("the nodes to delete their keys", |sim| {
        sim.node_ids().iter().all(|node| sim.keys_of(node).is_empty())
    });
}

#[test]
fn a_key_is_replaced_when_it_has_reached_its_age_and_the_old_one_is_deleted() {
    let mut sim = cluster(2);
    create_encrypted(&mut sim);
    sim.run_until("one active key on each node", all_active);
    let node = sim.node_ids()[1].clone();
    let first = sim.keys_of(&node)[0];
    sim.run(ROTATION_MS - 1_000);
    assert_eq!(sim.keys_of(&node), [first]);
    sim.run_until("a second key on the node", |sim| sim.keys_of(&node).len() == 2);
    let second = sim.keys_of(&node)[1];
    sim.run_until("the second key to be active", |sim| {
        sim.state().nodes[&node].keys.active().is_some_and(|record| record.key.public_key == second)
    });
    assert_eq!(sim.state().nodes[&node].keys.keys[0].stage, KeyStage::Retiring);
    assert_eq!(sim.keys_of(&node), [first, second], "the old key stays until no node sends to it");
    sim.run_until("the first key to be deleted", |sim| sim.keys_of(&node) == [second]);
}

#[test]
fn a_replacement_waits_for_a_node_that_does_not_acknowledge_until_it_counts_as_not_converged() {
    let mut sim = cluster(2);
    create_encrypted(&mut sim);
    sim.run_until("one active key on each node", all_active);
    sim.run(2_000);
    let [first, second, slow] = &sim.node_ids()[..] else { panic!("three nodes") };
    let keys: Vec<_> = [first, second].map(|node| sim.keys_of(node)[0]).into();
    sim.set_delays(slow, Delays { plan_ms: 100_000, ..Delays::default() });
    sim.run_until("the nodes to make new keys", |sim| [first, second].iter().all(|node| sim.keys_of(node).len() == 2));
    sim.run(CONVERGE_MS - 2_000);
    for (node, key) in [first, second].into_iter().zip(&keys) {
        let active = sim.state().nodes[node].keys.active().expect("an active key");
        assert_eq!(active.key.public_key, *key, "the new key is active before {slow} knows it");
        assert_eq!(sim.keys_of(node).len(), 2);
    }
    sim.run_until("the other nodes to use their new keys", |sim| {
        [first, second].into_iter().zip(&keys).all(|(node, key)| !sim.keys_of(node).contains(key))
    });
}

#[test]
fn a_node_that_lost_its_keys_gets_a_new_one() {
    let mut sim = cluster(2);
    create_encrypted(&mut sim);
    sim.run_until("one active key on each node", all_active);
    let node = sim.node_ids()[2].clone();
    let former = sim.keys_of(&node)[0];
    sim.lose_keys(&node);
    sim.run_until("another active key", |sim| {
        sim.state().nodes[&node].keys.active().is_some_and(|record| record.key.public_key != former)
    });
    sim.run_until("one active key on each node", all_active);
}

#[test]
fn tasks_on_an_encrypted_network_run_only_on_nodes_that_can_encrypt() {
    let mut sim = Sim::new(2);
    let reason = "the kernel has no WireGuard";
    let disable = |sim: &mut Sim, hostname: &str| {
        let mut machine = description(&[]);
        machine.encryption = EncryptionSupport::Unavailable(reason.to_owned());
        let node = sim.cluster.node_named(hostname).id.clone();
        sim.submit(Command::DescribeNode { node, description: Box::new(machine) });
    };
    disable(&mut sim, "n2");
    let network = create_encrypted(&mut sim);
    let service = sim.create(service_spec("web", 4, &[&network]));
    sim.run_until("four tasks to serve", |sim| sim.active(&service).len() == 4);
    let n2 = sim.cluster.node_named("n2").id.clone();
    assert!(sim.active(&service).iter().all(|task| task.node.as_ref() != Some(&n2)));
    assert!(sim.keys_of(&n2).is_empty());
    disable(&mut sim, "n1");
    disable(&mut sim, "n3");
    let late = sim.create(service_spec("late", 1, &[&network]));
    sim.run(1_000);
    let task = sim.state().tasks_of(&late).next().expect("a task");
    assert_eq!(task.status.state, TaskState::Pending);
    assert_eq!(task.status.error, format!("no suitable node (no encryption on 3 nodes: {reason})"));
}

#[derive(Debug, Clone, Copy)]
enum Event {
    Wait(u64),
    Join(Delays),
    Kill(usize),
    Revive(usize),
    LoseKeys(usize),
    ChangeLeader,
    CreateNetwork,
    RemoveNetwork,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0..9_000_u64).prop_map(Event::Wait),
        1 => delays().prop_map(Event::Join),
        1 => (0..5_usize).prop_map(Event::Kill),
        2 => (0..5_usize).prop_map(Event::Revive),
        1 => (0..5_usize).prop_map(Event::LoseKeys),
        1 => Just(Event::ChangeLeader),
        3 => Just(Event::CreateNetwork),
        1 => Just(Event::RemoveNetwork),
    ]
}

fn apply(sim: &mut Sim, network: &mut Option<NetworkId>, event: Event) {
    let node = |sim: &Sim, nth: usize| -> Option<NodeId> { sim.node_ids().get(nth).cloned() };
    match event {
        Event::Wait(duration_ms) => sim.run(duration_ms),
        Event::Join(delays) if sim.node_ids().len() < 5 => {
            let hostname = format!("n{}", sim.node_ids().len() + 1);
            sim.add_node(&hostname, delays);
        }
        Event::Kill(nth) => _ = node(sim, nth).map(|id| sim.kill_node(&id)),
        Event::Revive(nth) => _ = node(sim, nth).map(|id| sim.revive_node(&id)),
        Event::LoseKeys(nth) => _ = node(sim, nth).map(|id| sim.lose_keys(&id)),
        Event::ChangeLeader => sim.change_leader(),
        Event::CreateNetwork if network.is_none() => *network = Some(create_encrypted(sim)),
        Event::RemoveNetwork => _ = network.take().map(|id| sim.submit(Command::RemoveNetwork { id })),
        Event::Join(_) | Event::CreateNetwork => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn keys_are_replaced_safely_in_every_order_of_events(
        delays in prop::collection::vec(delays(), 3),
        events in prop::collection::vec(event(), 1..30),
    ) {
        let mut sim = cluster(2);
        for (node, delays) in sim.node_ids().iter().zip(&delays) {
            sim.set_delays(node, *delays);
        }
        let mut network = None;
        for event in events {
            apply(&mut sim, &mut network, event);
        }
        for node in sim.node_ids() {
            sim.revive_node(&node);
        }
        apply(&mut sim, &mut network, Event::CreateNetwork);
        sim.run_until("an active key on each node", |sim| {
            sim.state().nodes.values().all(|node| node.keys.active().is_some())
        });
        let before: Vec<_> = sim.state().nodes.values().filter_map(|n| n.keys.active()).map(|r| r.key).collect();
        sim.run_until("a newer active key on each node", |sim| {
            let active: Vec<_> = sim.state().nodes.values().filter_map(|n| n.keys.active()).map(|r| r.key).collect();
            active.len() == before.len() && active.iter().all(|key| !before.contains(key))
        });
    }
}
