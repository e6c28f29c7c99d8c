//! The machines of a simulated cluster, and their faults. Each machine runs for a tick, one after
//! the other; what one sends to another arrives in a later tick.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;
use tokio::{
    runtime::{Builder, Runtime},
    time::{advance, sleep, sleep_until},
};
use weft_model::{
    ClusterState, Command, DEFAULT_TUNNEL_PORT, NodeId,
    plan::PlanVersion,
    spec::{Availability, ClusterSpec, Role},
};

use super::{
    super::{
        fixture,
        histories::{Client, Recorder},
    },
    daemon::{add_label, change, set_role, start, start_clients},
    faults::{Fault, Scheduled},
    observed::{Acks, MANAGERS, NODES, Observed},
};
use crate::{
    fixture::{
        disk::Disk,
        simulated::{
            Host,
            net::{Link, Net, TICK},
        },
    },
    swarm::{InitOptions, JoinOptions, Manager, Swarm, SwarmConfig},
};

/// How long the first steps of a cluster may take, without faults.
const SETUP: Duration = Duration::from_secs(30);
/// How long the power stays on at the most, if the disk writes less than the fault waits for.
const NO_WRITES: Duration = Duration::from_millis(200);
/// How long a daemon may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(8);
/// How often a leader is asked what it knows.
const LOOK: Duration = Duration::from_millis(100);

struct Machine {
    host: Arc<Host>,
    dir: TempDir,
    config: SwarmConfig,
    /// `None` while no process runs.
    process: Option<Runtime>,
    /// Faults that pause it.
    pauses: usize,
    starts_at: Option<Duration>,
    /// The power fails at this time, or before, when the disk says so.
    power_until: Option<Duration>,
    /// For how long, then.
    off: Duration,
    /// The process ends itself before this time, or is killed.
    stops: Option<(Duration, Arc<Mutex<bool>>)>,
}

/// A simulated cluster.
pub(super) struct World {
    pub(super) now: Duration,
    pub(super) observed: Arc<Observed>,
    pub(super) recorder: Arc<Recorder>,
    pub(super) nodes: Vec<NodeId>,
    net: Net,
    rng: StdRng,
    machines: Vec<Machine>,
    /// The faults that last, and the node that they were given, if that was not known before.
    active: Vec<(Scheduled, Option<usize>)>,
    clients: usize,
    has_clients: bool,
}

fn addr(at: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, at as u8 + 1)
}

