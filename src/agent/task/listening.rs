//! Checks whether a started task accepts connections yet: a program may run for some time before it
//! listens on its ports.
//!
//! [`super::run`] runs the check as the step after a task's start. After the check, the task counts
//! as running and gets traffic. It only reads /proc.

use std::{net::IpAddr, time::Duration};

use procfs::{
    ProcError, ProcResult,
    net::{TcpNetEntry, TcpState},
    process::Process,
};
use tokio::time::{Instant, sleep};
use weft_model::{NodePlan, plan::TaskPlan, spec::Protocol};

use crate::runtime::{reference::Reference, whoami};

/// After this time a task gets traffic even if it does not listen. Swarm mode does not wait for
/// ports at all.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Interval between two polls. A poll reads both socket lists, for which the kernel walks its hash
/// table of all connections. With 262,144 buckets a poll takes 2.4 ms with 10 sockets in the
/// namespace and 15 ms with 5,000, nearly all of it in the kernel.
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// The wait for the listeners of one task.
pub(super) struct ListenCheck {
    /// A process in the task's network namespace. Without a process the check ends at once.
    pub(super) pid: Option<u32>,
    pub(super) ports: Vec<u16>,
}

/// The TCP ports that a task must listen on before it gets traffic: those that its service
/// publishes, and for the built-in image the port of its HTTP server.
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
    /// Waits until the task listens on all ports, its process has ended, or the timeout is over.
    /// Cancel-safe.
    pub(super) async fn run(&self) {
        let Some(pid) = self.pid else { return };
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        while Instant::now() < deadline {
            match tcp_sockets(pid) {
                Ok(sockets) if self.ports.iter().all(|port| listens(&sockets, *port)) => return,
                Ok(_) => sleep(POLL_INTERVAL).await,
                Err(ProcError::NotFound(_)) => return,
                Err(error) => {
                    tracing::warn!(pid, %error, "cannot read the task's TCP sockets, it gets traffic without a check");
                    return;
                }
            }
        }
        tracing::warn!(pid, ports = ?self.ports, "task does not listen on its published ports, it gets traffic anyway");
    }
}

/// The TCP sockets in the network namespace of a process.
fn tcp_sockets(pid: u32) -> ProcResult<Vec<TcpNetEntry>> {
    let process = Process::new(pid.cast_signed())?;
    let mut sockets = process.tcp()?;
    // The list is missing if the kernel has no IPv6.
    sockets.extend(process.tcp6().unwrap_or_default());
    Ok(sockets)
}

/// Whether one of the sockets listens on `port` for clients outside of the namespace. A socket in
/// 127.0.0.0/8 does not count, because they cannot reach it; the task's resolver listens there.
fn listens(sockets: &[TcpNetEntry], port: u16) -> bool {
    sockets.iter().any(|socket| {
        let local = socket.local_address;
        let loopback = matches!(local.ip(), IpAddr::V4(ip) if ip.is_loopback());
        socket.state == TcpState::Listen && !loopback && local.port() == port
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use procfs::{FromReadSI as _, current_system_info, net::TcpNetEntries};

    use super::*;

    const V4: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                         0: 0B00007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n\
                         1: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1\n\
                         2: 0400000A:1F90 0500000A:C350 01 00000000:00000000 00:00000000 00000000     0        0 3 1\n";
    const V6: &str = "  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                         0: 00000000000000000000000000000000:0007 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1\n";

    fn sockets(text: &str) -> Vec<TcpNetEntry> {
        let entries = TcpNetEntries::from_read(text.as_bytes(), current_system_info());
        entries.expect("a list of sockets as the kernel writes it").0
    }

    #[test]
    fn only_a_listener_that_other_hosts_can_reach_counts() {
        assert!(listens(&sockets(V4), 80));
        assert!(!listens(&sockets(V4), 53), "the task's own resolver is on loopback");
        assert!(!listens(&sockets(V4), 8080), "a connection is not a listener");
        assert!(listens(&sockets(V6), 7));
        assert!(!listens(&[], 80));
    }

    #[test]
    fn finds_the_listeners_of_a_process() {
        let listener = TcpListener::bind("0.0.0.0:0").expect("a free port");
        let port = listener.local_addr().expect("a bound socket has an address").port();
        let client = TcpStream::connect(("127.0.0.1", port)).expect("the listener accepts connections");
        let sockets = tcp_sockets(std::process::id()).expect("this process is readable in /proc");
        assert!(listens(&sockets, port));
        let client_port = client.local_addr().expect("a connected socket has an address").port();
        assert!(!listens(&sockets, client_port), "a connection is not a listener");
    }

    #[tokio::test]
    async fn the_check_ends_with_the_process() {
        // No process has this id: it is above the kernel's limit (proc_sys_kernel(5), pid_max).
        let check = ListenCheck { pid: Some(i32::MAX.cast_unsigned()), ports: vec![80] };
        tokio::time::timeout(LISTEN_TIMEOUT / 2, check.run()).await.expect("there is nothing to wait for");
    }
}
