//! The WireGuard keys of this node: makes them, stores them, and deletes them.
//!
//! [`super::reconcile`] calls [`Keys::reconcile`] in each pass, before it configures the links. The
//! plan says by its epoch when a new key is due, and which keys the node must keep.
//!
//! A private key never leaves the node. Each key is a file that only root can read, in
//! `DATA/wireguard/NODE`: a node has another id, and so other keys, in each membership.
//!
//! Invariant: a key is stored before it gets a link, so a key that other nodes know survives a
//! restart of the daemon.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use weft_control::{files, json};
use weft_model::{
    NodeId, NodePlan,
    wireguard::{EncryptionPlan, PublicKey},
};
use weft_overlay::{OwnKey, PrivateKey};

/// A key as it is stored. The port names the file: no two keys of a node have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredKey {
    /// The epoch of the plan that the key was made for.
    epoch: u64,
    port: u16,
    private_key: [u8; 32],
}

impl StoredKey {
    fn own_key(&self) -> OwnKey {
        let private_key = PrivateKey(self.private_key);
        OwnKey { private_key, public_key: private_key.public_key(), port: self.port }
    }

    fn public_key(&self) -> PublicKey {
        PrivateKey(self.private_key).public_key()
    }

    fn file(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.json", self.port))
    }
}

/// The keys of this node.
#[derive(Debug)]
pub(super) struct Keys {
    /// The folder of all memberships.
    dir: PathBuf,
    /// The UDP port of the first key. The next key gets the port after it, then they alternate.
    port: u16,
    /// What is stored for a membership, oldest first. `None` before the first reconcile.
    stored: Option<(NodeId, Vec<StoredKey>)>,
}

impl Keys {
    /// Reads and writes nothing yet.
    pub(super) fn new(data_dir: &Path, port: u16) -> Self {
        Self { dir: data_dir.join("wireguard"), port, stored: None }
    }

    /// Makes the stored keys match the plan, and returns those that must have a link, oldest first.
    /// A key that cannot be stored or deleted is logged, and tried again in the next pass: the
    /// other keys must keep their links meanwhile, also on a full disk.
    ///
    /// # Errors
    /// When the stored keys cannot be read. The links must then stay as they are.
    pub(super) fn reconcile(&mut self, plan: &NodePlan) -> Result<Vec<OwnKey>> {
        let Some(encryption) = &plan.encryption else {
            self.clear()?;
            return Ok(Vec::new());
        };
        let dir = self.dir.join(plan.node.as_str());
        let mut keys = match self.stored.take() {
            Some((node, keys)) if node == plan.node => keys,
            _ => {
                remove_other_dirs(&self.dir, &dir)?;
                read_keys(&dir)?
            }
        };
        let newest = keys.last().map(StoredKey::public_key);
        let is_kept = |key: &StoredKey| encryption.keeps(&key.public_key(), newest == Some(key.public_key()));
        keys.retain(|key| is_kept(key) || delete(key, &dir).is_err_and(|error| warn(&error)));
        for key in keys.iter_mut().filter(|key| is_kept(key)) {
            if let Err(error) = update_epoch(key, encryption, &dir) {
                warn(&error);
            }
        }
        let mut own: Vec<OwnKey> = keys.iter().filter(|key| is_kept(key)).map(StoredKey::own_key).collect();
        match new_key_if_due(&keys, encryption, self.port, &dir) {
            Ok(made) => {
                own.extend(made.iter().map(StoredKey::own_key));
                keys.extend(made);
            }
            Err(error) => _ = warn(&error),
        }
        self.stored = Some((plan.node.clone(), keys));
        Ok(own)
    }

    /// Deletes all keys, after this node has left its cluster or the cluster has no encrypted
    /// network any more.
    pub(super) fn clear(&mut self) -> Result<()> {
        if self.stored.as_ref().is_some_and(|(_, keys)| keys.is_empty()) {
            return Ok(());
        }
        self.stored = None;
        ignore_absent(fs::remove_dir_all(&self.dir))
            .with_context(|| format!("cannot delete the WireGuard keys in {}", self.dir.display()))
    }
}

/// Stores the epoch that the key counts for. It changes for a key that the leader does not know
/// yet.
fn update_epoch(key: &mut StoredKey, encryption: &EncryptionPlan, dir: &Path) -> Result<()> {
    let changed = StoredKey { epoch: encryption.epoch_of(&key.public_key(), key.epoch), ..*key };
    if changed != *key {
        store(&changed, dir)?;
        *key = changed;
    }
    Ok(())
}

/// Logs an error of one key. Always true.
fn warn(error: &anyhow::Error) -> bool {
    tracing::warn!(error = format!("{error:#}"), "cannot change a WireGuard key");
    true
}

/// Makes a key if the plan asks for one. While both ports are in use, the key waits: the plan must
/// first let an old key go.
fn new_key_if_due(keys: &[StoredKey], encryption: &EncryptionPlan, port: u16, dir: &Path) -> Result<Option<StoredKey>> {
    if !encryption.needs_key(keys.last().map(|newest| newest.epoch)) {
        return Ok(None);
    }
    let is_free = |port: &u16| keys.iter().all(|key| key.port != *port);
    let Some(port) = [port, port + 1].into_iter().find(is_free) else { return Ok(None) };
    let key = StoredKey { epoch: encryption.epoch, port, private_key: PrivateKey::generate().0 };
    store(&key, dir)?;
    tracing::info!(key = %key.public_key(), epoch = key.epoch, port, "made a WireGuard key");
    Ok(Some(key))
}