fn directory() -> TempDir {
    // In memory if there is such a file system: nothing needs to be on a real disk.
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let net = Net::new(rng.random());
        let machine = |at: usize| {
            let dir = directory();
            let disk = Disk::under(&dir.path().join("swarm"));
            Machine {
                host: Host::new(at, addr(at).into(), net.clone(), disk, rng.random()),
                config: fixture::config(dir.path(), &format!("n{}", at + 1), addr(at)),
                dir,
                process: None,
                pauses: 0,
                starts_at: None,
                power_until: None,
                off: Duration::ZERO,
                stops: None,
            }
        };
        let machines = (0..NODES).map(machine).collect();
        let mut world = Self {
            now: Duration::ZERO,
            observed: Observed::new(),
            recorder: Recorder::new(),
            nodes: Vec::new(),
            net,
            rng,
            machines,
            active: Vec::new(),
            clients: 0,
            has_clients: false,
        };
        (0..NODES).for_each(|at| world.boot(at));
        world
    }

    pub(super) fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    /// What was sent, in the order in which it was sent.
    pub(super) fn network_digest(&self) -> u64 {
        self.net.digest()
    }

    /// Forms a cluster of the machines, and starts a service and the clients.
    pub(super) fn set_up(&mut self) {
        let spec = ClusterSpec { heartbeat_ms: 500, heartbeat_misses: 6, ..fixture::spec() };
        let options = InitOptions {
            advertise_addr: None,
            listen_addr: SocketAddr::new(addr(0).into(), 0),
            tunnel_addr: None,
            tunnel_port: DEFAULT_TUNNEL_PORT,
            spec,
            auto_lock: false,
            availability: Availability::Active,
        };
        let node = self.run(0, "the cluster is formed", move |swarm| async move {
            swarm.init(options).await.expect("the cluster is formed")
        });
        self.nodes.push(node);
        let manager = self.swarm(0).manager().expect("a manager");
        let remote = manager.state().borrow().nodes[manager.node()].rpc_addr;
        for at in 1..NODES {
            let token = manager.join_token(role(at));
            let options = JoinOptions {
                remotes: vec![remote],
                token,
                advertise_addr: None,
                listen_addr: SocketAddr::new(addr(at).into(), 0),
                tunnel_addr: None,
                availability: Availability::Active,
            };
            let node = self.run(at, "a node joins", move |swarm| async move {
                swarm.join(options).await.expect("the node joins");
                swarm.plans().borrow().as_ref().expect("a plan").node.clone()
            });
            self.nodes.push(node);
        }
        self.run(0, "a service is created", |swarm| async move {
            let manager = swarm.manager().expect("a manager");
            let spec = Box::new(crate::fixture::service_spec("web", 3, &[]));
            let id = weft_model::ServiceId::from_random(1);
            manager.propose(Command::CreateService { id, spec }).await.expect("created");
        });
        self.run_until("the cluster is complete", SETUP, |world| world.check_settled(3));
        self.has_clients = true;
        (0..MANAGERS).for_each(|at| self.start_clients(at));
    }

    /// # Panics
    /// If the daemon does not run.
    fn swarm(&self, at: usize) -> Swarm {
        self.observed.swarm(at).expect("the daemon runs")
    }

    /// The managers that run, by the number of their node.
    pub(super) fn managers(&self) -> Vec<(usize, Manager)> {
        let manager = |at| Some((at, self.observed.swarm(at)?.manager()?));
        (0..NODES).filter_map(manager).collect()
    }

    fn leader(&self) -> Option<usize> {
        let term = |manager: &Manager| *manager.tracker().term().borrow();
        self.managers()
            .into_iter()
            .max_by_key(|(_, manager)| term(manager))
            .filter(|(_, m)| term(m).is_some())
            .map(|(at, _)| at)
    }

    /// Runs a future on a machine to its end.
    pub(super) fn run<T, F>(&mut self, at: usize, what: &str, work: impl FnOnce(Swarm) -> F) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.run_until(what, SETUP, |world| world.observed.swarm(at).map(|_| ()).ok_or_else(|| "it starts".to_owned()));
        let result = Arc::new(Mutex::new(None));
        let (work, slot) = (work(self.swarm(at)), result.clone());
        self.spawn(at, async move {
            let done = work.await;
            *slot.lock().expect("no thread panicked") = Some(done);
        });
        self.run_until(what, SETUP, |_| {
            if result.lock().expect("no thread panicked").is_some() { Ok(()) } else { Err("it runs".to_owned()) }
        });
        let done = result.lock().expect("no thread panicked").take();
        done.expect("a result")
    }

    /// # Panics
    /// If the condition, which says what is missing, is not met in time.
    pub(super) fn run_until(&mut self, what: &str, limit: Duration, condition: impl Fn(&Self) -> Result<(), String>) {
        let deadline = self.now + limit;
        while let Err(missing) = condition(self) {
            assert!(self.now < deadline, "not in time: {what}: {missing}");
            self.tick();
        }
    }

    fn spawn(&self, at: usize, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(process) = &self.machines[at].process {
            drop(process.spawn(work));
        }
    }

    /// Runs all machines for a tick.
    ///
    /// # Panics
    /// If something happened that must not happen.
    pub(super) fn tick(&mut self) {
        let until = self.now + TICK;
        self.net.set_now(self.now);
        for machine in &self.machines {
            let Some(process) = machine.process.as_ref().filter(|_| machine.pauses == 0) else { continue };
            let _entered = machine.host.make_current();
            process.block_on(async {
                // After a pause, all timers are late at once.
                let missed = self.now.saturating_sub(machine.host.now());
                if missed > TICK {
                    advance(missed).await;
                }
                sleep_until(machine.host.instant_of(until)).await;
            });
        }
        self.now = until;
        for at in 0..NODES {
            self.check_machine(at);
        }
        if self.now.as_millis().is_multiple_of(LOOK.as_millis()) {
            self.look_at_acks();
        }
        let violations = self.observed.violations();
        assert!(violations.is_empty(), "{violations:#?}");
    }

    /// What the leaders know to be in effect must stay so.
    fn look_at_acks(&self) {
        for (_, manager) in self.managers() {
            let Some(view) = manager.tracker().view() else { continue };
            for (node, liveness) in view.nodes {
                if liveness.acked > 0 {
                    let plan = PlanVersion { epoch: liveness.report.epoch, generation: liveness.acked };
                    self.observed.acked(&node, plan);
                }
            }
        }
    }

    /// Does what is due at a machine: its power fails, its process ends, it starts again.
    fn check_machine(&mut self, at: usize) {
        let machine = &self.machines[at];
        let fails = machine.power_until.is_some_and(|until| until <= self.now) || !machine.host.disk.is_on();
        if machine.process.is_some() && fails {
            let off = machine.off;
            self.event(format!("n{} has no power", at + 1));
            self.machines[at].host.disk.cut_power();
            self.net.set_power(addr(at).into(), false);
            self.kill(at, off);
        }
        let stopped = self.machines[at].stops.as_ref();
        if stopped.is_some_and(|(until, done)| *until <= self.now || *done.lock().expect("no thread panicked")) {
            let off = self.machines[at].off;
            self.kill(at, off);
        }
        if self.machines[at].starts_at.is_some_and(|time| time <= self.now) {
            self.boot(at);
        }
    }

    /// Ends the process of a machine at once. It starts again after this time.
    fn kill(&mut self, at: usize, off: Duration) {
        let machine = &mut self.machines[at];
        (machine.power_until, machine.stops) = (None, None);
        machine.starts_at = Some(self.now + off);
        let _entered = machine.host.make_current();
        machine.host.disk.end_process();
        let Some(process) = machine.process.take() else { return };
        let runtime = process.handle().clone();
        let _guard = runtime.enter();
        self.observed.set_swarm(at, None);
        drop(process);
        self.event(format!("n{} has ended", at + 1));
    }

    fn boot(&mut self, at: usize) {
        let (now, number) = (self.now, self.clients);
        self.clients += 1;
        let machine = &mut self.machines[at];
        machine.starts_at = None;
        if !machine.host.disk.is_on() {
            let count = machine.host.disk.restore_power(&mut self.rng).expect("the files can be read");
            self.net.set_power(machine.host.addr, true);
            self.observed.trace(now, format!("n{} has lost {count} writes", at + 1));
        }
        // Its machine has got the right time.
        machine.host.set_wall_error(0);
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
        let entered = machine.host.make_current();
        let host = machine.host.clone();
        runtime.block_on(async move { host.boot(now) });
        drop(entered);
        let (config, observed, recorder) = (machine.config.clone(), self.observed.clone(), self.recorder.clone());
        let has_clients = self.has_clients;
        drop(runtime.spawn(async move {
            let swarm = start(config, at, &observed).await;
            if has_clients {
                start_clients(&swarm, at, number, &observed, &recorder);
            }
        }));
        machine.process = Some(runtime);
        self.event(format!("n{} starts", at + 1));
    }

    fn start_clients(&mut self, at: usize) {
        let (swarm, number) = (self.swarm(at), self.clients);
        self.clients += 1;
        let (observed, recorder) = (self.observed.clone(), self.recorder.clone());
        self.spawn(at, async move { start_clients(&swarm, at, number, &observed, &recorder) });
    }

    fn event(&self, line: String) {
        self.observed.trace(self.now, line);
    }

    /// Begins a fault.
    pub(super) fn begin(&mut self, scheduled: Scheduled) {
        self.event(format!("fault: {}", scheduled.fault));
        let leader = self.leader();
        let given = match scheduled.fault {
            Fault::LeaderAlone | Fault::LeaderPaused => leader,
            Fault::Paused(node) => Some(node),
            _ => None,
        };
        self.active.push((scheduled, given));
        self.apply_lasting();
        match scheduled.fault {
            Fault::Paused(_) | Fault::LeaderPaused => {
                if let Some(node) = given {
                    self.machines[node].pauses += 1;
                }
            }
            Fault::Cut(node) => self.net.cut(|one, other| node.is_none_or(|node| [one, other].contains(&node))),
            Fault::Restart(node, off) => self.stop(node, off),
            Fault::Killed(node, off) if self.machines[node].process.is_some() => self.kill(node, off),
            Fault::LogLost(node, off) if self.machines[node].process.is_some() && self.all_vote() => {
                self.kill(node, off);
                let machine = &self.machines[node];
                machine.host.disk.remove_log(&machine.dir.path().join("swarm/raft.redb"));
            }
            Fault::PowerCut(victim, writes, off) => {
                for node in victim.map_or(0..NODES, |victim| victim..victim + 1) {
                    let machine = &mut self.machines[node];
                    if machine.process.is_some() && machine.power_until.is_none() {
                        machine.host.disk.cut_power_after(writes);
                        machine.power_until = Some(self.now + NO_WRITES);
                        machine.off = off;
                    }
                }
            }
            Fault::Clock(node, by_ms) => self.machines[node].host.set_wall_error(by_ms),
            Fault::Reappointed(victim) => self.reappoint(victim),
            Fault::Heartbeat(heartbeat_ms) => self.user(move |state| {
                let cluster = state.cluster.as_ref()?;
                let spec = ClusterSpec { heartbeat_ms, ..cluster.spec.clone() };
                Some(Command::UpdateCluster { version: cluster.meta.version, spec })
            }),
            Fault::Update(replicas) => self.user(move |state| {
                let service = state.services.values().find(|service| service.spec.name.as_str() == "web")?;
                let mut spec = crate::fixture::service_spec("web", replicas, &[]);
                spec.task.container.env = vec![format!("UPDATE={}", service.meta.version)];
                let (id, version) = (service.id.clone(), service.meta.version);
                Some(Command::UpdateService { id, version, spec: Box::new(spec) })
            }),
            _ => {}
        }
    }

    /// Ends a fault.
    pub(super) fn end(&mut self, at: usize) {
        let (scheduled, given) = self.active.remove(at);
        self.event(format!("over: {}", scheduled.fault));
        if let (Fault::Paused(_) | Fault::LeaderPaused, Some(node)) = (scheduled.fault, given) {
            self.machines[node].pauses -= 1;
        }
        if let Fault::Clock(node, _) = scheduled.fault {
            self.machines[node].host.set_wall_error(0);
        }
        self.apply_lasting();
    }

    /// The first fault that is over at this time.
    pub(super) fn over(&self, now: Duration) -> Option<usize> {
        self.active.iter().position(|(scheduled, _)| scheduled.to <= now)
    }

    /// Sets the links, the disks and the agents to what the faults that last ask for.
    fn apply_lasting(&self) {
        let faults = || self.active.iter().map(|(scheduled, given)| (scheduled.fault, *given));
        for from in 0..NODES {
            for to in (0..NODES).filter(|to| *to != from) {
                let held = faults().any(|(fault, given)| match fault {
                    Fault::Alone(node) => [from, to].contains(&node),
                    Fault::LeaderAlone => given.is_some_and(|node| [from, to].contains(&node)),
                    Fault::Held(one, other) => (from, to) == (one, other),
                    Fault::Apart(one, other) => [(from, to), (to, from)].contains(&(one, other)),
                    _ => false,
                });
                let delays = faults().filter_map(|(fault, _)| match fault {
                    Fault::Slow(node, delay) if node.is_none_or(|node| [from, to].contains(&node)) => Some(delay),
                    _ => None,
                });
                self.net.set_link(from, to, Link { held, delay: delays.max().unwrap_or_default() });
            }
        }
        for (at, machine) in self.machines.iter().enumerate() {
            let refuses = faults().any(|(fault, _)| matches!(fault, Fault::Refuses(node) if node == at));
            self.net.set_refuses(addr(at).into(), refuses);
            let full = faults().any(|(fault, _)| matches!(fault, Fault::FullDisk(node) if node == at));
            machine.host.disk.set_full(full);
            let sync = faults().filter_map(|(fault, _)| match fault {
                Fault::SlowDisk(node, sync) if node == at => Some(sync),
                _ => None,
            });
            machine.host.disk.set_sync_time(sync.max().unwrap_or_default());
            let acks = faults().filter_map(|(fault, _)| match fault {
                Fault::LateAcks(node, time) if node == at => Some(Acks::After(time)),
                Fault::NoAcks(node) if node == at => Some(Acks::Never),
                _ => None,
            });
            let acks = acks.max().unwrap_or(Acks::AtOnce);
            self.observed.acks[at].send_if_modified(|now| std::mem::replace(now, acks) != acks);
        }
    }

    /// Stops a daemon, as its user does. It starts again after this time.
    fn stop(&mut self, node: usize, off: Duration) {
        let machine = &mut self.machines[node];
        let swarm = self.observed.swarm(node);
        let (Some(_), Some(swarm), None) = (&machine.process, swarm, &machine.stops) else { return };
        let done = Arc::new(Mutex::new(false));
        (machine.off, machine.stops) = (off, Some((self.now + STOP, done.clone())));
        self.spawn(node, async move {
            swarm.shutdown().await;
            *done.lock().expect("no thread panicked") = true;
        });
    }

    /// Whether all managers vote. If one of two voters loses its log, there is no quorum any more.
    fn all_vote(&self) -> bool {
        let states = self.managers().into_iter().map(|(_, manager)| manager.state().borrow().clone());
        states.max_by_key(|state| state.index).is_some_and(|state| fixture::voters(&state) == MANAGERS)
    }

    /// A user makes a change at a manager that runs.
    fn user(&mut self, command: impl Fn(&ClusterState) -> Option<Command> + Send + Sync + 'static) {
        let managers = self.managers();
        if managers.is_empty() {
            return;
        }
        let (at, _) = managers[self.rng.random_range(0..managers.len())];
        let swarm = self.swarm(at);
        self.spawn(at, change(swarm, command));
    }

    /// Lets another manager demote this one, and promote it again.
    fn reappoint(&mut self, victim: usize) {
        let Some((at, _)) = self.managers().into_iter().find(|(at, _)| *at != victim) else { return };
        let (swarm, node) = (self.swarm(at), self.nodes[victim].clone());
        self.spawn(at, async move {
            set_role(swarm.clone(), node.clone(), Role::Worker).await;
            set_role(swarm, node, Role::Manager).await;
        });
    }

    /// Ends all faults, and starts what does not run. The clients end.
    pub(super) fn heal(&mut self) {
        while !self.active.is_empty() {
            self.end(0);
        }
        self.observed.end();
        self.recorder.end();
        for at in 0..NODES {
            self.machines[at].starts_at = self.machines[at].starts_at.map(|time| time.min(self.now));
        }
    }

    /// Makes managers of those that a fault has left as workers.
    pub(super) fn appoint_managers(&mut self) {
        let Some((at, manager)) = self.managers().into_iter().next() else { return };
        let state = manager.state().borrow().clone();
        for node in &self.nodes[..MANAGERS] {
            if state.nodes[node].spec.role == Role::Worker {
                self.spawn(at, set_role(self.swarm(at), node.clone(), Role::Manager));
            }
        }
    }

    /// What is missing until all specs are met and all managers have the same state.
    pub(super) fn check_settled(&self, replicas: usize) -> Result<(), String> {
        let managers = self.managers();
        if managers.iter().map(|(at, _)| *at).ne(0..MANAGERS) {
            return Err(format!("managers run on {:?}", managers.iter().map(|(at, _)| at + 1).collect::<Vec<_>>()));
        }
        let states: Vec<_> = managers.iter().map(|(_, manager)| manager.state().borrow().clone()).collect();
        let state = &states[0];
        if states.iter().any(|other| other.index != state.index) {
            return Err(format!("states at {:?}", states.iter().map(|state| state.index).collect::<Vec<_>>()));
        }
        if let Some(node) = state.nodes.values().find(|node| !fixture::is_ready(node)) {
            return Err(format!("{} is {:?}", node.hostname, node.status));
        }
        let voters = fixture::voters(state);
        if (state.nodes.len(), voters) != (NODES, MANAGERS) {
            return Err(format!("{} nodes, {voters} voters", state.nodes.len()));
        }
        if let Some(label) = self.observed.lost_label(state) {
            return Err(format!("the confirmed label {label} is lost"));
        }
        let service = state.services.values().find(|service| service.spec.name.as_str() == "web");
        let Some(service) = service else { return Err("no service".to_owned()) };
        let tasks = state.tasks.values().filter(|task| task.service == service.id);
        let live = tasks.filter(|task| task.desired <= weft_model::state::TaskState::Running);
        let (running, others): (Vec<_>, Vec<_>) = live.partition(|task| {
            task.status.state == weft_model::state::TaskState::Running && task.version >= service.task_version
        });
        if running.len() != replicas || !others.is_empty() {
            return Err(format!("{} of {replicas} tasks run, and {} others", running.len(), others.len()));
        }
        Ok(())
    }

    /// The number of tasks that the service asks for.
    pub(super) fn replicas(&self) -> usize {
        let managers = self.managers();
        let Some((_, manager)) = managers.first() else { return 0 };
        let state = manager.state().borrow().clone();
        let service = state.services.values().find(|service| service.spec.name.as_str() == "web");
        match service.map(|service| &service.spec.mode) {
            Some(weft_model::spec::ServiceMode::Replicated { replicas }) => *replicas as usize,
            _ => 0,
        }
    }

    /// The time in the cluster state.
    pub(super) fn cluster_ms(&self) -> u64 {
        self.managers().iter().map(|(_, manager)| manager.state().borrow().now_ms).max().unwrap_or(0)
    }

    /// Adds a label to a node, through the first manager, which must be one.
    pub(super) fn add_label(&mut self, label: &str) {
        let (observed, text) = (self.observed.clone(), label.to_owned());
        self.run(0, "a label is added", move |swarm| async move {
            let manager = swarm.manager().expect("a manager");
            // Its state may be older than that of the leader, which then refuses the change.
            while add_label(&manager, manager.node(), &text).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
            observed.label(manager.node(), text);
        });
    }

    /// Cuts the power of all machines at once, and starts them again.
    pub(super) fn cut_power(&mut self) {
        self.machines.iter().for_each(|machine| machine.host.disk.cut_power());
        self.tick();
        self.tick();
    }

    /// Asks each manager, as soon as it has a cluster state, for a state that is up to date.
    /// Returns those that are, by the number of the node.
    pub(super) fn read_at_once(&mut self) -> Vec<(usize, Arc<ClusterState>)> {
        let states = Arc::new(Mutex::new(Vec::new()));
        for at in 0..MANAGERS {
            let (observed, states) = (self.observed.clone(), states.clone());
            self.spawn(at, async move {
                let manager = loop {
                    match observed.swarm(at).and_then(|swarm| swarm.manager()) {
                        Some(manager) => break manager,
                        None => sleep(Duration::from_millis(1)).await,
                    }
                };
                for _ in 0..20 {
                    let current = manager.catch_up().await.then(|| manager.state().borrow().clone());
                    states.lock().expect("no thread panicked").extend(current.map(|state| (at, state)));
                    sleep(Duration::from_millis(1)).await;
                }
            });
        }
        let until = self.now + Duration::from_secs(3);
        while self.now < until {
            self.tick();
        }
        states.lock().expect("no thread panicked").clone()
    }

    pub(super) fn wait_until_settled(&mut self) {
        self.run_until("the cluster settles", SETUP, |world| world.check_settled(world.replicas()));
    }

    /// Reads all services at a manager, and records the answers.
    pub(super) fn read_all(&mut self, at: usize) {
        let (recorder, number) = (self.recorder.clone(), self.clients);
        self.clients += 1;
        self.run(at, "services are read", move |swarm| async move {
            Client::new(number, at, &swarm, recorder).read_all().await;
        });
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for at in 0..NODES {
            self.kill(at, Duration::ZERO);
        }
    }
}

fn role(at: usize) -> Role {
    if at < MANAGERS { Role::Manager } else { Role::Worker }
}
