//! Three managers with real TLS, real logs and real connections, and faults of the network between
//! them, of their disks and of their clocks. Tests make changes through the managers meanwhile, and
//! check afterwards.
//!
//! The faults follow from a seed, but threads and time do not: a seed that failed may pass when it
//! is run again with `WEFT_SIM_SEED=N`.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::join_all;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{sleep, timeout};
use weft_model::spec::Role::{Manager, Worker};

use super::fixture::{DEADLINE, Daemon, Host, cluster_on};
use crate::{
    raft::faults::Disk,
    rpc::faults::{self, Link},
    swarm::Swarm,
};

/// The power is cut after fewer writes than this. A transaction has about ten.
const MAX_WRITES: usize = 40;

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

/// A fault of the network, or of a manager or its machine. Managers are counted from 0.
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
    /// The power of this manager's machine, or of all, is cut for this time. Its log has lost
    /// writes that were not synced, as the seed chooses.
    PowerCut(Option<usize>, Duration, u64),
    /// Each sync of this manager's log takes so long.
    SlowDisk(usize, Duration),
    /// The disk of this manager is full: its log stops.
    FullDisk(usize),
    /// The machine of this manager stops for this time, and its log is gone.
    LogLost(usize, Duration),
    /// This manager becomes a worker, and a manager again.
    Reappointed(usize),
    /// The wall clock of this manager makes a step, in milliseconds.
    ClockStep(usize, i64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alone(victim) => write!(f, "n{} is alone", victim + 1),
            Self::Held(from, to) => write!(f, "the calls of n{} to n{} are held", from + 1, to + 1),
            Self::Slow(delay) => write!(f, "each message waits {} ms", delay.as_millis()),
            Self::Cut => write!(f, "all connections are cut"),
            Self::Restart(victim, pause) => write!(f, "n{} restarts after {} ms", victim + 1, pause.as_millis()),
            Self::PowerCut(Some(victim), pause, _) => {
                write!(f, "n{} has no power for {} ms", victim + 1, pause.as_millis())
            }
            Self::PowerCut(None, pause, _) => write!(f, "no machine has power for {} ms", pause.as_millis()),
            Self::SlowDisk(victim, sync) => write!(f, "a sync of n{} takes {} ms", victim + 1, sync.as_millis()),
            Self::FullDisk(victim) => write!(f, "the disk of n{} is full", victim + 1),
            Self::LogLost(victim, pause) => {
                write!(f, "n{} is off for {} ms, and loses its log", victim + 1, pause.as_millis())
            }
            Self::Reappointed(victim) => write!(f, "n{} becomes a worker and a manager again", victim + 1),
            Self::ClockStep(victim, by_ms) => write!(f, "the wall clock of n{} steps by {by_ms} ms", victim + 1),
        }
    }
}

/// Three managers, and what was done to them.
pub(super) struct Trial {
    pub(super) daemons: [Option<Daemon>; 3],
    /// The id and the address of each.
    pub(super) nodes: Vec<Link>,
    pub(super) managers: Managers,
    disks: [Disk; 3],
    pub(super) faults: Vec<String>,
}

