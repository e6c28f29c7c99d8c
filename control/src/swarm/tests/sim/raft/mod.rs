//! A model of the Raft log of one manager: elections, replication, commits by quorum and changes of
//! the voters. It stands for openraft, and gives the same guarantees with the same timing: a leader
//! may be deposed without knowing it, and two managers may lead at once in different terms.
//!
//! Pure: events go in, [`Effect`]s come out. What was not synced to the disk is lost in a crash
//! ([`Log::crash`]), so replies leave only after the sync ([`Effect::Sync`]).

mod log;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use rand::{Rng, rngs::StdRng};

pub(super) use self::log::{Base, Log, LogEntry, Mark, Payload};
use crate::raft::{Voter, Voters};

/// As in `crate::raft`, in milliseconds.
pub(super) const HEARTBEAT_MS: u64 = 250;
const LEASE_MS: u64 = 1_000;
const ELECTION_MS: std::ops::Range<u64> = 1_500..2_000;
const MAX_APPEND: usize = 128;

#[derive(Debug, Clone)]
pub(super) enum RaftMessage {
    Vote {
        term: u64,
        last: (u64, u64),
    },
    VoteReply {
        term: u64,
        granted: bool,
    },
    Append(Append),
    /// `matched`: the receiver has the leader's entries up to this index. Otherwise the leader goes
    /// back to `hint`. `asked_ms` is the leader's time of the append.
    AppendReply {
        term: u64,
        matched: Option<u64>,
        hint: u64,
        asked_ms: u64,
    },
}

#[derive(Debug, Clone)]
pub(super) struct Append {
    term: u64,
    prev: (u64, u64),
    entries: Vec<Rc<LogEntry>>,
    base: Option<Rc<Base>>,
    commit: u64,
    asked_ms: u64,
}

#[derive(Debug)]
pub(super) enum Effect {
    Send(u64, RaftMessage),
    /// Sync the log, then call [`Raft::synced`], then send.
    Sync(Mark, Vec<(u64, RaftMessage)>),
}

#[derive(Debug)]
enum Role {
    Follower,
    Candidate { votes: BTreeSet<u64> },
    Leader(Lead),
}

#[derive(Debug, Default)]
struct Lead {
    matched: BTreeMap<u64, u64>,
    next: BTreeMap<u64, u64>,
    /// The time of the last append that each member has answered.
    answered: BTreeMap<u64, u64>,
    sent_ms: u64,
    /// The index of this leader's first entry.
    first: u64,
}

#[derive(Debug)]
pub(super) struct Raft {
    pub id: u64,
    pub log: Log,
    pub commit: u64,
    pub leader: Option<u64>,
    role: Role,
    heard_ms: Option<u64>,
    election_ms: u64,
}

/// Whether `has` holds for a majority of each configuration.
fn is_quorum(voters: &Voters, has: impl Fn(u64) -> bool) -> bool {
    voters.get_joint_config().iter().all(|config| config.iter().filter(|id| has(**id)).count() * 2 > config.len())
}

impl Raft {
    /// A manager that has started, or has restarted, at `now_ms` of its monotonic clock.
    pub(super) fn open(id: u64, log: Log, now_ms: u64, rng: &mut StdRng) -> Self {
        let commit = log.base.as_ref().map_or(0, |base| base.index);
        let election_ms = now_ms + rng.random_range(ELECTION_MS);
        // As openraft: a manager that restarts may have heard from a leader just before.
        let heard_ms = (log.term > 0).then_some(now_ms);
        Self { id, log, commit, leader: None, role: Role::Follower, heard_ms, election_ms }
    }

    pub(super) fn effective(&self) -> Option<&Voters> {
        self.log.membership(self.log.last()).1
    }

    /// The committed voters, and whether no later membership is in the log.
    pub(super) fn committed(&self) -> Option<(bool, &Voters)> {
        let (last, _) = self.log.membership(self.log.last());
        let (index, voters) = self.log.membership(self.commit);
        Some((last == index, voters?))
    }

