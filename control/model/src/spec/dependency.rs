//! Secrets and configs: data that the cluster stores under a name, and that tasks get as files.
//!
//! Both are dependencies of tasks, as swarmkit calls them. They differ in what the API shows: the
//! data of a config, never that of a secret. On the disk and in messages both are treated alike.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Labels;
use crate::{Shared, id::DependencyId, newtype::string_newtype};

/// The greatest length of a name, as in Swarm (swarmkit, `manager/controlapi/common.go`).
const MAX_NAME_LEN: usize = 64;
/// The greatest length of a path in octets, with the octet that ends it (linux/limits.h,
/// PATH_MAX).
const MAX_PATH_LEN: usize = 4096;
/// The directory of secrets whose target is no absolute path.
const SECRETS_DIR: &str = "/run/secrets";
/// The permissions that a file can have.
pub const MAX_FILE_MODE: u32 = 0o777;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DependencyKind {
    Secret,
    Config,
}

impl DependencyKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Secret => "secret",
            Self::Config => "config",
        }
    }

    /// The data must be shorter than this, in octets, as in Swarm (swarmkit,
    /// `api/validation/secrets.go` and `manager/controlapi/config.go`).
    pub fn max_bytes(self) -> usize {
        match self {
            Self::Secret => 500 << 10,
            Self::Config => 1_000 << 10,
        }
    }
}

impl fmt::Display for DependencyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

string_newtype!(
    /// The name of a secret or a config. Unique among those of its kind, regardless of case.
    DependencyName,
    InvalidDependencyName,
    |name| {
        let is_edge = |octet: Option<&u8>| octet.is_some_and(u8::is_ascii_alphanumeric);
        let octets = name.as_bytes();
        let is_valid = octets.len() <= MAX_NAME_LEN
            && is_edge(octets.first())
            && is_edge(octets.last())
            && octets.iter().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_' | b'.'));
        match is_valid {
            true => Ok(()),
            false if name.is_empty() => Err(InvalidDependencyName::Empty),
            false => Err(InvalidDependencyName::Characters),
        }
    }
);

/// Text that is not the name of a secret or a config. The words are Swarm's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDependencyName {
    #[error("name must be provided")]
    Empty,
    #[error(
        "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]"
    )]
    Characters,
}

/// The content of a secret or a config. Its debug text has only its length.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FileData(pub Vec<u8>);

impl fmt::Debug for FileData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileData({} octets)", self.0.len())
    }
}

/// A secret or a config as a user has created it. Only its labels can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DependencySpec {
    pub kind: DependencyKind,
    pub name: DependencyName,
    pub labels: Labels,
    /// Not empty, and shorter than [`DependencyKind::max_bytes`].
    pub data: Shared<FileData>,
    /// Whether the data has templates, which are expanded for each task.
    pub templated: bool,
}

/// A file of a task with the data of a secret or a config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReference {
    pub id: DependencyId,
    /// As the user gave it. It must be the name of the secret or config.
    pub name: String,
    /// The path in the container. A relative one is below `/run/secrets` for a secret, and below
    /// the root for a config.
    pub target: String,
    pub uid: u32,
    pub gid: u32,
    /// The permissions, at most [`MAX_FILE_MODE`].
    pub mode: u32,
}

impl FileReference {
    /// The absolute path in the container. `None` if the target names no file: it is empty or too
    /// long, ends with a slash, or contains `.`, `..`, an empty part or a zero octet.
    pub fn path(&self, kind: DependencyKind) -> Option<String> {
        let dir = match kind {
            DependencyKind::Secret => SECRETS_DIR,
            DependencyKind::Config => "",
        };
        let path = if self.target.starts_with('/') { self.target.clone() } else { format!("{dir}/{}", self.target) };
        let are_names = path[1..].split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'));
        (are_names && path.len() < MAX_PATH_LEN).then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debug_text_of_a_secret_does_not_contain_it() {
        let spec = DependencySpec {
            kind: DependencyKind::Secret,
            name: "db.password".parse().expect("a name"),
            labels: Labels::new(),
            data: FileData(b"hunter2".to_vec()).into(),
            templated: false,
        };
        let text = format!("{spec:?} {:?}", b"hunter2");
        assert!(text.contains("FileData(7 octets)") && !text.contains("hunter2"), "{text}");
        assert_eq!(text.matches("104, 117").count(), 1, "the octets are only in the list that the test adds: {text}");
    }

    #[test]
    fn names_have_swarms_characters() {
        let long = "a".repeat(64);
        for good in ["a", "0", "db.password", "A-b_c.9", &long] {
            assert!(good.parse::<DependencyName>().is_ok(), "{good}");
        }
        assert_eq!("".parse::<DependencyName>(), Err(InvalidDependencyName::Empty));
        for bad in ["-a", "a-", ".a", "a b", "a/b", "ä", &"a".repeat(65)] {
            assert_eq!(bad.parse::<DependencyName>(), Err(InvalidDependencyName::Characters), "{bad}");
        }
    }

    #[test]
    fn a_relative_target_is_in_the_directory_of_its_kind() {
        let path = |kind, target: &str| {
            let (name, target) = ("x".to_owned(), target.to_owned());
            FileReference { id: DependencyId::from_random(1), name, target, uid: 0, gid: 0, mode: 0o444 }.path(kind)
        };
        for (target, secret, config) in [
            ("key", "/run/secrets/key", "/key"),
            ("tls/key", "/run/secrets/tls/key", "/tls/key"),
            ("/etc/app.conf", "/etc/app.conf", "/etc/app.conf"),
        ] {
            assert_eq!(path(DependencyKind::Secret, target).as_deref(), Some(secret));
            assert_eq!(path(DependencyKind::Config, target).as_deref(), Some(config));
        }
        for bad in ["", "/", "a/", "a//b", "../a", "/a/./b", "a\0b", &"a".repeat(4_096)] {
            assert_eq!(path(DependencyKind::Config, bad), None, "{bad:?}");
        }
    }
}
