//! Kernel settings of a network namespace that all cases need, so that they are compared under the
//! same conditions.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use weft_lab::netns;

/// All ports that a client may use. The default range of 28,232 ports is used up soon when every
/// request opens a connection.
const ALL_PORTS: &str = "1024 65535";

/// Lets a client use all ports.
pub(super) fn widen_port_range(netns: &Path) -> Result<()> {
    sysctl(netns, "ipv4/ip_local_port_range", ALL_PORTS)
}

/// Stops netfilter from processing frames that bridges of this namespace forward. On some machines
/// that is on by default.
pub(super) fn disable_bridge_netfilter(netns: &Path) -> Result<()> {
    const KEYS: [&str; 3] = ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables"];
    let exists = |key: &&str| Path::new("/proc/sys/net/bridge").join(key).exists();
    KEYS.iter().filter(|key| exists(key)).try_for_each(|key| sysctl(netns, &format!("bridge/{key}"), "0"))
}

/// Writes a setting below /proc/sys/net.
pub(super) fn sysctl(netns: &Path, key: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys/net").join(key);
    netns::within(netns, || fs::write(&path, value))?.with_context(|| format!("cannot write {}", path.display()))
}
