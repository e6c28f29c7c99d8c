//! Tests of the files with secrets: keys, locks, and crashes in the middle of a change.

use std::fs;

use SecretFile::{Identity, LogKey, ManagerKeys, NewManagerKeys};

use super::*;

const SECRET: &[u8] = b"the content of a secret file";

fn lock(key: u8, version: u64) -> ManagerLock {
    ManagerLock { key: Some(UnlockKey([key; 32])), version }
}

/// A vault with three of the files.
fn vault() -> (tempfile::TempDir, Vault) {
    let dir = tempfile::tempdir().expect("a directory");
    let vault = Vault::open(dir.path()).expect("a vault");
    for file in [Identity, ManagerKeys, LogKey] {
        vault.write(file, SECRET).expect("written");
    }
    (dir, vault)
}

/// Whether a file of the directory contains the secret in the clear.
fn is_readable(dir: &Path) -> bool {
    let contents = fs::read_dir(dir).expect("entries").map(|e| fs::read(e.expect("an entry").path()).expect("a file"));
    contents.into_iter().any(|content| content.windows(SECRET.len()).any(|window| window == SECRET))
}

/// The vault as the next daemon finds it.
fn restarted(dir: &Path, key: u8) -> Vault {
    let vault = Vault::open(dir).expect("a vault");
    assert!(vault.is_locked());
    vault.unlock(&UnlockKey([key; 32])).expect("the right key");
    vault
}

#[test]
fn files_are_encrypted_from_the_lock_on_until_it_is_removed() {
    let (dir, vault) = vault();
    assert!(is_readable(dir.path()) && !vault.is_locked());
    vault.set_lock(&lock(1, 5)).expect("locked");
    assert!(!is_readable(dir.path()), "all files are encrypted");
    assert_eq!(vault.read(Identity).expect("readable").as_deref(), Some(SECRET));
    vault.write(NewManagerKeys, SECRET).expect("written");
    fs::rename(vault.path(NewManagerKeys), vault.path(ManagerKeys)).expect("renamed");

    let next = Vault::open(dir.path()).expect("a vault");
    assert!(next.is_locked());
    next.read(Identity).expect_err("locked");
    next.write(Identity, SECRET).expect_err("locked");
    assert!(matches!(next.unlock(&UnlockKey([2; 32])), Err(UnlockError::WrongKey)));
    assert!(next.is_locked());
    next.unlock(&UnlockKey([1; 32])).expect("the right key");
    for file in [Identity, ManagerKeys, LogKey] {
        assert_eq!(next.read(file).expect("readable").as_deref(), Some(SECRET));
    }
    assert!(next.read(NewManagerKeys).expect("readable").is_none());
    next.lock_again();
    assert!(next.is_locked());

    let next = restarted(dir.path(), 1);
    next.set_lock(&ManagerLock { key: None, version: 6 }).expect("opened");
    assert!(is_readable(dir.path()));
    let next = Vault::open(dir.path()).expect("a vault");
    assert!(!next.is_locked());
    assert_eq!(next.version(), 6);
    next.set_lock(&lock(1, 5)).expect("ignored");
    next.reset().expect("removed");
    assert_eq!(fs::read_dir(dir.path()).expect("entries").count(), 3, "the lock is removed");
}

#[test]
fn another_unlock_key_replaces_the_file_key_and_an_earlier_one_is_ignored() {
    let (dir, vault) = vault();
    vault.set_lock(&lock(1, 5)).expect("locked");
    vault.identity_is_fresh().expect("stored");
    vault.log_key_is_fresh().expect("stored");
    let former: Vec<_> = [LOCK, "identity.pem"].map(|name| fs::read(dir.path().join(name)).expect("a file")).into();
    vault.set_lock(&lock(2, 9)).expect("replaced");
    vault.set_lock(&lock(1, 5)).expect("ignored");
    vault.set_lock(&ManagerLock::default()).expect("ignored");
    assert!(!is_readable(dir.path()));
    let next = Vault::open(dir.path()).expect("a vault");
    assert!(matches!(next.unlock(&UnlockKey([1; 32])), Err(UnlockError::WrongKey)));
    next.unlock(&UnlockKey([2; 32])).expect("the right key");
    assert_eq!(next.version(), 9);
    assert_eq!(next.stale(), Stale { identity: true, log_key: true }, "the secrets are older than the key");
    // Who has the former key and a former copy of the lock has the former file key.
    let now = fs::read(dir.path().join("identity.pem")).expect("a file");
    fs::write(dir.path().join(LOCK), &former[0]).expect("written");
    let thief = restarted(dir.path(), 1);
    thief.read(Identity).expect_err("it is encrypted with another file key");
    fs::write(dir.path().join("identity.pem"), &former[1]).expect("written");
    thief.read(Identity).expect("the former file");
    assert_ne!(now, former[1]);
}