impl Trial {
    pub(super) async fn new() -> Self {
        let hosts = ["n1", "n2", "n3"].map(Host::new);
        let disks = hosts.each_ref().map(|host| Disk::under(&host.dir().join("swarm")));
        let daemons = cluster_on(hosts, [Manager; 3]).await;
        let nodes = daemons.iter().map(|daemon| (daemon.id(), daemon.host.addr().into())).collect();
        let managers = daemons.each_ref().map(|daemon| Some(daemon.swarm.clone()));
        let managers = Managers(Arc::new(Mutex::new(managers)));
        Self { daemons: daemons.map(Some), nodes, managers, disks, faults: Vec::new() }
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

    /// Ends all faults of the network and of the disks.
    pub(super) fn heal(&self) {
        self.hold(|_, _| false);
        self.heal_disks();
    }

    fn heal_disks(&self) {
        for disk in &self.disks {
            disk.set_sync_time(Duration::ZERO);
            disk.set_full(false);
        }
    }

    /// Begins a fault, which ends an earlier one. Resolves when it is in effect, and a restarted
    /// daemon is a manager again.
    pub(super) async fn begin(&mut self, fault: Fault) {
        self.faults.push(fault.to_string());
        self.heal_disks();
        self.hold(|from, to| match fault {
            Fault::Alone(victim) => from == victim || to == victim,
            Fault::Held(caller, called) => (from, to) == (caller, called),
            _ => false,
        });
        match fault {
            Fault::Alone(_) | Fault::Held(..) => {}
            Fault::Slow(delay) => faults::slow(&self.links(|_, _| true), delay),
            Fault::Cut => faults::cut(&self.links(|_, _| true)),
            Fault::Restart(victim, pause) => self.restart(&[victim], pause, |_| ()).await,
            Fault::PowerCut(victim, pause, seed) => {
                let victims = victim.map_or_else(|| vec![0, 1, 2], |victim| vec![victim]);
                let (disks, mut rng) = (self.disks.clone(), StdRng::seed_from_u64(seed));
                let left: Vec<usize> = victims.iter().map(|_| rng.random_range(1..MAX_WRITES)).collect();
                join_all(victims.iter().zip(left).map(|(victim, left)| disks[*victim].cut_power(left))).await;
                let restore = |victim: usize| {
                    let count = disks[victim].restore_power(&mut rng).expect("the log exists");
                    println!("n{} has lost {count} writes", victim + 1);
                };
                self.restart(&victims, pause, restore).await;
            }
            Fault::FullDisk(victim) => self.disks[victim].set_full(true),
            Fault::LogLost(victim, pause) => {
                let log = self.daemon(victim).host.dir().join("swarm/raft.redb");
                self.restart(&[victim], pause, |_| std::fs::remove_file(&log).expect("the log exists")).await;
            }
            Fault::Reappointed(victim) => self.reappoint(victim).await,
            Fault::SlowDisk(victim, sync) => self.disks[victim].set_sync_time(sync),
            Fault::ClockStep(victim, by_ms) => {
                let daemon = self.daemon(victim);
                daemon.becomes_manager().await;
                daemon.manager().clock().step_wall_clock(by_ms);
            }
        }
    }

    /// Lets another manager demote this one, and promote it again.
    async fn reappoint(&mut self, victim: usize) {
        self.all_are_managers().await;
        let (node, other) = (self.nodes[victim].0.clone(), (victim + 1) % 3);
        let (victim, other) = (self.daemon(victim), self.daemon(other));
        for role in [Worker, Manager] {
            let changed = async {
                // Clients change the node too, and there may be no leader for a moment.
                while other.set_role(&node, role).await.is_err() {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            timeout(DEADLINE, changed).await.expect("a change of the role in time");
            if role == Worker { victim.becomes_worker().await } else { victim.becomes_manager().await }
        }
    }

    fn daemon(&self, at: usize) -> &Daemon {
        self.daemons[at].as_ref().expect("it runs")
    }

    /// Waits until each of the three has its log. One whose disk was full opens it again.
    pub(super) async fn all_are_managers(&self) {
        join_all(self.daemons.iter().flatten().map(Daemon::becomes_manager)).await;
    }

    /// Stops these daemons, and starts them after `pause`. Calls `before_start` for each before.
    async fn restart(&mut self, victims: &[usize], pause: Duration, mut before_start: impl FnMut(usize)) {
        let mut hosts = Vec::new();
        for victim in victims {
            self.managers.set(*victim, None);
            hosts.push((*victim, self.daemons[*victim].take().expect("it runs").stop().await));
        }
        sleep(pause).await;
        for (victim, host) in hosts {
            before_start(victim);
            self.daemons[victim] = Some(host.start().await);
        }
        for victim in victims {
            self.daemon(*victim).becomes_manager().await;
            self.managers.set(*victim, Some(self.daemon(*victim).swarm.clone()));
        }
    }

    /// The number of the manager that leads, when one does.
    pub(super) async fn leader(&self) -> usize {
        let managers: Vec<_> = self.daemons.iter().flatten().map(Daemon::manager).collect();
        let ids: Vec<u64> = managers.iter().map(|manager| manager.keys().raft_id).collect();
        let leader = timeout(DEADLINE, managers[0].wait_for_leader(&ids)).await.expect("a leader in time");
        ids.iter().position(|id| *id == leader).expect("one of the three")
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