    /// The term, if this manager leads.
    pub(super) fn leads(&self) -> Option<u64> {
        matches!(self.role, Role::Leader(_)).then_some(self.log.term)
    }

    /// The index of the first entry of this leader.
    pub(super) fn first_of_term(&self) -> u64 {
        if let Role::Leader(lead) = &self.role { lead.first } else { 0 }
    }

    /// What the members have, as far as this leader knows.
    pub(super) fn replicated(&self) -> BTreeMap<u64, u64> {
        if let Role::Leader(lead) = &self.role { lead.matched.clone() } else { BTreeMap::new() }
    }

    /// The latest time for which holds: a quorum has answered what this leader sent then or later.
    pub(super) fn quorum_asked_ms(&self, now_ms: u64) -> Option<u64> {
        let Role::Leader(lead) = &self.role else { return None };
        let asked = |config: &BTreeSet<u64>| {
            let answered = |id: &u64| if *id == self.id { now_ms } else { lead.answered.get(id).copied().unwrap_or(0) };
            let mut times: Vec<u64> = config.iter().map(answered).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            times.get(config.len() / 2).copied().unwrap_or(0)
        };
        self.effective()?.get_joint_config().iter().map(asked).min()
    }

    pub(super) fn tick(&mut self, now_ms: u64, rng: &mut StdRng) -> Vec<Effect> {
        if let Role::Leader(lead) = &self.role {
            return if now_ms >= lead.sent_ms + HEARTBEAT_MS { self.broadcast(now_ms) } else { Vec::new() };
        }
        let may_vote = |voters: &Voters| voters.get_joint_config().iter().any(|config| config.contains(&self.id));
        if now_ms < self.election_ms || !self.effective().is_some_and(may_vote) {
            return Vec::new();
        }
        self.election_ms = now_ms + rng.random_range(ELECTION_MS);
        (self.log.term, self.log.vote, self.leader) = (self.log.term + 1, Some(self.id), None);
        self.role = Role::Candidate { votes: BTreeSet::new() };
        let last = self.log.last();
        let ask = RaftMessage::Vote { term: self.log.term, last: (self.log.term_at(last).unwrap_or(0), last) };
        let others = self.effective().into_iter().flat_map(Voters::voter_ids).filter(|id| *id != self.id);
        let mut then: Vec<_> = others.map(|id| (id, ask.clone())).collect();
        then.push((self.id, RaftMessage::VoteReply { term: self.log.term, granted: true }));
        vec![Effect::Sync(self.log.mark(), then)]
    }

    /// Appends an entry, if this manager leads. Returns its index.
    pub(super) fn propose(&mut self, payload: Payload, now_ms: u64) -> Option<(u64, Vec<Effect>)> {
        self.leads()?;
        self.log.push(Rc::new(LogEntry { term: self.log.term, payload }));
        let mut effects = vec![Effect::Sync(self.log.mark(), Vec::new())];
        effects.extend(self.broadcast(now_ms));
        Some((self.log.last(), effects))
    }

    /// Sends all members what they lack.
    pub(super) fn broadcast(&mut self, now_ms: u64) -> Vec<Effect> {
        let members: Vec<u64> = self.effective().into_iter().flat_map(Voters::nodes).map(|(id, _)| *id).collect();
        if let Role::Leader(lead) = &mut self.role {
            lead.sent_ms = now_ms;
        }
        members.into_iter().filter(|id| *id != self.id).filter_map(|id| self.append_to(id, now_ms)).collect()
    }

