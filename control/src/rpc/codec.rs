//! Model values as bytes, on the wire and on disk: one version byte, then postcard.

use serde::{Serialize, de::DeserializeOwned};
use weft_model::state::STATE_VERSION;

/// The version that this build writes and reads.
const VERSION: u8 = STATE_VERSION as u8;

/// Bytes that hold no value of the wanted type.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("it is empty")]
    Empty,
    #[error(
        "it was written by another version of weft (format {found}, this one reads {VERSION}): run the same version everywhere"
    )]
    Version { found: u8 },
    #[error("it is damaged: {0}")]
    Damaged(#[from] postcard::Error),
}

pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, CodecError> {
    Ok(postcard::to_extend(value, vec![VERSION])?)
}

pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
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
    fn a_value_comes_back_and_other_versions_do_not() {
        let bytes = encode(&(7u64, "x".to_owned())).expect("encoded");
        assert_eq!(decode::<(u64, String)>(&bytes).expect("decoded"), (7, "x".to_owned()));
        let mut other = bytes.clone();
        other[0] += 1;
        assert!(matches!(decode::<(u64, String)>(&other), Err(CodecError::Version { .. })));
        assert!(matches!(decode::<u64>(&[]), Err(CodecError::Empty)));
        assert!(matches!(decode::<(u64, String)>(&bytes[..2]), Err(CodecError::Damaged(_))));
    }
}
