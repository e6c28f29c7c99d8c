//! The part of a service's spec that says how its tasks look up names: the resolvers that are asked
//! for names outside of the cluster, the settings of the C library, and lines of `/etc/hosts`.
//!
//! The types here hold only values that can be written into a task's `/etc/resolv.conf` and
//! `/etc/hosts` as they are. They contain no space and no line break.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::newtype::string_newtype;

/// The greatest number of [`DnsConfig::name_servers`]: as many as the C library uses
/// (resolv.conf(5), MAXNS).
pub const MAX_NAME_SERVERS: usize = 3;

/// The greatest length of a domain name in octets, as text (RFC 1035, section 2.3.4).
const MAX_DOMAIN_LEN: usize = 253;
/// The greatest length of a part of a domain name in octets (RFC 1035, section 2.3.4).
const MAX_LABEL_LEN: usize = 63;
/// The options whose value is a number (resolv.conf(5)).
const NUMERIC_OPTIONS: [&str; 3] = ["ndots", "timeout", "attempts"];

/// How tasks look up names that are not names of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Resolvers that are asked instead of those of the node, from the network namespace of the
    /// task. At most [`MAX_NAME_SERVERS`]. Empty: the resolvers of the node.
    pub name_servers: Vec<IpAddr>,
    /// The search domains of the tasks. Empty: those of the node. Only [`SearchDomain::ROOT`]:
    /// none.
    pub search: Vec<SearchDomain>,
    /// Options of the tasks' resolv.conf. `ndots:0` is added if none of them is `ndots`.
    pub options: Vec<ResolverOption>,
}

string_newtype!(
    /// A domain that the C library appends to names (resolv.conf(5), `search`).
    SearchDomain,
    InvalidSearchDomain,
    |text| {
        let domain = text.strip_suffix('.').unwrap_or(text);
        if text == SearchDomain::ROOT || is_domain(domain) { Ok(()) } else { Err(InvalidSearchDomain(text.to_owned())) }
    }
);

impl SearchDomain {
    /// The root. As the only search domain it means that there are none, as in Docker.
    pub const ROOT: &str = ".";
}

/// Text that is not a search domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a search domain: give labels of letters, digits, '-' and '_' with dots between them, each label at \
     most 63 characters long, or \".\" for no search domain"
)]
pub struct InvalidSearchDomain(String);

string_newtype!(
    /// An option of the C library's resolver (resolv.conf(5), `options`), such as `timeout:2`.
    /// Libraries ignore options that they do not know.
    ResolverOption,
    InvalidResolverOption,
    |text| if is_option(text) { Ok(()) } else { Err(InvalidResolverOption(text.to_owned())) }
);

impl ResolverOption {
    /// The text before the colon.
    pub fn name(&self) -> &str {
        self.as_str().split(':').next().unwrap_or_default()
    }
}

/// Text that is not an option of resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an option of resolv.conf: give one word, such as rotate or timeout:2; ndots, timeout and attempts \
     need a number"
)]
pub struct InvalidResolverOption(String);

string_newtype!(
    /// A name in a hosts file. Underscores are allowed too, as in the names of services.
    HostName,
    InvalidHostEntry,
    |text| if is_domain(text) { Ok(()) } else { Err(InvalidHostEntry(text.to_owned())) }
);

/// A line of a hosts file (hosts(5)): an address and its names.
///
/// ```
/// use weft_model::spec::HostEntry;
///
/// let entry: HostEntry = "192.0.2.7  db.example.test db".parse()?;
/// assert_eq!(entry.to_string(), "192.0.2.7 db.example.test db");
/// assert_eq!(entry.names().count(), 2);
/// # Ok::<(), weft_model::spec::InvalidHostEntry>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    pub addr: IpAddr,
    pub name: HostName,
    pub aliases: Vec<HostName>,
}

impl HostEntry {
    /// The name and the aliases.
    pub fn names(&self) -> impl Iterator<Item = &HostName> {
        std::iter::once(&self.name).chain(&self.aliases)
    }
}