    fn append_to(&self, id: u64, now_ms: u64) -> Option<Effect> {
        let Role::Leader(lead) = &self.role else { return None };
        let next = lead.next.get(&id).copied().unwrap_or(self.log.last() + 1);
        let first = self.log.first_index();
        let base = self.log.base.clone().filter(|_| next < first);
        let next = next.max(first);
        let from = usize::try_from(next - first).ok()?;
        let entries = self.log.entries[from..].iter().take(MAX_APPEND).cloned().collect();
        let prev = (next - 1, self.log.term_at(next - 1)?);
        let append = Append { term: self.log.term, prev, entries, base, commit: self.commit, asked_ms: now_ms };
        Some(Effect::Send(id, RaftMessage::Append(append)))
    }

    pub(super) fn synced(&mut self, mark: Mark, now_ms: u64) -> Vec<Effect> {
        self.log.sync(mark);
        self.advance_commit(now_ms)
    }

    pub(super) fn receive(&mut self, from: u64, message: RaftMessage, now_ms: u64, rng: &mut StdRng) -> Vec<Effect> {
        match message {
            RaftMessage::Vote { term, last } => self.vote(from, term, last, now_ms, rng),
            RaftMessage::VoteReply { term, granted } => self.count_vote(from, term, granted, now_ms),
            RaftMessage::Append(append) => self.append(from, append, now_ms, rng),
            RaftMessage::AppendReply { term, matched, hint, asked_ms } => {
                if self.follows_later(term) {
                    return Vec::new();
                }
                let (last, own_term) = (self.log.last(), self.log.term);
                let Role::Leader(lead) = &mut self.role else { return Vec::new() };
                if term != own_term {
                    return Vec::new();
                }
                let answered = lead.answered.entry(from).or_default();
                *answered = (*answered).max(asked_ms);
                if let Some(matched) = matched {
                    let known = lead.matched.entry(from).or_default();
                    *known = (*known).max(matched);
                    lead.next.insert(from, *known + 1);
                } else {
                    lead.next.insert(from, hint + 1);
                }
                let behind = lead.next[&from] <= last;
                let mut effects = self.advance_commit(now_ms);
                effects.extend(self.append_to(from, now_ms).filter(|_| behind));
                effects
            }
        }
    }

    /// Becomes a follower if the term is later than this manager's.
    fn follows_later(&mut self, term: u64) -> bool {
        let later = term > self.log.term;
        if later {
            (self.log.term, self.log.vote, self.leader) = (term, None, None);
            (self.role, self.heard_ms) = (Role::Follower, None);
        }
        later
    }

    fn vote(&mut self, from: u64, term: u64, last: (u64, u64), now_ms: u64, rng: &mut StdRng) -> Vec<Effect> {
        let refuse = |term| vec![Effect::Send(from, RaftMessage::VoteReply { term, granted: false })];
        // A voter that hears from a leader votes for no other one.
        let hears = self.heard_ms.is_some_and(|heard_ms| now_ms < heard_ms + LEASE_MS);
        if hears || self.leads().is_some() && term <= self.log.term {
            return refuse(self.log.term);
        }
        if let Role::Leader(_) = self.role
            && self.quorum_asked_ms(now_ms).is_some_and(|asked_ms| now_ms < asked_ms + LEASE_MS)
        {
            return refuse(self.log.term);
        }
        self.follows_later(term);
        let own = (self.log.term_at(self.log.last()).unwrap_or(0), self.log.last());
        let free = self.log.vote.is_none_or(|vote| vote == from);
        if term < self.log.term || last < own || !free {
            return refuse(self.log.term);
        }
        self.log.vote = Some(from);
        self.election_ms = now_ms + rng.random_range(ELECTION_MS);
        let reply = RaftMessage::VoteReply { term, granted: true };
        vec![Effect::Sync(self.log.mark(), vec![(from, reply)])]
    }

