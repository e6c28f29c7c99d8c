//! Ids. Objects that users name by id have Swarm's form: 25 characters of lower-case base 36, drawn at random by the
//! leader and carried in the command, so that apply stays deterministic. Ids that only machines see are numbers, given
//! out in order by apply.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Length of an object id in characters.
pub const ID_LEN: usize = 25;

/// Text that is no object id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: want {ID_LEN} characters, each a-z or 0-9")]
pub struct InvalidId(pub String);

/// Writes `random` as [`ID_LEN`] base-36 digits (36^25 > 2^128, so nothing is lost).
fn encode(mut random: u128) -> String {
    let mut digits = [b'0'; ID_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(random % 36) as usize];
        random /= 36;
    }
    digits.iter().map(|&d| char::from(d)).collect()
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
}

macro_rules! object_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id that stands for these random bits.
            pub fn from_random(random: u128) -> Self {
                Self(encode(random))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if is_id(text) { Ok(Self(text.to_owned())) } else { Err(InvalidId(text.to_owned())) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                if is_id(&text) { Ok(Self(text)) } else { Err(InvalidId(text)) }
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

object_id!(
    /// A cluster.
    ClusterId
);
object_id!(
    /// A node: the CN of its certificate. A node that leaves and joins again gets a new one.
    NodeId
);
object_id!(
    /// A service.
    ServiceId
);
object_id!(
    /// A task: one attempt to run one slot of a service. Never reused, never moved to another node.
    TaskId
);
object_id!(
    /// A network.
    NetworkId
);

/// A VXLAN network identifier, 24 bits (RFC 7348), [`crate::FIRST_VNI`] or greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vni(u32);

impl Vni {
    /// `None` where `raw` is reserved or does not fit 24 bits.
    pub fn new(raw: u32) -> Option<Self> {
        (crate::FIRST_VNI..1 << 24).contains(&raw).then_some(Self(raw))
    }

    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One service on one network, as the mesh balances it. Never reused. Zero is no service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MeshServiceId(pub u32);

/// One task on one network, as the mesh delivers to it. Never reused, so an unknown id is a dead backend. Below 2^40:
/// it travels in the inner destination MAC. Zero is no backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_id_is_an_id() {
        for random in [0, 1, 35, 36, u128::MAX] {
            let id = TaskId::from_random(random);
            assert_eq!(id.as_str().parse::<TaskId>(), Ok(id.clone()));
        }
    }

    #[test]
    fn other_text_is_no_id() {
        for text in ["", "short", "ABCDEFGHIJKLMNOPQRSTUVWXY", "abcdefghijklmnopqrstuvwxyz"] {
            assert_eq!(text.parse::<NodeId>(), Err(InvalidId(text.to_owned())));
        }
    }

    #[test]
    fn reserved_and_oversized_vnis_are_refused() {
        assert_eq!(Vni::new(2), None);
        assert_eq!(Vni::new(1 << 24), None);
        assert_eq!(Vni::new(4096).map(Vni::get), Some(4096));
    }
}
