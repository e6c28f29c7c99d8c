//! The JSON files of the data directory: small records whose fields have names, which an operator
//! may read.
//!
//! The membership store and the agent's store of WireGuard keys use it. Each kind of file has its
//! own schema version, in the field `schema_version`; a file without it has version 1. As with
//! binary records (`codec`), a newer version is refused with the release that reads it, and so are
//! unknown fields: types that are stored have `#[serde(deny_unknown_fields)]`.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// A kind of JSON file: its schema version in this release, and the release that introduced it.
#[derive(Debug)]
pub struct Schema {
    pub version: u64,
    pub release: &'static str,
}

/// The first schema version of every kind of file.
pub const FIRST: Schema = Schema { version: 1, release: "0.1.0" };

const VERSION: &str = "schema_version";
const RELEASE: &str = "readable_since";

/// Why a JSON file cannot be read. The caller puts the name of the file in front.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    #[error("it has schema version {found}, and this version of weft reads up to {known}: run weft {release} or later")]
    Newer { found: u64, known: u64, release: String },
    #[error("it is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
}

/// The text of a file with this value, which is a struct.
///
/// # Errors
/// [`JsonError::Damaged`] if JSON cannot express the value.
pub fn encode<T: Serialize>(schema: &Schema, value: &T) -> Result<Vec<u8>, JsonError> {
    let mut value = serde_json::to_value(value)?;
    value[VERSION] = schema.version.into();
    value[RELEASE] = schema.release.into();
    Ok(serde_json::to_vec_pretty(&value)?)
}

/// Reads what [`encode`], or a release before schema versions, has written.
///
/// # Errors
/// [`JsonError`] if the text is no such value, or has a newer schema version.
pub fn decode<T: DeserializeOwned>(schema: &Schema, text: &[u8]) -> Result<T, JsonError> {
    let mut value: Value = serde_json::from_slice(text)?;
    if let Some(fields) = value.as_object_mut() {
        let found = fields.remove(VERSION).as_ref().and_then(Value::as_u64).unwrap_or(1);
        let release = fields.remove(RELEASE);
        if found > schema.version {
            let release = release.as_ref().and_then(Value::as_str).unwrap_or("a later version").to_owned();
            return Err(JsonError::Newer { found, known: schema.version, release });
        }
    }
    Ok(serde_json::from_value(value)?)
}

#[cfg(test)]
pub(crate) mod golden {
    //! Golden files: JSON files as released versions have written them, in
    //! `control/golden/<file>.v<schema version>.json`. For the rules see `crate::codec::golden`.

    use std::{fmt::Debug, fs, path::PathBuf};

    use super::*;

    /// Checks that the value is written as the golden file of `name` is, and that the file is read.
    pub(crate) fn check<T: Serialize + DeserializeOwned + Debug>(schema: &Schema, name: &str, value: &T) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("golden/{name}.v{}.json", schema.version));
        let text = encode(schema, value).expect("the value is encoded");
        if std::env::var_os("WEFT_ADD_GOLDEN").is_some() && !path.exists() {
            fs::write(&path, &text).expect("the file is written");
        }
        let golden = fs::read(&path)
            .unwrap_or_else(|e| panic!("cannot read {}: {e}: add it with `cargo xtask golden`", path.display()));
        let (text, written) = (String::from_utf8_lossy(&text), String::from_utf8_lossy(&golden));
        assert_eq!(text, written, "{}: the type of this file has changed", path.display());
        let read: T = decode(schema, &golden).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        assert_eq!(format!("{read:?}"), format!("{value:?}"), "{}", path.display());
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        port: u16,
    }

    #[test]
    fn reads_files_with_and_without_a_version_and_refuses_newer_ones_and_unknown_fields() {
        let text = encode(&FIRST, &File { port: 7 }).expect("encoded");
        assert_eq!(decode::<File>(&FIRST, &text).expect("decoded"), File { port: 7 });
        assert_eq!(decode::<File>(&FIRST, br#"{"port": 7}"#).expect("of release 0.1.0"), File { port: 7 });
        let newer = br#"{"port": 7, "schema_version": 2, "readable_since": "9.8.7", "more": 1}"#;
        let error = decode::<File>(&FIRST, newer).expect_err("newer").to_string();
        assert!(error.contains("schema version 2") && error.contains("run weft 9.8.7"), "{error}");
        assert!(decode::<File>(&FIRST, br#"{"port": 7, "more": 1}"#).is_err(), "an unknown field");
        assert!(decode::<File>(&FIRST, b"{").is_err());
    }
}