    fn count_vote(&mut self, from: u64, term: u64, granted: bool, now_ms: u64) -> Vec<Effect> {
        if self.follows_later(term) || term != self.log.term || !granted {
            return Vec::new();
        }
        let Role::Candidate { votes } = &mut self.role else { return Vec::new() };
        votes.insert(from);
        let votes = votes.clone();
        if !self.effective().is_some_and(|voters| is_quorum(voters, |id| votes.contains(&id))) {
            return Vec::new();
        }
        self.leader = Some(self.id);
        self.role = Role::Leader(Lead { first: self.log.last() + 1, ..Lead::default() });
        self.propose(Payload::Blank, now_ms).map(|(_, effects)| effects).unwrap_or_default()
    }

    fn append(&mut self, from: u64, append: Append, now_ms: u64, rng: &mut StdRng) -> Vec<Effect> {
        let Append { term, prev, entries, base, commit, asked_ms } = append;
        let reply = |term, matched, hint| RaftMessage::AppendReply { term, matched, hint, asked_ms };
        if term < self.log.term {
            return vec![Effect::Send(from, reply(self.log.term, None, 0))];
        }
        self.follows_later(term);
        (self.role, self.leader, self.heard_ms) = (Role::Follower, Some(from), Some(now_ms));
        self.election_ms = now_ms + rng.random_range(ELECTION_MS);
        if let Some(base) = base.filter(|base| base.index > self.commit) {
            self.commit = base.index;
            self.log.install(base);
        }
        // Committed entries are the same everywhere.
        let known = prev.0 < self.log.first_index() || self.log.term_at(prev.0) == Some(prev.1);
        if !known {
            let hint = (prev.0 - 1).min(self.log.last()).max(self.log.first_index() - 1);
            return vec![Effect::Send(from, reply(term, None, hint))];
        }
        let matched = prev.0 + entries.len() as u64;
        for (index, entry) in (prev.0 + 1..).zip(entries) {
            if index < self.log.first_index() || self.log.term_at(index) == Some(entry.term) {
                continue;
            }
            assert!(index > self.commit, "the log model removes a committed entry");
            self.log.truncate(index - 1);
            self.log.push(entry);
        }
        self.commit = self.commit.max(commit.min(matched));
        let reply = (from, reply(term, Some(matched), 0));
        if self.log.is_synced() {
            return vec![Effect::Send(reply.0, reply.1)];
        }
        vec![Effect::Sync(self.log.mark(), vec![reply])]
    }

    fn advance_commit(&mut self, now_ms: u64) -> Vec<Effect> {
        let Role::Leader(lead) = &self.role else { return Vec::new() };
        let Some(voters) = self.effective() else { return Vec::new() };
        let (own, synced) = (self.id, self.log.synced);
        let has = |id: u64, index: u64| {
            let matched = if id == own { synced } else { lead.matched.get(&id).copied().unwrap_or(0) };
            matched >= index
        };
        let committed = (self.commit + 1..=self.log.last())
            .rev()
            .find(|index| self.log.term_at(*index) == Some(self.log.term) && is_quorum(voters, |id| has(id, *index)));
        let Some(index) = committed else { return Vec::new() };
        let removed = !voters.nodes().any(|(id, _)| *id == own);
        self.commit = index;
        let effects = self.broadcast(now_ms);
        if removed {
            (self.role, self.leader) = (Role::Follower, None);
        }
        effects
    }
}

/// The membership with other voters: the step before the uniform one if they differ.
pub(super) fn next_membership(current: &Voters, voters: &BTreeSet<u64>, retain: bool) -> Voters {
    let last = current.get_joint_config().last().cloned().unwrap_or_default();
    let configs = if last == *voters { vec![last] } else { vec![last, voters.clone()] };
    let mut nodes: BTreeMap<u64, Voter> = current.nodes().map(|(id, voter)| (*id, voter.clone())).collect();
    if !retain && configs.len() == 1 {
        let former: BTreeSet<u64> = current.voter_ids().collect();
        nodes.retain(|id, _| voters.contains(id) || !former.contains(id));
    }
    Voters::new(configs, nodes)
}
