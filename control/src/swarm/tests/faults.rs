//! Three managers with real TLS, real logs and real connections, under faults: partitions, links
//! that hold back what one node sends to another, cut connections, restarts. A client at each
//! manager makes changes all the time.
//!
//! What a manager has confirmed must be in the state of all managers in the end, and their states
//! must be the same. The faults follow from a seed, but threads and time do not: a seed that failed
//! may pass when it is run again with `WEFT_SIM_SEED=N`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::time::{sleep, timeout};
use weft_model::{ClusterState, Command, NodeId, spec::Role::Manager};

use super::fixture::{DEADLINE, Daemon, cluster};
use crate::{
    fixture::seeds,
    rpc::faults::{self, Link},
    swarm::{Manager as Handle, ProposeError},
};

const SEEDS: u64 = 2;
/// The number of faults in one run.
const FAULTS: usize = 8;
/// How long a fault lasts, in milliseconds. Elections take 1 to 2 s.
const FAULT_MS: std::ops::Range<u64> = 100..2_000;

/// The managers through which the clients make their changes. `None` while the daemon is stopped.
type Handles = Arc<Mutex<[Option<Handle>; 3]>>;

fn set(handles: &Handles, at: usize, handle: Option<Handle>) {
    handles.lock().expect("no test thread panicked")[at] = handle;
}

/// Adds a label to a node, from the state that this manager has. An older state is refused by the
/// leader, because the version of the node is another one.
async fn add_label(manager: &Handle, node: &NodeId, key: &str) -> Result<(), ProposeError> {
    let (version, mut spec) = {
        let state = manager.state();
        let known = &state.borrow().nodes[node];
        (known.meta.version, known.spec.clone())
    };
    spec.labels.insert(key.to_owned(), String::new());
    manager.propose(Command::UpdateNode { id: node.clone(), version, spec }).await.map(|_| ())
}

/// Makes changes through one manager until `ended`. Returns those that were confirmed.
async fn client(handles: Handles, at: usize, node: NodeId, ended: Arc<AtomicBool>) -> BTreeSet<String> {
    let mut confirmed = BTreeSet::new();
    for number in 0.. {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        let handle = handles.lock().expect("no test thread panicked")[at].clone();
        let Some(handle) = handle else {
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let key = format!("{at}-{number}");
        // A change without an answer may have been made.
        if add_label(&handle, &node, &key).await.is_ok() {
            confirmed.insert(key);
        }
        sleep(Duration::from_millis(5)).await;
    }
    confirmed
}

/// Three managers, and what was done to them.
struct Trial {
    daemons: [Option<Daemon>; 3],
    /// The id and the address of each.
    nodes: Vec<Link>,
    handles: Handles,
    history: Vec<String>,
}

impl Trial {
    /// The links for which `selects` is true, by the numbers of the caller and of the called node.
    fn links(&self, selects: impl Fn(usize, usize) -> bool) -> Vec<Link> {
        let pairs = (0..3).flat_map(|from| (0..3).map(move |to| (from, to)));
        let selected = pairs.filter(|(from, to)| from != to && selects(*from, *to));
        selected.map(|(from, to)| (self.nodes[from].0.clone(), self.nodes[to].1)).collect()
    }

    /// Holds these links and releases all others.
    fn hold(&self, selects: impl Fn(usize, usize) -> bool) {
        faults::hold(&self.links(|_, _| true), &self.links(selects));
    }

    async fn inject(&mut self, rng: &mut StdRng) {
        let (victim, other) = (rng.random_range(0..3), rng.random_range(1..3));
        let other = (victim + other) % 3;
        match rng.random_range(0..4) {
            0 => {
                self.history.push(format!("n{} is alone", victim + 1));
                self.hold(|from, to| from == victim || to == victim);
            }
            1 => {
                self.history.push(format!("the calls of n{} to n{} are held", victim + 1, other + 1));
                self.hold(|from, to| (from, to) == (victim, other));
            }
            2 => {
                self.history.push("all connections are cut".to_owned());
                self.hold(|_, _| false);
                faults::cut(&self.links(|_, _| true));
            }
            _ => {
                self.history.push(format!("n{} restarts", victim + 1));
                self.hold(|_, _| false);
                set(&self.handles, victim, None);
                let host = self.daemons[victim].take().expect("it runs").stop().await;
                sleep(Duration::from_millis(rng.random_range(FAULT_MS))).await;
                let daemon = host.start().await;
                daemon.becomes_manager().await;
                set(&self.handles, victim, Some(daemon.manager()));
                self.daemons[victim] = Some(daemon);
            }
        }
        sleep(Duration::from_millis(rng.random_range(FAULT_MS))).await;
    }

    /// Waits until all managers have these labels of the nodes, and the same state.
    async fn check(&self, confirmed: &BTreeMap<NodeId, BTreeSet<String>>) {
        let has_all = |state: &ClusterState| {
            let has = |(node, keys): (&NodeId, &BTreeSet<String>)| {
                keys.iter().all(|key| state.nodes[node].spec.labels.contains_key(key))
            };
            confirmed.iter().all(has)
        };
        let states: Vec<_> = self.daemons.iter().flatten().map(|daemon| daemon.manager().state()).collect();
        for (at, state) in states.iter().enumerate() {
            let complete = timeout(DEADLINE, state.clone().wait_for(|state| has_all(state))).await.is_ok();
            assert!(complete, "n{} lacks confirmed changes after {:#?}", at + 1, self.history);
        }
        let same = async {
            loop {
                let now: Vec<_> = states.iter().map(|state| state.borrow().clone()).collect();
                if now.iter().all(|state| state.index == now[0].index) {
                    assert!(now.iter().all(|state| *state == now[0]), "states differ after {:#?}", self.history);
                    break;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(timeout(DEADLINE, same).await.is_ok(), "no common index after {:#?}", self.history);
    }
}

async fn run(seed: u64) {
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let daemons = cluster([Manager; 3]).await;
    let nodes: Vec<Link> = daemons.iter().map(|daemon| (daemon.id(), daemon.host.addr().into())).collect();
    let handles: Handles = Arc::new(Mutex::new(daemons.each_ref().map(|daemon| Some(daemon.manager()))));
    let mut trial = Trial { daemons: daemons.map(Some), nodes, handles, history: Vec::new() };
    let ended = Arc::new(AtomicBool::new(false));
    let start = |at: usize| {
        let node = trial.nodes[at].0.clone();
        tokio::spawn(client(trial.handles.clone(), at, node, ended.clone()))
    };
    let clients = [0, 1, 2].map(start);
    for _ in 0..FAULTS {
        trial.inject(&mut rng).await;
    }
    trial.hold(|_, _| false);
    ended.store(true, Ordering::Relaxed);
    let mut confirmed = BTreeMap::new();
    for (client, (node, _)) in clients.into_iter().zip(&trial.nodes) {
        confirmed.insert(node.clone(), client.await.expect("the client ends"));
    }
    trial.check(&confirmed).await;
    let made: usize = confirmed.values().map(BTreeSet::len).sum();
    assert!(made > FAULTS, "only {made} changes were confirmed: {:#?}", trial.history);
    println!("{made} changes were confirmed under {:?}", trial.history);
    for daemon in trial.daemons.into_iter().flatten() {
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_confirmed_under_faults_of_the_network_is_in_every_managers_state() {
    for seed in seeds(SEEDS) {
        run(seed).await;
    }
}
