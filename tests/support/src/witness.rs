//! What hosts and tasks see of the traffic: who answers how often, what arrives, what a name means.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{Lab, Task, dns, http};

impl Lab {
    /// How often each task answered `count` new connections from a host. An error unless every connection succeeded, these
    /// tasks answered and no others, and each had its share, within a fifth.
    pub fn spread_evenly(
        &self,
        host: &str,
        addr: SocketAddr,
        tasks: &[Task],
        count: usize,
    ) -> Result<BTreeMap<String, usize>> {
        let by_task = self.within(host, || http::spread(addr, count))?.with_context(|| format!("{host} to {addr}"))?;
        let expected: BTreeSet<String> = tasks.iter().map(Task::name).collect();
        let share = count / tasks.len();
        let even = share * 8 / 10..=share * 12 / 10;
        let fair = by_task.values().all(|answers| even.contains(answers));
        ensure!(by_task.keys().eq(&expected) && fair, "{host} to {addr}, {count} connections: {by_task:?}");
        Ok(by_task)
    }

    /// How many UDP datagrams a task's kernel has received, of one family (proc(5), net/snmp and net/snmp6).
    pub fn datagrams(&self, task: &Task, v4: bool) -> Result<u64> {
        let file = if v4 { "/proc/thread-self/net/snmp" } else { "/proc/thread-self/net/snmp6" };
        let text = self.within_task(task, || fs::read_to_string(file))??;
        let line = if v4 {
            // Two lines begin with "Udp:": the names, then the numbers.
            text.lines().filter_map(|line| line.strip_prefix("Udp: ")).nth(1)
        } else {
            text.lines().find_map(|line| line.strip_prefix("Udp6InDatagrams"))
        };
        let number = line.and_then(|line| line.split_whitespace().next()).context("no count of datagrams")?;
        Ok(number.parse()?)
    }

    /// Whether a datagram sent by `send` arrives at a port of the task.
    pub fn arrives(
        &self,
        task: &Task,
        port: u16,
        patience: Duration,
        send: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        let listener = self.within_task(task, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))??;
        listener.set_read_timeout(Some(patience))?;
        send()?;
        match listener.recv(&mut [0; 64]) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends one datagram from inside a task; with `source`, from an address that the task gave itself.
    pub fn send_from(&self, task: &Task, source: Option<Ipv4Addr>, to: SocketAddr) -> Result<()> {
        if let Some(source) = source {
            let output =
                self.exec_beside(task, &["ip", "address", "replace", &format!("{source}/32"), "dev", "eth0"])?;
            ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        self.within_task(task, || {
            let socket = UdpSocket::bind((source.unwrap_or(Ipv4Addr::UNSPECIFIED), 0))?;
            socket.send_to(b"hello", to)
        })??;
        Ok(())
    }

    /// The link address of a task on its first network.
    pub fn mac_of(&self, task: &Task) -> Result<[u8; 6]> {
        let output = self.exec_beside(task, &["ip", "-oneline", "link", "show", "dev", "eth0"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mac =
            text.split("link/ether ").nth(1).and_then(|rest| rest.split(' ').next()).context("no link address")?;
        let bytes: Result<Vec<u8>, _> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
        bytes?.try_into().ok().context("six bytes")
    }

    /// Asks the resolver inside a task.
    pub fn ask(&self, task: &Task, name: &str, record: dns::RecordType) -> Result<dns::Answer> {
        self.within_task(task, || dns::lookup(dns::IN_TASK, name, record))?
    }
}
