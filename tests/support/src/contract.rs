//! The names and addresses that a lab is made of. Tests and tools outside rely on them: they do not change.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// The host that is no node: where requests come from.
pub const CLIENT: &str = "client";
/// Namespace of the switch that joins all hosts. It has one of its own, so that no firewall of the machine sees a frame.
pub const UNDERLAY: &str = "weft-ul";
pub const BRIDGE: &str = "weft-br";

/// All that a lab writes outside of the nodes' data directories.
pub const RUN: &str = "/run/weft";
pub const LAB_RUN: &str = "/run/weft/lab";
pub const LAB_DATA: &str = "/var/lib/weft/lab";
pub const PINS: &str = "/sys/fs/bpf/weft";

/// The largest number of nodes: addresses below the client's.
pub const MAX_NODES: usize = 99;
const CLIENT_OCTET: u8 = 100;

/// The one name that the lab's upstream resolver knows, and its records.
pub const OUTSIDE_NAME: &str = "example.test";
pub const OUTSIDE_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
pub const OUTSIDE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);
pub const OUTSIDE_TEXT: &str = "the world outside";

/// `n1`, `n2`, …: the name of node `index`, counted from 1.
pub fn node(index: usize) -> String {
    format!("n{index}")
}

/// Whether a name is one that the lab gives to nodes.
pub fn is_node(name: &str) -> bool {
    name.strip_prefix('n')
        .is_some_and(|digits| (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The network namespace of a node or of the client.
pub fn namespace(host: &str) -> String {
    format!("weft-{host}")
}

pub fn namespace_path(host: &str) -> PathBuf {
    Path::new("/run/netns").join(namespace(host))
}

fn octet(host: &str) -> u8 {
    if host == CLIENT {
        return CLIENT_OCTET;
    }
    host.strip_prefix('n').and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no host of a lab: {host:?}"))
}

/// A host's address on the underlay. Panics on a name that is no host's: a mistake in the test.
pub fn v4(host: &str) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, octet(host))
}

/// As [`v4`]. The node's number stands in the address as it reads: n3 is `2001:db8::3`, the client `2001:db8::100`.
pub fn v6(host: &str) -> Ipv6Addr {
    let digits = u16::from_str_radix(&octet(host).to_string(), 16).expect("decimal digits are hexadecimal digits");
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, digits)
}

pub fn addrs(host: &str) -> [IpAddr; 2] {
    [v4(host).into(), v6(host).into()]
}

/// Where the lab's upstream resolver listens.
pub fn upstream() -> SocketAddr {
    (v4(CLIENT), 53).into()
}

pub fn socket(node: &str) -> PathBuf {
    Path::new(LAB_RUN).join(format!("{node}.sock"))
}

pub fn log(node: &str) -> PathBuf {
    Path::new(LAB_RUN).join(format!("{node}.log"))
}

pub fn pid_file(node: &str) -> PathBuf {
    Path::new(LAB_RUN).join(format!("{node}.pid"))
}

/// Exists while a lab is left up for people.
pub fn kept_file() -> PathBuf {
    Path::new(LAB_RUN).join("kept")
}

pub fn run_dir(node: &str) -> PathBuf {
    Path::new(RUN).join(node)
}

pub fn data_dir(node: &str) -> PathBuf {
    Path::new(LAB_DATA).join(node)
}

/// The network namespace of a task of the process runtime.
pub fn task_namespace(node: &str, task: &str) -> PathBuf {
    run_dir(node).join("tasks").join(task).join("netns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_their_hosts() {
        assert_eq!(v4("n2").to_string(), "192.0.2.2");
        assert_eq!(v6("n12").to_string(), "2001:db8::12");
        assert_eq!(v4(CLIENT).to_string(), "192.0.2.100");
        assert_eq!(v6(CLIENT).to_string(), "2001:db8::100");
    }

    #[test]
    fn only_the_labs_nodes_are_its_own() {
        for (name, expected) in
            [("n1", true), ("n42", true), ("n", false), ("n1x", false), ("node1", false), ("n123", false)]
        {
            assert_eq!(is_node(name), expected, "{name}");
        }
    }
}