#[test]
fn a_change_of_the_key_that_a_crash_has_interrupted_is_completed() {
    // A crash leaves a prefix of the writes: the lock, then each of the files, then the lock.
    let writes = [Identity, ManagerKeys, LogKey];
    for from in [None, Some(1)] {
        for done in 0..=writes.len() {
            let (dir, vault) = vault();
            if let Some(key) = from {
                vault.set_lock(&lock(key, 5)).expect("locked");
            }
            let before = writes.map(|file| fs::read(vault.path(file)).expect("a file"));
            {
                let mut guard = vault.lock();
                vault.change_key(&mut guard, &UnlockKey([2; 32]), 9).expect("stored");
            }
            let new_lock = fs::read(dir.path().join(LOCK)).expect("the lock with both keys");
            vault.set_lock(&lock(2, 9)).expect("settled");
            fs::write(dir.path().join(LOCK), new_lock).expect("written");
            for (file, content) in writes.iter().zip(&before).skip(done) {
                fs::write(vault.path(*file), content).expect("written");
            }

            let next = restarted(dir.path(), 2);
            for file in writes {
                assert_eq!(next.read(file).expect("readable").as_deref(), Some(SECRET), "{from:?} {done}");
            }
            assert!(!is_readable(dir.path()), "{from:?} {done}");
            let stored = read_lock(dir.path()).expect("a lock");
            let keys = Kek::from(&UnlockKey([2; 32])).open(KEYS_CONTEXT, &stored.sealed_keys).expect("opened");
            assert_eq!(keys.len(), KEY_LEN, "the former file key is forgotten");
        }
    }
}

#[test]
fn stale_secrets_are_remembered_until_they_are_replaced() {
    let (dir, vault) = vault();
    assert_eq!(vault.stale(), Stale::default());
    vault.set_lock(&lock(1, 5)).expect("locked");
    assert_eq!(vault.stale(), Stale { identity: true, log_key: true });
    vault.log_key_is_fresh().expect("stored");
    let next = restarted(dir.path(), 1);
    assert_eq!(next.stale(), Stale { identity: true, log_key: false });
    next.identity_is_fresh().expect("stored");
    // The same key under a later version: nothing has to be replaced.
    next.set_lock(&lock(1, 7)).expect("stored");
    assert_eq!((restarted(dir.path(), 1).stale(), next.version()), (Stale::default(), 7));
    let empty = tempfile::tempdir().expect("a directory");
    let vault = Vault::open(empty.path()).expect("a vault");
    vault.set_lock(&lock(1, 0)).expect("locked");
    assert_eq!(vault.stale(), Stale::default(), "there was no secret before");
    vault.write(LogKey, SECRET).expect("written");
    assert!(!is_readable(empty.path()));
}

#[test]
fn a_file_in_the_place_of_another_or_a_changed_one_is_refused() {
    let (dir, vault) = vault();
    vault.set_lock(&lock(1, 5)).expect("locked");
    fs::copy(vault.path(LogKey), vault.path(Identity)).expect("copied");
    vault.read(Identity).expect_err("another file");
    let mut changed = fs::read(vault.path(LogKey)).expect("a file");
    *changed.last_mut().expect("not empty") ^= 1;
    fs::write(vault.path(LogKey), changed).expect("written");
    vault.read(LogKey).expect_err("changed");
    fs::write(dir.path().join(LOCK), b"{").expect("written");
    Vault::open(dir.path()).expect_err("damaged");
}

#[test]
fn a_worker_needs_no_key() {
    let (dir, vault) = vault();
    vault.set_lock(&lock(1, 5)).expect("locked");
    vault.write_in_clear(Identity, SECRET).expect("written");
    assert!(!vault.is_sealed(Identity).expect("readable") && vault.is_sealed(LogKey).expect("readable"));
    vault.release().expect("released");
    assert!(!Vault::open(dir.path()).expect("a vault").is_locked());
    vault.release().expect("nothing to do");
}

#[test]
fn the_golden_file_of_the_lock_is_read_and_written() {
    let stored = StoredLock { version: 7, sealed_keys: vec![1, 2, 255], stale_identity: true, stale_log_key: true };
    json::golden::check(&SCHEMA, "lock", &stored);
}
