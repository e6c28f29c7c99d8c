//! Tests of machines that get another address.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::time::timeout;
use weft_model::{
    ClusterState,
    spec::Role::{Manager, Worker},
};

use super::fixture::{DEADLINE, Daemon, cluster, has_label, is_ready, node, set_label, stop, unused_loopback};
use crate::swarm::{InitOptions, Membership};

fn is_at(state: &ClusterState, hostname: &str, addr: IpAddr) -> bool {
    node(state, hostname, |node| (node.addr, node.tunnel_addr, node.rpc_addr.ip()) == (addr, addr, addr))
}

/// Waits until the node has noticed that this is its address.
async fn advertises(daemon: &Daemon, addr: IpAddr) {
    let mut membership = daemon.swarm.membership();
    let shown = |now: &Membership| matches!(now, Membership::Active { addr: shown, .. } if *shown == addr);
    timeout(DEADLINE, membership.wait_for(shown)).await.expect("in time").expect("the daemon runs");
}

/// Waits until the plan of `daemon` has these addresses of its peers and managers.
async fn knows(daemon: &Daemon, peer: IpAddr, manager: Option<SocketAddr>) {
    let mut plans = daemon.swarm.plans();
    let known = plans.wait_for(|plan| {
        plan.as_ref().is_some_and(|plan| {
            plan.peers.iter().any(|known| known.addr == peer)
                && manager.is_none_or(|addr| plan.managers.iter().any(|known| known.rpc_addr == addr))
        })
    });
    timeout(DEADLINE, known).await.expect("the plan in time").expect("a member");
}

/// Waits until the Raft membership in the log of `daemon` has this address of `member`.
async fn in_raft_membership(daemon: &Daemon, member: &Daemon, addr: SocketAddr) {
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    let changed = async {
        while !daemon.manager().other_managers().contains(&(member.id(), addr)) {
            interval.tick().await;
        }
    };
    timeout(DEADLINE, changed).await.expect("the address in the Raft membership in time");
}

#[tokio::test]
async fn a_manager_can_advertise_an_address_that_its_machine_does_not_have() {
    // No server of the machine listens there, as if a router in front of it had the address.
    let advertised = unused_loopback(77);
    let n1 = Daemon::new("n1").await;
    let options = InitOptions { advertise_addr: Some(advertised), ..n1.init_options() };
    n1.swarm.init(options).await.expect("the node forms a cluster");
    n1.wait_until("n1 is ready", |state| node(state, "n1", |node| is_ready(node) && node.addr == advertised)).await;
    let host = n1.stop().await;
    let n1 = host.start().await;
    n1.becomes_manager().await;
    n1.wait_until("n1 is ready again", |state| node(state, "n1", is_ready)).await;
    set_label(&n1, "after").await.expect("a leader");
    assert!(is_at(&n1.manager().state().borrow(), "n1", advertised));
    stop([n1]).await;
}

#[tokio::test]
async fn a_worker_that_gets_another_address_while_it_runs_is_reached_there() {
    let [n1, n2, n3] = cluster([Manager, Worker, Worker]).await;
    let addr = n2.host.change_addr();
    n1.wait_until("the new address is known", |state| is_at(state, "n2", addr)).await;
    knows(&n3, addr, None).await;
    advertises(&n2, addr).await;

    // The address of a node that is ready is not given to another one.
    let taken = n1.host.addr();
    n3.host.set_addr(taken);
    advertises(&n3, taken.into()).await;
    let n3 = n3.stop().await;
    n1.wait_until("n3 is down", |state| node(state, "n3", |n| !is_ready(n))).await;
    assert!(!is_at(&n1.manager().state().borrow(), "n3", taken.into()));
    let n3_addr = n3.change_addr();
    let n3 = n3.start().await;
    n1.wait_until("it is back at its new address", |state| is_at(state, "n3", n3_addr)).await;
    stop([n1, n2, n3]).await;
}

#[tokio::test]
async fn managers_that_get_another_address_stay_in_the_quorum() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    // Moved while it was off: it listens at the new address only.
    let host = n2.stop().await;
    let (addr, port) = (
        host.change_addr(),
        n1.manager().state().borrow().nodes.values().find(|n| n.hostname.as_str() == "n2").expect("n2").rpc_addr.port(),
    );
    let n2 = host.start().await;
    for daemon in [&n1, &n3] {
        daemon.wait_until("the new address is known", |state| is_at(state, "n2", addr)).await;
        knows(daemon, addr, Some(SocketAddr::new(addr, port))).await;
    }
    set_label(&n1, "moved").await.expect("a quorum");
    n2.becomes_manager().await;
    n2.wait_until("it follows the log", |state| has_label(state, "moved")).await;
    for daemon in [&n1, &n3] {
        in_raft_membership(daemon, &n2, SocketAddr::new(addr, port)).await;
    }
    // Only the moved one and one other are left: they need each other for every change.
    let off = n3.stop().await;
    set_label(&n1, "without n3").await.expect("n1 and n2 are a quorum");
    n2.wait_until("it follows the log", |state| has_label(state, "without n3")).await;
    let n3 = off.start().await;

    // The leader moves while it runs.
    let addr = n1.host.change_addr();
    for daemon in [&n1, &n2, &n3] {
        daemon.wait_until("the leader's new address is known", |state| is_at(state, "n1", addr)).await;
    }
    for daemon in [&n2, &n3] {
        let rpc_addr = SocketAddr::new(addr, n1.rpc_addr().port());
        in_raft_membership(daemon, &n1, rpc_addr).await;
    }
    set_label(&n2, "leader moved").await.expect("a quorum");
    stop([n1, n2, n3]).await;
}

#[tokio::test]
async fn a_manager_that_moved_alone_forms_the_cluster_again_at_its_new_address() {
    let [n1, n2] = cluster([Manager; 2]).await;
    drop(n2.stop().await);
    let host = n1.stop().await;
    let addr = host.change_addr();
    let n1 = host.start().await;
    n1.swarm.reform(None).await.expect("the cluster is formed again");
    assert!(is_at(&n1.manager().state().borrow(), "n1", addr));
    n1.wait_until("it is ready", |state| node(state, "n1", is_ready)).await;
    stop([n1]).await;
}
