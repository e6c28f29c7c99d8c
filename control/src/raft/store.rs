//! The log on disk: one redb file with the entries, the vote, the committed position and the latest
//! snapshot, each encrypted with the node's key of the log (see [`super::seal`]).
//!
//! Raft relies on one invariant: an entry or a vote that the store has confirmed is on disk. Every
//! append and every vote is one write transaction, which is flushed before the call returns.
//!
//! A record is encrypted inside of the transaction that writes it. So a new key of the log
//! ([`Store::replace_key`]) applies to whole transactions.
#![expect(clippy::result_large_err, reason = "openraft's error type")]

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use openraft::{
    ErrorSubject, ErrorVerb, LogId, OptionalSend, RaftLogReader, SnapshotMeta, StorageError, StorageIOError, Vote,
    storage::{LogFlushed, LogState, RaftLogStorage},
};
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition,
    WriteTransaction,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::watch;

use super::{
    TypeConfig, Voter,
    seal::{KeyRing, LogKey, Place},
};
#[cfg(test)]
use crate::fixture::{disk, journal};
use crate::{
    codec::{self, Kind, LOG_ENTRY, LOG_POSITION, STORED_SNAPSHOT},
    files, host,
    vault::{SecretFile, Vault},
};

pub(crate) type LogEntry = openraft::Entry<TypeConfig>;
type Failure = StorageError<u64>;

pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Keys of [`META`].
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SNAPSHOT: &str = "snapshot";
/// Present if this log must not be used again; the value is the reason.
const UNUSABLE: &str = "unusable";
/// Sealed with the file's key. A file without it was written by weft 0.1.0, which did not encrypt.
const SEALED: &str = "sealed";
const SEALED_CONTENT: &[u8] = b"all records of this file are encrypted with this key";

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
    /// Whether [`Store::resign`] was called.
    resigned: AtomicBool,
    /// The next entry that is applied changes the state in another way than on the other managers.
    #[cfg(test)]
    damages_state: AtomicBool,
}

/// The open file.
#[derive(Debug)]
struct Open {
    db: Database,
    keys: RwLock<KeyRing>,
    /// Declared last, so it is dropped after the file is closed.
    alive: watch::Sender<()>,
}

impl Open {
    fn keys(&self) -> KeyRing {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn use_keys(&self, keys: KeyRing) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    fn entry(&self, index: u64, sealed: &[u8]) -> Result<LogEntry, Failure> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let bytes = keys.open(Place::Entry(index), sealed).map_err(read_failed)?;
        codec::decode(&LOG_ENTRY, &bytes).map_err(read_failed)
    }
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
    /// Opens the file, or creates it, and its key in the vault. Encrypts a file that weft 0.1.0 has
    /// written.
    ///
    /// # Errors
    /// If another daemon uses the file, the file is damaged, its key is missing or another one, or
    /// the disk fails.
    pub fn open(path: &Path, vault: &Vault) -> Result<Self, StoreError> {
        let failed = |error: redb::Error| StoreError { path: path.to_owned(), reason: reason(&error) };
        let key_path = vault.path(SecretFile::LogKey);
        let key_failed = |error: io::Error| StoreError { path: key_path.clone(), reason: files::advice(&error) };
        let db = open_or_create(path).map_err(failed)?;
        let keys = KeyRing::read(vault).map_err(key_failed)?;
        let store = match raw(&db, SEALED).map_err(failed)? {
            Some(sealed) => {
                let usable = keys.as_ref().and_then(|keys| keys.only_the_key_of(Place::Value(SEALED), &sealed));
                let key = usable.ok_or_else(|| StoreError {
                    path: path.to_owned(),
                    reason: format!(
                        "its key {} is missing or belongs to another log: restore both from the same copy of the \
                         directory, or let this node leave (`weft swarm leave --force`) and join it again",
                        key_path.display()
                    ),
                })?;
                // A crash has interrupted the replacement of the key, before or after the records
                // were encrypted with the new one.
                if keys.is_some_and(|keys| keys.len() > 1) {
                    key.write(vault).map_err(key_failed)?;
                }
                Self::new(db, key, path)
            }
            None => {
                let key = match keys {
                    Some(keys) => keys,
                    None => new_key(vault).map_err(key_failed)?,
                };
                let db = if is_empty(&db).map_err(failed)? {
                    seal_all(&db, &db, &key).map_err(failed)?;
                    db
                } else {
                    sealed_copy(&db, path, &key).map_err(failed)?
                };
                Self::new(db, key, path)
            }
        };
        let reason = match store.value(UNUSABLE) {
            Ok(None) => return Ok(store),
            Ok(Some(reason)) => String::from_utf8_lossy(&reason).into_owned(),
            Err(error) => error.to_string(),
        };
        Err(StoreError { path: path.to_owned(), reason })
    }

