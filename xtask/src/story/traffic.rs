//! The routing mesh: a published port on every node.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{CLIENT, Lab, Task, contract, http};

use super::{
    CONNECTIONS, PORT, UDP_PORT,
    stage::{counts, outcome, show_exec},
};
use crate::ui::Ui;

/// For a datagram and its answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Enough for every task to be among those that answer.
const A_FEW: usize = 12;

/// Returns how many connections and datagrams there were.
pub(super) fn told(ui: &Ui, lab: &Lab, tasks: &[Task]) -> Result<usize> {
    show_exec(lab, CLIENT, &["curl", "-sS", "-m", "5", &format!("http://{}:{PORT}/", contract::v4("n1"))])?;
    let mut total = 0;
    for addr in lab.published(PORT) {
        let what = format!("{CONNECTIONS} connections to {addr}");
        let by_task = ui.quiet(&what, |_| lab.spread_evenly(CLIENT, addr, tasks, CONNECTIONS))?;
        let client = seen_as(lab, addr)?;
        outcome(&what, &format!("{}   client seen as {client}", counts(&by_task)));
        total += CONNECTIONS;
    }
    for addr in lab.published(UDP_PORT) {
        let what = format!("{CONNECTIONS} datagrams to {addr}");
        let by_task = ui.quiet(&what, |_| echoes(lab, addr, tasks))?;
        outcome(&what, &counts(&by_task));
        total += CONNECTIONS;
    }
    for node in lab.nodes() {
        let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
        for ip in loopback.into_iter().chain(contract::addrs(&node)) {
            lab.spread_evenly(&node, SocketAddr::new(ip, PORT), tasks, CONNECTIONS / 10)?;
            let echo = lab.within(&node, || http::udp((ip, UDP_PORT).into(), b"hello", PATIENCE))?;
            ensure!(echo.with_context(|| format!("UDP from {node} to {ip}"))? == b"hello", "another answer from {ip}");
        }
        let what = format!("{node} itself, by localhost and its addresses");
        outcome(&what, "answers on all four, TCP and UDP");
    }
    Ok(total)
}

/// The client's address as the tasks see it, which must be its own.
fn seen_as(lab: &Lab, addr: SocketAddr) -> Result<IpAddr> {
    let own = contract::addrs(CLIENT).into_iter().find(|own| own.is_ipv4() == addr.is_ipv4()).context("an address")?;
    for _ in 0..A_FEW {
        let peer = lab.get(CLIENT, addr, "/")?.peer.context("no peer in the reply")?.ip();
        ensure!(peer == own, "at {addr} a task saw {peer} instead of {own}");
    }
    Ok(own)
}

/// How many datagrams each task got, evenly, of those that the client sent and got back.
fn echoes(lab: &Lab, addr: SocketAddr, tasks: &[Task]) -> Result<BTreeMap<String, usize>> {
    let count = |task: &Task| lab.datagrams(task, addr.is_ipv4());
    let before = tasks.iter().map(count).collect::<Result<Vec<_>>>()?;
    lab.within(CLIENT, || {
        (0..CONNECTIONS).try_for_each(|number| {
            let payload = number.to_string();
            let answer = http::udp(addr, payload.as_bytes(), PATIENCE).with_context(|| format!("to {addr}"))?;
            ensure!(answer == payload.as_bytes(), "{payload} to {addr} came back as {answer:?}");
            Ok(())
        })
    })??;
    let mut by_task = BTreeMap::new();
    for (task, before) in tasks.iter().zip(before) {
        by_task.insert(task.name(), usize::try_from(count(task)? - before)?);
    }
    let share = CONNECTIONS / tasks.len();
    let even = share * 8 / 10..=share * 12 / 10;
    ensure!(by_task.values().all(|count| even.contains(count)), "not even at {addr}: {by_task:?}");
    Ok(by_task)
}
