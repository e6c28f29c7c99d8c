//! What a node remembers of its membership: the files in `swarm/` of its data directory.
//!
//! `node.json` is written last when the node forms or joins a cluster, and removed first when it leaves: without it the
//! other files are leftovers of something that was interrupted, and are removed.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use weft_model::{NodeId, NodePlan, id::ClusterId};

use super::SwarmError;
use crate::{
    codec, files,
    pki::{Identity, Kek},
};

const RECORD: &str = "node.json";
const IDENTITY: &str = "identity.pem";
const PLAN: &str = "plan";
const MANAGER_KEYS: &str = "manager.json";
const LOG: &str = "raft.redb";

/// The folder.
#[derive(Debug, Clone)]
pub(super) struct MembershipStore {
    dir: PathBuf,
}

/// Which node of which cluster this is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub addr: IpAddr,
    pub listen_addr: SocketAddr,
    /// Managers to begin with, where there is no plan yet.
    pub remotes: Vec<SocketAddr>,
    pub ca_pem: String,
}

/// What only a manager holds.
#[derive(Debug, Clone)]
pub(super) struct ManagerKeys {
    pub raft_id: u64,
    pub kek: Kek,
}

#[derive(Serialize, Deserialize)]
struct StoredKeys {
    raft_id: u64,
    kek: Vec<u8>,
}

impl MembershipStore {
    pub(super) fn open(data_dir: &Path) -> Result<Self, SwarmError> {
        let dir = data_dir.join("swarm");
        let store = Self { dir };
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&store.dir);
        made.map_err(|error| store.failed(&error))?;
        // A directory that cannot be written is better noticed now than at the first change.
        files::write(&store.dir.join("writable"), b"").map_err(|error| store.failed(&error))?;
        store.remove("writable")?;
        Ok(store)
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.dir.join(LOG)
    }

    pub(super) fn record(&self) -> Result<Option<Record>, SwarmError> {
        let Some(bytes) = self.read(RECORD)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| self.damaged(RECORD, &e))
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<(), SwarmError> {
        let bytes = serde_json::to_vec_pretty(record).map_err(|e| self.damaged(RECORD, &e))?;
        self.write(RECORD, &bytes)
    }

    pub(super) fn identity(&self, record: &Record) -> Result<Identity, SwarmError> {
        let bytes = self.read(IDENTITY)?.ok_or_else(|| self.damaged(IDENTITY, &"it is missing"))?;
        let pem = String::from_utf8(bytes).map_err(|e| self.damaged(IDENTITY, &e))?;
        Identity::from_pem(&pem, &record.ca_pem).map_err(|e| self.damaged(IDENTITY, &e))
    }

    pub(super) fn write_identity(&self, identity: &Identity) -> Result<(), SwarmError> {
        self.write(IDENTITY, identity.to_pem().as_bytes())
    }

    /// The last plan; a damaged one is as good as none.
    pub(super) fn plan(&self) -> Option<NodePlan> {
        let bytes = self.read(PLAN).ok().flatten()?;
        codec::decode(&bytes).inspect_err(|error| tracing::warn!(%error, "the stored plan is of no use")).ok()
    }

    pub(super) fn write_plan(&self, plan: &NodePlan) -> Result<(), SwarmError> {
        let bytes = codec::encode(plan).map_err(|e| self.damaged(PLAN, &e))?;
        self.write(PLAN, &bytes)
    }

    pub(super) fn remove_plan(&self) -> Result<(), SwarmError> {
        self.remove(PLAN)
    }

    pub(super) fn manager_keys(&self) -> Result<Option<ManagerKeys>, SwarmError> {
        let Some(bytes) = self.read(MANAGER_KEYS)? else {
            return Ok(None);
        };
        let stored: StoredKeys = serde_json::from_slice(&bytes).map_err(|e| self.damaged(MANAGER_KEYS, &e))?;
        let kek = Kek::from_bytes(&stored.kek).map_err(|e| self.damaged(MANAGER_KEYS, &e))?;
        Ok(Some(ManagerKeys { raft_id: stored.raft_id, kek }))
    }

    pub(super) fn write_manager_keys(&self, keys: &ManagerKeys) -> Result<(), SwarmError> {
        let stored = StoredKeys { raft_id: keys.raft_id, kek: keys.kek.as_bytes().to_vec() };
        let bytes = serde_json::to_vec(&stored).map_err(|e| self.damaged(MANAGER_KEYS, &e))?;
        self.write(MANAGER_KEYS, &bytes)
    }

    /// Removes what a worker may not hold.
    pub(super) fn remove_manager_files(&self) -> Result<(), SwarmError> {
        self.remove(MANAGER_KEYS)?;
        self.remove(LOG)
    }

    /// Removes everything, the record first.
    pub(super) fn wipe(&self) -> Result<(), SwarmError> {
        self.remove(RECORD)?;
        self.remove_plan()?;
        self.remove(IDENTITY)?;
        self.remove_manager_files()
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, SwarmError> {
        files::read(&self.dir.join(name)).map_err(|error| self.failed(&error))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), SwarmError> {
        files::write(&self.dir.join(name), bytes).map_err(|error| self.failed(&error))
    }

    fn remove(&self, name: &str) -> Result<(), SwarmError> {
        files::remove(&self.dir.join(name)).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> SwarmError {
        SwarmError::Storage { path: self.dir.clone(), reason: files::advice(error) }
    }

    fn damaged(&self, name: &str, reason: &dyn std::fmt::Display) -> SwarmError {
        let reason = format!(
            "{name} is damaged ({reason}): remove the directory, and this node from the swarm, then join again"
        );
        SwarmError::Storage { path: self.dir.clone(), reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            cluster: ClusterId::from_random(1),
            node: NodeId::from_random(2),
            addr: [192, 0, 2, 1].into(),
            listen_addr: ([0, 0, 0, 0], 2377).into(),
            remotes: vec![([192, 0, 2, 2], 2377).into()],
            ca_pem: "pem".to_owned(),
        }
    }

    #[test]
    fn a_membership_is_remembered_until_it_is_wiped() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = MembershipStore::open(dir.path()).expect("opened");
        assert_eq!(store.record().expect("read"), None);
        store.write_record(&record()).expect("written");
        store.write_manager_keys(&ManagerKeys { raft_id: 7, kek: Kek::generate().expect("a key") }).expect("written");
        let again = MembershipStore::open(dir.path()).expect("opened");
        assert_eq!(again.record().expect("read"), Some(record()));
        assert_eq!(again.manager_keys().expect("read").map(|s| s.raft_id), Some(7));
        again.wipe().expect("wiped");
        assert_eq!(fs::read_dir(dir.path().join("swarm")).expect("listed").count(), 0);
    }

    #[test]
    fn a_data_directory_that_is_no_directory_is_refused_with_advice() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("file");
        fs::write(&file, b"").expect("written");
        let error = MembershipStore::open(&file).expect_err("no directory").to_string();
        assert!(error.contains("choose a directory"), "{error}");
    }

    #[test]
    fn a_damaged_record_says_so() {
        let dir = tempfile::tempdir().expect("a directory");
        let store = MembershipStore::open(dir.path()).expect("opened");
        fs::write(dir.path().join("swarm").join(RECORD), b"{").expect("written");
        let error = store.record().expect_err("damaged").to_string();
        assert!(error.contains("damaged"), "{error}");
    }
}
