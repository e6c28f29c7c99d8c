//! The log on disk: one redb file with the entries, the vote, the committed position and the latest
//! snapshot.
//!
//! Raft relies on one invariant: an entry or a vote that the store has confirmed is on disk. Every
//! append and every vote is one write transaction, which is flushed before the call returns.
#![expect(clippy::result_large_err, reason = "openraft's error type")]

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use openraft::{
    ErrorSubject, ErrorVerb, LogId, OptionalSend, RaftLogReader, SnapshotMeta, StorageError, StorageIOError, Vote,
    storage::{LogFlushed, LogState, RaftLogStorage},
};
use redb::{Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::{TypeConfig, Voter};
use crate::{
    codec::{self, Kind, LOG_ENTRY, LOG_POSITION, STORED_SNAPSHOT},
    files,
};

type LogEntry = openraft::Entry<TypeConfig>;
type Failure = StorageError<u64>;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Keys of [`META`].
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SNAPSHOT: &str = "snapshot";
/// Present if this log must not be used again; the value is the reason.
const UNUSABLE: &str = "unusable";

/// The log on disk. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `None` once closed.
    open: RwLock<Option<Arc<Open>>>,
    path: PathBuf,
    /// The cause of the first failed write, as a message for users.
    failure: Mutex<Option<String>>,
}

/// The open file.
#[derive(Debug)]
struct Open {
    db: Database,
    /// Declared last, so it is dropped after the file is closed.
    alive: watch::Sender<()>,
}

#[derive(Debug, thiserror::Error)]
#[error("the log is closed")]
struct Closed;

/// The log cannot be used. `reason` says why, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the log {path}: {reason}")]
pub struct StoreError {
    pub path: PathBuf,
    pub reason: String,
}

