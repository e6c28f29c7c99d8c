//! Join tokens: `SWMTKN-1-<digest>-<secret>`, as in Swarm.
//!
//! A joining node checks the digest against the CA's certificate before it trusts the cluster. The
//! secret decides which role the node gets.

use std::{fmt, str::FromStr};

use ring::digest;

const PREFIX: &str = "SWMTKN";
const VERSION: &str = "1";
/// Base-36 digits that hold 256 bits: 36^50 > 2^256.
const DIGEST_LEN: usize = 50;
/// Base-36 digits that hold 128 bits: 36^25 > 2^128.
const SECRET_LEN: usize = 25;
const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A well-formed join token. Only a manager can check whether it is valid now.
///
/// ```
/// use weft_control::pki::{JoinToken, random_secret};
///
/// let token = JoinToken::new("the CA certificate in PEM form", &random_secret());
/// let parsed: JoinToken = token.to_string().parse()?;
/// assert!(parsed.names("the CA certificate in PEM form"));
/// assert!(!parsed.names("another certificate"));
/// # Ok::<(), weft_control::pki::InvalidToken>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    digest: String,
    secret: String,
}

/// Text that is not a join token, with the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidToken(&'static str);

impl JoinToken {
    /// The token for this certificate authority and secret. The digest is the SHA-256 of the CA
    /// certificate's PEM text.
    pub fn new(ca_cert_pem: &str, secret: &str) -> Self {
        Self { digest: digest_of(ca_cert_pem), secret: secret.to_owned() }
    }

    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Whether the token's digest is that of this CA certificate.
    pub fn names(&self, ca_cert_pem: &str) -> bool {
        self.digest == digest_of(ca_cert_pem)
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{VERSION}-{}-{}", self.digest, self.secret)
    }
}

/// Omits the secret, so that log lines do not contain it.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl FromStr for JoinToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let mut parts = text.trim().split('-');
        if parts.next() != Some(PREFIX) {
            return Err(InvalidToken("it does not start with SWMTKN-"));
        }
        if parts.next() != Some(VERSION) {
            return Err(InvalidToken("its version is not 1"));
        }
        let (Some(digest), Some(secret), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(InvalidToken("it does not have four parts: was it cut off?"));
        };
        if !is_base36(digest, DIGEST_LEN) || !is_base36(secret, SECRET_LEN) {
            return Err(InvalidToken("a part of it has the wrong length or characters: was it cut off?"));
        }
        Ok(Self { digest: digest.to_owned(), secret: secret.to_owned() })
    }
}

/// A new secret part.
pub fn random_secret() -> String {
    base36(&crate::host::random::<u128>().to_be_bytes(), SECRET_LEN)
}

fn digest_of(ca_cert_pem: &str) -> String {
    base36(digest::digest(&digest::SHA256, ca_cert_pem.as_bytes()).as_ref(), DIGEST_LEN)
}

fn is_base36(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| DIGITS.contains(&b))
}

/// Encodes `number` (big-endian) as `len` base-36 digits with leading zeros.
fn base36(number: &[u8], len: usize) -> String {
    let mut number = number.to_vec();
    let mut digits = vec![b'0'; len];
    for digit in digits.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in &mut number {
            let value = remainder << 8 | u32::from(*byte);
            *byte = (value / 36) as u8;
            remainder = value % 36;
        }
        *digit = DIGITS[remainder as usize];
    }
    digits.iter().map(|&d| char::from(d)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_round_trips_and_matches_only_its_ca() {
        let secret = random_secret();
        let token = JoinToken::new("some PEM", &secret);
        let read: JoinToken = token.to_string().parse().expect("a valid token");
        assert_eq!(read, token);
        assert_eq!(read.secret(), secret);
        assert!(read.names("some PEM"));
        assert!(!read.names("another PEM"));
    }

    #[test]
    fn malformed_tokens_are_refused() {
        let token = JoinToken::new("some PEM", &random_secret()).to_string();
        for bad in ["", "SWMTKN", "SWMKEY-1-a-b", &token[..token.len() - 1], &token[..60], &format!("{token}-x")] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
        assert!(token.replacen("-1-", "-2-", 1).parse::<JoinToken>().is_err());
    }

    #[test]
    fn numbers_are_encoded_in_base_36() {
        assert_eq!(base36(&[0], 3), "000");
        assert_eq!(base36(&[35], 2), "0z");
        assert_eq!(base36(&[1, 0], 3), "074");
    }
}
