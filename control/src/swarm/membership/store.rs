//! The membership's files, in `swarm/` below the data directory. Those with a secret are in a
//! [`Vault`], which encrypts them while managers are locked.
//!
//! `node.json`, the record, is written last when the node forms or joins a cluster, and removed
//! first when it leaves. Without a record the other files come from an interrupted attempt: the
//! node is not a member, and the next attempt removes them.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use weft_model::{
    NodePlan, UnlockKey,
    spec::Role,
    state::{FEATURE_LEVEL, ManagerLock},
};

use crate::{
    codec, files,
    json::{self, JsonError},
    pki::{Identity, Kek},
    raft::Store,
    swarm::{context::Record, error::SwarmError, manager::ManagerKeys},
    vault::{SecretFile, UnlockError, Vault},
};

const RECORD: &str = "node.json";
const PLAN: &str = "plan";
const LOG: &str = "raft.redb";
/// The log that is about to replace the current one (see `reform`).
const NEW_LOG: &str = "raft.new.redb";

/// Reads and writes the membership's files. All methods except [`Self::log_path`] block. Cheap to
/// clone.
#[derive(Debug, Clone)]
pub(super) struct MembershipStore {
    dir: PathBuf,
    vault: Vault,
    /// Held while a record is read, changed and written.
    record_change: Arc<Mutex<()>>,
}

/// The content of `manager.json`.
#[derive(Serialize, Deserialize)]
#[cfg_attr(test, derive(Debug))]
#[serde(deny_unknown_fields)]
struct StoredKeys {
    raft_id: u64,
    kek: Vec<u8>,
    /// Whether the log of this Raft id was created: then the id may have voted, and the log must
    /// not be replaced by an empty one. Releases before 0.2.0 do not write it.
    #[serde(default = "yes")]
    log_created: bool,
}

fn yes() -> bool {
    true
}

impl MembershipStore {
    /// Creates the directory if it is missing.
    ///
    /// # Errors
    /// [`SwarmError::Storage`] if the directory cannot be created or written.
    pub(super) fn open(data_dir: &Path) -> Result<Self, SwarmError> {
        let dir = data_dir.join("swarm");
        let failed = |error: &io::Error| SwarmError::Storage { path: dir.clone(), reason: files::advice(error) };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(|error| failed(&error))?;
        let vault = Vault::open(&dir).map_err(|error| failed(&error))?;
        let store = Self { dir, vault, record_change: Arc::default() };
        // Write a file now, so that a read-only directory is an error at the start and not at the
        // first change.
        files::write(&store.dir.join("writable"), b"").map_err(|error| store.failed(&error))?;
        store.remove("writable")?;
        Ok(store)
    }

    /// The Raft log of a manager.
    pub(super) fn log_path(&self) -> PathBuf {
        self.dir.join(LOG)
    }

