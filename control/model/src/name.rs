//! Names that users choose. A service's name becomes a DNS label and a part of its tasks' names.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Longest name: one DNS label (RFC 1035, section 2.3.4).
pub const MAX_NAME_LEN: usize = 63;

/// A name that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a valid {kind} name: use 1 to {MAX_NAME_LEN} letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
)]
pub struct InvalidName {
    pub kind: &'static str,
    pub name: String,
}

fn is_name(text: &str, dots: bool) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    (1..=MAX_NAME_LEN).contains(&bytes.len())
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_') || (dots && *b == b'.'))
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $kind:literal, dots: $dots:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                if is_name(text, $dots) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(InvalidName { kind: $kind, name: text.to_owned() })
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;

            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// A service's name: unique in the cluster.
    ServiceName, "service", dots: false
);
name!(
    /// A network's name: unique in the cluster.
    NetworkName, "network", dots: true
);
name!(
    /// A node's name: its host name. Need not be unique.
    NodeName, "node", dots: true
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let long = "a".repeat(64);
        for bad in ["", "-a", "a-", "a b", "a/b", "ä", "a.b", long.as_str()] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
        for good in ["a", "whoami", "web-1", "my_app", "0"] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        assert!("stack.front".parse::<NetworkName>().is_ok());
    }
}