impl FromStr for HostEntry {
    type Err = InvalidHostEntry;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = || {
            let mut words = text.split([' ', '\t']).filter(|word| !word.is_empty());
            let addr = words.next()?.parse().ok()?;
            let name = words.next()?.parse().ok()?;
            Some(Self { addr, name, aliases: words.map(str::parse).collect::<Result<_, _>>().ok()? })
        };
        parsed().ok_or_else(|| InvalidHostEntry(text.to_owned()))
    }
}

impl fmt::Display for HostEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.addr)?;
        self.names().try_for_each(|name| write!(f, " {name}"))
    }
}

/// Text that is not a line of a hosts file, or not a name in one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an entry of a hosts file: give an address and one or more host names, such as \
     \"192.0.2.7 db.example.test db\""
)]
pub struct InvalidHostEntry(String);

fn is_domain(text: &str) -> bool {
    text.len() <= MAX_DOMAIN_LEN
        && text.split('.').all(|label| {
            (1..=MAX_LABEL_LEN).contains(&label.len())
                && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'_'))
        })
}

fn is_option(text: &str) -> bool {
    let (name, value) = text.split_once(':').map_or((text, None), |(name, value)| (name, Some(value)));
    let is_number = value.is_some_and(|value| value.parse::<u16>().is_ok());
    !name.is_empty()
        && text.bytes().all(|octet| octet.is_ascii_graphic())
        && (!NUMERIC_OPTIONS.contains(&name) || is_number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn search_domains_are_domains_or_the_root() {
        for good in ["corp.test", "corp.test.", ".", "a", "_tcp.my-corp.test"] {
            assert!(good.parse::<SearchDomain>().is_ok(), "{good}");
        }
        for bad in ["", "..", "a..b", ".test", "a b", "a\nb", "ä.test", &"a".repeat(64), &"a.".repeat(128)] {
            assert!(bad.parse::<SearchDomain>().is_err(), "{bad}");
        }
    }

    #[test]
    fn options_are_words_and_some_need_a_number() {
        for good in ["rotate", "ndots:0", "timeout:2", "attempts:1", "single-request", "future:x"] {
            assert!(good.parse::<ResolverOption>().is_ok(), "{good}");
        }
        for bad in ["", ":1", "ndots", "ndots:", "ndots:-1", "timeout:x", "a b", "a\nnameserver", "ndots:1 rotate"] {
            assert!(bad.parse::<ResolverOption>().is_err(), "{bad}");
        }
        assert_eq!("ndots:2".parse::<ResolverOption>().expect("an option").name(), "ndots");
    }

    #[test]
    fn a_hosts_entry_is_an_address_with_names() {
        let entry: HostEntry = "2001:DB8::7\tdb.test  db".parse().expect("an entry");
        assert_eq!(entry.to_string(), "2001:db8::7 db.test db");
        for bad in ["", "192.0.2.7", "db 192.0.2.7", "192.0.2.7 a\n192.0.2.8 b", "192.0.2.7 #a", "host-gateway a"] {
            let error = bad.parse::<HostEntry>().expect_err(bad).to_string();
            assert!(error.contains("192.0.2.7 db.example.test db"), "{error}");
        }
    }

    proptest! {
        /// A value can be written into a file of lines and words as it is.
        #[test]
        fn no_value_contains_a_space_or_a_line_break(text in "\\PC*|[ -~\\n\\t]{0,40}") {
            let is_word = |text: &str| !text.is_empty() && text.bytes().all(|octet| octet.is_ascii_graphic());
            if let Ok(domain) = text.parse::<SearchDomain>() {
                prop_assert!(is_word(domain.as_str()));
            }
            if let Ok(option) = text.parse::<ResolverOption>() {
                prop_assert!(is_word(option.as_str()));
            }
            if let Ok(entry) = text.parse::<HostEntry>() {
                prop_assert!(entry.names().all(|name| is_word(name.as_str())));
                prop_assert_eq!(entry.to_string().parse::<HostEntry>(), Ok(entry));
            }
        }
    }
}
