//! Notices that this machine has another address than the one that the node advertises: it was
//! moved to another network, or a DHCP server gave it another one.
//!
//! `lifecycle` calls [`refresh`] before a membership resumes, and the supervisor runs [`run`] in
//! one task while it lasts. The new address goes to the record, and to the context, from where the
//! link sends it to the leader. The leader writes it to the cluster state and the Raft membership,
//! and the plans of all nodes follow.
//!
//! An address is replaced only by one of the same link and family, and only if there is one such
//! address. An address that no link of this machine ever had is never replaced: a router in front
//! of the machine may have it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use super::store::MembershipStore;
use crate::{
    rpc::Bound,
    swarm::{
        context::{Context, Record},
        error::SwarmError,
        tasks::TaskGroup,
        types::SwarmConfig,
    },
};

/// How often the addresses of the machine are read.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// Where the advertised address is.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// On this link.
    Link(String),
    /// Its link has another address now.
    Moved(IpAddr),
    /// On no link, and it is unknown which address replaces it.
    Unknown,
}

/// Looks for the advertised address in `found`, the addresses of this machine with their links.
/// `link` is where it was seen last.
fn locate(advertised: IpAddr, link: Option<&str>, found: &[(IpAddr, String)]) -> Place {
    if let Some((_, link)) = found.iter().find(|(addr, _)| *addr == advertised) {
        return Place::Link(link.clone());
    }
    let replaces = |(addr, on): &&(IpAddr, String)| Some(on.as_str()) == link && addr.is_ipv4() == advertised.is_ipv4();
    match found.iter().filter(replaces).collect::<Vec<_>>().as_slice() {
        [(addr, _)] => Place::Moved(*addr),
        _ => Place::Unknown,
    }
}

/// Brings a stored record into line with the addresses of this machine, before the node listens.
///
/// # Errors
/// [`SwarmError::Storage`] if the record cannot be read or written.
pub(super) fn refresh(config: &SwarmConfig, store: &MembershipStore, mut record: Record) -> Result<Record, SwarmError> {
    if let Some(changed) = changed(config, &record) {
        record = changed;
        store.update_record(|stored| copy_addrs(&record, stored))?;
    }
    Ok(record)
}

/// The record with its current address and link. `None` if both are current already.
fn changed(config: &SwarmConfig, record: &Record) -> Option<Record> {
    let found =
        config.addrs.addrs().inspect_err(|error| tracing::warn!(%error, "cannot list this machine's addresses"));
    let mut changed = record.clone();
    match locate(record.addr, record.link.as_deref(), &found.ok()?) {
        Place::Link(link) => changed.link = Some(link),
        Place::Moved(addr) => {
            tracing::warn!(from = %record.addr, to = %addr, "this machine has another address: the node advertises it");
            changed = record.at(addr);
        }
        Place::Unknown => {}
    }
    (changed != *record).then_some(changed)
}

fn copy_addrs(from: &Record, to: &mut Record) {
    (to.addr, to.listen_addr) = (from.addr, from.listen_addr);
    to.link.clone_from(&from.link);
}

/// Checks the addresses until it is dropped. `serve` starts to serve the node RPC on another
/// socket; the former one stays, because connections may still use it.
pub(super) async fn run(context: Arc<Context>, store: MembershipStore, tasks: TaskGroup, serve: impl Fn(Bound) + Send) {
    let mut record = context.record.clone();
    loop {
        let config = context.config.clone();
        let known = record.clone();
        let check = crate::host::spawn_blocking(move || changed(&config, &known));
        if let Ok(Some(current)) = check.await
            && let Some(bound) = listen(&record, &current)
        {
            let (stored, new) = (store.clone(), current.clone());
            let written = tasks.spawn_blocking(move || stored.update_record(|record| copy_addrs(&new, record)));
            if let Ok(Err(error)) = written.await {
                tracing::warn!(%error, "cannot store this node's address: it is looked for again at the next start");
            }
            if let Socket::New(bound) = bound {
                serve(bound);
            }
            record = current;
            if context.addr.send_replace(record.addr) != record.addr {
                context.publish_membership();
            }
        }
        tokio::time::sleep(CHECK_EVERY).await;
    }
}

/// The socket for the address of a record.
enum Socket {
    /// The one of the record before it.
    Same,
    New(Bound),
}

/// `None` if the node cannot listen on its new address yet.
fn listen(before: &Record, now: &Record) -> Option<Socket> {
    if before.listen_addr == now.listen_addr {
        return Some(Socket::Same);
    }
    Bound::bind(now.listen_addr)
        .map(Socket::New)
        .inspect_err(
            |error| tracing::warn!(addr = %now.listen_addr, %error, "cannot listen on the new address, retrying"),
        )
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_replaced_by_the_only_other_one_of_its_link_and_family() {
        let on = |ip: &str, link: &str| (ip.parse::<IpAddr>().expect("an address"), link.to_owned());
        let (old, new) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([198, 51, 100, 7]));
        let link = Some("eth0");
        let others = [on("10.0.0.1", "docker0"), on("2001:db8::1", "eth0")];
        let with = |more: &[&str]| {
            let more = more.iter().map(|ip| on(ip, "eth0"));
            others.iter().cloned().chain(more).collect::<Vec<_>>()
        };
        assert_eq!(locate(old, None, &with(&["192.0.2.1"])), Place::Link("eth0".to_owned()));
        assert_eq!(locate(old, link, &with(&["192.0.2.1", "198.51.100.7"])), Place::Link("eth0".to_owned()));
        assert_eq!(locate(old, link, &with(&["198.51.100.7"])), Place::Moved(new));
        assert_eq!(locate(old, None, &with(&["198.51.100.7"])), Place::Unknown, "it was never on this machine");
        assert_eq!(locate(old, link, &with(&[])), Place::Unknown, "the link has no address for a moment");
        assert_eq!(locate(old, link, &with(&["198.51.100.7", "198.51.100.8"])), Place::Unknown, "which of them?");
    }
}