fn read_keys(dir: &Path) -> Result<Vec<StoredKey>> {
    let error = || format!("cannot read the WireGuard keys in {}", dir.display());
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>().with_context(error)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(source).with_context(error),
    };
    let is_key = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "json");
    let mut keys = Vec::new();
    for path in entries.into_iter().map(|entry| entry.path()).filter(is_key) {
        let text = fs::read(&path).with_context(error)?;
        let key: StoredKey = json::decode(&json::FIRST, &text).with_context(|| {
            format!("{} is not a WireGuard key: delete it, and the node makes a new one", path.display())
        })?;
        keys.push(key);
    }
    keys.sort_by_key(|key| key.epoch);
    Ok(keys)
}

fn store(key: &StoredKey, dir: &Path) -> Result<()> {
    let path = key.file(dir);
    let write = || -> Result<()> {
        fs::create_dir_all(dir)?;
        Ok(files::write(&path, &json::encode(&json::FIRST, key)?)?)
    };
    write().with_context(|| format!("cannot store a WireGuard key in {}", path.display()))
}

fn delete(key: &StoredKey, dir: &Path) -> Result<()> {
    let path = key.file(dir);
    files::remove(&path).with_context(|| format!("cannot delete {}", path.display()))?;
    tracing::info!(key = %key.public_key(), epoch = key.epoch, "deleted a WireGuard key");
    Ok(())
}

/// Deletes the keys of earlier memberships.
fn remove_other_dirs(parent: &Path, keep: &Path) -> Result<()> {
    let error = || format!("cannot delete the WireGuard keys of earlier memberships in {}", parent.display());
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>().with_context(error)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(source).with_context(error),
    };
    for path in entries.into_iter().map(|entry| entry.path()).filter(|path| path != keep) {
        ignore_absent(fs::remove_dir_all(&path)).with_context(error)?;
    }
    Ok(())
}

fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const PORT: u16 = 51820;

    fn plan(epoch: u64, own: &[PublicKey]) -> NodePlan {
        let encryption = EncryptionPlan { epoch, own: own.to_vec(), active: None, peers: Vec::new() };
        NodePlan { encryption: Some(encryption), ..NodePlan::empty(NodeId::from_random(1), [192, 0, 2, 1].into()) }
    }

    fn publics(keys: &[OwnKey]) -> Vec<PublicKey> {
        keys.iter().map(|key| key.public_key).collect()
    }

    fn files(dir: &Path) -> usize {
        fs::read_dir(dir.join("wireguard").join(NodeId::from_random(1).as_str())).map_or(0, Iterator::count)
    }

    #[test]
    fn a_key_is_made_once_for_each_epoch_and_survives_a_restart() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut keys = Keys::new(dir.path(), PORT);
        let first = keys.reconcile(&plan(1, &[])).expect("a key");
        assert_eq!((first.len(), first[0].port), (1, PORT));
        // The leader does not know the key yet.
        assert_eq!(keys.reconcile(&plan(1, &[])).expect("the same"), first);
        let mut restarted = Keys::new(dir.path(), PORT);
        assert_eq!(restarted.reconcile(&plan(1, &publics(&first))).expect("the same"), first);
    }

    #[test]
    fn the_old_key_stays_until_the_plan_lets_it_go() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut keys = Keys::new(dir.path(), PORT);
        let first = publics(&keys.reconcile(&plan(1, &[])).expect("a key"));
        let both = keys.reconcile(&plan(2, &first)).expect("two keys");
        assert_eq!((both.len(), both[0].public_key, both[1].port), (2, first[0], PORT + 1));
        let second = publics(&both[1..]);
        assert_eq!(publics(&keys.reconcile(&plan(2, &second)).expect("one key")), second);
        assert_eq!(files(dir.path()), 1, "the private key of the old one is deleted");
        let third = keys.reconcile(&plan(3, &second)).expect("two keys");
        assert_eq!(third[1].port, PORT, "the ports alternate");
    }

    #[test]
    fn a_third_key_waits_for_a_port() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut keys = Keys::new(dir.path(), PORT);
        let first = publics(&keys.reconcile(&plan(1, &[])).expect("a key"));
        let both = publics(&keys.reconcile(&plan(2, &first)).expect("two keys"));
        assert_eq!(publics(&keys.reconcile(&plan(3, &both)).expect("two keys")), both);
        assert_eq!(keys.reconcile(&plan(3, &both[1..])).expect("two keys").len(), 2);
    }

    #[test]
    fn a_key_that_the_leader_learns_late_counts_for_the_epoch_of_the_plan() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut keys = Keys::new(dir.path(), PORT);
        let first = keys.reconcile(&plan(1, &[])).expect("a key");
        // Its network was removed and another created before the leader had the report.
        assert_eq!(keys.reconcile(&plan(3, &[])).expect("the same"), first);
        let mut restarted = Keys::new(dir.path(), PORT);
        assert_eq!(restarted.reconcile(&plan(3, &publics(&first))).expect("the same"), first);
    }

    #[test]
    fn only_the_owner_can_read_a_key() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Keys::new(dir.path(), PORT).reconcile(&plan(1, &[])).expect("a key");
        let path = dir.path().join("wireguard").join(NodeId::from_random(1).as_str()).join(format!("{PORT}.json"));
        assert_eq!(fs::metadata(path).expect("a file").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn another_membership_has_other_keys() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut keys = Keys::new(dir.path(), PORT);
        let first = publics(&keys.reconcile(&plan(1, &[])).expect("a key"));
        let other = NodePlan { node: NodeId::from_random(2), ..plan(1, &first) };
        let second = publics(&keys.reconcile(&other).expect("a key"));
        assert_ne!(first, second);
        assert_eq!(files(dir.path()), 0, "the keys of the earlier membership are deleted");
        let without = NodePlan { encryption: None, ..other };
        assert_eq!(keys.reconcile(&without).expect("no key"), []);
        assert!(!dir.path().join("wireguard").exists());
    }
}
