//! Backups: the cluster state and the key that opens its certificate authority, encrypted with a
//! passphrase.
//!
//! ```text
//!   "weft backup\n" │ format │ memory, passes, lanes │ salt │ sealed record
//!   12 octets       │ 1      │ 3 × 4, little endian  │ 16   │ nonce, AES-256-GCM, tag
//! ```
//!
//! The key is derived from the passphrase by Argon2id (RFC 9106) with the parameters in the file.
//! They are part of what the seal authenticates.

use argon2::{Algorithm, Argon2, Params, Version};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use weft_model::ClusterState;

use crate::{
    codec,
    pki::Kek,
    swarm::{clock::now_ms, error::SwarmError, manager::Manager},
};

const MAGIC: &[u8] = b"weft backup\n";
const FORMAT: u8 = 1;
const SALT_LEN: usize = 16;
/// Parameters for new files: the second choice of RFC 9106, section 4, with one lane. Memory in
/// KiB.
const COST: Cost = Cost { memory_kib: 64 << 10, passes: 3, lanes: 1 };
/// The largest parameters that are accepted, so that a file cannot use up the machine's memory.
const MAX_COST: Cost = Cost { memory_kib: 1 << 20, passes: 64, lanes: 16 };
/// The shortest passphrase, in octets.
const MIN_PASSPHRASE: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cost {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// The content of a backup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Backup {
    /// When it was taken, in Unix milliseconds, by the clock of the manager that took it.
    pub taken_ms: u64,
    /// The Raft term in which it was taken.
    pub term: u64,
    /// The key-encryption key, which opens the key of the certificate authority in the state.
    pub kek: Vec<u8>,
    #[serde(with = "crate::state::stored")]
    pub state: ClusterState,
}

fn failed(reason: impl std::fmt::Display) -> SwarmError {
    SwarmError::Backup { reason: reason.to_string() }
}

/// A backup of the cluster state of this manager, encrypted.
///
/// # Errors
/// [`SwarmError::Backup`] if the passphrase is too short.
pub(super) async fn create(manager: &Manager, passphrase: String) -> Result<Vec<u8>, SwarmError> {
    if passphrase.len() < MIN_PASSPHRASE {
        return Err(failed(format!("the passphrase has fewer than {MIN_PASSPHRASE} characters: choose a longer one")));
    }
    let state = manager.state().borrow().clone();
    let backup = Backup {
        taken_ms: now_ms(),
        term: manager.term(),
        kek: manager.keys().kek.as_bytes().to_vec(),
        state: ClusterState::clone(&state),
    };
    blocking(move || backup.seal(&passphrase)).await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SwarmError> + Send + 'static,
) -> Result<T, SwarmError> {
    crate::host::spawn_blocking(work).await.unwrap_or_else(|e| Err(failed(e)))
}

impl Backup {
    fn seal(&self, passphrase: &str) -> Result<Vec<u8>, SwarmError> {
        let mut salt = [0; SALT_LEN];
        SystemRandom::new().fill(&mut salt).map_err(failed)?;
        let record = codec::encode(&codec::BACKUP, self).map_err(failed)?;
        let sealed = key(passphrase, COST, &salt)?.seal(&context(COST, &salt), &record)?;
        let mut file = MAGIC.to_vec();
        file.push(FORMAT);
        for number in [COST.memory_kib, COST.passes, COST.lanes] {
            file.extend(number.to_le_bytes());
        }
        file.extend(salt);
        file.extend(sealed);
        Ok(file)
    }

    /// Decrypts and decodes a file that [`create`] has made.
    ///
    /// # Errors
    /// [`SwarmError::Backup`] if it is no such file, was changed, or has another passphrase.
    pub(in crate::swarm) async fn open(file: Vec<u8>, passphrase: String) -> Result<Self, SwarmError> {
        blocking(move || Self::open_now(&file, &passphrase)).await
    }

    fn open_now(file: &[u8], passphrase: &str) -> Result<Self, SwarmError> {
        let body = file.strip_prefix(MAGIC).ok_or_else(|| failed("the file is no backup of weft"))?;
        let short = || failed("the file is not complete");
        let (&format, body) = body.split_first().ok_or_else(short)?;
        if format != FORMAT {
            return Err(failed(format!("the file has format {format}, and this version of weft reads {FORMAT}")));
        }
        let mut numbers = [0; 3];
        let mut rest = body;
        for number in &mut numbers {
            let (octets, after) = rest.split_first_chunk::<4>().ok_or_else(short)?;
            *number = u32::from_le_bytes(*octets);
            rest = after;
        }
        let [memory_kib, passes, lanes] = numbers;
        let cost = Cost { memory_kib, passes, lanes };
        if memory_kib > MAX_COST.memory_kib || passes > MAX_COST.passes || lanes > MAX_COST.lanes {
            return Err(failed("the file asks for more memory or time than any backup needs"));
        }
        let (salt, sealed) = rest.split_first_chunk::<SALT_LEN>().ok_or_else(short)?;
        let record = key(passphrase, cost, salt)?.open(&context(cost, salt), sealed);
        let record = record.map_err(|_| failed("the passphrase is wrong, or the file was changed"))?;
        codec::decode(&codec::BACKUP, &record).map_err(failed)
    }
}

fn key(passphrase: &str, cost: Cost, salt: &[u8]) -> Result<Kek, SwarmError> {
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32)).map_err(failed)?;
    let mut key = [0; 32];
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon2.hash_password_into(passphrase.as_bytes(), salt, &mut key).map_err(failed)?;
    Ok(Kek::from_bytes(&key)?)
}

/// What the seal authenticates beside the record.
fn context(Cost { memory_kib, passes, lanes }: Cost, salt: &[u8]) -> String {
    format!("weft backup {FORMAT} {memory_kib} {passes} {lanes} {salt:02x?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::TestCluster;

    #[test]
    fn only_the_passphrase_opens_a_backup_and_no_octet_can_change() {
        let backup = Backup { taken_ms: 7, term: 3, kek: vec![1; 32], state: TestCluster::new().state };
        let file = backup.seal("correct horse").expect("sealed");
        assert_eq!(Backup::open_now(&file, "correct horse").expect("opened"), backup);
        let refused =
            |file: &[u8], passphrase: &str| Backup::open_now(file, passphrase).expect_err("refused").to_string();
        assert!(refused(&file, "wrong horse").contains("passphrase is wrong"));
        assert!(refused(b"nonsense", "correct horse").contains("no backup"));
        assert!(refused(&file[..20], "correct horse").contains("not complete"));
        // One octet of the format, the salt, the nonce and the tag.
        for at in [12, 25, 41, file.len() - 1] {
            let mut changed = file.clone();
            changed[at] ^= 1;
            refused(&changed, "correct horse");
        }
        let mut greedy = file;
        greedy[13..17].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(refused(&greedy, "correct horse").contains("more memory"));
    }
}
