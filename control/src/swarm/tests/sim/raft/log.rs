//! What a manager has on its disk: its vote, a snapshot, and the entries that follow it.

use std::rc::Rc;

use rand::{Rng, rngs::StdRng};

use crate::raft::{Proposal, Replica, Voters};

#[derive(Debug, Clone, PartialEq)]
pub(in crate::swarm::tests::sim) enum Payload {
    /// The first entry of each leader.
    Blank,
    Normal(Proposal),
    Membership(Voters),
}

#[derive(Debug, PartialEq)]
pub(in crate::swarm::tests::sim) struct LogEntry {
    pub term: u64,
    pub payload: Payload,
}

/// A snapshot, which a log begins with.
#[derive(Debug)]
pub(in crate::swarm::tests::sim) struct Base {
    pub index: u64,
    pub term: u64,
    pub replica: Replica,
    pub voters: Voters,
}

/// What a manager has on its disk.
#[derive(Debug, Clone, Default)]
pub(in crate::swarm::tests::sim) struct Log {
    pub term: u64,
    pub(super) vote: Option<u64>,
    pub base: Option<Rc<Base>>,
    pub(super) entries: Vec<Rc<LogEntry>>,
    /// The indexes of the memberships in the entries.
    memberships: Vec<u64>,
    /// The term and vote, and the last index, that were synced.
    synced_vote: (u64, Option<u64>),
    pub(super) synced: u64,
    /// How often entries were removed. A sync that began before counts for nothing.
    truncations: u64,
}

/// What a sync will have written.
#[derive(Debug, Clone, Copy)]
pub(in crate::swarm::tests::sim) struct Mark {
    vote: (u64, Option<u64>),
    last: u64,
    truncations: u64,
}

impl Log {
    /// The log of the first manager, with these commands.
    pub(in crate::swarm::tests::sim) fn first(voters: Voters, proposals: Vec<Proposal>) -> Self {
        let payloads = [Payload::Membership(voters)].into_iter().chain(proposals.into_iter().map(Payload::Normal));
        let mut log = Self { term: 1, synced_vote: (1, None), ..Self::default() };
        payloads.for_each(|payload| log.push(Rc::new(LogEntry { term: 1, payload })));
        log.synced = log.last();
        log
    }

    pub(super) fn push(&mut self, entry: Rc<LogEntry>) {
        if matches!(entry.payload, Payload::Membership(_)) {
            self.memberships.push(self.last() + 1);
        }
        self.entries.push(entry);
    }

    /// The index of the snapshot.
    pub(in crate::swarm::tests::sim) fn base_index(&self) -> u64 {
        self.base.as_ref().map_or(0, |base| base.index)
    }

    pub(super) fn first_index(&self) -> u64 {
        self.base_index() + 1
    }

    pub(in crate::swarm::tests::sim) fn last(&self) -> u64 {
        self.first_index() - 1 + self.entries.len() as u64
    }

    pub(in crate::swarm::tests::sim) fn get(&self, index: u64) -> Option<&Rc<LogEntry>> {
        self.entries.get(usize::try_from(index.checked_sub(self.first_index())?).ok()?)
    }

    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        if index == 0 {
            return Some(0);
        }
        let base = self.base.as_ref().filter(|base| base.index == index).map(|base| base.term);
        base.or_else(|| self.get(index).map(|entry| entry.term))
    }

    /// The last membership up to this index, and its index.
    pub(super) fn membership(&self, until: u64) -> (u64, Option<&Voters>) {
        for index in self.memberships.iter().rev().filter(|index| **index <= until) {
            if let Some(Payload::Membership(voters)) = self.get(*index).map(|entry| &entry.payload) {
                return (*index, Some(voters));
            }
        }
        self.base.as_ref().map_or((0, None), |base| (base.index, Some(&base.voters)))
    }

    pub(super) fn truncate(&mut self, last: u64) {
        if last < self.last() {
            self.entries.truncate(usize::try_from(last + 1 - self.first_index()).expect("a small log"));
            self.memberships.retain(|index| *index <= last);
            self.synced = self.synced.min(last);
            self.truncations += 1;
        }
    }

    pub(super) fn mark(&self) -> Mark {
        Mark { vote: (self.term, self.vote), last: self.last(), truncations: self.truncations }
    }

    /// The last vote, if a crash may lose it.
    pub(in crate::swarm::tests::sim) fn unsynced_vote(&self) -> Option<u64> {
        self.vote.filter(|_| self.synced_vote != (self.term, self.vote))
    }

    pub(super) fn is_synced(&self) -> bool {
        self.synced == self.last() && self.synced_vote == (self.term, self.vote)
    }

    pub(super) fn sync(&mut self, mark: Mark) {
        self.synced_vote = self.synced_vote.max(mark.vote);
        if mark.truncations == self.truncations {
            self.synced = self.synced.max(mark.last);
        }
    }

    /// Replaces all entries up to the index by a snapshot.
    pub(in crate::swarm::tests::sim) fn compact(&mut self, index: u64, replica: &Replica) {
        let (term, voters) = (self.term_at(index), self.membership(index).1.cloned());
        if let Some((term, voters)) = term.zip(voters) {
            self.install(Rc::new(Base { index, term, replica: replica.clone(), voters }));
        }
    }

    /// Begins with this snapshot. Later entries stay if they follow it. The store saves a snapshot
    /// as a whole, and before anything follows from it.
    pub(super) fn install(&mut self, base: Rc<Base>) {
        let follows = self.term_at(base.index) == Some(base.term);
        let known = usize::try_from(base.index + 1 - self.first_index()).expect("a small log");
        self.entries.drain(..if follows { known } else { self.entries.len() });
        self.memberships.retain(|index| follows && *index > base.index);
        self.synced = if follows { self.synced.max(base.index) } else { base.index };
        self.truncations += u64::from(!follows);
        self.base = Some(base);
    }

    /// The process or the machine dies: of what was not synced, a part is on the disk. A torn entry
    /// is found by its checksum, and is lost.
    pub(in crate::swarm::tests::sim) fn crash(&mut self, rng: &mut StdRng) {
        if rng.random_bool(0.5) {
            (self.term, self.vote) = self.synced_vote;
        }
        let last = rng.random_range(self.synced..=self.last());
        self.truncate(last);
        self.synced = last;
        self.synced_vote = (self.term, self.vote);
    }
}
