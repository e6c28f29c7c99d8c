//! The flags of `service create` and `service update` that say how the tasks look up names, and the
//! fields of a spec that these flags set.

use std::net::IpAddr;

use clap::Args;
use serde_json::{Value, json};

use super::lists::{change_list, items};

/// The flags of `service create`.
#[derive(Debug, Args)]
pub(super) struct Lookup {
    /// Resolver that the tasks use for names outside of the cluster, instead of those of the node,
    /// as an address; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<IpAddr>,
    /// Search domain of the tasks, instead of those of the node; \".\" for none; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Option of the tasks' resolv.conf, such as timeout:2; may be repeated
    #[arg(long, value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Host name to add to the hosts file of the tasks, with its address, as NAME:ADDRESS; may be
    /// repeated
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = host)]
    host: Vec<Host>,
}

impl Lookup {
    pub(super) fn apply(&self, container: &mut Value) {
        container["DNSConfig"] = json!({
            "Nameservers": self.dns,
            "Search": self.dns_search,
            "Options": self.dns_option,
        });
        container["Hosts"] = self.host.iter().map(Host::entry).collect();
    }
}

/// The flags of `service update`.
#[derive(Debug, Args)]
pub(super) struct LookupChanges {
    /// Resolver to use for names outside of the cluster, as an address; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    dns_add: Vec<IpAddr>,
    /// Resolver to remove; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    dns_rm: Vec<IpAddr>,
    /// Search domain to add; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    dns_search_add: Vec<String>,
    /// Search domain to remove; may be repeated
    #[arg(long, value_name = "DOMAIN")]
    dns_search_rm: Vec<String>,
    /// Option of resolv.conf to add; may be repeated
    #[arg(long, value_name = "OPTION")]
    dns_option_add: Vec<String>,
    /// Option of resolv.conf to remove, written as it was added; may be repeated
    #[arg(long, value_name = "OPTION")]
    dns_option_rm: Vec<String>,
    /// Host name to add to the hosts file, with its address, as NAME:ADDRESS; may be repeated
    #[arg(long, value_name = "NAME:ADDRESS", value_parser = host)]
    host_add: Vec<Host>,
    /// Host name to remove from the hosts file, as NAME, or as NAME:ADDRESS to remove it for one
    /// address only; may be repeated
    #[arg(long, value_name = "NAME[:ADDRESS]", value_parser = removed_host)]
    host_rm: Vec<RemovedHost>,
}

impl LookupChanges {
    pub(super) fn apply(&self, container: &mut Value) {
        let texts = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        let dns = &mut container["DNSConfig"];
        change_list(&mut dns["Nameservers"], &texts(&self.dns_add), &texts(&self.dns_rm));
        change_list(&mut dns["Search"], &self.dns_search_add, &self.dns_search_rm);
        change_list(&mut dns["Options"], &self.dns_option_add, &self.dns_option_rm);
        change_hosts(&mut container["Hosts"], &self.host_add, &self.host_rm);
    }
}

/// A host name and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Host {
    name: String,
    address: IpAddr,
}

impl Host {
    /// In the form of the API, which is that of a line of a hosts file.
    fn entry(&self) -> Value {
        format!("{} {}", self.address, self.name).into()
    }
}

/// Reads `NAME:ADDRESS` or `NAME=ADDRESS`. An IPv6 address may have brackets.
fn host(text: &str) -> Result<Host, String> {
    let (name, address) = text
        .split_once('=')
        .or_else(|| text.split_once(':'))
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| format!("{text:?} is not a host name with an address: give NAME:ADDRESS"))?;
    let plain = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    let address = plain.parse().map_err(|_| format!("{address:?} is not an IP address: give NAME:ADDRESS"))?;
    Ok(Host { name: name.to_owned(), address })
}

/// A host name that is removed, for one address or for all.
#[derive(Debug, Clone, PartialEq, Eq)]
struct RemovedHost {
    name: String,
    address: Option<IpAddr>,
}

fn removed_host(text: &str) -> Result<RemovedHost, String> {
    if text.contains([':', '=']) {
        return host(text).map(|Host { name, address }| RemovedHost { name, address: Some(address) });
    }
    Ok(RemovedHost { name: text.to_owned(), address: None })
}

