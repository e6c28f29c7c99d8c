//! The hosts and what is between them: runs one seed, event by event. `inject` begins and ends the
//! faults, and `settle` is what follows them; `host` is one machine.

mod host;
mod inject;
mod settle;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::{Rng, SeedableRng, rngs::StdRng};
use weft_model::{
    Command, NodeId,
    spec::{ClusterSpec, Role},
};

use self::inject::Undo;
use super::{
    ctx::{Ctx, Packet, SessionBody, Syncs, Trace},
    faults::{self, Scheduled},
    invariants::Checks,
    manager::Manager,
    network::{Arrival, Network},
    node::{Delays, Node},
    raft::Log,
    sabotage::Sabotage,
    users::{self, Users},
};
use crate::{
    fixture::{START_MS, TestCluster},
    raft::{Proposal, ProposalId, Voter, Voters},
    swarm::dispatch::exchange::PlanMessage,
};

pub(super) use self::host::Host;

/// Daemons act at least this often, in milliseconds.
const TICK_MS: u64 = 25;
/// A sync takes up to this long, unless the disk is slow.
const SYNC_MS: u64 = 10;

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
    step_ms: u64,
    snapshot_every: u64,
    nodes: Vec<NodeId>,
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
    /// Users replace the tasks of all services.
    churns: bool,
    /// All machines lose power when the next entry is committed.
    power_fails: bool,
    sabotage: Option<Sabotage>,
}

/// Runs one seed.
pub(super) fn run(seed: u64, traced: bool, sabotage: Option<Sabotage>) -> Report {
    let mut world = World::new(seed, traced, sabotage);
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
    fn new(seed: u64, traced: bool, sabotage: Option<Sabotage>) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let managers = [1, 1, 3, 3, 3, 3, 5][rng.random_range(0..7)];
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
                    resumed: false,
                    former: false,
                    paused: false,
                    life: 0,
                    wall_offset_ms: rng.random_range(-500..500),
                    min_sync_ms: 0,
                    sync_ms: SYNC_MS,
                    killed_before_sync: None,
                    seen_ms: 0,
                    calm_since_ms: 0,
                }
            })
            .collect();
        let (step_ms, snapshot_every) = (rng.random_range(0..150), rng.random_range(3..60));
        let faults = faults::choose(hosts.len(), &mut rng);
        let mut world = Self {
            now_ms: 0,
            node_hosts: ids.iter().cloned().enumerate().map(|(host, id)| (id, host)).collect(),
            nodes: ids,
            raft_hosts: BTreeMap::from([(1, 0)]),
            rng,
            ids: id_rng,
            hosts,
            step_ms,
            snapshot_every,
            net: Network::new(),
            syncs: Syncs::default(),
            checks: Checks::default(),
            users: Users::default(),
            trace: traced.then(VecDeque::new),
            broken_images: [users::BROKEN.to_owned()].into(),
            keys_made: 0,
            faults,
            active: Vec::new(),
            next_request_ms: 2_000,
            churns: false,
            power_fails: false,
            sabotage,
        };
        let manager = Manager::open(world.hosts[0].node.id.clone(), 1, log, 0, &mut world.rng);
        world.checks.record_log(1);
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
            min_sync_ms: own.min_sync_ms,
            sync_ms: own.sync_ms,
            step_ms: self.step_ms,
            snapshot_every: self.snapshot_every,
            node: &self.nodes[host],
            nodes: &self.nodes,
            node_hosts: &self.node_hosts,
            net: &mut self.net,
            syncs: &mut self.syncs,
            checks: &mut self.checks,
            users: &mut self.users,
            trace: &mut self.trace,
            sabotage: self.sabotage,
        };
        let syncs = ctx.syncs.count();
        let result = act(own, &mut ctx);
        if self.syncs.count() > syncs {
            self.kill_before_sync(host);
        }
        let entries = self.checks.entries();
        self.checks.check_events(self.now_ms, &self.hosts, &self.net);
        if self.power_fails && self.checks.entries() > entries {
            self.switch_all_off();
        }
        result
    }

    fn acts(&self, host: usize) -> bool {
        self.hosts[host].acts()
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
                let caller = self.nodes[from].clone();
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
            Arrival::Session { conn, from, to, body } => self.with_host(to, |host, ctx| match body {
                SessionBody::Open { acked, report } => {
                    let node = ctx.nodes[from].clone();
                    if host.former
                        && let Some(plan) = ctx.past_plan(&node, acked)
                    {
                        let message = PlanMessage::Plan(Box::new(plan));
                        return ctx.send_to_node(&node, Packet::Session(conn, SessionBody::Plan(message)));
                    }
                    match &mut host.manager {
                        Some(manager) => manager.open_session(ctx, conn, &node, acked, *report),
                        None => ctx.refuse(conn),
                    }
                }
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
        for (nth, host) in self.hosts.iter_mut().enumerate() {
            let disturbed = !host.acts() || host.sync_ms > SYNC_MS || self.net.disturbs(nth, self.now_ms);
            host.seen_ms = if host.acts() { self.now_ms } else { host.seen_ms };
            host.calm_since_ms = if disturbed { self.now_ms } else { host.calm_since_ms };
        }
        let (hosts, now_ms) = (&self.hosts, self.now_ms);
        let acts = |host: usize| hosts[host].runs && !hosts[host].paused;
        let arrivals = self.net.poll_sessions(now_ms, acts);
        for host in 0..self.hosts.len() {
            // After a pause, a manager may act before it reads what has arrived meanwhile.
            if std::mem::take(&mut self.hosts[host].resumed) && self.rng.random_bool(0.5) {
                self.with_host(host, |host, ctx| {
                    if let Some(manager) = &mut host.manager {
                        manager.tick(ctx);
                    }
                });
            }
        }
        for arrival in arrivals {
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
        self.checks.check_hosts(self.now_ms, &self.hosts);
    }

    fn leader(&self) -> Option<usize> {
        let leads = |host: &Host| host.manager.as_ref().is_some_and(Manager::leads);
        (0..self.hosts.len())
            .filter(|host| leads(&self.hosts[*host]))
            .max_by_key(|host| self.hosts[*host].manager.as_ref().map_or(0, |manager| manager.raft.log.term))
    }
}
