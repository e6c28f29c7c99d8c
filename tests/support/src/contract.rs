//! The names, addresses and paths of a lab. Tests, and tools outside of this repository, rely on
//! them: they must not change.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
};

/// The host that is not a node. Requests from outside of the cluster come from it.
pub const CLIENT: &str = "client";
/// The namespace of the switch that connects all hosts. The switch is not in the machine's own
/// namespace, so that no firewall of the machine filters its frames.
pub const UNDERLAY: &str = "weft-ul";
pub const BRIDGE: &str = "weft-br";
/// A second switch in the same namespace. Hosts that are connected to it are cut off from the
/// others.
pub const SECOND_BRIDGE: &str = "weft-br2";

/// The folder of the nodes' run directories. Outside of the nodes' data directories, a lab writes
/// only below this folder.
pub const RUN: &str = "/run/weft";
pub const LAB_RUN: &str = "/run/weft/lab";
pub const LAB_DATA: &str = "/var/lib/weft/lab";
pub const PINS: &str = "/sys/fs/bpf/weft";

/// The largest number of nodes: their addresses end before the client's.
pub const MAX_NODES: usize = 99;
const CLIENT_OCTET: u8 = 100;

/// The only name that the lab's upstream resolver resolves, and its records.
pub const EXTERNAL_NAME: &str = "example.test";
pub const EXTERNAL_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
pub const EXTERNAL_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x50);
pub const EXTERNAL_TEXT: &str = "an external name";

/// The name of node `index`, counted from 1: `n1`, `n2`, …
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
    host.strip_prefix('n')
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("{host:?} is not the name of a host in a lab"))
}

/// The IPv4 address of a host on the underlay.
///
/// # Panics
/// On a name that is not a host's: the test is wrong.
pub fn v4(host: &str) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, octet(host))
}

/// The IPv6 address of a host on the underlay. The decimal digits of the host's number are the last
/// group of the address: n3 is `2001:db8::3`, and the client is `2001:db8::100`.
///
/// # Panics
/// On a name that is not a host's: the test is wrong.
pub fn v6(host: &str) -> Ipv6Addr {
    let digits = u16::from_str_radix(&octet(host).to_string(), 16).expect("decimal digits are hexadecimal digits");
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, digits)
}

pub fn addrs(host: &str) -> [IpAddr; 2] {
    [v4(host).into(), v6(host).into()]
}

/// The address of the lab's upstream resolver.
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

/// This file exists while the lab is left up for a user.
pub fn in_use_file() -> PathBuf {
    Path::new(LAB_RUN).join("in-use")
}

pub fn run_dir(node: &str) -> PathBuf {
    Path::new(RUN).join(node)
}

pub fn data_dir(node: &str) -> PathBuf {
    Path::new(LAB_DATA).join(node)
}

/// The control group of a node's tasks, in each hierarchy.
pub fn cgroup(node: &str) -> String {
    format!("/weft/{node}")
}

/// The directory of a node's container engine, which has its socket, its log and its state.
pub fn engine_dir(node: &str) -> PathBuf {
    Path::new(LAB_RUN).join(node)
}

pub fn engine_socket(node: &str) -> PathBuf {
    engine_dir(node).join("docker.sock")
}

pub fn engine_pid_file(node: &str) -> PathBuf {
    engine_dir(node).join("dockerd.pid")
}

/// The directory that a node's container engine sees as `/run/docker/plugins`. The engine finds the
/// sockets of its plugins there.
pub fn engine_plugins(node: &str) -> PathBuf {
    engine_dir(node).join("docker-plugins")
}

/// The network namespace of a task of the process runtime.
pub fn task_namespace(node: &str, task: &str) -> PathBuf {
    run_dir(node).join("tasks").join(task).join("netns")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_end_with_the_number_of_the_host() {
        assert_eq!(v4("n2").to_string(), "192.0.2.2");
        assert_eq!(v6("n12").to_string(), "2001:db8::12");
        assert_eq!(v4(CLIENT).to_string(), "192.0.2.100");
        assert_eq!(v6(CLIENT).to_string(), "2001:db8::100");
    }

    #[test]
    fn names_of_nodes_are_recognized() {
        for (name, expected) in
            [("n1", true), ("n42", true), ("n", false), ("n1x", false), ("node1", false), ("n123", false)]
        {
            assert_eq!(is_node(name), expected, "{name}");
        }
    }
}
