//! The routing mesh: published ports answer on every node.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Task, contract, http};

use super::{
    CONNECTIONS, PORT, UDP_PORT,
    show::{counts, outcome, show_exec},
};
use crate::ui::Ui;

/// The time limit for a datagram and its answer.
const UDP_TIMEOUT: Duration = Duration::from_secs(2);
/// Enough requests that every task answers one of them.
const REQUESTS: usize = 12;

/// Sends requests and datagrams to every node. Returns their number.
pub(super) fn use_published_ports(ui: &Ui, lab: &Lab, tasks: &[Task]) -> Result<usize> {
    show_exec(lab, CLIENT, &["curl", "-sS", "-m", "5", &format!("http://{}:{PORT}/", contract::v4("n1"))])?;
    let mut total = 0;
    for addr in lab.published(PORT) {
        let what = format!("{CONNECTIONS} connections to {addr}");
        let by_task = ui.step_without_result(&what, |_| lab.check_even_spread(CLIENT, addr, tasks, CONNECTIONS))?;
        let client = check_client_address(lab, addr)?;
        outcome(&what, &format!("{}   client address {client}", counts(&by_task)));
        total += CONNECTIONS;
    }
    for addr in lab.published(UDP_PORT) {
        let what = format!("{CONNECTIONS} datagrams to {addr}");
        let by_task = ui.step_without_result(&what, |_| send_datagrams(lab, addr, tasks))?;
        outcome(&what, &counts(&by_task));
        total += CONNECTIONS;
    }
    for node in lab.nodes() {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        for ip in loopback.into_iter().chain(contract::addrs(&node)) {
            lab.check_even_spread(&node, SocketAddr::new(ip, PORT), tasks, CONNECTIONS / 10)?;
            let echo = lab.within(&node, || http::udp((ip, UDP_PORT).into(), b"hello", UDP_TIMEOUT))?;
            ensure!(echo.with_context(|| format!("UDP from {node} to {ip}"))? == b"hello", "wrong echo from {ip}");
        }
        let what = format!("{node} to its localhost and its own addresses");
        outcome(&what, "all four answer, TCP and UDP");
    }
    Ok(total)
}

/// The client's address as the tasks see it. An error when it is not the client's own.
fn check_client_address(lab: &Lab, addr: SocketAddr) -> Result<IpAddr> {
    let own = contract::addrs(CLIENT).into_iter().find(|own| own.is_ipv4() == addr.is_ipv4());
    let own = own.context("the client has an address of each family")?;
    for _ in 0..REQUESTS {
        let peer = lab.get(CLIENT, addr, "/")?.peer.context("the reply has no peer")?.ip();
        ensure!(peer == own, "a task behind {addr} saw {peer} instead of {own}");
    }
    Ok(own)
}

/// Sends datagrams from the client, and returns how many each task received.
///
/// # Errors
/// When a datagram is not echoed, or the numbers differ from their mean by more than 20 %.
fn send_datagrams(lab: &Lab, addr: SocketAddr, tasks: &[Task]) -> Result<BTreeMap<String, usize>> {
    let count = |task: &Task| lab.received_datagrams(task, addr.is_ipv4());
    let before = tasks.iter().map(count).collect::<Result<Vec<_>>>()?;
    lab.within(CLIENT, || {
        (0..CONNECTIONS).try_for_each(|number| {
            let payload = number.to_string();
            let answer = http::udp(addr, payload.as_bytes(), UDP_TIMEOUT).with_context(|| format!("to {addr}"))?;
            ensure!(answer == payload.as_bytes(), "{addr} echoed {answer:?} instead of {payload}");
            Ok(())
        })
    })??;
    let mut by_task = BTreeMap::new();
    for (task, before) in tasks.iter().zip(before) {
        by_task.insert(task.name(), usize::try_from(count(task)? - before)?);
    }
    let mean = CONNECTIONS / tasks.len();
    let range = mean * 8 / 10..=mean * 12 / 10;
    ensure!(by_task.values().all(|count| range.contains(count)), "uneven at {addr}: {by_task:?}");
    Ok(by_task)
}
