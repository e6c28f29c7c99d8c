//! Encodes values of the model as bytes: one version byte, then postcard.
//!
//! The node RPC encodes its messages with it, and the Raft store and the membership store encode
//! what they write. All callers read with [`decode`]. It refuses bytes of another version of weft
//! with an error that contains the version, and never interprets them as the current format.

use serde::{Serialize, de::DeserializeOwned};
use weft_model::state::STATE_VERSION;

/// The format version that this build writes and reads.
const VERSION: u8 = STATE_VERSION as u8;

/// Why bytes cannot be decoded, or a value cannot be encoded. The caller puts the file or the
/// message in front of these texts.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("it is empty")]
    Empty,
    #[error(
        "another version of weft wrote it (format {found}, this version reads {VERSION}): run the same version on all \
         nodes"
    )]
    Version { found: u8 },
    #[error("it is damaged: {0}")]
    Damaged(#[from] postcard::Error),
}

/// Encodes `value`, with the version byte in front.
///
/// # Errors
/// [`CodecError::Damaged`] if postcard cannot express the value. No type of the model causes this.
pub(crate) fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    Ok(postcard::to_extend(value, vec![VERSION])?)
}

/// Decodes what [`encode`] has written.
///
/// # Errors
/// [`CodecError`] if the bytes are empty, have another version, or do not encode a `T`.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (&found, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if found != VERSION {
        return Err(CodecError::Version { found });
    }
    Ok(postcard::from_bytes(body)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_was_encoded_and_refuses_other_versions_and_damaged_bytes() {
        let bytes = encode(&(7u64, "x".to_owned())).expect("encoded bytes");
        assert_eq!(decode::<(u64, String)>(&bytes).expect("the value"), (7, "x".to_owned()));
        let mut other = bytes.clone();
        other[0] += 1;
        assert!(matches!(decode::<(u64, String)>(&other), Err(CodecError::Version { .. })));
        assert!(matches!(decode::<u64>(&[]), Err(CodecError::Empty)));
        assert!(matches!(decode::<(u64, String)>(&bytes[..2]), Err(CodecError::Damaged(_))));
    }
}
