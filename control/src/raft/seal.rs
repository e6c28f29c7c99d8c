//! Encrypts the records of the log on disk.
//!
//! `store` calls this module for each record that it writes or reads. The key is random, belongs to
//! one node, and is kept in a file of its own ([`SecretFile::LogKey`]). So a copy of the log alone
//! does not reveal the cluster state, with its specs and join tokens. A copy of the whole data
//! directory does, because the key is in it, unless the managers are locked ([`crate::vault`]).
//!
//! ```text
//!   1 │ salt (16 octets) │ nonce (12) │ ciphertext │ tag (16)
//! ```
//!
//! Each record has its own AES-256-GCM key, which follows from the node's key and the random salt
//! (HKDF, RFC 5869). So the number of records is not limited by the birthday bound of random nonces
//! of 96 bits (NIST SP 800-38D, section 8.3). The place of the record is authenticated with
//! it: without the key, a record can be neither changed nor moved to another place. Removed
//! records, or a whole older file in place of the current one, are not detected.

use std::{fmt, io};

use ring::{
    error::Unspecified,
    hkdf::{HKDF_SHA256, Salt},
    rand::{SecureRandom, SystemRandom},
};

use crate::{
    pki::Kek,
    vault::{SecretFile, Vault},
};

/// The first octet of all sealed records.
const FORMAT: u8 = 1;
const KEY_LEN: usize = 32;
const SALT_LEN: usize = 16;
/// Separates the keys of records from other uses of the node's key.
const PURPOSE: &[&[u8]] = &[b"weft log record"];

/// The key of one node's log.
#[derive(Clone)]
pub(super) struct LogKey([u8; KEY_LEN]);

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogKey(..)")
    }
}

/// Where a record is in the file. A record that is sealed for one place opens in no other.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place<'a> {
    /// The entry with this index.
    Entry(u64),
    /// The value of this key beside the entries.
    Value(&'a str),
}

impl Place<'_> {
    /// What is authenticated with the record.
    fn context(self) -> String {
        match self {
            Self::Entry(index) => format!("entry {index}"),
            Self::Value(key) => format!("value {key}"),
        }
    }
}

/// Why a record cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealError {
    #[error("it was encrypted with another key, or it is damaged")]
    Damaged,
    #[error("the random generator or the cipher failed")]
    Cipher,
}

impl LogKey {
    /// # Errors
    /// If the system has no random bytes.
    pub(super) fn generate() -> Result<Self, SealError> {
        let mut key = [0; KEY_LEN];
        SystemRandom::new().fill(&mut key).map_err(|_| SealError::Cipher)?;
        Ok(Self(key))
    }

    /// Encrypts `plain`. [`Self::open`] needs the same `place`.
    ///
    /// # Errors
    /// [`SealError::Cipher`] if the system has no random bytes.
    pub(super) fn seal(&self, place: Place<'_>, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut salt = [0; SALT_LEN];
        SystemRandom::new().fill(&mut salt).map_err(|_| SealError::Cipher)?;
        let key = self.record_key(&salt).map_err(|_| SealError::Cipher)?;
        let sealed = key.seal(&place.context(), plain).map_err(|_| SealError::Cipher)?;
        Ok([&[FORMAT], salt.as_slice(), sealed.as_slice()].concat())
    }

    /// Decrypts what [`Self::seal`] returned.
    ///
    /// # Errors
    /// [`SealError::Damaged`] if the key or the place differs, or the bytes were changed.
    pub(super) fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (&FORMAT, rest) = sealed.split_first().ok_or(SealError::Damaged)? else {
            return Err(SealError::Damaged);
        };
        let (salt, rest) = rest.split_at_checked(SALT_LEN).ok_or(SealError::Damaged)?;
        let key = self.record_key(salt).map_err(|_| SealError::Damaged)?;
        key.open(&place.context(), rest).map_err(|_| SealError::Damaged)
    }

    fn record_key(&self, salt: &[u8]) -> Result<Kek, Unspecified> {
        let mut key = [0; KEY_LEN];
        Salt::new(HKDF_SHA256, salt).extract(&self.0).expand(PURPOSE, HKDF_SHA256)?.fill(&mut key)?;
        Kek::from_bytes(&key).map_err(|_| Unspecified)
    }
}

/// The keys of a log. The first one encrypts. There are others while a new key replaces it, and for
/// readers that have begun before.
#[derive(Debug, Clone)]
pub(super) struct KeyRing(Vec<LogKey>);

impl KeyRing {
    /// # Panics
    /// Without a key.
    pub(super) fn new(keys: Vec<LogKey>) -> Self {
        assert!(!keys.is_empty(), "a log has a key");
        Self(keys)
    }

