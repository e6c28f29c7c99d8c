//! The key-encryption key, which encrypts the CA's private key inside the cluster state. Backups
//! and the log on disk are encrypted in the same way, with keys of their own.

use std::fmt;

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

use weft_model::UnlockKey;

use super::PkiError;

/// Length in bytes of an AES-256 key.
const KEK_LEN: usize = 32;

/// A key-encryption key (AES-256-GCM). All managers of a cluster hold the same key.
#[derive(Clone)]
pub struct Kek([u8; KEK_LEN]);

impl fmt::Debug for Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kek(..)")
    }
}

impl Kek {
    pub fn generate() -> Result<Self, PkiError> {
        let mut key = [0; KEK_LEN];
        fill(&mut key)?;
        Ok(Self(key))
    }

    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PkiError> {
        let key =
            bytes.try_into().map_err(|_| PkiError::new("read the key-encryption key", "it is not 32 bytes long"))?;
        Ok(Self(key))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Encrypts `plain`. [`Self::open`] needs the same `context`.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, PkiError> {
        let mut sealed = vec![0; NONCE_LEN];
        fill(&mut sealed)?;
        let nonce = Nonce::try_assume_unique_for_key(&sealed).map_err(|e| PkiError::new("seal the CA key", e))?;
        let mut body = plain.to_vec();
        self.key()?
            .seal_in_place_append_tag(nonce, Aad::from(context.as_bytes()), &mut body)
            .map_err(|e| PkiError::new("seal the CA key", e))?;
        sealed.append(&mut body);
        Ok(sealed)
    }

    /// Decrypts what [`Self::seal`] returned.
    ///
    /// # Errors
    /// If the key or the context differs, or the bytes were changed.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, PkiError> {
        let damaged = || PkiError::new("open the CA key", "it was sealed with another key, or it was changed");
        let (nonce, body) = sealed.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut body = body.to_vec();
        let plain =
            self.key()?.open_in_place(nonce, Aad::from(context.as_bytes()), &mut body).map_err(|_| damaged())?;
        Ok(plain.to_vec())
    }

    fn key(&self) -> Result<LessSafeKey, PkiError> {
        UnboundKey::new(&AES_256_GCM, &self.0)
            .map(LessSafeKey::new)
            .map_err(|e| PkiError::new("use the key-encryption key", e))
    }
}

/// The key that an unlock key is: it encrypts the keys of a locked manager.
impl From<&UnlockKey> for Kek {
    fn from(key: &UnlockKey) -> Self {
        Self(key.0)
    }
}

/// A new unlock key.
///
/// # Errors
/// If the system has no random bytes.
pub fn random_unlock_key() -> Result<UnlockKey, PkiError> {
    Kek::generate().map(|key| UnlockKey(key.0))
}

fn fill(bytes: &mut [u8]) -> Result<(), PkiError> {
    SystemRandom::new().fill(bytes).map_err(|e| PkiError::new("generate random bytes", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_and_context_decrypt() {
        let kek = Kek::generate().expect("a key");
        let sealed = kek.seal("cluster", b"secret").expect("sealed");
        assert!(!sealed.windows(6).any(|w| w == b"secret"));
        assert_eq!(kek.open("cluster", &sealed).expect("opened"), b"secret");
        assert!(kek.open("another", &sealed).is_err());
        assert!(Kek::generate().expect("a key").open("cluster", &sealed).is_err());
        let mut changed = sealed.clone();
        *changed.last_mut().expect("not empty") ^= 1;
        assert!(kek.open("cluster", &changed).is_err());
        assert!(kek.open("cluster", b"short").is_err());
    }
}