    /// `None` if this node is not a member.
    pub(super) fn record(&self) -> Result<Option<Record>, SwarmError> {
        let Some(bytes) = self.read(RECORD)? else {
            return Ok(None);
        };
        json::decode(&json::FIRST, &bytes).map(Some).map_err(|e| self.unreadable(RECORD, &e))
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<(), SwarmError> {
        let bytes = json::encode(&json::FIRST, record).map_err(|e| self.damaged(RECORD, &e))?;
        self.write(RECORD, &bytes)
    }

    /// Changes the record that is stored. Several tasks of a membership change different fields.
    ///
    /// # Errors
    /// [`SwarmError::Storage`], or [`SwarmError::NotMember`] if there is no record.
    pub(super) fn update_record(&self, change: impl FnOnce(&mut Record)) -> Result<(), SwarmError> {
        let _changing = self.record_change.lock().unwrap_or_else(PoisonError::into_inner);
        let mut record = self.record()?.ok_or(SwarmError::NotMember)?;
        change(&mut record);
        self.write_record(&record)
    }

    /// Whether the files with secrets are encrypted, and the unlock key is not known. A worker is
    /// never locked: if a crash has interrupted its demotion, this completes it.
    pub(super) fn is_locked(&self, record: &Record) -> Result<bool, SwarmError> {
        if !self.vault.is_locked() {
            return Ok(false);
        }
        let is_sealed = self.vault.is_sealed(SecretFile::Identity).map_err(|error| self.failed(&error))?;
        if is_sealed || self.identity(record)?.peer.role == Role::Manager {
            return Ok(true);
        }
        self.remove_manager_files()?;
        self.vault.reset().map_err(|error| self.failed(&error))?;
        Ok(false)
    }

    /// Decrypts the files with secrets.
    ///
    /// # Errors
    /// [`SwarmError::WrongUnlockKey`]: nothing has changed.
    pub(super) fn unlock(&self, key: &UnlockKey) -> Result<(), SwarmError> {
        self.vault.unlock(key).map_err(|error| match error {
            UnlockError::WrongKey => SwarmError::WrongUnlockKey,
            UnlockError::Io(error) => self.failed(&error),
        })
    }

    /// The files with secrets.
    pub(super) fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Encrypts the files with secrets for the key of `lock`, or no longer encrypts them.
    pub(super) fn set_lock(&self, lock: &ManagerLock) -> Result<(), SwarmError> {
        self.vault.set_lock(lock).map_err(|error| self.failed(&error))
    }

    /// No longer encrypts the files with secrets, because this node is a worker.
    pub(super) fn release_lock(&self) -> Result<(), SwarmError> {
        self.vault.release().map_err(|error| self.failed(&error))
    }

    /// Records that the key of the log is younger than the lock.
    pub(super) fn log_key_is_fresh(&self) -> Result<(), SwarmError> {
        self.vault.log_key_is_fresh().map_err(|error| self.failed(&error))
    }

    pub(super) fn identity(&self, record: &Record) -> Result<Identity, SwarmError> {
        let file = SecretFile::Identity;
        let damaged = |reason: &dyn std::fmt::Display| self.damaged(file.name(), reason);
        let bytes = self.read_secret(file)?.ok_or_else(|| damaged(&"it is missing"))?;
        let pem = String::from_utf8(bytes).map_err(|e| damaged(&e))?;
        Identity::from_pem(&pem, &record.ca_pem).map_err(|e| damaged(&e))
    }

    /// Stores a new certificate with its private key. That of a worker is in the clear, so that the
    /// node can start without the unlock key from now on.
    pub(super) fn write_identity(&self, identity: &Identity) -> Result<(), SwarmError> {
        let (file, pem) = (SecretFile::Identity, identity.to_pem().as_bytes());
        let written = match identity.peer.role {
            Role::Manager => self.vault.write(file, pem).and_then(|()| self.vault.identity_is_fresh()),
            Role::Worker => self.vault.write_in_clear(file, pem),
        };
        written.map_err(|error| self.failed(&error))
    }

    /// The last plan that was stored. `None` if there is none or it cannot be read: the leader
    /// sends the plan again.
    pub(super) fn plan(&self) -> Option<NodePlan> {
        let bytes = self.read(PLAN).ok().flatten()?;
        codec::plan::decode(&bytes).inspect_err(|error| tracing::warn!(%error, "cannot read the stored plan")).ok()
    }

    /// Stores a plan without the data of secrets and configs: the leader sends it again.
    pub(super) fn write_plan(&self, plan: &NodePlan) -> Result<(), SwarmError> {
        let bytes = codec::plan::encode(&plan.without_data(), FEATURE_LEVEL).map_err(|e| self.damaged(PLAN, &e))?;
        self.write(PLAN, &bytes)
    }

    pub(super) fn remove_plan(&self) -> Result<(), SwarmError> {
        self.remove(PLAN)
    }

    /// `None` on a worker.
    pub(super) fn manager_keys(&self) -> Result<Option<ManagerKeys>, SwarmError> {
        self.read_keys(SecretFile::ManagerKeys)
    }

    /// Stores the keys of a manager that begins with an empty log. Removes the log of an earlier
    /// Raft id, which a crash during a demotion may have left.
    pub(super) fn write_manager_keys(&self, keys: &ManagerKeys) -> Result<(), SwarmError> {
        self.remove(LOG)?;
        self.write_keys(SecretFile::ManagerKeys, keys, false)
    }

    /// Creates the log of a manager that begins, and records that before the log can contain a
    /// vote.
    ///
    /// # Errors
    /// [`SwarmError::LogLost`] if the log was created before and its file is missing or empty.
    pub(super) fn prepare_log(&self, keys: &ManagerKeys) -> Result<(), SwarmError> {
        let path = self.log_path();
        if self.stored_keys(SecretFile::ManagerKeys)?.is_some_and(|stored| stored.log_created) {
            let size = fs::metadata(&path).map(|file| file.len());
            return match size {
                Ok(1..) => Ok(()),
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.failed(&error)),
                _ => Err(SwarmError::LogLost { path }),
            };
        }
        // The log of an attempt that did not reach the record below has no votes.
        self.remove(LOG)?;
        let log =
            Store::open(&path, &self.vault).map_err(|e| SwarmError::Storage { path: e.path, reason: e.reason })?;
        drop(log);
        // Also syncs the directory, and with it the entry of the log.
        self.write_keys(SecretFile::ManagerKeys, keys, true)
    }

