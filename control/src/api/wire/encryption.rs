//! Converts to JSON how a node encrypts. The forms of a node and of `info` contain it.

use serde_json::{Value, json};
use weft_model::wireguard::{EncryptionSupport, NodeKey};

use super::values::set;

/// `Path` is `kernel`, `userspace` or `unavailable`. Only the last one has a `Reason`.
pub(crate) fn show(support: &EncryptionSupport, keys: &[Value]) -> Value {
    let (path, reason) = match support {
        EncryptionSupport::Kernel => ("kernel", None),
        EncryptionSupport::UserSpace => ("userspace", None),
        EncryptionSupport::Unavailable(reason) => ("unavailable", Some(reason)),
    };
    let mut shown = json!({"Path": path, "Keys": keys});
    if let Some(reason) = reason {
        set(&mut shown, "Reason", json!(reason));
    }
    shown
}

pub(crate) fn show_key(key: &NodeKey) -> Value {
    json!({"PublicKey": key.public_key.to_string(), "Port": key.port})
}