    /// Reads the keys in the file; `None` if the file does not exist.
    ///
    /// # Errors
    /// The error of the file system, or `InvalidData` if the file does not contain whole keys.
    pub(super) fn read(vault: &Vault) -> io::Result<Option<Self>> {
        let Some(bytes) = vault.read(SecretFile::LogKey)? else { return Ok(None) };
        let (keys, rest) = bytes.as_chunks::<KEY_LEN>();
        if keys.is_empty() || !rest.is_empty() {
            let text = format!("it is {} bytes long, and a key is {KEY_LEN} bytes long", bytes.len());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(Some(Self(keys.iter().map(|key| LogKey(*key)).collect())))
    }

    /// Writes the keys to the file. They are on disk when this returns.
    ///
    /// # Errors
    /// The error of the file system.
    pub(super) fn write(&self, vault: &Vault) -> io::Result<()> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|key| key.0).collect();
        vault.write(SecretFile::LogKey, &bytes)
    }

    /// Only the key that opens this record. `None` if there is none.
    pub(super) fn only_the_key_of(&self, place: Place<'_>, sealed: &[u8]) -> Option<Self> {
        self.0.iter().find(|key| key.open(place, sealed).is_ok()).map(|key| Self(vec![key.clone()]))
    }

    /// The same keys, and before them `key`, which encrypts from now on.
    pub(super) fn with_new(&self, key: LogKey) -> Self {
        Self([&[key], self.0.as_slice()].concat())
    }

    /// The key that encrypts.
    pub(super) fn first(&self) -> Self {
        Self(vec![self.0[0].clone()])
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// As [`LogKey::seal`], with the first key.
    pub(super) fn seal(&self, place: Place<'_>, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        self.0[0].seal(place, plain)
    }

    /// As [`LogKey::open`], with any of the keys.
    pub(super) fn open(&self, place: Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        self.0.iter().find_map(|key| key.open(place, sealed).ok()).ok_or(SealError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_same_key_and_place_open_a_record() {
        let key = LogKey::generate().expect("a key");
        let sealed = key.seal(Place::Entry(7), b"secret").expect("sealed");
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_eq!(key.open(Place::Entry(7), &sealed).expect("opened"), b"secret");
        assert!(key.open(Place::Entry(8), &sealed).is_err());
        assert!(key.open(Place::Value("vote"), &sealed).is_err());
        assert!(LogKey::generate().expect("a key").open(Place::Entry(7), &sealed).is_err());
        let again = key.seal(Place::Entry(7), b"secret").expect("sealed");
        assert_ne!(sealed, again, "the same record is never encrypted in the same way twice");
    }

    #[test]
    fn keys_are_read_as_they_were_written_and_a_short_file_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let vault = Vault::open(dir.path()).expect("a vault");
        assert!(KeyRing::read(&vault).expect("a missing file is no error").is_none());
        let former = KeyRing::new(vec![LogKey::generate().expect("a key")]);
        let both = former.with_new(LogKey::generate().expect("a key"));
        both.write(&vault).expect("written");
        let read = KeyRing::read(&vault).expect("readable").expect("keys");
        assert_eq!(read.len(), 2);
        let place = Place::Value("vote");
        for keys in [&former, &both] {
            let sealed = keys.seal(place, b"vote").expect("sealed");
            assert_eq!(read.open(place, &sealed).expect("opened"), b"vote");
            let only = read.only_the_key_of(place, &sealed).expect("one of them");
            assert_eq!((only.len(), only.open(place, &sealed).expect("opened")), (1, b"vote".to_vec()));
        }
        let sealed = both.seal(place, b"vote").expect("sealed");
        former.open(place, &sealed).expect_err("the new key encrypts");
        assert!(former.only_the_key_of(place, &sealed).is_none());
        both.first().open(place, &sealed).expect("the new key");
        std::fs::write(dir.path().join("log.key"), b"short").expect("written");
        assert_eq!(KeyRing::read(&vault).expect_err("too short").kind(), io::ErrorKind::InvalidData);
    }

    proptest! {
        #[test]
        fn a_record_opens_unless_a_byte_of_it_was_changed(
            plain in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            change in 1_u8..,
        ) {
            let key = LogKey([3; KEY_LEN]);
            let mut sealed = key.seal(Place::Entry(1), &plain).expect("sealed");
            prop_assert_eq!(key.open(Place::Entry(1), &sealed).expect("opened"), plain);
            let at = at.index(sealed.len());
            sealed[at] ^= change;
            prop_assert!(key.open(Place::Entry(1), &sealed).is_err());
            prop_assert!(key.open(Place::Entry(1), &sealed[..at]).is_err());
        }
    }
}
