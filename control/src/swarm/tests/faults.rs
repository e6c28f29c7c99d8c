//! Three managers with real TLS, real logs and real connections, under faults: partitions, links
//! that hold back what one node sends to another, cut connections, restarts, power cuts, slow
//! disks, full disks, logs that are gone, changes of managers, and steps of wall clocks. A client
//! at each manager makes changes all the time.
//!
//! What a manager has confirmed must be in the state of all managers in the end, and their states
//! must be the same. The cluster's time must not have followed a wall clock that made a step.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::{Instant, sleep, timeout};
use weft_model::{ClusterState, Command, NodeId};

use super::{
    fixture::DEADLINE,
    trial::{Fault, Managers, Trial},
};
use crate::{
    fixture::seeds,
    swarm::{Manager, ProposeError},
};

const SEEDS: u64 = 2;
/// The number of faults in one run.
const FAULTS: usize = 8;
/// How long a fault lasts, in milliseconds. Elections take 1 to 2 s.
const FAULT_MS: std::ops::Range<u64> = 100..2_000;

/// How long a sync of a slow disk takes, in milliseconds. A voter has 250 ms to answer.
const SYNC_MS: std::ops::Range<u64> = 20..400;
/// How far the time of the first entry may be behind the clock.
const CLOCK_SLACK: Duration = Duration::from_secs(5);
/// The longest step of a wall clock, in milliseconds.
const CLOCK_STEP_MS: i64 = 24 * 3_600_000;

/// Adds a label to a node, from the state that this manager has. An older state is refused by the
/// leader, because the version of the node is another one.
async fn add_label(manager: &Manager, node: &NodeId, key: &str) -> Result<(), ProposeError> {
    let (version, mut spec) = {
        let state = manager.state();
        let known = &state.borrow().nodes[node];
        (known.meta.version, known.spec.clone())
    };
    spec.labels.insert(key.to_owned(), String::new());
    manager.propose(Command::UpdateNode { id: node.clone(), version, spec }).await.map(|_| ())
}

/// Makes changes through one manager until `ended`. Returns those that were confirmed.
async fn client(managers: Managers, at: usize, node: NodeId, ended: Arc<AtomicBool>) -> BTreeSet<String> {
    let mut confirmed = BTreeSet::new();
    for number in 0.. {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        let Some(manager) = managers.at(at).and_then(|swarm| swarm.manager()) else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let key = format!("{at}-{number}");
        // A change without an answer may have been made.
        if add_label(&manager, &node, &key).await.is_ok() {
            confirmed.insert(key);
        }
        sleep(Duration::from_millis(5)).await;
    }
    confirmed
}

/// A fault of a random kind.
fn fault(rng: &mut StdRng) -> Fault {
    let (victim, other) = (rng.random_range(0..3), rng.random_range(1..3));
    let pause = Duration::from_millis(rng.random_range(FAULT_MS));
    match rng.random_range(0..11) {
        0 => Fault::Alone(victim),
        1 => Fault::Held(victim, (victim + other) % 3),
        2 => Fault::Cut,
        3 => Fault::Restart(victim, pause),
        4 => Fault::PowerCut(Some(victim), pause, rng.random()),
        5 => Fault::PowerCut(None, pause, rng.random()),
        6 => Fault::SlowDisk(victim, Duration::from_millis(rng.random_range(SYNC_MS))),
        7 => Fault::FullDisk(victim),
        8 => Fault::LogLost(victim, pause),
        9 => Fault::Reappointed(victim),
        _ => Fault::ClockStep(victim, rng.random_range(-CLOCK_STEP_MS..CLOCK_STEP_MS)),
    }
}

/// Waits until all managers have these labels of the nodes, and the same state.
async fn check(trial: &Trial, confirmed: &BTreeMap<NodeId, BTreeSet<String>>) {
    let has_all = |state: &ClusterState| {
        let has = |(node, keys): (&NodeId, &BTreeSet<String>)| {
            keys.iter().all(|key| state.nodes[node].spec.labels.contains_key(key))
        };
        confirmed.iter().all(has)
    };
    let states: Vec<_> = trial.daemons.iter().flatten().map(|daemon| daemon.manager().state()).collect();
    for (at, state) in states.iter().enumerate() {
        let complete = timeout(DEADLINE, state.clone().wait_for(|state| has_all(state))).await.is_ok();
        assert!(complete, "n{} lacks confirmed changes after {:#?}", at + 1, trial.faults);
    }
    let same = async {
        loop {
            let now: Vec<_> = states.iter().map(|state| state.borrow().clone()).collect();
            if now.iter().all(|state| state.index == now[0].index) {
                assert!(now.iter().all(|state| *state == now[0]), "states differ after {:#?}", trial.faults);
                break;
            }
            sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(timeout(DEADLINE, same).await.is_ok(), "no common index after {:#?}", trial.faults);
}

/// The time in the cluster state of a manager.
fn cluster_ms(trial: &Trial) -> u64 {
    trial.daemons[0].as_ref().expect("it runs").manager().state().borrow().now_ms
}

async fn run(seed: u64) {
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut trial = Trial::new().await;
    let (started, started_ms) = (Instant::now(), cluster_ms(&trial));
    let ended = Arc::new(AtomicBool::new(false));
    let start = |at: usize| {
        let node = trial.nodes[at].0.clone();
        tokio::spawn(client(trial.managers.clone(), at, node, ended.clone()))
    };
    let clients = [0, 1, 2].map(start);
    for _ in 0..FAULTS {
        trial.begin(fault(&mut rng)).await;
        sleep(Duration::from_millis(rng.random_range(FAULT_MS))).await;
    }
    trial.heal();
    trial.all_are_managers().await;
    ended.store(true, Ordering::Relaxed);
    let mut confirmed = BTreeMap::new();
    for (client, (node, _)) in clients.into_iter().zip(&trial.nodes) {
        confirmed.insert(node.clone(), client.await.expect("the client ends"));
    }
    check(&trial, &confirmed).await;
    // It may run a tenth faster than real time. A manager that starts takes the real time.
    let (advanced, real) = (Duration::from_millis(cluster_ms(&trial) - started_ms), started.elapsed());
    let follows = advanced <= real.mul_f64(1.1) + CLOCK_SLACK && advanced + CLOCK_SLACK >= real;
    assert!(follows, "{advanced:?} in {real:?} of {:#?}", trial.faults);
    let made: usize = confirmed.values().map(BTreeSet::len).sum();
    assert!(made > FAULTS, "only {made} changes were confirmed: {:#?}", trial.faults);
    println!("{made} changes were confirmed under {:?}", trial.faults);
    trial.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_under_faults_is_in_every_managers_state() {
    for seed in seeds(SEEDS) {
        run(seed).await;
    }
}
