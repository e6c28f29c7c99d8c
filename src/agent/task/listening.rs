//! Whether a started task can take traffic yet: a program that runs has not always bound its ports.
//!
//! Owns the question and the patience. Reads /proc only; must not change anything.

use std::{fs, time::Duration};

use tokio::time::{Instant, sleep};
use weft_model::{NodePlan, plan::TaskPlan, spec::Protocol};

use crate::runtime::{reference::Reference, whoami};

/// A program that has not bound its published ports by then gets its traffic all the same, as it would elsewhere.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// `TCP_LISTEN` (net/tcp_states.h), as proc_net_tcp shows it.
const LISTEN: &str = "0A";

/// The wait for the listeners of one task.
pub(super) struct ListenCheck {
    /// A process in the task's network namespace. Without one the check ends at once.
    pub(super) pid: Option<u32>,
    pub(super) ports: Vec<u16>,
}

/// The TCP ports that a task is known to listen on, once it is ready: those that its service publishes.
pub(super) fn expected_ports(plan: &NodePlan, task: &TaskPlan) -> Vec<u16> {
    let meshes: Vec<_> = plan.services.iter().filter(|s| s.service == task.service).map(|s| s.mesh).collect();
    let published = plan.ports.iter().filter(|p| p.protocol == Protocol::Tcp && meshes.contains(&p.mesh));
    let built_in = Reference::parse(&task.container.image).is_whoami().then_some(whoami::HTTP_PORT);
    let mut ports: Vec<u16> = published.map(|p| p.target).chain(built_in).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

impl ListenCheck {
    /// Waits until the task listens on all ports, its process is gone, or the timeout is over. Cancel-safe.
    pub(super) async fn run(&self) {
        let Some(pid) = self.pid else { return };
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        while Instant::now() < deadline {
            let Ok(v4) = fs::read_to_string(format!("/proc/{pid}/net/tcp")) else { return };
            // The list is missing if the kernel has no IPv6.
            let v6 = fs::read_to_string(format!("/proc/{pid}/net/tcp6")).unwrap_or_default();
            if self.ports.iter().all(|port| listens(&v4, *port) || listens(&v6, *port)) {
                return;
            }
            sleep(POLL_INTERVAL).await;
        }
        tracing::warn!(pid, ports = ?self.ports, "task does not listen on its published ports, it gets traffic anyway");
    }
}

/// Whether a table of /proc/net/tcp or tcp6 has a listener on `port` that others can reach.
fn listens(table: &str, port: u16) -> bool {
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let Some((address, local_port)) = fields.next().and_then(|local| local.split_once(':')) else { return false };
        // Little-endian words: 127.0.0.0/8 ends with its first byte.
        let loopback = address.len() == 8 && address.ends_with("7F");
        fields.nth(1) == Some(LISTEN) && !loopback && u16::from_str_radix(local_port, 16) == Ok(port)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                         0: 0B00007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n\
                         1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1\n\
                         2: 0400000A:1F90 0500000A:C350 01 00000000:00000000 00:00000000 00000000     0        0 3 1\n";
    const V6: &str = "  sl  local_address                         remote_address                        st tx_queue\n\
                         0: 00000000000000000000000000000000:0007 00000000000000000000000000000000:0000 0A 00000000:00000000\n";

    #[test]
    fn only_a_reachable_listener_counts() {
        assert!(listens(V4, 80));
        assert!(!listens(V4, 53), "the task's own resolver is on loopback");
        assert!(!listens(V4, 8080), "a connection is no listener");
        assert!(listens(V6, 7));
        assert!(!listens("", 80));
    }
}
