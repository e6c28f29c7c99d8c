//! Checks what reaches hosts and tasks: which tasks answer, which datagrams arrive, and which names
//! resolve.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt::IpTransparent};
use rustix::net;

use super::Lab;
use crate::{Task, dns, http, speed::scaled, wait::try_eventually};

/// The time in which all running tasks of a service must answer at every node.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A socket that sends from an address that no link has. weft would take the address away from a
/// link of a task.
fn bind_foreign(source: Ipv4Addr) -> io::Result<UdpSocket> {
    let socket = net::socket_with(net::AddressFamily::INET, net::SocketType::DGRAM, net::SocketFlags::CLOEXEC, None)?;
    setsockopt(&socket, IpTransparent, &true)?;
    net::bind(&socket, &SocketAddrV4::new(source, 0))?;
    Ok(socket.into())
}

impl Lab {
    /// Waits until all these tasks answer a host: a task is running a moment before every node
    /// sends traffic to it. Then opens `count` connections, and returns how many each task
    /// answered.
    ///
    /// # Errors
    /// When not all tasks answer in time, when a connection fails, when other tasks than these
    /// answer, or when the number of a task differs from the mean by more than 20 %.
    pub fn check_even_spread(
        &self,
        host: &str,
        addr: SocketAddr,
        tasks: &[Task],
        count: usize,
    ) -> Result<BTreeMap<String, usize>> {
        let connect = |count| self.within(host, || http::answers_by_task(addr, count)).and_then(|answers| Ok(answers?));
        let expected: BTreeSet<String> = tasks.iter().map(Task::name).collect();
        try_eventually(ANSWER_TIMEOUT, &format!("all of {expected:?} answer {host} at {addr}"), || {
            let by_task = connect(tasks.len() * 4).map_err(|error| format!("{error:#}"))?;
            if by_task.keys().eq(&expected) { Ok(()) } else { Err(format!("{by_task:?}")) }
        })?;
        let by_task = connect(count).with_context(|| format!("{host} to {addr}"))?;
        let mean = count / tasks.len();
        let range = mean * 8 / 10..=mean * 12 / 10;
        let is_even = by_task.values().all(|answers| range.contains(answers));
        ensure!(by_task.keys().eq(&expected) && is_even, "{host} to {addr}, {count} connections: {by_task:?}");
        Ok(by_task)
    }

    /// The number of UDP datagrams that a task's kernel has received, for IPv4 or IPv6 (proc(5),
    /// net/snmp and net/snmp6).
    pub fn received_datagrams(&self, task: &Task, v4: bool) -> Result<u64> {
        let file = if v4 { "/proc/thread-self/net/snmp" } else { "/proc/thread-self/net/snmp6" };
        let text = self.within_task(task, || fs::read_to_string(file))??;
        let line = if v4 {
            // Two lines begin with "Udp:": the first has the names, the second the numbers.
            text.lines().filter_map(|line| line.strip_prefix("Udp: ")).nth(1)
        } else {
            text.lines().find_map(|line| line.strip_prefix("Udp6InDatagrams"))
        };
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.with_context(|| format!("no number of UDP datagrams in {file}"))?.parse()?)
    }

    /// The number of TCP segments that a task's kernel has refused because their timestamps are
    /// older than those of the connection that it remembers (proc(5), net/netstat).
    pub fn outdated_segments(&self, task: &Task) -> Result<u64> {
        let text = self.within_task(task, || fs::read_to_string("/proc/thread-self/net/netstat"))??;
        // Two lines begin with "TcpExt:": the first has the names, the second the numbers.
        let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt:"));
        let (names, numbers) = lines.next().zip(lines.next()).context("no TcpExt in net/netstat")?;
        let pairs = names.split_whitespace().zip(numbers.split_whitespace());
        // Which of the counters counts them depends on the version of the kernel.
        let outdated = pairs.filter(|(name, _)| name.starts_with("PAWS"));
        outdated.map(|(_, number)| Ok(number.parse::<u64>()?)).sum()
    }

    /// Whether a datagram that `send` sends arrives at a port of the task within the timeout,
    /// which is for a normal machine.
    pub fn datagram_arrives(
        &self,
        task: &Task,
        port: u16,
        timeout: Duration,
        send: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        let listener = self.within_task(task, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        listener.set_read_timeout(Some(scaled(timeout)))?;
        send()?;
        match listener.recv(&mut [0; 64]) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends one datagram from a task. With `source`, it has that source address, which the task
    /// does not have.
    pub fn send_datagram(&self, task: &Task, source: Option<Ipv4Addr>, to: SocketAddr) -> Result<()> {
        self.within_task(task, || -> io::Result<usize> {
            let socket = match source {
                Some(source) => bind_foreign(source)?,
                None => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
            };
            socket.send_to(b"hello", to)
        })??;
        Ok(())
    }

    /// The MAC address of a task on its first network.
    pub fn mac_of(&self, task: &Task) -> Result<[u8; 6]> {
        let text = self.exec_in_task_netns_ok(task, &["ip", "-oneline", "link", "show", "dev", "eth0"])?;
        let mac = text.split("link/ether ").nth(1).and_then(|after| after.split(' ').next());
        let mac = mac.with_context(|| format!("eth0 of {} has no MAC address", task.name()))?;
        let bytes: Result<Vec<u8>, _> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
        bytes?.try_into().ok().with_context(|| format!("{mac} has not 6 bytes"))
    }

    /// Asks the resolver inside of a task for a name.
    pub fn lookup(&self, task: &Task, name: &str, record: dns::RecordType) -> Result<dns::Answer> {
        self.within_task(task, || dns::lookup(dns::IN_TASK, name, record))?
    }
}
