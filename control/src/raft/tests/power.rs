//! Power cuts: what a manager has confirmed is on its disk, whatever the disk does with the rest.
//!
//! A simulated disk keeps what was written since the last sync apart. When the power is cut, each
//! of these writes is on the disk as a whole, in part, or not at all, in no order: a disk may
//! reorder what was not synced, and tear a write between two sectors. The store is then opened
//! again, and must have the state of before or after the operation that was cut, and nothing else.
//!
//! `WEFT_SIM_SEED=N` repeats one run.

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use openraft::{
    CommittedLeaderId, EntryPayload, LogId, RaftLogReader, SnapshotMeta, StoredMembership, Vote,
    storage::{RaftLogStorage, RaftLogStorageExt},
};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use redb::StorageBackend;

use super::{create_network, entry};
use crate::{
    fixture::{
        START_MS,
        disk::{Pending, survivors},
        seeds,
    },
    raft::{Proposal, ProposalId, Store, seal::LogKey},
};

const SEEDS: u64 = 80;
/// How often the power is cut in one run.
const CUTS: usize = 6;
#[derive(Debug, Default)]
struct Content {
    /// What is on the disk in any case.
    synced: Vec<u8>,
    pending: Vec<Pending>,
    /// What a reader sees: all of the above.
    current: Vec<u8>,
    /// The number of operations until the power is cut.
    left: usize,
}

fn apply(content: &mut Vec<u8>, pending: &Pending) {
    match pending {
        Pending::Write(offset, data) => {
            let offset = *offset as usize;
            if content.len() < offset + data.len() {
                content.resize(offset + data.len(), 0);
            }
            content[offset..offset + data.len()].copy_from_slice(data);
        }
        Pending::Length(length) => content.resize(*length as usize, 0),
    }
}

/// A disk. Clones are the same disk.
#[derive(Debug, Clone)]
struct Disk(Arc<Mutex<Content>>);

impl Disk {
    fn new(content: Vec<u8>, left: usize) -> Self {
        Self(Arc::new(Mutex::new(Content { synced: content.clone(), current: content, left, ..Content::default() })))
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The content, or an error if the power is cut.
    fn powered(&self) -> io::Result<MutexGuard<'_, Content>> {
        let content = self.lock();
        if content.left == 0 { Err(io::Error::other("the power is cut")) } else { Ok(content) }
    }

    fn change(&self, pending: Pending) -> io::Result<()> {
        let mut content = self.powered()?;
        apply(&mut content.current, &pending);
        content.pending.push(pending);
        content.left -= 1;
        if content.left == 0 { Err(io::Error::other("the power is cut")) } else { Ok(()) }
    }

    /// What is on the disk when the power is back.
    fn after_cut(&self, rng: &mut StdRng) -> Vec<u8> {
        let mut content = self.lock();
        content.left = 0;
        let mut left = std::mem::take(&mut content.synced);
        for change in survivors(std::mem::take(&mut content.pending), rng) {
            // No sync has confirmed that the octets after it are not needed.
            if !matches!(change, Pending::Length(length) if (length as usize) < left.len()) {
                apply(&mut left, &change);
            }
        }
        left
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.powered()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.powered()?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let found = content.current.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Pending::Length(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.powered()?;
        content.left -= 1;
        if content.left == 0 {
            // The disk has not begun.
            return Err(io::Error::other("the power is cut"));
        }
        content.pending.clear();
        content.synced = content.current.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Pending::Write(offset, data.to_vec()))
    }
}

/// What the store must have.
#[derive(Clone, Default, PartialEq)]
struct Model {
    vote: Option<Vote<u64>>,
    /// The ids of the changes, by index.
    entries: BTreeMap<u64, u128>,
    purged: u64,
    /// The last entry in the snapshot.
    snapshot: u64,
}

/// An operation of openraft on the store.
#[derive(Debug, Clone, Copy)]
enum Operation {
    Vote,
    /// Appends so many entries.
    Append(u64),
    /// Removes the entries from this one on.
    Truncate(u64),
    /// Removes the entries up to this one.
    Purge(u64),
    /// Saves a snapshot up to this entry.
    Snapshot(u64),
}

fn log_id(index: u64) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

/// The first and the last entry only: there may be hundreds.
impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ends = (self.entries.first_key_value(), self.entries.last_key_value());
        let Self { vote, purged, snapshot, .. } = self;
        write!(f, "vote {vote:?}, entries {ends:?}, purged {purged}, snapshot {snapshot}")
    }
}

impl Model {
    fn last(&self) -> u64 {
        self.entries.keys().next_back().copied().unwrap_or(self.purged)
    }

