//! Reads the resolvers of this machine from `/etc/resolv.conf`. [`super::args`] calls it if no
//! resolver is given as a flag.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use crate::runtime::identity;

/// Port of DNS servers (RFC 1035, section 4.2).
pub(super) const PORT: u16 = 53;
/// See resolv.conf(5).
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The resolvers that this machine uses. Empty if the file cannot be read.
pub(super) fn of_machine() -> Vec<SocketAddr> {
    nameservers(&fs::read_to_string(RESOLV_CONF).unwrap_or_default())
}

/// The addresses in `nameserver` lines. The tasks' own resolver is left out, because it would
/// forward requests to itself.
fn nameservers(resolv_conf: &str) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .filter_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .filter(|ip| *ip != identity::RESOLVER)
        .map(|ip| SocketAddr::new(ip, PORT))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(file: &str, expected: &[&str]) {
        let expected: Vec<SocketAddr> = expected.iter().map(|text| text.parse().expect("an address")).collect();
        assert_eq!(nameservers(file), expected);
    }

    #[test]
    fn reads_the_nameservers_of_resolv_conf() {
        check(
            "# a comment\nsearch example.test\nnameserver 192.0.2.1\nnameserver 2001:db8::1\noptions ndots:1\n",
            &["192.0.2.1:53", "[2001:db8::1]:53"],
        );
    }

    #[test]
    fn leaves_out_the_resolver_of_the_tasks() {
        check("nameserver 127.0.0.11\nnameserver 127.0.0.53\n", &["127.0.0.53:53"]);
        check("nameserver 127.0.0.11\n", &[]);
    }
}