impl Store {
    /// Opens the file, or creates it.
    ///
    /// # Errors
    /// If another daemon uses the file, the file is damaged, or the disk fails.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |error: redb::Error| StoreError { path: path.to_owned(), reason: reason(&error) };
        let db = Database::create(path).map_err(|e| failed(e.into()))?;
        let store = Self::prepare(db, path).map_err(failed)?;
        match store.unusable().map_err(failed)? {
            Some(reason) => Err(StoreError { path: path.to_owned(), reason }),
            None => Ok(store),
        }
    }

    /// Why this log must not be used, if [`Self::mark_unusable`] was called.
    fn unusable(&self) -> Result<Option<String>, redb::Error> {
        let Ok(open) = self.open_file() else { return Ok(None) };
        let table = open.db.begin_read()?.open_table(META)?;
        Ok(table.get(UNUSABLE)?.map(|reason| String::from_utf8_lossy(reason.value()).into_owned()))
    }

    /// Refuses every later [`Self::open`] of this file with `reason`, and reports it as the failure
    /// of this log.
    pub async fn mark_unusable(&self, reason: String) -> Result<(), Failure> {
        self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.clone());
        self.write(Durability::Immediate, move |write| {
            write.open_table(META)?.insert(UNUSABLE, reason.as_bytes())?;
            Ok(())
        })
        .await
    }

    /// Opens a log on another storage backend, for tests.
    pub fn with_backend(backend: impl StorageBackend) -> Result<Self, StoreError> {
        let path = Path::new("(backend)");
        let failed = |error: redb::Error| StoreError { path: path.to_owned(), reason: reason(&error) };
        let db = Database::builder().create_with_backend(backend).map_err(|e| failed(e.into()))?;
        Self::prepare(db, path).map_err(failed)
    }

    fn prepare(db: Database, path: &Path) -> Result<Self, redb::Error> {
        let write = db.begin_write()?;
        write.open_table(LOG)?;
        write.open_table(META)?;
        write.commit()?;
        let open = Arc::new(Open { db, alive: watch::Sender::new(()) });
        let inner = Inner { open: RwLock::new(Some(open)), path: path.to_owned(), failure: Mutex::default() };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Why writing failed and what to do about it; `None` if no write failed.
    pub fn failure(&self) -> Option<String> {
        self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes the file for all clones. Returns when no operation uses the file. Later operations
    /// fail.
    pub async fn close(&self) {
        let open = self.inner.open.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(open) = open else { return };
        let mut alive = open.alive.subscribe();
        drop(open);
        // No value is ever sent: the wait ends with an error when the last user drops the file.
        while alive.changed().await.is_ok() {}
    }

    fn open_file(&self) -> Result<Arc<Open>, Closed> {
        self.inner.open.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Closed)
    }

    fn get<T: DeserializeOwned>(&self, key: &str, kind: &Kind) -> Result<Option<T>, Failure> {
        let open = self.open_file().map_err(read_failed)?;
        let table = open.db.begin_read().map_err(read_failed)?.open_table(META).map_err(read_failed)?;
        let value = table.get(key).map_err(read_failed)?;
        value.map(|value| codec::decode(kind, value.value())).transpose().map_err(read_failed)
    }

    async fn put<T: Serialize>(&self, key: &'static str, value: &T, durability: Durability) -> Result<(), Failure> {
        let bytes = codec::encode(&LOG_POSITION, value).map_err(write_failed)?;
        self.write(durability, move |write| {
            write.open_table(META)?.insert(key, bytes.as_slice())?;
            Ok(())
        })
        .await
    }

    /// Runs one write transaction on a blocking thread.
    async fn write<F>(&self, durability: Durability, change: F) -> Result<(), Failure>
    where
        F: FnOnce(&WriteTransaction) -> Result<(), redb::Error> + Send + 'static,
    {
        let inner = self.inner.clone();
        let open = self.open_file().map_err(write_failed)?;
        let written = tokio::task::spawn_blocking(move || {
            let result = (|| -> Result<(), redb::Error> {
                let mut write = open.db.begin_write()?;
                write.set_durability(durability)?;
                change(&write)?;
                Ok(write.commit()?)
            })();
            if let Err(error) = &result {
                // redb refuses all writes after the first failure, so only the first one names the
                // cause.
                let mut failure = inner.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert_with(|| format!("{}: {}", inner.path.display(), reason(error)));
            }
            result
        });
        written.await.map_err(write_failed)?.map_err(write_failed)
    }

    async fn remove(&self, range: (Bound<u64>, Bound<u64>), purged: Option<LogId<u64>>) -> Result<(), Failure> {
        let purged = purged.map(|id| codec::encode(&LOG_POSITION, &id)).transpose().map_err(write_failed)?;
        self.write(Durability::Immediate, move |write| {
            write.open_table(LOG)?.retain_in::<u64, _>(range, |_, _| false)?;
            if let Some(purged) = purged {
                write.open_table(META)?.insert(PURGED, purged.as_slice())?;
            }
            Ok(())
        })
        .await
    }

    pub(super) fn snapshot(&self) -> Result<Option<StoredSnapshot>, Failure> {
        self.get(SNAPSHOT, &STORED_SNAPSHOT)
    }

    /// Stores a snapshot, unless the stored one is newer. A snapshot of the leader may have been
    /// installed while this one was being written; the entries before the installed one are no
    /// longer in the log.
    pub(super) async fn save_snapshot(&self, snapshot: &StoredSnapshot) -> Result<(), Failure> {
        let last = snapshot.0.last_log_id;
        let bytes = codec::encode(&STORED_SNAPSHOT, snapshot).map_err(write_failed)?;
        self.write(Durability::Immediate, move |write| {
            let mut table = write.open_table(META)?;
            let stored = table
                .get(SNAPSHOT)?
                .and_then(|stored| codec::decode::<StoredSnapshot>(&STORED_SNAPSHOT, stored.value()).ok());
            if stored.is_none_or(|(stored, _)| stored.last_log_id <= last) {
                table.insert(SNAPSHOT, bytes.as_slice())?;
            }
            Ok(())
        })
        .await
    }
}