    /// The keys that are about to replace those of [`Self::manager_keys`].
    pub(super) fn new_manager_keys(&self) -> Result<Option<ManagerKeys>, SwarmError> {
        self.read_keys(SecretFile::NewManagerKeys)
    }

    /// Their log is the new one, which exists.
    pub(super) fn write_new_manager_keys(&self, keys: &ManagerKeys) -> Result<(), SwarmError> {
        self.write_keys(SecretFile::NewManagerKeys, keys, true)
    }

    pub(super) fn use_new_manager_keys(&self) -> Result<(), SwarmError> {
        self.rename(SecretFile::NewManagerKeys.name(), SecretFile::ManagerKeys.name())
    }

    pub(super) fn remove_new_manager_keys(&self) -> Result<(), SwarmError> {
        self.remove(SecretFile::NewManagerKeys.name())
    }

    pub(super) fn new_log_path(&self) -> PathBuf {
        self.dir.join(NEW_LOG)
    }

    pub(super) fn remove_new_log(&self) -> Result<(), SwarmError> {
        self.remove(NEW_LOG)
    }

    pub(super) fn use_new_log(&self) -> Result<(), SwarmError> {
        self.rename(NEW_LOG, LOG)
    }

    fn read_keys(&self, file: SecretFile) -> Result<Option<ManagerKeys>, SwarmError> {
        let Some(stored) = self.stored_keys(file)? else {
            return Ok(None);
        };
        let kek = Kek::from_bytes(&stored.kek).map_err(|e| self.damaged(file.name(), &e))?;
        Ok(Some(ManagerKeys { raft_id: stored.raft_id, kek }))
    }

    fn stored_keys(&self, file: SecretFile) -> Result<Option<StoredKeys>, SwarmError> {
        let bytes = self.read_secret(file)?;
        bytes.map(|bytes| json::decode(&json::FIRST, &bytes).map_err(|e| self.unreadable(file.name(), &e))).transpose()
    }

    fn write_keys(&self, file: SecretFile, keys: &ManagerKeys, log_created: bool) -> Result<(), SwarmError> {
        let stored = StoredKeys { raft_id: keys.raft_id, kek: keys.kek.as_bytes().to_vec(), log_created };
        let bytes = json::encode(&json::FIRST, &stored).map_err(|e| self.damaged(file.name(), &e))?;
        self.vault.write(file, &bytes).map_err(|error| self.failed(&error))
    }

    /// Removes what a worker must not have: the manager's keys, the log and its key.
    pub(super) fn remove_manager_files(&self) -> Result<(), SwarmError> {
        self.remove(SecretFile::ManagerKeys.name())?;
        self.remove(SecretFile::NewManagerKeys.name())?;
        self.remove(NEW_LOG)?;
        self.remove(LOG)?;
        self.remove(SecretFile::LogKey.name())
    }

    /// Removes all files, the record first.
    pub(super) fn wipe(&self) -> Result<(), SwarmError> {
        // A change of the record that still runs must not write it again.
        let _changing = self.record_change.lock().unwrap_or_else(PoisonError::into_inner);
        self.remove(RECORD)?;
        self.remove_plan()?;
        self.remove(SecretFile::Identity.name())?;
        self.remove_manager_files()?;
        self.vault.reset().map_err(|error| self.failed(&error))
    }

    fn read_secret(&self, file: SecretFile) -> Result<Option<Vec<u8>>, SwarmError> {
        self.vault.read(file).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => self.damaged(file.name(), &error),
            _ => self.failed(&error),
        })
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, SwarmError> {
        files::read(&self.dir.join(name)).map_err(|error| self.failed(&error))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), SwarmError> {
        files::write(&self.dir.join(name), bytes).map_err(|error| self.failed(&error))
    }

    fn rename(&self, from: &str, to: &str) -> Result<(), SwarmError> {
        files::rename(&self.dir.join(from), &self.dir.join(to)).map_err(|error| self.failed(&error))
    }

    fn remove(&self, name: &str) -> Result<(), SwarmError> {
        files::remove(&self.dir.join(name)).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> SwarmError {
        SwarmError::Storage { path: self.dir.clone(), reason: files::advice(error) }
    }

    fn unreadable(&self, name: &str, error: &JsonError) -> SwarmError {
        match error {
            JsonError::Newer { .. } => {
                SwarmError::Storage { path: self.dir.clone(), reason: format!("{name}: {error}") }
            }
            JsonError::Damaged(_) => self.damaged(name, error),
        }
    }

    fn damaged(&self, name: &str, reason: &dyn std::fmt::Display) -> SwarmError {
        let reason = format!(
            "{name} is damaged ({reason}): remove the directory, remove this node from the swarm, then join again"
        );
        SwarmError::Storage { path: self.dir.clone(), reason }
    }
}

