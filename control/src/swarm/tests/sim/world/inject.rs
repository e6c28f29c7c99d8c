//! Injects the faults of the run, and the users' requests.

use rand::Rng;
use weft_model::{Command, spec::Role, state::Node};

use super::{
    super::{
        faults::{FAULTS_MS, Fault, Scheduled, Unsynced},
        manager::{Manager, Request},
        network::Quality,
        raft::Log,
        sabotage::Sabotage,
        users,
    },
    SYNC_MS, TICK_MS, World,
};
use crate::raft::ProposalId;

/// The nodes of a leader that was cut off from the other managers connect again after this time,
/// which is longer than an election and shorter than the time until the leader gives up.
const RECONNECT_MS: u64 = 2_200;

/// How long a sync of the slow candidate takes ([`Fault::SplitVote`]): a voter that restarts
/// refuses its vote for a second, and after 1.5 s the candidate tries again in another term.
const SPLIT_SYNC_MS: (u64, u64) = (900, 1_700);

/// How long the first candidate does not reach its voter.
const SPLIT_MS: u64 = 4_000;

/// What ends a fault.
#[derive(Debug, Clone)]
pub(super) enum Undo {
    Unblock(Vec<(usize, usize)>),
    /// The connections of the host end.
    Reconnect(usize),
    GoodNetwork,
    Start(usize),
    Resume(usize),
    FastDisk(usize),
    Unstick(usize),
    Spare(usize),
    /// Users no longer replace all tasks.
    Calm,
    /// The manager of the former cluster stops.
    StopFormer(usize),
}

impl World {
    /// Runs the users and the faults.
    pub(super) fn run_faults(&mut self) {
        let mut next = 0;
        while self.now_ms < FAULTS_MS.end && self.checks.violation.is_none() {
            while let Some(fault) = self.faults.get(next).copied().filter(|fault| fault.at_ms <= self.now_ms) {
                next += 1;
                self.begin(fault);
            }
            self.end_faults(self.now_ms);
            if self.now_ms >= self.next_request_ms {
                let pause_ms = if self.churns { 50..500 } else { 50..1_500 };
                self.next_request_ms = self.now_ms + self.rng.random_range(pause_ms);
                let state =
                    self.any_manager().and_then(|host| self.hosts[host].manager.as_ref().map(|m| m.state().clone()));
                let command = state.filter(|state| state.cluster.is_some()).and_then(|state| match self.churns {
                    true => users::replace_tasks(&state, &mut self.rng),
                    false => users::choose(&state, &mut self.rng, &mut self.ids),
                });
                if let Some(command) = command.filter(|command| !self.strands_a_node(command)) {
                    self.ask(command);
                }
            }
            self.run_until(self.now_ms + TICK_MS);
        }
        self.power_fails = false;
        // Nodes that put no plan into effect do not do so for longer.
        let (stuck, others) =
            std::mem::take(&mut self.active).into_iter().partition(|(_, u)| matches!(u, Undo::Unstick(_)));
        self.active = others;
        self.end_faults(u64::MAX);
        self.active = stuck;
        self.net.heal();
    }

    /// Whether a node would know no manager any more. A node that is away learns of no new ones,
    /// and refuses to talk to those that are workers when it comes back.
    fn strands_a_node(&self, command: &Command) -> bool {
        let Command::UpdateNode { id, spec, .. } = command else { return false };
        let state = self.checks.state();
        let remains = |host: &usize| {
            let host = &self.hosts[*host];
            let is_manager = state.nodes.get(&host.node.id).is_some_and(Node::is_manager);
            host.node.id != *id && is_manager && host.raft_id().is_some()
        };
        spec.role == Role::Worker
            && self.hosts.iter().any(|host| !host.node.removed && !host.node.managers().iter().any(remains))
    }

    /// A user asks any manager for a change.
    pub(super) fn ask(&mut self, command: Command) {
        let Some(host) = self.any_manager() else { return };
        let id = ProposalId(self.ids.random());
        self.users.asked += 1;
        self.note(|| format!("a user asks host {host}: {}", summary(&command)));
        let request = Request::of_user(id, command, self.now_ms);
        if let Some(manager) = &mut self.hosts[host].manager {
            manager.submit(request);
        }
    }

