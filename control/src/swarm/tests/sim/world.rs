//! The hosts and what is between them: runs one seed, event by event.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use weft_model::{
    ClusterState, Command, NodeId, NodePlan, NodeReport,
    plan::PlanVersion,
    spec::{ClusterSpec, Role, ServiceMode},
    state::{TaskState, Traffic, UpdateState},
};

use super::{
    faults::{self, FAULTS_MS, Fault, Scheduled},
    invariants::Checks,
    manager::{Manager, Outcome, Request},
    network::{Arrival, Network},
    node::{Delays, Node},
    raft::{Log, LogEntry, Mark, RaftMessage},
    users::{self, Users},
};
use crate::{
    fixture::{START_MS, TestCluster},
    raft::{Proposal, ProposalId, Replica, Voter, Voters},
    swarm::dispatch::exchange::PlanMessage,
};

/// Daemons act at least this often, in milliseconds.
const TICK_MS: u64 = 25;
/// After the last fault, everything must be in order within this time.
const SETTLE_MS: u64 = 180_000;
/// And then nothing must change any more for this long.
const QUIET_MS: u64 = 10_000;
/// The nodes of a leader that was cut off from the other managers connect again after this time,
/// which is longer than an election and shorter than the time until the leader gives up.
const RECONNECT_MS: u64 = 2_200;
/// How many lines of the trace a failure prints.
const TRACE_LINES: usize = 150;

/// What hosts send each other.
#[derive(Debug, Clone)]
pub(super) enum Packet {
    Raft { source: u64, target: u64, message: RaftMessage },
    Ping,
    Pong,
    Propose { number: u64, id: ProposalId, command: Command },
    Proposed { number: u64, outcome: Option<Outcome> },
    Session(u64, SessionBody),
}

/// A message of a session.
#[derive(Debug, Clone)]
pub(super) enum SessionBody {
    Open { acked: PlanVersion, report: Box<NodeReport> },
    Message { acked: PlanVersion, report: Option<Box<NodeReport>> },
    Plan(PlanMessage),
    Redirect(Option<usize>),
    Refused { removed: bool },
}

/// A machine with a daemon.
#[derive(Debug)]
pub(super) struct Host {
    pub node: Node,
    /// Runs only while the daemon runs.
    pub manager: Option<Manager>,
    /// The Raft id and the log on the disk, while no manager runs.
    log: Option<(u64, Log)>,
    /// The log of this Raft id is lost.
    lost_log: Option<u64>,
    runs: bool,
    paused: bool,
    /// A sync that began before the daemon was started last is forgotten.
    life: u64,
    wall_offset_ms: i64,
    sync_ms: u64,
}

/// A sync of a log that has begun.
#[derive(Debug)]
struct Sync {
    host: usize,
    life: u64,
    mark: Mark,
    then: Vec<(u64, RaftMessage)>,
}

/// The syncs that have begun, by the time at which they end.
#[derive(Debug, Default)]
struct Syncs {
    queue: BTreeMap<(u64, u64), Sync>,
    next: u64,
}

impl Syncs {
    fn insert(&mut self, at_ms: u64, sync: Sync) {
        self.next += 1;
        self.queue.insert((at_ms, self.next), sync);
    }

    fn next_ms(&self) -> Option<u64> {
        self.queue.keys().next().map(|(at_ms, _)| *at_ms)
    }

    fn pop(&mut self, now_ms: u64) -> Option<Sync> {
        Some(self.queue.first_entry().filter(|entry| entry.key().0 <= now_ms)?.remove())
    }
}

/// The last lines of what happened. `None` while nothing is recorded.
type Trace = Option<VecDeque<String>>;