/// A snapshot as stored: openraft's metadata and the encoded state.
pub(super) type StoredSnapshot = (SnapshotMeta<u64, Voter>, Vec<u8>);

impl RaftLogReader<TypeConfig> for Store {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<LogEntry>, Failure> {
        let open = self.open_file().map_err(read_failed)?;
        let table = open.db.begin_read().map_err(read_failed)?.open_table(LOG).map_err(read_failed)?;
        table
            .range::<u64>((range.start_bound().cloned(), range.end_bound().cloned()))
            .map_err(read_failed)?
            .map(|row| codec::decode(&LOG_ENTRY, row.map_err(read_failed)?.1.value()).map_err(read_failed))
            .collect()
    }
}

impl RaftLogStorage<TypeConfig> for Store {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, Failure> {
        let last_purged_log_id: Option<LogId<u64>> = self.get(PURGED, &LOG_POSITION)?;
        let open = self.open_file().map_err(read_failed)?;
        let table = open.db.begin_read().map_err(read_failed)?.open_table(LOG).map_err(read_failed)?;
        let last = table.last().map_err(read_failed)?;
        let last = last
            .map(|(_, entry)| codec::decode::<LogEntry>(&LOG_ENTRY, entry.value()))
            .transpose()
            .map_err(read_failed)?;
        Ok(LogState { last_log_id: last.map(|entry| entry.log_id).or(last_purged_log_id), last_purged_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), Failure> {
        self.put(VOTE, vote, Durability::Immediate).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, Failure> {
        self.get(VOTE, &LOG_POSITION)
    }

    /// Not flushed by itself, only with the next append. The value only speeds up a restart; losing
    /// it is harmless.
    async fn save_committed(&mut self, committed: Option<LogId<u64>>) -> Result<(), Failure> {
        self.put(COMMITTED, &committed, Durability::None).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<u64>>, Failure> {
        Ok(self.get::<Option<LogId<u64>>>(COMMITTED, &LOG_POSITION)?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), Failure>
    where
        I: IntoIterator<Item = LogEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let rows = entries
            .into_iter()
            .map(|entry| Ok((entry.log_id.index, codec::encode(&LOG_ENTRY, &entry).map_err(write_failed)?)))
            .collect::<Result<Vec<_>, Failure>>()?;
        let appended = self
            .write(Durability::Immediate, move |write| {
                let mut table = write.open_table(LOG)?;
                for (index, bytes) in &rows {
                    table.insert(*index, bytes.as_slice())?;
                }
                Ok(())
            })
            .await;
        callback.log_io_completed(appended.clone().map_err(|error| io::Error::other(error.to_string())));
        appended
    }

    async fn truncate(&mut self, from: LogId<u64>) -> Result<(), Failure> {
        self.remove((Bound::Included(from.index), Bound::Unbounded), None).await
    }

    async fn purge(&mut self, upto: LogId<u64>) -> Result<(), Failure> {
        self.remove((Bound::Unbounded, Bound::Included(upto.index)), Some(upto)).await
    }
}

pub(super) fn read_failed(error: impl std::error::Error + 'static) -> Failure {
    StorageIOError::new(ErrorSubject::Store, ErrorVerb::Read, openraft::AnyError::new(&error)).into()
}

pub(super) fn write_failed(error: impl std::error::Error + 'static) -> Failure {
    StorageIOError::new(ErrorSubject::Store, ErrorVerb::Write, openraft::AnyError::new(&error)).into()
}

fn reason(error: &redb::Error) -> String {
    match error {
        redb::Error::Io(error) => files::advice(error),
        redb::Error::DatabaseAlreadyOpen => "another weft daemon uses it: stop that daemon first".to_owned(),
        redb::Error::Corrupted(what) => {
            format!("it is damaged ({what}): let this node leave (`weft swarm leave --force`) and join it again")
        }
        other => other.to_string(),
    }
}