    fn any_manager(&mut self) -> Option<usize> {
        let managers: Vec<usize> =
            (0..self.hosts.len()).filter(|h| self.acts(*h) && self.hosts[*h].manager.is_some()).collect();
        (!managers.is_empty()).then(|| managers[self.rng.random_range(0..managers.len())])
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
            Fault::PowerFailure => {
                self.power_fails = true;
                None
            }
            Fault::KillBeforeSync { host, what } => {
                self.hosts[host].killed_before_sync = Some(what);
                Some(Undo::Spare(host))
            }
            Fault::Stall { host } => {
                self.net.stall(host, self.now_ms, &mut self.rng);
                None
            }
            Fault::Churn { host } => {
                self.churns = true;
                self.active.push((scheduled.until_ms, Undo::Calm));
                self.kill(host, false)
            }
            Fault::SplitVote => self.split_vote(scheduled.until_ms),
            Fault::FormerManager { host } => {
                self.hosts[host].former = true;
                Some(Undo::StopFormer(host))
            }
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
        self.net.reset(host, self.now_ms);
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

    /// See [`Fault::SplitVote`].
    fn split_vote(&mut self, until_ms: u64) -> Option<Undo> {
        let leader = self.leader()?;
        let others: Vec<usize> =
            (0..self.hosts.len()).filter(|h| *h != leader && self.hosts[*h].manager.is_some()).collect();
        let (first, second) = (*others.first()?, *others.get(1)?);
        let (first, second) = if self.rng.random_bool(0.5) { (first, second) } else { (second, first) };
        let start = self.kill(leader, false)?;
        self.active.push((self.now_ms + self.rng.random_range(50..300), start));
        self.hosts[leader].killed_before_sync = Some(Unsynced::SplitVote);
        self.active.push((until_ms, Undo::Spare(leader)));
        (self.hosts[second].min_sync_ms, self.hosts[second].sync_ms) = SPLIT_SYNC_MS;
        self.active.push((until_ms, Undo::FastDisk(second)));
        Some(self.block(vec![(first, second), (second, first)]))
    }

    /// All machines are switched off at once, and on one after the other.
    pub(super) fn switch_all_off(&mut self) {
        self.power_fails = false;
        for host in 0..self.hosts.len() {
            let undo = self.kill(host, true);
            let until_ms = self.now_ms + self.rng.random_range(50..2_000);
            self.active.extend(undo.map(|undo| (until_ms, undo)));
        }
    }

    /// Kills the daemon for a moment, if it has begun a sync that it must not end.
    pub(super) fn kill_before_sync(&mut self, host: usize) {
        let own = &self.hosts[host];
        let Some((what, manager)) = own.killed_before_sync.zip(own.manager.as_ref()) else { return };
        let candidate = manager.raft.log.unsynced_vote().and_then(|id| self.raft_hosts.get(&id).copied());
        let candidate = candidate.filter(|candidate| what != Unsynced::SplitVote || *candidate != host);
        if what != Unsynced::Anything && candidate.is_none() {
            return;
        }
        self.hosts[host].killed_before_sync = None;
        let undo = self.kill(host, false);
        let pause_ms = self.rng.random_range(if what == Unsynced::SplitVote { 20..150 } else { 50..1_500 });
        self.active.extend(undo.map(|undo| (self.now_ms + pause_ms, undo)));
        if let Some(candidate) = candidate.filter(|_| what == Unsynced::SplitVote) {
            let undo = self.block(vec![(candidate, host)]);
            self.active.push((self.now_ms + SPLIT_MS, undo));
        }
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

    pub(super) fn end_faults(&mut self, now_ms: u64) {
        let (ended, active) =
            std::mem::take(&mut self.active).into_iter().partition(|(until_ms, _)| *until_ms <= now_ms);
        self.active = active;
        for (_, undo) in ended {
            self.note(|| format!("end of a fault: {undo:?}"));
            match undo {
                Undo::Unblock(pairs) => pairs.iter().for_each(|(from, to)| self.net.unblock(*from, *to)),
                Undo::Reconnect(host) => self.net.disconnect(host, self.now_ms),
                Undo::GoodNetwork => self.net.quality = Quality::GOOD,
                Undo::Start(host) => self.start(host),
                Undo::Resume(host) => (self.hosts[host].paused, self.hosts[host].resumed) = (false, true),
                Undo::FastDisk(host) => {
                    (self.hosts[host].min_sync_ms, self.hosts[host].sync_ms) = (0, SYNC_MS);
                }
                Undo::Unstick(host) => self.hosts[host].node.stuck = false,
                Undo::Spare(host) => self.hosts[host].killed_before_sync = None,
                Undo::Calm => self.churns = false,
                Undo::StopFormer(host) => self.hosts[host].former = false,
            }
        }
    }

    fn start(&mut self, host: usize) {
        let now_ms = self.now_ms;
        let own = &mut self.hosts[host];
        own.runs = true;
        own.life += 1;
        own.node.restart(now_ms);
        if self.sabotage == Some(Sabotage::ReuseRaftId)
            && let Some(id) = own.lost_log.take()
        {
            self.checks.record_log(id);
            own.log = Some((id, Log::default()));
        }
        if let Some((id, log)) = own.log.take() {
            own.manager = Some(Manager::open(own.node.id.clone(), id, log, now_ms, &mut self.rng));
        }
    }
}

fn summary(command: &Command) -> String {
    let text = format!("{command:?}");
    text.chars().take(160).collect()
}