/// What a daemon can do while it handles one event.
pub(super) struct Ctx<'a> {
    /// The time since the start, which is also the monotonic clock of all hosts.
    pub now_ms: u64,
    /// The wall clock of this host.
    pub wall_ms: u64,
    pub rng: &'a mut StdRng,
    pub ids: &'a mut StdRng,
    /// The number of WireGuard keys that were made.
    pub keys_made: &'a mut u64,
    /// The host of each Raft id.
    pub raft_hosts: &'a BTreeMap<u64, usize>,
    host: usize,
    life: u64,
    sync_ms: u64,
    node: NodeId,
    node_hosts: &'a BTreeMap<NodeId, usize>,
    net: &'a mut Network,
    syncs: &'a mut Syncs,
    checks: &'a mut Checks,
    users: &'a mut Users,
    trace: &'a mut Trace,
}

impl Ctx<'_> {
    pub(super) fn violation(&mut self, text: String) {
        self.checks.fail(text);
    }

    pub(super) fn trace(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = self.trace {
            if lines.len() == TRACE_LINES {
                lines.pop_front();
            }
            lines.push_back(format!("{:>8.3} {}", self.now_ms as f64 / 1_000.0, line()));
        }
    }

    pub(super) fn send(&mut self, to: usize, packet: Packet) {
        self.net.send(self.host, to, packet, self.now_ms, self.rng);
    }

    pub(super) fn send_to_node(&mut self, node: &NodeId, packet: Packet) {
        if let Some(to) = self.node_hosts.get(node) {
            self.send(*to, packet);
        }
    }

    pub(super) fn connect(&mut self, manager: usize) -> u64 {
        self.net.connect(self.host, manager)
    }

    pub(super) fn close(&mut self, conn: u64) {
        self.net.close(conn);
    }

    pub(super) fn sync(&mut self, mark: Mark, then: Vec<(u64, RaftMessage)>) {
        let at_ms = self.now_ms + self.rng.random_range(0..=self.sync_ms);
        let sync = Sync { host: self.host, life: self.life, mark, then };
        self.syncs.insert(at_ms, sync);
    }

    pub(super) fn committed(&mut self, index: u64, entry: Rc<LogEntry>, replica: &Replica) {
        self.checks.record(&self.node, index, entry, replica);
    }

    pub(super) fn sends_plan(&mut self, term: u64, plan: &NodePlan) {
        self.checks.record_sent(term, plan);
    }

    pub(super) fn acks(&mut self, acked: PlanVersion, kernel: Option<&NodePlan>) {
        self.checks.record_ack(&self.node, acked, kernel);
    }

    /// A request has an outcome.
    pub(super) fn outcome(&mut self, id: ProposalId, (index, result): Outcome) {
        match result {
            Ok(_) => self.users.confirm(id, index),
            Err(rejection) => {
                self.users.rejected += 1;
                self.trace(|| format!("a change was rejected: {rejection}"));
            }
        }
    }

    /// A request has timed out.
    pub(super) fn unknown(&mut self, _: ProposalId) {
        self.users.unknown += 1;
    }
}

/// The host with this address.
pub(super) fn host_at(addr: SocketAddr) -> usize {
    let IpAddr::V4(ip) = addr.ip() else { unreachable!("hosts have IPv4 addresses") };
    usize::from(ip.octets()[3]) - 1
}

/// The result of a run.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub seed: u64,
    pub faults: Vec<Scheduled>,
    /// `None` if every invariant held.
    pub violation: Option<String>,
    pub trace: Vec<String>,
    pub entries: usize,
    pub asked: u64,
    pub confirmed: usize,
    pub unknown: u64,
    /// The simulated time.
    pub time_ms: u64,
}

pub(super) struct World {
    now_ms: u64,
    rng: StdRng,
    ids: StdRng,
    hosts: Vec<Host>,
    node_hosts: BTreeMap<NodeId, usize>,
    raft_hosts: BTreeMap<u64, usize>,
    net: Network,
    syncs: Syncs,
    checks: Checks,
    users: Users,
    trace: Trace,
    broken_images: BTreeSet<String>,
    keys_made: u64,
    faults: Vec<Scheduled>,
    /// Faults that have begun, with what ends them.
    active: Vec<(u64, Undo)>,
    next_request_ms: u64,
}

