//! Three managers with real TLS, real logs and real connections, and faults of the network between
//! them. Tests make changes through the managers meanwhile, and check afterwards.
//!
//! The faults follow from a seed, but threads and time do not: a seed that failed may pass when it
//! is run again with `WEFT_SIM_SEED=N`.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::time::{sleep, timeout};
use weft_model::spec::Role::Manager;

use super::fixture::{DEADLINE, Daemon, cluster};
use crate::{
    rpc::faults::{self, Link},
    swarm::Swarm,
};

/// The daemons of the three managers. `None` while a daemon is stopped. Clones share them.
#[derive(Clone)]
pub(super) struct Managers(Arc<Mutex<[Option<Swarm>; 3]>>);

impl Managers {
    fn lock(&self) -> MutexGuard<'_, [Option<Swarm>; 3]> {
        self.0.lock().expect("no test thread panicked")
    }

    pub(super) fn at(&self, at: usize) -> Option<Swarm> {
        self.lock()[at].clone()
    }

    fn set(&self, at: usize, swarm: Option<Swarm>) {
        self.lock()[at] = swarm;
    }
}

/// A fault of the network, or of a manager. Managers are counted from 0.
#[derive(Debug, Clone, Copy)]
pub(super) enum Fault {
    /// Nothing passes between this manager and the others.
    Alone(usize),
    /// The calls of the first manager to the second one are held, with their answers.
    Held(usize, usize),
    /// All links are slow.
    Slow(Duration),
    /// All connections end, and can be opened again at once.
    Cut,
    /// The daemon of this manager stops, and starts after this time.
    Restart(usize, Duration),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alone(victim) => write!(f, "n{} is alone", victim + 1),
            Self::Held(from, to) => write!(f, "the calls of n{} to n{} are held", from + 1, to + 1),
            Self::Slow(delay) => write!(f, "each message waits {} ms", delay.as_millis()),
            Self::Cut => write!(f, "all connections are cut"),
            Self::Restart(victim, pause) => write!(f, "n{} restarts after {} ms", victim + 1, pause.as_millis()),
        }
    }
}

/// Three managers, and what was done to them.
pub(super) struct Trial {
    pub(super) daemons: [Option<Daemon>; 3],
    /// The id and the address of each.
    pub(super) nodes: Vec<Link>,
    pub(super) managers: Managers,
    pub(super) faults: Vec<String>,
}

impl Trial {
    pub(super) async fn new() -> Self {
        let daemons = cluster([Manager; 3]).await;
        let nodes = daemons.iter().map(|daemon| (daemon.id(), daemon.host.addr().into())).collect();
        let managers = daemons.each_ref().map(|daemon| Some(daemon.swarm.clone()));
        let managers = Managers(Arc::new(Mutex::new(managers)));
        Self { daemons: daemons.map(Some), nodes, managers, faults: Vec::new() }
    }

    /// The links for which `selects` is true, by the numbers of the caller and of the called node.
    fn links(&self, selects: impl Fn(usize, usize) -> bool) -> Vec<Link> {
        let pairs = (0..3).flat_map(|from| (0..3).map(move |to| (from, to)));
        let selected = pairs.filter(|(from, to)| from != to && selects(*from, *to));
        selected.map(|(from, to)| (self.nodes[from].0.clone(), self.nodes[to].1)).collect()
    }

    /// Holds these links, and lets everything through on all others.
    fn hold(&self, selects: impl Fn(usize, usize) -> bool) {
        faults::hold(&self.links(|_, _| true), &self.links(selects));
    }

    /// Ends all faults of the network.
    pub(super) fn heal(&self) {
        self.hold(|_, _| false);
    }

    /// Begins a fault, which ends an earlier one. Resolves when it is in effect, and a restarted
    /// daemon is a manager again.
    pub(super) async fn begin(&mut self, fault: Fault) {
        self.faults.push(fault.to_string());
        match fault {
            Fault::Alone(victim) => self.hold(|from, to| from == victim || to == victim),
            Fault::Held(from, to) => self.hold(|caller, called| (caller, called) == (from, to)),
            Fault::Slow(delay) => faults::slow(&self.links(|_, _| true), delay),
            Fault::Cut => {
                self.heal();
                faults::cut(&self.links(|_, _| true));
            }
            Fault::Restart(victim, pause) => {
                self.heal();
                self.managers.set(victim, None);
                let host = self.daemons[victim].take().expect("it runs").stop().await;
                sleep(pause).await;
                let daemon = host.start().await;
                daemon.becomes_manager().await;
                self.managers.set(victim, Some(daemon.swarm.clone()));
                self.daemons[victim] = Some(daemon);
            }
        }
    }

    /// Isolates the leader. Resolves when another manager leads, although the former leader still
    /// believes that it does.
    pub(super) async fn depose_leader(&mut self) {
        let managers: Vec<_> = self.daemons.iter().flatten().map(Daemon::manager).collect();
        let ids: Vec<u64> = managers.iter().map(|manager| manager.keys().raft_id).collect();
        let deposed = async {
            let leader = managers[0].wait_for_leader(&ids).await;
            let victim = ids.iter().position(|id| *id == leader).expect("one of the three");
            self.begin(Fault::Alone(victim)).await;
            let others: Vec<u64> = ids.iter().copied().filter(|id| *id != leader).collect();
            let next = managers[(victim + 1) % 3].wait_for_leader(&others).await;
            let next = ids.iter().position(|id| *id == next).expect("one of the three");
            self.faults.push(format!("n{} leads", next + 1));
        };
        timeout(DEADLINE, deposed).await.expect("another leader in time");
    }

    pub(super) async fn stop(self) {
        for daemon in self.daemons.into_iter().flatten() {
            daemon.stop().await;
        }
    }
}
