//! The files of this node that contain a secret, and the lock that encrypts them.
//!
//! The membership store and the Raft store read and write these files ([`SecretFile`]) only through
//! this module. It decides whether they are in the clear or encrypted, and it must not know what is
//! in them. It does not decide whether the node is locked either: the cluster state does
//! ([`weft_model::state::ManagerLock`]), and `swarm::membership` passes that on.
//!
//! ```text
//!          set_lock(key)                     the daemon starts again
//!   Open ────────────────▶ Unlocked(key) ─────────────────────────────▶ Locked
//!        ◀────────────────               ◀─────────────────────────────
//!          set_lock(None)                     unlock(key)
//! ```
//!
//! - Open: the files are in the clear, for root only. Workers and managers that are not locked.
//! - Unlocked: the files are encrypted with a random key of this node (the file key), and that key
//!   with the unlock key of the cluster, in `lock.json`. The daemon has both in memory.
//! - Locked: the daemon has neither, and can read none of the files.
//!
//! Another unlock key means another file key, so that who knows a former unlock key and has a
//! former copy of the disk cannot read later files. `lock.json` has both file keys until every file
//! is encrypted with the new one. It is replaced as a whole, so that one unlock key opens all files
//! at any time, also after a crash.
//!
//! The secrets that a file had before the lock were on the disk in the clear, or encrypted with a
//! former key. `Vault::stale` says which of them must be replaced, until they are.
//!
//! A sealed file:
//!
//! ```text
//!   "weft sealed file 1\n" │ nonce (12 octets) │ ciphertext │ tag (16)
//! ```

#[cfg(test)]
mod tests;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};
use weft_model::{UnlockKey, state::ManagerLock};

use crate::{
    files,
    json::{self, Schema},
    pki::{Kek, PkiError},
};

const LOCK: &str = "lock.json";
const SCHEMA: Schema = Schema { version: 1, release: "0.2.0" };
const MAGIC: &[u8] = b"weft sealed file 1\n";
/// What is authenticated with the file keys.
const KEYS_CONTEXT: &str = "weft file keys";
/// Length in bytes of a file key.
const KEY_LEN: usize = 32;

/// A file with a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretFile {
    /// The node's certificate and its private key.
    Identity,
    /// The key that opens the key of the certificate authority.
    ManagerKeys,
    /// The content that is about to replace [`Self::ManagerKeys`], by a rename.
    NewManagerKeys,
    /// The key of the log.
    LogKey,
}

impl SecretFile {
    const ALL: [Self; 4] = [Self::Identity, Self::ManagerKeys, Self::NewManagerKeys, Self::LogKey];

    /// The name of the file.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity.pem",
            Self::ManagerKeys => "manager.json",
            Self::NewManagerKeys => "manager.new.json",
            Self::LogKey => "log.key",
        }
    }

    /// What is authenticated with the content, so that no file can take the place of another.
    fn context(self) -> &'static str {
        match self {
            Self::Identity => "weft identity",
            Self::ManagerKeys | Self::NewManagerKeys => "weft manager keys",
            Self::LogKey => "weft log key",
        }
    }
}

/// Secrets that were on the disk before the lock was set or its key was replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Stale {
    /// The private key of the node's certificate.
    pub(crate) identity: bool,
    pub(crate) log_key: bool,
}

/// Why the files cannot be unlocked.
#[derive(Debug, thiserror::Error)]
pub enum UnlockError {
    #[error("the key is not the one that the files are locked with")]
    WrongKey,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The content of `lock.json`.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredLock {
    /// [`ManagerLock::version`] of the newest lock that this node has followed.
    version: u64,
    /// The file keys, the newest first, encrypted with the unlock key. Empty if the files are in
    /// the clear.
    sealed_keys: Vec<u8>,
    stale_identity: bool,
    stale_log_key: bool,
}

/// The files with secrets in one directory. Clones share the lock. All methods block.
#[derive(Clone)]
pub struct Vault {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    lock: Mutex<Lock>,
}

/// Whether the files are encrypted, and `version` as in [`StoredLock`].
struct Lock {
    version: u64,
    state: State,
}

enum State {
    Open,
    Locked,
    Unlocked(Keys),
}

#[derive(Clone)]
struct Keys {
    unlock: UnlockKey,
    /// The file keys, the newest first. A file may still be encrypted with a later one, or be in
    /// the clear, unless `settled`.
    ring: Vec<Kek>,
    settled: bool,
    stale: Stale,
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").field("dir", &self.inner.dir).finish_non_exhaustive()
    }
}