#[cfg(test)]
mod tests {
    use weft_model::{NodeId, id::ClusterId};

    use super::*;

    fn record() -> Record {
        Record {
            cluster: ClusterId::from_random(1),
            node: NodeId::from_random(2),
            addr: [192, 0, 2, 1].into(),
            link: None,
            listen_addr: ([0, 0, 0, 0], 2377).into(),
            remotes: vec![([192, 0, 2, 2], 2377).into()],
            ca_pem: "pem".to_owned(),
            ca_plan: (2, 7),
        }
    }

    #[test]
    fn the_golden_files_of_the_membership_are_read_and_written() {
        json::golden::check(&json::FIRST, "node", &Record { link: Some("eth0".to_owned()), ..record() });
        json::golden::check(&json::FIRST, "manager", &StoredKeys { raft_id: 7, kek: vec![9; 32], log_created: false });
    }

    /// The first release had fewer fields, and wrote no schema version.
    #[test]
    fn the_record_of_the_first_release_is_read() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = MembershipStore::open(dir.path()).expect("an open store");
        let record = Record { ca_plan: (0, 0), ..record() };
        let fields = serde_json::json!({
            "cluster": record.cluster, "node": record.node, "addr": "192.0.2.1", "listen_addr": "0.0.0.0:2377",
            "remotes": ["192.0.2.2:2377"], "ca_pem": "pem",
        });
        fs::write(dir.path().join("swarm").join(RECORD), fields.to_string()).expect("the file is written");
        assert_eq!(store.record().expect("a readable record"), Some(record));
    }

    #[test]
    fn a_membership_is_stored_until_it_is_wiped() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = MembershipStore::open(dir.path()).expect("an open store");
        assert_eq!(store.record().expect("a readable store"), None);
        store.write_record(&record()).expect("the record is written");
        let keys = ManagerKeys { raft_id: 7, kek: Kek::generate().expect("a key") };
        store.write_manager_keys(&keys).expect("the keys are written");
        let reopened = MembershipStore::open(dir.path()).expect("an open store");
        assert_eq!(reopened.record().expect("a readable store"), Some(record()));
        assert_eq!(reopened.manager_keys().expect("readable keys").map(|keys| keys.raft_id), Some(7));
        reopened.wipe().expect("the files are removed");
        assert_eq!(fs::read_dir(dir.path().join("swarm")).expect("the directory's entries").count(), 0);
    }

    #[test]
    fn a_log_that_is_missing_or_empty_after_it_was_created_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = MembershipStore::open(dir.path()).expect("an open store");
        fs::write(store.log_path(), b"the log of an earlier id").expect("the file is written");
        let keys = ManagerKeys { raft_id: 7, kek: Kek::generate().expect("a key") };
        store.write_manager_keys(&keys).expect("the keys are written");
        assert!(!store.log_path().exists(), "another id begins with an empty log");
        fs::write(store.log_path(), b"half").expect("the file is written");
        store.prepare_log(&keys).expect("a crash before the record leaves a log without votes");
        store.prepare_log(&keys).expect("the log exists");
        fs::write(store.log_path(), b"").expect("the file is written");
        for what in ["empty", "missing"] {
            let error = store.prepare_log(&keys).expect_err("the log is lost");
            assert!(matches!(error, SwarmError::LogLost { .. }), "{what}: {error}");
            store.remove(LOG).expect("the file is removed");
        }
        assert_eq!(store.manager_keys().expect("readable keys").map(|keys| keys.raft_id), Some(7));
        fs::write(dir.path().join("swarm").join("manager.json"), format!("{{\"raft_id\":7,\"kek\":{:?}}}", [1; 32]))
            .expect("the file is written");
        let error = store.prepare_log(&keys).expect_err("the first release records no creation");
        assert!(matches!(error, SwarmError::LogLost { .. }), "{error}");
    }

    #[test]
    fn refuses_a_data_directory_that_is_a_file_and_says_what_to_do() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("file");
        fs::write(&file, b"").expect("the file is written");
        let error = MembershipStore::open(&file).expect_err("a file is no directory").to_string();
        assert!(error.contains("choose a directory"), "{error}");
    }

    #[test]
    fn a_damaged_record_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let store = MembershipStore::open(dir.path()).expect("an open store");
        fs::write(dir.path().join("swarm").join(RECORD), b"{").expect("the file is written");
        let error = store.record().expect_err("a damaged record").to_string();
        assert!(error.contains("damaged"), "{error}");
    }
}