/// Adds entries, and removes names from entries. An entry without a name is removed.
fn change_hosts(value: &mut Value, add: &[Host], remove: &[RemovedHost]) {
    if add.is_empty() && remove.is_empty() {
        return;
    }
    let items = items(value);
    items.retain_mut(|item| {
        let mut words = item.as_str().unwrap_or_default().split_whitespace();
        let address = words.next().unwrap_or_default();
        let is_removed = |name: &str| {
            remove
                .iter()
                .any(|host| host.name == name && host.address.is_none_or(|removed| address.parse() == Ok(removed)))
        };
        let names: Vec<&str> = words.filter(|name| !is_removed(name)).collect();
        let keep = !names.is_empty();
        *item = format!("{address} {}", names.join(" ")).into();
        keep
    });
    for entry in add.iter().map(Host::entry) {
        if !items.contains(&entry) {
            items.push(entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_host_with_an_address_of_either_family() {
        for (text, name, address) in [
            ("db:192.0.2.7", "db", "192.0.2.7"),
            ("db=192.0.2.7", "db", "192.0.2.7"),
            ("db:2001:db8::7", "db", "2001:db8::7"),
            ("db:[2001:db8::7]", "db", "2001:db8::7"),
            ("db=::1", "db", "::1"),
        ] {
            let address: IpAddr = address.parse().expect("an address");
            assert_eq!(host(text), Ok(Host { name: name.to_owned(), address }), "{text}");
            let removed = RemovedHost { name: name.to_owned(), address: Some(address) };
            assert_eq!(removed_host(text), Ok(removed), "{text}");
        }
        for text in ["db", ":192.0.2.7", "db:", "db:host-gateway", "192.0.2.7:db"] {
            assert!(host(text).is_err_and(|error| error.contains("give NAME:ADDRESS")), "{text}");
        }
    }

    #[test]
    fn hosts_are_removed_by_name_or_by_name_and_address() {
        let check = |remove: &[&str], add: &[&str], expected: &[&str]| {
            let mut hosts = json!(["192.0.2.7 db db.test", "192.0.2.8 db", "2001:db8::7 six"]);
            let remove: Vec<_> = remove.iter().map(|text| removed_host(text).expect("a host")).collect();
            let add: Vec<_> = add.iter().map(|text| host(text).expect("a host")).collect();
            change_hosts(&mut hosts, &add, &remove);
            assert_eq!(hosts, json!(expected), "{remove:?}, {add:?}");
        };
        check(&["db"], &[], &["192.0.2.7 db.test", "2001:db8::7 six"]);
        check(&["db:192.0.2.8", "six"], &[], &["192.0.2.7 db db.test"]);
        check(
            &["six:2001:DB8:0::7", "db.test:192.0.2.8"],
            &["six:192.0.2.8"],
            &["192.0.2.7 db db.test", "192.0.2.8 db", "192.0.2.8 six"],
        );
        let all = ["192.0.2.7 db db.test", "192.0.2.8 db", "2001:db8::7 six"];
        check(&[], &["db:192.0.2.8", "six=[2001:db8::7]"], &all);
    }

    #[test]
    fn a_change_keeps_the_other_settings() {
        let changes = LookupChanges {
            dns_add: vec![IpAddr::from([192, 0, 2, 2])],
            dns_rm: vec![IpAddr::from([192, 0, 2, 1])],
            dns_search_add: vec![],
            dns_search_rm: vec!["a.test".to_owned()],
            dns_option_add: vec!["rotate".to_owned()],
            dns_option_rm: vec![],
            host_add: vec![],
            host_rm: vec![],
        };
        let mut container = json!({
            "DNSConfig": {"Nameservers": ["192.0.2.1", "192.0.2.3"], "Search": ["a.test", "b.test"]},
            "Hosts": ["192.0.2.7 db"],
        });
        changes.apply(&mut container);
        assert_eq!(
            container,
            json!({
                "DNSConfig": {
                    "Nameservers": ["192.0.2.3", "192.0.2.2"], "Search": ["b.test"], "Options": ["rotate"],
                },
                "Hosts": ["192.0.2.7 db"],
            })
        );
    }
}
