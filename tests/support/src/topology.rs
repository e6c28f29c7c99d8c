//! Creates the namespaces of the hosts and the switch between them, with iproute2. Only
//! [`crate::Lab`] and `cleanup` call it.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    contract::{self, BRIDGE, SECOND_BRIDGE, UNDERLAY},
    netns,
};

/// Whether a host is connected to the switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    Plugged,
    Unplugged,
}

/// Which of a host's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Those that it sends.
    FromHost,
    /// Those that are sent to it.
    ToHost,
}

/// Creates the switch with its namespace, and all hosts.
pub(crate) fn create(hosts: &[String]) -> Result<()> {
    add_namespace(UNDERLAY)?;
    let mut bridges: Vec<String> = [BRIDGE, SECOND_BRIDGE]
        .iter()
        .map(|bridge| format!("link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"))
        .collect();
    bridges.extend([BRIDGE, SECOND_BRIDGE].map(|bridge| format!("link set {bridge} up")));
    ip(Some(UNDERLAY), &bridges)?;
    hosts.iter().try_for_each(|host| add_host(host))
}

/// Creates the namespace of a host, and the veth pair that connects it to the switch.
pub(crate) fn add_host(host: &str) -> Result<()> {
    let namespace = contract::namespace(host);
    add_namespace(&namespace)?;
    let port = [
        format!("link add {host} type veth peer name eth0 netns {namespace}"),
        format!("link set {host} master {BRIDGE} up"),
    ];
    ip(Some(UNDERLAY), &port)?;
    let addresses = [
        "link set lo up".to_owned(),
        "link set eth0 up".to_owned(),
        format!("address add {}/24 dev eth0", contract::v4(host)),
        format!("address add {}/64 dev eth0 nodad", contract::v6(host)),
    ];
    ip(Some(&namespace), &addresses)
}

/// Removes what [`add_host`] has created. No process may be in the namespace.
pub(crate) fn remove_host(host: &str) -> Result<()> {
    // The kernel removes the links of a namespace some time after the namespace.
    ip(Some(UNDERLAY), &[format!("link delete {host}")])?;
    ip(None, &[format!("netns delete {}", contract::namespace(host))])
}

fn add_namespace(name: &str) -> Result<()> {
    ip(None, &[format!("netns add {name}")])?;
    let enabled = netns::within(&Path::new("/run/netns").join(name), || {
        // On some machines IPv6 is off in a new namespace.
        for scope in ["all", "default", "lo"] {
            fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "0")?;
        }
        Ok::<(), std::io::Error>(())
    })?;
    enabled.context("cannot enable IPv6 (net.ipv6.conf.all.disable_ipv6): boot the kernel with IPv6 enabled")
}

/// Connects a host to the switch, or disconnects it.
pub(crate) fn set_cable(host: &str, cable: Cable) -> Result<()> {
    let state = match cable {
        Cable::Plugged => "up",
        Cable::Unplugged => "down",
    };
    ip(Some(UNDERLAY), &[format!("link set {host} {state}")])
}

/// Connects these hosts to the second switch, and all others to the first.
pub(crate) fn divide(hosts: &[String], apart: &[&str]) -> Result<()> {
    let bridge = |host: &str| if apart.contains(&host) { SECOND_BRIDGE } else { BRIDGE };
    let lines: Vec<String> = hosts.iter().map(|host| format!("link set {host} master {}", bridge(host))).collect();
    ip(Some(UNDERLAY), &lines)
}

/// From now on, a host's frames of one direction are lost.
pub(crate) fn cut(host: &str, direction: Direction) -> Result<()> {
    let (namespace, link) = sender(host, direction);
    // No frame fits into this queue.
    run_tc(&namespace, &["qdisc", "add", "dev", &link, "root", "bfifo", "limit", "1b"])
}

/// Undoes [`cut`].
pub(crate) fn mend(host: &str, direction: Direction) -> Result<()> {
    let (namespace, link) = sender(host, direction);
    run_tc(&namespace, &["qdisc", "delete", "dev", &link, "root"])
}

/// The namespace and the link that send the frames of this direction.
fn sender(host: &str, direction: Direction) -> (String, String) {
    match direction {
        Direction::FromHost => (contract::namespace(host), "eth0".to_owned()),
        Direction::ToHost => (UNDERLAY.to_owned(), host.to_owned()),
    }
}

fn run_tc(namespace: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new("tc").args(["-n", namespace]).args(arguments).stdin(Stdio::null()).output();
    let output = output.context("cannot run `tc`: install the package iproute2, or run `cargo xtask setup`")?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "tc {} failed: {}", arguments.join(" "), error.trim());
    Ok(())
}

/// The path of the switch's namespace.
pub fn underlay_path() -> std::path::PathBuf {
    Path::new("/run/netns").join(UNDERLAY)
}

/// Runs lines of `ip` commands in one process. The first line that fails ends it.
pub(crate) fn ip(namespace: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run `ip`: install the package iproute2, or run `cargo xtask setup`")?;
    child.stdin.take().context("ip has no standard input")?.write_all((lines.join("\n") + "\n").as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!(
            "ip failed: {}\nThe commands were:\n{}",
            String::from_utf8_lossy(&output.stderr).trim(),
            lines.join("\n")
        );
    }
    Ok(())
}