impl Vault {
    /// The vault of the directory `dir`, open or locked.
    ///
    /// # Errors
    /// The error of the file system, or `InvalidData` if `lock.json` is damaged.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let stored = read_lock(dir)?;
        let state = if stored.sealed_keys.is_empty() { State::Open } else { State::Locked };
        let lock = Mutex::new(Lock { version: stored.version, state });
        Ok(Self { inner: Arc::new(Inner { dir: dir.to_owned(), lock }) })
    }

    /// Whether the files are encrypted, and the unlock key is not known.
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self.lock().state, State::Locked)
    }

    /// [`ManagerLock::version`] of the newest lock that this node has followed.
    pub(crate) fn version(&self) -> u64 {
        self.lock().version
    }

    /// The secrets that must be replaced.
    pub(crate) fn stale(&self) -> Stale {
        match &self.lock().state {
            State::Unlocked(keys) => keys.stale,
            State::Open | State::Locked => Stale::default(),
        }
    }

    pub(crate) fn path(&self, file: SecretFile) -> PathBuf {
        self.inner.dir.join(file.name())
    }

    /// Whether the file exists and is encrypted.
    pub(crate) fn is_sealed(&self, file: SecretFile) -> io::Result<bool> {
        Ok(files::read(&self.path(file))?.is_some_and(|bytes| bytes.starts_with(MAGIC)))
    }

    /// The content of a file. `None` if it does not exist.
    ///
    /// # Errors
    /// The error of the file system, or `InvalidData` if the file is encrypted with a key that is
    /// not known, or damaged.
    pub(crate) fn read(&self, file: SecretFile) -> io::Result<Option<Vec<u8>>> {
        let lock = self.lock();
        self.read_with(&lock.state, file)
    }

    /// Replaces the content of a file, encrypted if there is a lock.
    ///
    /// # Errors
    /// The error of the file system, or `InvalidInput` if the vault is locked.
    pub(crate) fn write(&self, file: SecretFile, bytes: &[u8]) -> io::Result<()> {
        match &self.lock().state {
            State::Open => files::write(&self.path(file), bytes),
            State::Locked => Err(is_locked()),
            State::Unlocked(keys) => self.write_sealed(&keys.ring[0], file, bytes),
        }
    }

    /// Replaces the content of a file, in the clear even if there is a lock.
    ///
    /// # Errors
    /// The error of the file system.
    pub(crate) fn write_in_clear(&self, file: SecretFile, bytes: &[u8]) -> io::Result<()> {
        let _lock = self.lock();
        files::write(&self.path(file), bytes)
    }

    /// Unlocks the files.
    ///
    /// # Errors
    /// [`UnlockError::WrongKey`]; nothing has changed.
    pub(crate) fn unlock(&self, key: &UnlockKey) -> Result<(), UnlockError> {
        let mut lock = self.lock();
        let stored = read_lock(&self.inner.dir)?;
        let opened = Kek::from(key).open(KEYS_CONTEXT, &stored.sealed_keys).map_err(|_| UnlockError::WrongKey)?;
        let ring = opened.chunks(KEY_LEN).map(Kek::from_bytes).collect::<Result<Vec<_>, _>>().map_err(io_error)?;
        if ring.is_empty() {
            return Err(UnlockError::WrongKey);
        }
        let stale = Stale { identity: stored.stale_identity, log_key: stored.stale_log_key };
        // A crash may have left files that are not encrypted with the newest key.
        lock.state = State::Unlocked(Keys { unlock: key.clone(), ring, settled: false, stale });
        if let Err(error) = self.settle(&mut lock) {
            tracing::warn!(%error, "cannot encrypt the keys of this manager again, trying later");
        }
        Ok(())
    }

    /// Forgets the keys again, after [`Self::unlock`].
    pub(crate) fn lock_again(&self) {
        let mut lock = self.lock();
        if matches!(lock.state, State::Unlocked(_)) {
            lock.state = State::Locked;
        }
    }

    /// Encrypts the files for the unlock key of `wanted`, or no longer encrypts them, unless this
    /// node has followed a later lock already. Completes a change that has failed before.
    ///
    /// # Errors
    /// The error of the file system. The same unlock key, or the one of before, opens all files.
    pub(crate) fn set_lock(&self, wanted: &ManagerLock) -> io::Result<()> {
        let mut lock = self.lock();
        // A node that is about to become a manager has the key before it has a version of it.
        let is_first = lock.version == wanted.version && wanted.key.is_some() && matches!(lock.state, State::Open);
        if is_first || lock.version < wanted.version {
            match &wanted.key {
                Some(key) => self.change_key(&mut lock, key, wanted.version)?,
                None => self.open_files(&mut lock, wanted.version)?,
            }
        }
        self.settle(&mut lock)
    }

    /// No longer encrypts the files: this node is a worker now.
    ///
    /// # Errors
    /// The error of the file system.
    pub(crate) fn release(&self) -> io::Result<()> {
        let mut lock = self.lock();
        match &lock.state {
            State::Open => {}
            State::Locked => return Err(is_locked()),
            State::Unlocked(_) => self.open_files(&mut lock, 0)?,
        }
        self.forget(&mut lock)
    }

    /// Removes the lock. The files must be in the clear, or must have been removed.
    ///
    /// # Errors
    /// The error of the file system.
    pub(crate) fn reset(&self) -> io::Result<()> {
        self.forget(&mut self.lock())
    }

    /// Records that the node has a new certificate with a new private key.
    ///
    /// # Errors
    /// The error of the file system.
    pub(crate) fn identity_is_fresh(&self) -> io::Result<()> {
        self.set_stale(|stale| stale.identity = false)
    }

    /// Records that the log is encrypted with a new key.
    ///
    /// # Errors
    /// The error of the file system.
    pub(crate) fn log_key_is_fresh(&self) -> io::Result<()> {
        self.set_stale(|stale| stale.log_key = false)
    }

    fn set_stale(&self, change: impl FnOnce(&mut Stale)) -> io::Result<()> {
        let mut lock = self.lock();
        let State::Unlocked(keys) = &lock.state else { return Ok(()) };
        let mut changed = keys.clone();
        change(&mut changed.stale);
        if changed.stale != keys.stale {
            let version = lock.version;
            self.store(&mut lock, version, changed)?;
        }
        Ok(())
    }

    fn change_key(&self, lock: &mut Lock, key: &UnlockKey, version: u64) -> io::Result<()> {
        let former = match &lock.state {
            State::Open => Vec::new(),
            State::Locked => return Err(is_locked()),
            State::Unlocked(keys) if keys.unlock == *key => {
                let keys = keys.clone();
                return self.store(lock, version, keys);
            }
            State::Unlocked(keys) => keys.ring.clone(),
        };
        let exists = |file| self.path(file).try_exists();
        let stale = Stale { identity: exists(SecretFile::Identity)?, log_key: exists(SecretFile::LogKey)? };
        let mut ring = vec![Kek::generate().map_err(io_error)?];
        ring.extend(former);
        self.store(lock, version, Keys { unlock: key.clone(), ring, settled: false, stale })
    }

    /// Writes all files in the clear, then the lock without keys.
    fn open_files(&self, lock: &mut Lock, version: u64) -> io::Result<()> {
        for file in SecretFile::ALL {
            if let Some(bytes) = self.read_with(&lock.state, file)? {
                files::write(&self.path(file), &bytes)?;
            }
        }
        write_lock(&self.inner.dir, &StoredLock { version, ..StoredLock::default() })?;
        *lock = Lock { version, state: State::Open };
        Ok(())
    }

    fn forget(&self, lock: &mut Lock) -> io::Result<()> {
        files::remove(&self.inner.dir.join(LOCK))?;
        *lock = Lock { version: 0, state: State::Open };
        Ok(())
    }

    /// Encrypts all files with the newest file key, then forgets the others.
    fn settle(&self, lock: &mut Lock) -> io::Result<()> {
        let State::Unlocked(keys) = &lock.state else { return Ok(()) };
        if keys.settled {
            return Ok(());
        }
        let newest = keys.ring[0].clone();
        for file in SecretFile::ALL {
            let Some(stored) = files::read(&self.path(file))? else { continue };
            if open_sealed(std::slice::from_ref(&newest), file, &stored).is_none() {
                let plain = self.read_with(&lock.state, file)?.unwrap_or_default();
                self.write_sealed(&newest, file, &plain)?;
            }
        }
        let (mut keys, version) = (keys.clone(), lock.version);
        keys.settled = true;
        if keys.ring.len() > 1 {
            keys.ring.truncate(1);
            return self.store(lock, version, keys);
        }
        lock.state = State::Unlocked(keys);
        Ok(())
    }

    /// Stores the keys in `lock.json`, and uses them from now on.
    fn store(&self, lock: &mut Lock, version: u64, keys: Keys) -> io::Result<()> {
        let ring: Vec<u8> = keys.ring.iter().flat_map(Kek::as_bytes).copied().collect();
        let stored = StoredLock {
            version,
            sealed_keys: Kek::from(&keys.unlock).seal(KEYS_CONTEXT, &ring).map_err(io_error)?,
            stale_identity: keys.stale.identity,
            stale_log_key: keys.stale.log_key,
        };
        write_lock(&self.inner.dir, &stored)?;
        *lock = Lock { version, state: State::Unlocked(keys) };
        Ok(())
    }

    fn read_with(&self, state: &State, file: SecretFile) -> io::Result<Option<Vec<u8>>> {
        let Some(stored) = files::read(&self.path(file))? else { return Ok(None) };
        if !stored.starts_with(MAGIC) {
            return Ok(Some(stored));
        }
        let opened = match state {
            State::Unlocked(keys) => open_sealed(&keys.ring, file, &stored),
            State::Open | State::Locked => None,
        };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "it is encrypted with another key, or damaged");
        opened.map(Some).ok_or_else(damaged)
    }

    fn write_sealed(&self, key: &Kek, file: SecretFile, plain: &[u8]) -> io::Result<()> {
        let sealed = key.seal(file.context(), plain).map_err(io_error)?;
        files::write(&self.path(file), &[MAGIC, &sealed].concat())
    }

    fn lock(&self) -> MutexGuard<'_, Lock> {
        self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The content of a sealed file, if one of the keys opens it.
fn open_sealed(ring: &[Kek], file: SecretFile, stored: &[u8]) -> Option<Vec<u8>> {
    let sealed = stored.strip_prefix(MAGIC)?;
    ring.iter().find_map(|key| key.open(file.context(), sealed).ok())
}

fn read_lock(dir: &Path) -> io::Result<StoredLock> {
    let Some(bytes) = files::read(&dir.join(LOCK))? else { return Ok(StoredLock::default()) };
    let damaged = |error| io::Error::new(io::ErrorKind::InvalidData, format!("{LOCK}: {error}"));
    json::decode(&SCHEMA, &bytes).map_err(damaged)
}

fn write_lock(dir: &Path, stored: &StoredLock) -> io::Result<()> {
    files::write(&dir.join(LOCK), &json::encode(&SCHEMA, stored).map_err(io::Error::other)?)
}

fn is_locked() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "this manager is locked")
}

fn io_error(error: PkiError) -> io::Error {
    io::Error::other(error)
}
