//! Encodes values of the model as records: a header with a schema version, then postcard.
//!
//! The node RPC encodes its messages with it, and the Raft store and the membership store encode
//! what they write. A record is of a [`Kind`], and each kind has its own schema version, which
//! increases only when the types of that kind change. [`decode`] reads every version that a release
//! of weft has written. It refuses a newer one with an error that contains the release that reads
//! it, and never interprets bytes as something that they may not be: postcard has no names that a
//! reader could skip, so nothing unknown is ignored, and bytes after the value are an error.
//!
//! A schema version belongs to a feature level: the level of the cluster at which it is used first
//! (see [`weft_model::state::FEATURE_LEVEL`]). [`encode_at`] writes what the managers and nodes of
//! a cluster at that level read. Records that only this node reads are written by [`encode`].
//!
//! ```text
//!   level 0:   2 │ postcard
//!   later:     3 │ code of the kind │ schema version │ length │ release │ postcard
//!              one octet each, except the name of the release and the value
//! ```
//!
//! How a type changes is described in [`history`]. [`plan`] encodes plans.

mod history;
mod read;
mod write;
pub(crate) mod plan;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod samples;

use serde::{Serialize, de::DeserializeOwned};
use weft_model::state::FEATURE_LEVEL;

use self::{history::RELEASES, read::Reader, write::AtLevel};

/// The first octet of all records of level 0, which have no other header.
const LEVEL_0: u8 = 2;
/// The first octet of all later records.
const LATER: u8 = 3;

/// A kind of record.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    name: &'static str,
    code: u8,
    /// The feature level of each schema version. The first one has version 1.
    levels: &'static [u32],
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $code:literal, $name:literal, $levels:expr;)*) => {
        $($(#[$doc])* pub(crate) const $kind: Kind = Kind { name: $name, code: $code, levels: &$levels };)*

        /// All kinds. Their codes never change.
        #[cfg(test)]
        const KINDS: &[&Kind] = &[$(&$kind),*];
    };
}

kinds! {
    /// An entry of the Raft log.
    LOG_ENTRY = 1, "log entry", [0, 1];
    /// A vote, or a position in the log, of a manager.
    LOG_POSITION = 2, "log position", [0, 1];
    /// Everything computed from the log up to one entry.
    SNAPSHOT = 3, "snapshot", [0, 1];
    /// The stored form of a snapshot: openraft's description of it, and its bytes.
    STORED_SNAPSHOT = 4, "stored snapshot", [0, 1];
    /// The plan of a node, on its disk and in its session.
    PLAN = 5, "plan", [0, 1];
    /// What a node reports of itself.
    REPORT = 6, "report", [0, 1];
    /// A message of Raft between managers.
    RAFT_MESSAGE = 7, "Raft message", [0, 1];
    /// A change of the cluster state on its way to the leader.
    COMMAND = 8, "command", [0, 1];
    /// The result of such a change.
    OUTCOME = 9, "outcome", [0, 1];
    /// Which part of a task's log is requested.
    LOG_OPTIONS = 10, "log options", [0];
    /// The content of a backup.
    BACKUP = 11, "backup", [1];
}

/// Why bytes cannot be decoded, or a value cannot be encoded. The caller puts the file or the
/// message in front of these texts.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CodecError {
    #[error("it is empty")]
    Empty,
    #[error("it begins with {found}, and no record of weft {} or earlier does: run weft of the version that wrote it", RELEASES[RELEASES.len() - 1])]
    Format { found: u8 },
    #[error(
        "it is a {kind} of schema version {version}, and this version of weft reads up to {known}: run weft {release} or later"
    )]
    Newer { kind: &'static str, version: u8, known: usize, release: String },
    #[error("it is a record of kind {found}, and a {expected} is needed")]
    Kind { expected: &'static str, found: u8 },
    #[error("it is damaged: {0}")]
    Damaged(#[from] postcard::Error),
    #[error("it is damaged: {0} bytes follow its end")]
    Trailing(usize),
    #[error("it is damaged: a task has container {0}, which is missing")]
    Container(u32),
}

impl Kind {
    /// The schema version to use at a feature level, and the level that introduced it.
    fn version_at(&self, level: u32) -> (u8, u32) {
        let at = self.levels.iter().rposition(|since| *since <= level).unwrap_or(0);
        (u8::try_from(at + 1).expect("fewer than 256 schema versions"), self.levels[at])
    }
}

/// Encodes `value` in the newest schema version of `kind`, for readers of this release.
///
/// # Errors
/// [`CodecError::Damaged`] if postcard cannot express the value. No type of the model causes this.
pub(crate) fn encode<T: Serialize>(kind: &Kind, value: &T) -> Result<Vec<u8>, CodecError> {
    encode_at(kind, FEATURE_LEVEL, value)
}

/// Encodes `value` for readers that support the feature level `level`. Newer fields are left out.
///
/// # Errors
/// [`CodecError::Damaged`] if the value contains a variant that needs a later level.
pub(crate) fn encode_at<T: Serialize>(kind: &Kind, level: u32, value: &T) -> Result<Vec<u8>, CodecError> {
    let (version, since) = kind.version_at(level);
    let mut bytes = vec![LEVEL_0];
    if since > 0 {
        let release = RELEASES[since as usize].as_bytes();
        let length = u8::try_from(release.len()).expect("a short name");
        bytes = vec![LATER, kind.code, version, length];
        bytes.extend(release);
    }
    if since == FEATURE_LEVEL {
        return Ok(postcard::to_extend(value, bytes)?);
    }
    Ok(postcard::to_extend(&AtLevel { value, level: since }, bytes)?)
}

/// Decodes a record of `kind` that this release or an earlier one has written.
///
/// # Errors
/// [`CodecError`] if the bytes are empty, are of another kind or a newer schema version, or do not
/// encode a `T` and nothing else.
pub(crate) fn decode<T: DeserializeOwned>(kind: &Kind, bytes: &[u8]) -> Result<T, CodecError> {
    let (level, body) = match bytes {
        [] => return Err(CodecError::Empty),
        [LEVEL_0, body @ ..] => (0, body),
        [LATER, code, version, length, rest @ ..] => {
            let release = rest.get(..usize::from(*length)).unwrap_or(rest);
            if *code != kind.code {
                return Err(CodecError::Kind { expected: kind.name, found: *code });
            }
            let level = usize::from(*version).checked_sub(1).and_then(|at| kind.levels.get(at));
            let Some(level) = level else {
                let release = String::from_utf8_lossy(release).into_owned();
                return Err(CodecError::Newer {
                    kind: kind.name,
                    version: *version,
                    known: kind.levels.len(),
                    release,
                });
            };
            (*level, &rest[release.len()..])
        }
        [LATER, ..] => return Err(postcard::Error::DeserializeUnexpectedEnd.into()),
        [found, ..] => return Err(CodecError::Format { found: *found }),
    };
    let mut input = postcard::Deserializer::from_bytes(body);
    let value = if level == FEATURE_LEVEL {
        T::deserialize(&mut input)?
    } else {
        T::deserialize(Reader { inner: &mut input, level })?
    };
    match input.finalize()?.len() {
        0 => Ok(value),
        more => Err(CodecError::Trailing(more)),
    }
}