    /// Refuses every later [`Self::open`] of this file with `reason`, and reports it as the failure
    /// of this log.
    pub async fn mark_unusable(&self, reason: String) -> Result<(), Failure> {
        self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.clone());
        self.put_value(UNUSABLE, reason.into_bytes(), Durability::Immediate).await
    }

    /// Encrypts all records with a new key, in one transaction, and all later ones too.
    ///
    /// # Errors
    /// If the disk fails. The log is then as before, or fails as after any other failed write.
    pub async fn replace_key(&self, vault: &Vault) -> Result<(), StoreError> {
        let failed = |reason: String| StoreError { path: self.inner.path.clone(), reason };
        let open = self.open_file().map_err(|e| failed(e.to_string()))?;
        let (former, key) = (open.keys().first(), LogKey::generate().map_err(|e| failed(e.to_string()))?);
        let both = former.with_new(key);
        let write_keys = |keys: KeyRing| {
            let (vault, path) = (vault.clone(), vault.path(SecretFile::LogKey));
            async move {
                let written = host::spawn_blocking(move || keys.write(&vault)).await;
                let written = written.unwrap_or_else(|e| Err(io::Error::other(e)));
                written.map_err(|e| StoreError { path, reason: files::advice(&e) })
            }
        };
        // A crash leaves both keys. The next `open` finds out which of them the records have.
        write_keys(both.clone()).await?;
        let (keys, changed) = (both.clone(), open.clone());
        let replaced = self.write(Durability::Immediate, move |write, _| {
            reseal_all(write, &keys)?;
            // No other transaction writes until this one has ended.
            changed.use_keys(keys.clone());
            Ok(())
        });
        if let Err(error) = replaced.await {
            open.use_keys(former);
            return Err(failed(self.failure().unwrap_or_else(|| error.to_string())));
        }
        write_keys(both.first()).await
    }

    /// Damages the state of the manager of this log with the next entry, as broken memory would.
    #[cfg(test)]
    pub(crate) fn damage_state(&self) {
        self.inner.damages_state.store(true, Ordering::Relaxed);
    }

    /// Whether the state is to be damaged now.
    #[cfg(test)]
    pub(super) fn takes_damage(&self) -> bool {
        self.inner.damages_state.swap(false, Ordering::Relaxed)
    }

    /// Opens a log on another storage backend.
    #[cfg(test)]
    pub(super) fn with_backend(backend: impl redb::StorageBackend) -> Result<Self, StoreError> {
        Self::with_backend_and_key(backend, LogKey::generate().expect("random bytes"))
    }

    /// The same with the key of an earlier log.
    #[cfg(test)]
    pub(super) fn with_backend_and_key(backend: impl redb::StorageBackend, key: LogKey) -> Result<Self, StoreError> {
        let path = Path::new("(backend)");
        let failed = |error: redb::Error| StoreError { path: path.to_owned(), reason: reason(&error) };
        let db = Database::builder().create_with_backend(backend).map_err(|e| failed(e.into()))?;
        prepare(&db).map_err(failed)?;
        Ok(Self::new(db, KeyRing::new(vec![key]), path))
    }

    fn new(db: Database, keys: KeyRing, path: &Path) -> Self {
        let open = Arc::new(Open { db, keys: RwLock::new(keys), alive: watch::Sender::new(()) });
        let inner = Inner {
            open: RwLock::new(Some(open)),
            path: path.to_owned(),
            failure: Mutex::default(),
            resigned: AtomicBool::new(false),
            #[cfg(test)]
            damages_state: Default::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Why writing failed and what to do about it; `None` if no write failed.
    pub fn failure(&self) -> Option<String> {
        self.inner.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Must be called before Raft starts. A manager that led when its log stopped does not lead
    /// again when Raft starts, but only after another election.
    pub(super) fn resign(&self) {
        self.inner.resigned.store(true, Ordering::Relaxed);
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
        let bytes = self.value(key)?;
        bytes.map(|bytes| codec::decode(kind, &bytes)).transpose().map_err(read_failed)
    }

    fn value(&self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        let open = self.open_file().map_err(read_failed)?;
        let sealed = raw(&open.db, key).map_err(read_failed)?;
        sealed.map(|sealed| open.keys().open(Place::Value(key), &sealed)).transpose().map_err(read_failed)
    }

    async fn put<T: Serialize>(&self, key: &'static str, value: &T, durability: Durability) -> Result<(), Failure> {
        self.put_value(key, codec::encode(&LOG_POSITION, value).map_err(write_failed)?, durability).await
    }

    async fn put_value(&self, key: &'static str, value: Vec<u8>, durability: Durability) -> Result<(), Failure> {
        self.write(durability, move |write, keys| {
            let sealed = seal(keys, Place::Value(key), &value)?;
            write.open_table(META)?.insert(key, sealed.as_slice())?;
            Ok(())
        })
        .await
    }

    /// Runs one write transaction on a blocking thread. `change` gets the keys of the log.
    async fn write<F>(&self, durability: Durability, change: F) -> Result<(), Failure>
    where
        F: FnOnce(&WriteTransaction, &KeyRing) -> Result<(), redb::Error> + Send + 'static,
    {
        let inner = self.inner.clone();
        let open = self.open_file().map_err(write_failed)?;
        let written = host::spawn_blocking(move || {
            let result = (|| -> Result<(), redb::Error> {
                let mut write = open.db.begin_write()?;
                write.set_durability(durability)?;
                change(&write, &open.keys())?;
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
        self.write(Durability::Immediate, move |write, keys| {
            write.open_table(LOG)?.retain_in::<u64, _>(range, |_, _| false)?;
            if let Some(purged) = purged {
                let sealed = seal(keys, Place::Value(PURGED), &purged)?;
                write.open_table(META)?.insert(PURGED, sealed.as_slice())?;
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
        self.write(Durability::Immediate, move |write, keys| {
            let mut table = write.open_table(META)?;
            let stored = table
                .get(SNAPSHOT)?
                .and_then(|stored| keys.open(Place::Value(SNAPSHOT), stored.value()).ok())
                .and_then(|stored| codec::decode::<StoredSnapshot>(&STORED_SNAPSHOT, &stored).ok());
            if stored.is_none_or(|(stored, _)| stored.last_log_id <= last) {
                table.insert(SNAPSHOT, seal(keys, Place::Value(SNAPSHOT), &bytes)?.as_slice())?;
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
            .map(|row| {
                let (index, sealed) = row.map_err(read_failed)?;
                open.entry(index.value(), sealed.value())
            })
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
        let last = last.map(|(index, sealed)| open.entry(index.value(), sealed.value())).transpose()?;
        Ok(LogState { last_log_id: last.map(|entry| entry.log_id).or(last_purged_log_id), last_purged_log_id })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), Failure> {
        #[cfg(test)]
        journal::record(self.inner.path.parent().expect("a directory"), journal::Step::Voted);
        self.put(VOTE, vote, Durability::Immediate).await
    }

    /// openraft reads it when it starts, and leads at once if the vote is for this manager and
    /// committed: a quorum elected it. Without the mark it is a vote that this manager has given,
    /// which still forbids any other vote of the term.
    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, Failure> {
        let mut vote: Option<Vote<u64>> = self.get(VOTE, &LOG_POSITION)?;
        if let Some(vote) = vote.as_mut().filter(|_| self.inner.resigned.load(Ordering::Relaxed)) {
            vote.committed = false;
        }
        Ok(vote)
    }

    /// Not flushed by itself, only with the next append. The value only speeds up a restart. A
    /// leader that has lost it confirms no read with it: see [`super::led_until`].
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
            .map(|entry| {
                let bytes = codec::encode(&LOG_ENTRY, &entry).map_err(write_failed)?;
                Ok((entry.log_id.index, bytes))
            })
            .collect::<Result<Vec<_>, Failure>>()?;
        let appended = self
            .write(Durability::Immediate, move |write, keys| {
                let mut table = write.open_table(LOG)?;
                for (index, bytes) in &rows {
                    table.insert(*index, seal(keys, Place::Entry(*index), bytes)?.as_slice())?;
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

/// Creates the key of a log.
fn new_key(vault: &Vault) -> io::Result<KeyRing> {
    let key = KeyRing::new(vec![LogKey::generate().map_err(io::Error::other)?]);
    key.write(vault)?;
    Ok(key)
}

fn seal(keys: &KeyRing, place: Place<'_>, plain: &[u8]) -> Result<Vec<u8>, redb::Error> {
    keys.seal(place, plain).map_err(|e| redb::Error::Io(io::Error::other(e)))
}

/// Encrypts all records with the first key. Any of the keys opens them.
fn reseal_all(write: &WriteTransaction, keys: &KeyRing) -> Result<(), redb::Error> {
    let reseal = |place: Place<'_>, sealed: &[u8]| {
        let plain = keys.open(place, sealed).map_err(|e| redb::Error::Io(io::Error::other(e)))?;
        seal(keys, place, &plain)
    };
    let mut log = write.open_table(LOG)?;
    let indexes = log.iter()?.map(|row| Ok(row?.0.value())).collect::<Result<Vec<u64>, redb::Error>>()?;
    for index in indexes {
        let resealed = log.get(index)?.map(|sealed| reseal(Place::Entry(index), sealed.value())).transpose()?;
        if let Some(resealed) = resealed {
            log.insert(index, resealed.as_slice())?;
        }
    }
    let mut meta = write.open_table(META)?;
    let names = meta.iter()?.map(|row| Ok(row?.0.value().to_owned())).collect::<Result<Vec<_>, redb::Error>>()?;
    for name in names {
        let resealed =
            meta.get(name.as_str())?.map(|sealed| reseal(Place::Value(&name), sealed.value())).transpose()?;
        if let Some(resealed) = resealed {
            meta.insert(name.as_str(), resealed.as_slice())?;
        }
    }
    Ok(())
}

/// Creates the tables.
fn prepare(db: &Database) -> Result<(), redb::Error> {
    let write = db.begin_write()?;
    write.open_table(LOG)?;
    write.open_table(META)?;
    Ok(write.commit()?)
}

/// A value as it is stored.
fn raw(db: &Database, key: &str) -> Result<Option<Vec<u8>>, redb::Error> {
    let table = db.begin_read()?.open_table(META)?;
    Ok(table.get(key)?.map(|value| value.value().to_vec()))
}

fn is_empty(db: &Database) -> Result<bool, redb::Error> {
    let read = db.begin_read()?;
    Ok(read.open_table(LOG)?.is_empty()? && read.open_table(META)?.is_empty()?)
}

/// Replaces a file without encryption by an encrypted one, as a whole: redb would keep the pages of
/// the former records in the same file.
fn sealed_copy(plain: &Database, path: &Path, keys: &KeyRing) -> Result<Database, redb::Error> {
    let sealed = create(path, |sealed| seal_all(plain, sealed, keys))?;
    tracing::info!(path = %path.display(), "the log is encrypted now");
    Ok(sealed)
}

fn open_or_create(path: &Path) -> Result<Database, redb::Error> {
    if !path.try_exists()? {
        return create(path, |_| Ok(()));
    }
    let db = open_file(path)?;
    prepare(&db)?;
    Ok(db)
}

/// Opens the file, or creates it.
fn open_file(path: &Path) -> Result<Database, DatabaseError> {
    #[cfg(not(test))]
    return Database::create(path);
    #[cfg(test)]
    return disk::open(path);
}

/// Creates a file with the records that `fill` writes. It has another name until it is complete: if
/// the power is cut while redb writes its first pages, redb does not open the file again.
fn create(path: &Path, fill: impl FnOnce(&Database) -> Result<(), redb::Error>) -> Result<Database, redb::Error> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    let staged = Path::new(&staged);
    // Left by a daemon that was killed here.
    files::remove(staged)?;
    let db = open_file(staged)?;
    prepare(&db)?;
    fill(&db)?;
    files::rename(staged, path)?;
    Ok(db)
}

/// Writes all records of `plain` to `sealed`, encrypted, and the mark [`SEALED`].
fn seal_all(plain: &Database, sealed: &Database, keys: &KeyRing) -> Result<(), redb::Error> {
    let seal = |place: Place<'_>, bytes: &[u8]| seal(keys, place, bytes);
    let read = plain.begin_read()?;
    let (plain_log, plain_meta) = (read.open_table(LOG)?, read.open_table(META)?);
    let write = sealed.begin_write()?;
    let mut log = write.open_table(LOG)?;
    for row in plain_log.iter()? {
        let (index, bytes) = row?;
        log.insert(index.value(), seal(Place::Entry(index.value()), bytes.value())?.as_slice())?;
    }
    drop(log);
    let mut meta = write.open_table(META)?;
    for row in plain_meta.iter()? {
        let (name, bytes) = row?;
        meta.insert(name.value(), seal(Place::Value(name.value()), bytes.value())?.as_slice())?;
    }
    meta.insert(SEALED, seal(Place::Value(SEALED), SEALED_CONTENT)?.as_slice())?;
    drop(meta);
    Ok(write.commit()?)
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
