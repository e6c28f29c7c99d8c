//! Types for the names of services, networks and nodes. A value is always a valid name.

use crate::newtype::string_newtype;

/// Greatest length of a name in bytes: that of a DNS label (RFC 1035, section 2.3.4).
pub const MAX_NAME_LEN: usize = 63;

/// Text that cannot be used as a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name:?} is not a valid {kind} name: use 1 to {MAX_NAME_LEN} letters, digits, '-', '_' or '.', beginning and ending with a letter or digit"
)]
pub struct InvalidName {
    pub kind: &'static str,
    pub name: String,
}

/// Checks a name that becomes one DNS label.
fn check_label(kind: &'static str, name: &str) -> Result<(), InvalidName> {
    if name.contains('.') { Err(InvalidName { kind, name: name.to_owned() }) } else { check_name(kind, name) }
}

/// Checks a name that may consist of several DNS labels.
fn check_name(kind: &'static str, name: &str) -> Result<(), InvalidName> {
    let is_edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    let valid = (1..=MAX_NAME_LEN).contains(&bytes.len())
        && is_edge(bytes.first())
        && is_edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if valid { Ok(()) } else { Err(InvalidName { kind, name: name.to_owned() }) }
}

string_newtype!(
    /// The name of a service. Unique in the cluster, regardless of case. It is a DNS label, and the
    /// first part of the names of the service's tasks.
    ///
    /// ```
    /// use weft_model::ServiceName;
    ///
    /// let name: ServiceName = "whoami".parse().expect("a valid service name");
    /// assert_eq!(name.as_str(), "whoami");
    ///
    /// let error = "who.am.i".parse::<ServiceName>().expect_err("a dot separates DNS labels");
    /// assert!(error.to_string().starts_with("\"who.am.i\" is not a valid service name"));
    /// ```
    ServiceName,
    InvalidName,
    |name| check_label("service", name)
);
string_newtype!(
    /// The name of a network. Unique in the cluster, regardless of case.
    NetworkName,
    InvalidName,
    |name| check_name("network", name)
);
string_newtype!(
    /// The name of a node: its host name. Several nodes may have the same one.
    NodeName,
    InvalidName,
    |name| check_name("node", name)
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_valid_names_and_refuses_others() {
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