/// What ends a fault.
#[derive(Debug, Clone)]
enum Undo {
    Unblock(Vec<(usize, usize)>),
    /// The connections of the host end.
    Reconnect(usize),
    GoodNetwork,
    Start(usize),
    Resume(usize),
    FastDisk(usize),
    Unstick(usize),
}

/// Runs one seed.
pub(super) fn run(seed: u64, traced: bool) -> Report {
    let mut world = World::new(seed, traced);
    world.run_faults();
    world.settle();
    Report {
        seed,
        entries: world.checks.entries(),
        violation: world.checks.violation,
        trace: world.trace.into_iter().flatten().collect(),
        asked: world.users.asked,
        confirmed: world.users.confirmed.len(),
        unknown: world.users.unknown,
        faults: world.faults,
        time_ms: world.now_ms,
    }
}

impl World {
    fn new(seed: u64, traced: bool) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let managers = [1, 3, 3, 3, 3, 5][rng.random_range(0..6)];
        let workers = rng.random_range(if managers == 1 { 1..4 } else { 0..3 });
        // The commands with which a user forms the cluster and joins the nodes.
        let mut fixture = TestCluster::empty();
        let mut init = fixture.init();
        init.spec = ClusterSpec { heartbeat_ms: 500, heartbeat_misses: 6, ..ClusterSpec::default() };
        let first = Voter { node: init.node.id.clone(), rpc_addr: init.node.rpc_addr };
        let mut ids = vec![init.node.id.clone()];
        fixture.ok(Command::InitCluster(Box::new(init.clone())));
        let mut commands = vec![Command::InitCluster(Box::new(init))];
        for nth in 1..managers + workers {
            let role = if nth < managers { Role::Manager } else { Role::Worker };
            let join = fixture.joining(&format!("n{}", nth + 1), role);
            ids.push(join.id.clone());
            fixture.ok(Command::JoinNode(Box::new(join.clone())));
            commands.push(Command::JoinNode(Box::new(join)));
        }
        let mut id_rng = StdRng::seed_from_u64(!seed);
        let proposals =
            commands.into_iter().map(|command| Proposal::new(ProposalId(id_rng.random()), START_MS, command)).collect();
        let log = Log::first(Voters::new(vec![[1].into()], BTreeMap::from([(1, first)])), proposals);
        let hosts: Vec<Host> = ids
            .iter()
            .map(|id| {
                let delays = Delays {
                    plan_ms: rng.random_range(1..800),
                    start_ms: rng.random_range(0..1_000),
                    stop_ms: rng.random_range(0..2_000),
                };
                Host {
                    node: Node::new(id.clone(), delays),
                    manager: None,
                    log: None,
                    lost_log: None,
                    runs: true,
                    paused: false,
                    life: 0,
                    wall_offset_ms: rng.random_range(-500..500),
                    sync_ms: 10,
                }
            })
            .collect();
        let faults = faults::choose(hosts.len(), &mut rng);
        let mut world = Self {
            now_ms: 0,
            node_hosts: ids.into_iter().enumerate().map(|(host, id)| (id, host)).collect(),
            raft_hosts: BTreeMap::from([(1, 0)]),
            rng,
            ids: id_rng,
            hosts,
            net: Network::new(),
            syncs: Syncs::default(),
            checks: Checks::default(),
            users: Users::default(),
            trace: traced.then(VecDeque::new),
            broken_images: [users::BROKEN.to_owned()].into(),
            keys_made: 0,
            faults,
            active: Vec::new(),
            next_request_ms: 3_000,
        };
        let manager = Manager::open(world.hosts[0].node.id.clone(), 1, log, 0, &mut world.rng);
        world.hosts[0].manager = Some(manager);
        world
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        self.with_host(0, |_, ctx| ctx.trace(line));
    }

    /// Calls `act` with the host and what it can do now.
    fn with_host<R>(&mut self, host: usize, act: impl FnOnce(&mut Host, &mut Ctx<'_>) -> R) -> R {
        let own = &mut self.hosts[host];
        let wall_ms = (START_MS + self.now_ms).saturating_add_signed(own.wall_offset_ms);
        let mut ctx = Ctx {
            now_ms: self.now_ms,
            wall_ms,
            rng: &mut self.rng,
            ids: &mut self.ids,
            keys_made: &mut self.keys_made,
            raft_hosts: &self.raft_hosts,
            host,
            life: own.life,
            sync_ms: own.sync_ms,
            node: own.node.id.clone(),
            node_hosts: &self.node_hosts,
            net: &mut self.net,
            syncs: &mut self.syncs,
            checks: &mut self.checks,
            users: &mut self.users,
            trace: &mut self.trace,
        };
        let result = act(own, &mut ctx);
        self.checks.check_events(self.now_ms, &self.hosts);
        result
    }

    fn acts(&self, host: usize) -> bool {
        self.hosts[host].runs && !self.hosts[host].paused
    }

    /// Runs until `end_ms`, or until an invariant is violated.
    fn run_until(&mut self, end_ms: u64) {
        while self.now_ms < end_ms && self.checks.violation.is_none() {
            let tick_ms = self.now_ms - self.now_ms % TICK_MS + TICK_MS;
            while self.checks.violation.is_none()
                && let Some(at_ms) = self.next_event_ms().filter(|at_ms| *at_ms < tick_ms)
            {
                self.now_ms = self.now_ms.max(at_ms);
                self.run_events();
            }
            self.now_ms = tick_ms;
            self.tick();
        }
    }

    fn next_event_ms(&self) -> Option<u64> {
        [self.net.next_ms(), self.syncs.next_ms()].into_iter().flatten().min()
    }

    /// Calls that arrive and syncs that end by now.
    fn run_events(&mut self) {
        while let Some(sync) = self.syncs.pop(self.now_ms) {
            let host = &self.hosts[sync.host];
            if host.life != sync.life || !host.runs {
                continue;
            }
            if host.paused {
                self.syncs.insert(self.now_ms + TICK_MS, sync);
                continue;
            }
            self.with_host(sync.host, |host, ctx| {
                if let Some(manager) = &mut host.manager {
                    manager.synced(ctx, sync.mark, sync.then);
                }
            });
        }
        while let Some(arrival) = self.net.next_call(self.now_ms) {
            self.deliver(arrival);
        }
    }

    fn deliver(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Call { from, to, packet } => {
                if !self.hosts[to].runs {
                    return;
                }
                if self.hosts[to].paused {
                    // It waits in the socket.
                    return self.net.delay(from, to, packet, self.now_ms + TICK_MS);
                }
                let caller = self.hosts[from].node.id.clone();
                self.with_host(to, |host, ctx| {
                    let Some(manager) = &mut host.manager else { return };
                    match packet {
                        Packet::Raft { source, target, message } => {
                            manager.receive_raft(ctx, &caller, (source, target), message);
                        }
                        Packet::Ping => ctx.send(from, Packet::Pong),
                        Packet::Pong => manager.pong(ctx.now_ms, &caller),
                        Packet::Propose { number, id, command } => {
                            manager.receive_request(ctx, from, number, id, command);
                        }
                        Packet::Proposed { number, outcome } => manager.receive_outcome(ctx, number, outcome),
                        Packet::Session(..) => {}
                    }
                });
            }
            Arrival::Session { conn, to, body } => self.with_host(to, |host, ctx| match body {
                SessionBody::Open { acked, report } => match &mut host.manager {
                    Some(manager) => {
                        let node = ctx.node_of(conn);
                        manager.open_session(ctx, conn, &node, acked, *report);
                    }
                    None => ctx.close(conn),
                },
                SessionBody::Message { acked, report } => {
                    if let Some(manager) = &mut host.manager {
                        manager.receive_message(ctx, conn, acked, report.map(|report| *report));
                    }
                }
                body => host.node.receive(ctx, conn, body),
            }),
            Arrival::Closed { conn, to } => self.with_host(to, |host, ctx| {
                host.node.closed(ctx, conn);
                if let Some(manager) = &mut host.manager {
                    manager.closed(conn);
                }
            }),
        }
    }

    fn tick(&mut self) {
        self.run_events();
        let (hosts, now_ms) = (&self.hosts, self.now_ms);
        let acts = |host: usize| hosts[host].runs && !hosts[host].paused;
        for arrival in self.net.poll_sessions(now_ms, acts, |host| hosts[host].runs) {
            self.deliver(arrival);
        }
        for host in 0..self.hosts.len() {
            if !self.acts(host) {
                continue;
            }
            let broken = std::mem::take(&mut self.broken_images);
            self.with_host(host, |host, ctx| {
                host.node.tick(ctx, &broken, ctx.sync_ms);
                host.reconcile_role(ctx);
                if let Some(manager) = &mut host.manager {
                    manager.tick(ctx);
                }
            });
            self.broken_images = broken;
            if let Some(manager) = &self.hosts[host].manager {
                self.raft_hosts.insert(manager.raft.id, host);
            }
        }
        self.checks.check_hosts(&self.hosts);
    }

    fn leader(&self) -> Option<usize> {
        let leads = |host: &Host| host.manager.as_ref().is_some_and(Manager::leads);
        (0..self.hosts.len())
            .filter(|host| leads(&self.hosts[*host]))
            .max_by_key(|host| self.hosts[*host].manager.as_ref().map_or(0, |manager| manager.raft.log.term))
    }

    /// Runs the users and the faults.
    fn run_faults(&mut self) {
        let mut next = 0;
        while self.now_ms < FAULTS_MS.end && self.checks.violation.is_none() {
            while let Some(fault) = self.faults.get(next).copied().filter(|fault| fault.at_ms <= self.now_ms) {
                next += 1;
                self.begin(fault);
            }
            self.end_faults(self.now_ms);
            if self.now_ms >= self.next_request_ms {
                self.next_request_ms = self.now_ms + self.rng.random_range(100..2_500);
                let state =
                    self.any_manager().and_then(|host| self.hosts[host].manager.as_ref().map(|m| m.state().clone()));
                let command = state
                    .filter(|state| state.cluster.is_some())
                    .and_then(|state| users::choose(&state, &mut self.rng, &mut self.ids));
                if let Some(command) = command {
                    self.ask(command);
                }
            }
            self.run_until(self.now_ms + TICK_MS);
        }
        self.end_faults(u64::MAX);
        self.net.heal();
    }

    fn any_manager(&mut self) -> Option<usize> {
        let managers: Vec<usize> =
            (0..self.hosts.len()).filter(|h| self.acts(*h) && self.hosts[*h].manager.is_some()).collect();
        (!managers.is_empty()).then(|| managers[self.rng.random_range(0..managers.len())])
    }

    /// A user asks any manager for a change.
    fn ask(&mut self, command: Command) {
        let Some(host) = self.any_manager() else { return };
        let id = ProposalId(self.ids.random());
        self.users.asked += 1;
        self.note(|| format!("a user asks host {host}: {}", summary(&command)));
        let request = Request::of_user(id, command, self.now_ms);
        if let Some(manager) = &mut self.hosts[host].manager {
            manager.submit(request);
        }
    }

    fn begin(&mut self, scheduled: Scheduled) {
        self.note(|| format!("fault: {:?}", scheduled.fault));
        let count = self.hosts.len();
        let undo = match scheduled.fault {
            Fault::Network(quality) => {
                self.net.quality = quality;
                Some(Undo::GoodNetwork)
            }
            Fault::Partition { side } => {
                let inside = |host: usize| side & (1 << host) != 0;
                let pairs = (0..count).flat_map(|a| (0..count).map(move |b| (a, b)));
                Some(self.block(pairs.filter(|(a, b)| inside(*a) != inside(*b)).collect()))
            }
            Fault::OneWay { from, to } => Some(self.block(vec![(from, to)])),
            Fault::IsolateLeader => self.leader().map(|leader| {
                let others = (0..count).filter(|host| *host != leader);
                self.block(others.flat_map(|host| [(leader, host), (host, leader)]).collect())
            }),
            Fault::CutLeader => self.leader().map(|leader| {
                let managers = (0..count).filter(|host| *host != leader && self.hosts[*host].manager.is_some());
                let pairs = managers.flat_map(|host| [(leader, host), (host, leader)]).collect();
                self.active.push((self.now_ms + RECONNECT_MS, Undo::Reconnect(leader)));
                self.block(pairs)
            }),
            Fault::Kill { host } => self.kill(host, false),
            Fault::KillLeader => self.leader().and_then(|leader| self.kill(leader, false)),
            Fault::PowerOff { host } => self.kill(host, true),
            Fault::Pause { host } => Some(self.pause(host)),
            Fault::PauseLeader => self.leader().map(|leader| self.pause(leader)),
            Fault::ClockStep { host, by_ms } => {
                self.hosts[host].wall_offset_ms += by_ms;
                None
            }
            Fault::SlowDisk { host, sync_ms } => {
                self.hosts[host].sync_ms = sync_ms;
                Some(Undo::FastDisk(host))
            }
            Fault::LoseLog { host } => self.lose_log(host),
            Fault::Stuck { host } => {
                self.hosts[host].node.stuck = true;
                Some(Undo::Unstick(host))
            }
            Fault::CrashTask { host, nth } => {
                self.hosts[host].node.crash_task(nth);
                None
            }
            Fault::Heartbeat { ms } => {
                let state = self.checks.state().clone();
                if let Some(command) = users::heartbeat(&state, ms) {
                    self.ask(command);
                }
                None
            }
        };
        self.active.extend(undo.map(|undo| (scheduled.until_ms, undo)));
    }

    fn block(&mut self, pairs: Vec<(usize, usize)>) -> Undo {
        for (from, to) in &pairs {
            self.net.block(*from, *to);
        }
        Undo::Unblock(pairs)
    }

    fn pause(&mut self, host: usize) -> Undo {
        self.hosts[host].paused = true;
        Undo::Resume(host)
    }

    fn kill(&mut self, host: usize, power_off: bool) -> Option<Undo> {
        if !self.hosts[host].runs {
            return None;
        }
        self.net.reset(host);
        let own = &mut self.hosts[host];
        own.runs = false;
        if let Some(manager) = own.manager.take() {
            let (id, mut log) = (manager.raft.id, manager.raft.log);
            log.crash(&mut self.rng);
            own.log = Some((id, log));
        }
        if power_off {
            own.node.power_off();
        }
        Some(Undo::Start(host))
    }

    /// Loses the log of a manager, if the others still have a majority with their logs.
    fn lose_log(&mut self, host: usize) -> Option<Undo> {
        let raft_id = self.hosts[host].manager.as_ref()?.raft.id;
        let leader = self.leader().and_then(|leader| self.hosts[leader].manager.as_ref());
        let missing = self.hosts.iter().any(|host| host.lost_log.is_some());
        if missing || !leader.is_some_and(|leader| leader.can_lose(raft_id)) {
            return None;
        }
        let undo = self.kill(host, false);
        let own = &mut self.hosts[host];
        own.lost_log = own.log.take().map(|(id, _)| id);
        undo
    }

    fn end_faults(&mut self, now_ms: u64) {
        let (ended, active) =
            std::mem::take(&mut self.active).into_iter().partition(|(until_ms, _)| *until_ms <= now_ms);
        self.active = active;
        for (_, undo) in ended {
            self.note(|| format!("end of a fault: {undo:?}"));
            match undo {
                Undo::Unblock(pairs) => pairs.iter().for_each(|(from, to)| self.net.unblock(*from, *to)),
                Undo::Reconnect(host) => self.net.reset(host),
                Undo::GoodNetwork => self.net.quality = super::network::Quality::GOOD,
                Undo::Start(host) => self.start(host),
                Undo::Resume(host) => self.hosts[host].paused = false,
                Undo::FastDisk(host) => self.hosts[host].sync_ms = 10,
                Undo::Unstick(host) => self.hosts[host].node.stuck = false,
            }
        }
    }

    fn start(&mut self, host: usize) {
        let now_ms = self.now_ms;
        let own = &mut self.hosts[host];
        own.runs = true;
        own.life += 1;
        own.node.restart(now_ms);
        if let Some((id, log)) = own.log.take() {
            own.manager = Some(Manager::open(own.node.id.clone(), id, log, now_ms, &mut self.rng));
        }
    }

    /// After the last fault: the users repair their specs, and then the cluster must meet them.
    fn settle(&mut self) {
        let end_ms = self.now_ms + SETTLE_MS;
        let (mut repair_ms, mut quiet) = (0, (0, self.now_ms));
        loop {
            if self.checks.violation.is_some() {
                return;
            }
            let (problem, index) = (self.problem(), self.checks.state().index);
            if problem.is_some() || index != quiet.0 {
                quiet = (index, self.now_ms);
            }
            if self.now_ms >= quiet.1 + QUIET_MS {
                return self.check_end();
            }
            if self.now_ms >= end_ms {
                let problem = problem.unwrap_or_else(|| "the cluster state does not stop changing".to_owned());
                return self.checks.fail(format!("{SETTLE_MS} ms after the faults: {problem}"));
            }
            if self.now_ms >= repair_ms {
                repair_ms = self.now_ms + 2_000;
                let state = self.leader().and_then(|host| self.hosts[host].manager.as_ref().map(|m| m.state().clone()));
                if let Some(command) = state.and_then(|state| users::repair(&state)) {
                    self.ask(command);
                }
            }
            self.run_until(self.now_ms + 500);
        }
    }

    /// What is not in order.
    fn problem(&self) -> Option<String> {
        let state = self.checks.state();
        if self.leader().is_none() {
            return Some("there is no leader".to_owned());
        }
        if let Some(node) = state.nodes.values().find(|node| !node.has_converged()) {
            return Some(format!("{} is {:?}, {:?}", node.hostname, node.status, node.lag));
        }
        if let Some(node) = state.nodes.values().find(|node| node.is_manager() != node.voter) {
            return Some(format!("{} is a manager: {}, and votes: {}", node.hostname, node.is_manager(), node.voter));
        }
        if users::repair(state).is_some() {
            return Some("a change of the users is not made yet".to_owned());
        }
        for service in state.services.values() {
            if service.removing {
                return Some(format!("{} is being removed", service.spec.name));
            }
            let wanted = match service.spec.mode {
                ServiceMode::Replicated { replicas } => usize::try_from(replicas).expect("a small number"),
                ServiceMode::Global => state.nodes.len(),
            };
            let live: Vec<_> = state.tasks_of(&service.id).filter(|t| !t.status.state.is_terminal()).collect();
            let active = live.iter().filter(|task| {
                task.traffic == Traffic::Active
                    && task.desired == TaskState::Running
                    && task.status.state == TaskState::Running
                    && task.spec == service.spec.task
            });
            let (active, updating) = (active.count(), service.update.as_ref().map(|update| update.state));
            if active != wanted || live.len() != wanted || updating.is_some_and(|u| u == UpdateState::Updating) {
                let states: Vec<_> = live.iter().map(|t| (&t.name, t.status.state, t.desired, t.traffic)).collect();
                return Some(format!("{} has {active} of {wanted} tasks: {states:?}, {updating:?}", service.spec.name));
            }
        }
        if !state.allocated.quarantine.is_empty() {
            return Some(format!("{} addresses are in quarantine", state.allocated.quarantine.len()));
        }
        None
    }

    /// Every confirmed change is in the log, all managers have the same log, and each node runs its
    /// tasks and no others.
    fn check_end(&mut self) {
        if let Some((id, index)) = self.users.confirmed.iter().find(|(id, _)| !self.checks.contains(**id)) {
            let text = format!("the change {id:x}, which was confirmed at {index}, is lost");
            return self.checks.fail(text);
        }
        let state: ClusterState = (**self.checks.state()).clone();
        for host in 0..self.hosts.len() {
            let own = &self.hosts[host];
            let is_manager = state.nodes[&own.node.id].is_manager();
            if own.manager.is_some() != is_manager {
                return self.checks.fail(format!("host {host} runs a manager: {}", !is_manager));
            }
            if own.manager.as_ref().is_some_and(|manager| **manager.state() != state) {
                return self.checks.fail(format!("host {host} has another state than the leader"));
            }
            let live = |id| state.tasks.get(id).is_some_and(|task| !task.status.state.is_terminal());
            let mut alive = own.node.machine.processes.iter().filter(|(_, process)| process.is_alive());
            if let Some((task, _)) = alive.find(|(id, _)| !live(*id)) {
                let text = format!("host {host} runs task {task}, which has ended");
                return self.checks.fail(text);
            }
        }
    }
}

