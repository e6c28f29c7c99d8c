//! Identifiers of objects, networks and backends.
//!
//! Ids of objects that users can name have Swarm's form: 25 characters, each `a-z` or `0-9`. The
//! proposer of a command chooses them and puts them into the command, so that applying the command
//! stays deterministic. Identifiers that only the data plane uses are numbers. `apply` in
//! weft-control assigns them in ascending order.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::newtype::string_newtype;

/// Length of an object id in characters.
pub const ID_LEN: usize = 25;

/// Text that is not an object id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a valid id: an id has {ID_LEN} characters, each a-z or 0-9")]
pub struct InvalidId(pub String);

/// Writes `random` as [`ID_LEN`] base-36 digits. No bits are lost, because 36^25 > 2^128.
fn encode(mut random: u128) -> String {
    let mut digits = [b'0'; ID_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = b"0123456789abcdefghijklmnopqrstuvwxyz"[(random % 36) as usize];
        random /= 36;
    }
    digits.iter().map(|&d| char::from(d)).collect()
}

fn check_id(text: &str) -> Result<(), InvalidId> {
    if text.len() == ID_LEN && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase()) {
        Ok(())
    } else {
        Err(InvalidId(text.to_owned()))
    }
}

macro_rules! object_id {
    ($(#[$attribute:meta])* $name:ident) => {
        string_newtype!($(#[$attribute])* $name, InvalidId, check_id);

        impl $name {
            /// The id that encodes these random bits.
            pub fn from_random(random: u128) -> Self {
                Self(encode(random))
            }
        }
    };
}

object_id!(
    /// Identifies a cluster.
    ClusterId
);
object_id!(
    /// Identifies a node, and is the common name (CN) of its certificate. A joining node gets an id
    /// that is derived from its key. So a node that leaves and joins again, with a new key, has a
    /// new id.
    ///
    /// ```
    /// use weft_model::NodeId;
    ///
    /// // The same bits always make the same id.
    /// let id = NodeId::from_random(35);
    /// assert_eq!(id.as_str(), "000000000000000000000000z");
    ///
    /// // Parsing checks the text, so a NodeId is always valid.
    /// assert_eq!("000000000000000000000000z".parse(), Ok(id));
    /// assert!("worker-1".parse::<NodeId>().is_err());
    /// ```
    NodeId
);
object_id!(
    /// Identifies a service.
    ServiceId
);
object_id!(
    /// Identifies a task: one attempt to run one slot of a service. The id is never reused, and the
    /// task never moves to another node.
    TaskId
);
object_id!(
    /// Identifies a network.
    NetworkId
);
object_id!(
    /// Identifies a secret or a config.
    DependencyId
);

/// A VXLAN network identifier (VNI) of a network: 24 bits (RFC 7348, section 5), and at least
/// [`crate::FIRST_VNI`].
///
/// ```
/// use weft_model::{FIRST_VNI, Vni};
///
/// let vni = Vni::new(FIRST_VNI).expect("the first VNI of a network");
/// assert_eq!(vni.get(), 4096);
///
/// assert_eq!(Vni::new(1), None); // reserved for published ports
/// assert_eq!(Vni::new(1 << 24), None); // more than 24 bits
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Vni(u32);

impl Vni {
    /// `None` if `raw` is reserved or needs more than 24 bits.
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

/// Identifies one service on one network in the maps of the data plane. Never reused. Zero means
/// "no service".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MeshServiceId(pub u32);

/// Identifies one task on one network in the maps of the data plane. Zero means "no backend".
///
/// Never reused: an id that a map does not contain belongs to a task that has ended. Less than
/// 2^40, because tunnelled packets carry it in their inner destination MAC address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BackendId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_made_from_random_bits_is_valid() {
        for random in [0, 1, 35, 36, u128::MAX] {
            let id = TaskId::from_random(random);
            assert_eq!(id.as_str().parse::<TaskId>(), Ok(id.clone()));
        }
    }

    #[test]
    fn refuses_text_that_is_not_an_id() {
        for text in ["", "short", "ABCDEFGHIJKLMNOPQRSTUVWXY", "abcdefghijklmnopqrstuvwxyz"] {
            assert_eq!(text.parse::<NodeId>(), Err(InvalidId(text.to_owned())));
        }
    }

    #[test]
    fn refuses_reserved_and_oversized_vnis() {
        assert_eq!(Vni::new(2), None);
        assert_eq!(Vni::new(1 << 24), None);
        assert_eq!(Vni::new(4096).map(Vni::get), Some(4096));
    }
}