    fn next_operation(&self, rng: &mut StdRng) -> Operation {
        let (first, last) = (self.purged + 1, self.last());
        match rng.random_range(0..10) {
            0 => Operation::Vote,
            1 if first <= last => Operation::Truncate(rng.random_range(first..=last)),
            2 if first <= self.snapshot && self.snapshot <= last => {
                Operation::Purge(rng.random_range(first..=self.snapshot))
            }
            3 if self.snapshot < last => Operation::Snapshot(rng.random_range(self.snapshot + 1..=last)),
            _ => Operation::Append(rng.random_range(1..20)),
        }
    }

    /// The model after an operation. `id` is the id of the first new change.
    fn after(&self, operation: Operation, id: u128) -> Self {
        let mut after = self.clone();
        match operation {
            Operation::Vote => after.vote = Some(Vote::new(self.vote.map_or(1, |vote| vote.leader_id.term + 1), 1)),
            Operation::Append(count) => {
                let first = self.last() + 1;
                after.entries.extend((first..first + count).zip(id..));
            }
            Operation::Truncate(from) => drop(after.entries.split_off(&from)),
            Operation::Purge(upto) => {
                after.entries = after.entries.split_off(&(upto + 1));
                after.purged = upto;
            }
            Operation::Snapshot(upto) => after.snapshot = upto,
        }
        after
    }

    async fn read(store: &mut Store) -> Self {
        let entries = store.try_get_log_entries(..).await.expect("the log is readable");
        let id = |entry: openraft::Entry<_>| match entry.payload {
            EntryPayload::Normal(Proposal { id, .. }) => (entry.log_id.index, id.0),
            other => panic!("the log has an entry that was not appended: {other:?}"),
        };
        let snapshot = store.snapshot().expect("the snapshot is readable");
        Self {
            vote: store.read_vote().await.expect("the vote is readable"),
            entries: entries.into_iter().map(id).collect(),
            purged: store.get_log_state().await.expect("readable").last_purged_log_id.map_or(0, |id| id.index),
            snapshot: snapshot.and_then(|(meta, _)| meta.last_log_id).map_or(0, |id| id.index),
        }
    }
}

/// Performs an operation. Returns whether the store has confirmed it.
async fn perform(store: &mut Store, operation: Operation, model: &Model, after: &Model, rng: &mut StdRng) -> bool {
    match operation {
        Operation::Vote => store.save_vote(&after.vote.expect("a vote")).await.is_ok(),
        Operation::Append(_) => {
            let new = after.entries.range(model.last() + 1..);
            let proposal = |id: u128| Proposal::new(ProposalId(id), START_MS, create_network(id));
            store.blocking_append(new.map(|(index, id)| entry(*index, proposal(*id))).collect::<Vec<_>>()).await.is_ok()
        }
        Operation::Truncate(from) => store.truncate(log_id(from)).await.is_ok(),
        Operation::Purge(upto) => store.purge(log_id(upto)).await.is_ok(),
        Operation::Snapshot(upto) => {
            let meta = SnapshotMeta {
                last_log_id: Some(log_id(upto)),
                last_membership: StoredMembership::default(),
                snapshot_id: upto.to_string(),
            };
            let mut bytes = vec![0; rng.random_range(1..20_000)];
            rng.fill_bytes(&mut bytes);
            store.save_snapshot(&(meta, bytes)).await.is_ok()
        }
    }
}

async fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let key = LogKey::generate().expect("random bytes");
    let mut content = Vec::new();
    // What the store may have: one state, or two after a cut.
    let mut possible = vec![Model::default()];
    let mut id = 0;
    let mut is_created = false;
    for cut in 0..=CUTS {
        // The last run is without a cut.
        let left = if cut == CUTS { usize::MAX } else { rng.random_range(1..120) };
        let disk = Disk::new(content, left);
        match Store::with_backend_and_key(disk.clone(), key.clone()) {
            Ok(mut store) => {
                is_created = true;
                if disk.lock().left > 0 {
                    let mut model = Model::read(&mut store).await;
                    assert!(possible.contains(&model), "seed {seed}, cut {cut}: {model:?} is none of {possible:?}");
                    for _ in 0..60 {
                        let operation = model.next_operation(&mut rng);
                        let after = model.after(operation, id);
                        id += 100;
                        if !perform(&mut store, operation, &model, &after, &mut rng).await {
                            possible = vec![model, after];
                            break;
                        }
                        model = after;
                        possible = vec![model.clone()];
                    }
                }
                store.close().await;
            }
            Err(error) => {
                let cut_now = disk.lock().left == 0;
                assert!(cut_now, "seed {seed}, cut {cut}: the store cannot be opened: {error}");
            }
        }
        // A file that is not complete has another name, and is created again.
        content = if is_created { disk.after_cut(&mut rng) } else { Vec::new() };
    }
}

#[tokio::test]
async fn what_was_confirmed_survives_power_cuts_that_reorder_and_tear_writes() {
    for seed in seeds(SEEDS) {
        run(seed).await;
    }
}
