//! Creates the namespaces of the hosts and the switch between them, with iproute2. Only
//! [`crate::Lab`] and `cleanup` call it.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

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

/// Creates the namespaces, the bridge, and one veth pair for each host.
pub(crate) fn create(hosts: &[String]) -> Result<()> {
    let names = hosts.iter().map(|host| contract::namespace(host)).chain([UNDERLAY.to_owned()]);
    let adds: Vec<String> = names.map(|name| format!("netns add {name}")).collect();
    ip(None, &adds)?;
    for namespace in hosts.iter().map(|host| contract::namespace_path(host)).chain([underlay_path()]) {
        let enabled = netns::within(&namespace, || {
            // On some machines IPv6 is off in a new namespace.
            for scope in ["all", "default", "lo"] {
                fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "0")?;
            }
            Ok::<(), std::io::Error>(())
        })?;
        enabled.context("cannot enable IPv6 (net.ipv6.conf.all.disable_ipv6): boot the kernel with IPv6 enabled")?;
    }

    let mut underlay: Vec<String> = [BRIDGE, SECOND_BRIDGE]
        .iter()
        .map(|bridge| format!("link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"))
        .collect();
    for host in hosts {
        let namespace = contract::namespace(host);
        underlay.push(format!("link add {host} type veth peer name eth0 netns {namespace}"));
        underlay.push(format!("link set {host} master {BRIDGE} up"));
    }
    underlay.extend([BRIDGE, SECOND_BRIDGE].map(|bridge| format!("link set {bridge} up")));
    ip(Some(UNDERLAY), &underlay)?;

    for host in hosts {
        let addresses = [
            "link set lo up".to_owned(),
            "link set eth0 up".to_owned(),
            format!("address add {}/24 dev eth0", contract::v4(host)),
            format!("address add {}/64 dev eth0 nodad", contract::v6(host)),
        ];
        ip(Some(&contract::namespace(host)), &addresses)?;
    }
    Ok(())
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
