//! The unlock key of a cluster whose managers are locked.

use std::{fmt, str::FromStr};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use serde::{Deserialize, Serialize};

/// What the text form begins with, as in Swarm.
const PREFIX: &str = "SWMKEY-1-";

/// The key that a manager needs after a restart, if the managers of the cluster are locked. A
/// secret: it is shown only by [`Self::to_text`].
///
/// ```
/// use weft_model::UnlockKey;
///
/// let key = UnlockKey([7; 32]);
/// assert_eq!(key.to_text(), "SWMKEY-1-BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc");
/// assert_eq!(key.to_text().parse(), Ok(key.clone()));
/// assert_eq!(format!("{key:?}"), "UnlockKey(..)");
/// assert!("SWMKEY-1-BwcH".parse::<UnlockKey>().is_err());
/// assert!("SWMTKN-1-BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc".parse::<UnlockKey>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlockKey(pub [u8; 32]);

/// Text that is not an unlock key. It may contain a part of a secret, so the error does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid key string: an unlock key is {PREFIX} and 43 characters of base64, as \"weft swarm unlock-key\" prints it"
)]
pub struct InvalidUnlockKey;

impl UnlockKey {
    /// The key as users see and enter it: `SWMKEY-1-` and 32 octets in base64 without padding.
    pub fn to_text(&self) -> String {
        format!("{PREFIX}{}", STANDARD_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(..)")
    }
}

/// Also accepts base64 with padding, and white space around the key.
impl FromStr for UnlockKey {
    type Err = InvalidUnlockKey;

    fn from_str(text: &str) -> Result<Self, InvalidUnlockKey> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(InvalidUnlockKey)?;
        let bytes = STANDARD_NO_PAD.decode(encoded).or_else(|_| STANDARD.decode(encoded));
        let bytes = bytes.ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or(InvalidUnlockKey)
    }
}