impl Ctx<'_> {
    /// The node at the other end of a connection.
    fn node_of(&self, conn: u64) -> NodeId {
        let host = self.net.node_of(conn);
        let node = self.node_hosts.iter().find(|(_, known)| Some(**known) == host);
        node.map_or_else(|| self.node.clone(), |(node, _)| node.clone())
    }
}

impl Host {
    /// Runs a manager if the node's plan says so, as `membership::role`.
    fn reconcile_role(&mut self, ctx: &mut Ctx<'_>) {
        let Some((role, raft_id)) = self.node.published.as_ref().map(|plan| (plan.role, plan.raft_id)) else { return };
        let own = self.manager.as_ref().map(|manager| manager.raft.id);
        if role == Role::Worker {
            if self.manager.take().is_some() {
                ctx.trace(|| format!("{} is a worker now", self.node.id));
            }
            (self.log, self.lost_log) = (None, None);
            return;
        }
        let ended = own.or(self.lost_log).is_none_or(|own| raft_id > own);
        if ended && raft_id > 0 {
            ctx.trace(|| format!("{} starts a manager with Raft id {raft_id}", self.node.id));
            self.manager = Some(Manager::open(self.node.id.clone(), raft_id, Log::default(), ctx.now_ms, ctx.rng));
            self.lost_log = None;
        } else if let Some(former) = self.lost_log
            && ctx.now_ms.is_multiple_of(1_000)
        {
            // It asks any manager to replace the Raft id.
            let others: Vec<usize> = ctx.raft_hosts.values().copied().filter(|host| *host != ctx.host).collect();
            if !others.is_empty() {
                let to = others[ctx.rng.random_range(0..others.len())];
                let command = Command::ReplaceRaftId { node: self.node.id.clone(), raft_id: former };
                let id = ProposalId(ctx.ids.random());
                ctx.send(to, Packet::Propose { number: 0, id, command });
            }
        }
    }
}

fn summary(command: &Command) -> String {
    let text = format!("{command:?}");
    text.chars().take(160).collect()
}
