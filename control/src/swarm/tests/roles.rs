//! Promotion and demotion.

use weft_model::{Rejection, spec::Role};

use super::lab::{DEADLINE, Daemon, has_label, is_ready, leader_among, node, set_label};
use crate::swarm::{Membership, ProposeError};

#[tokio::test]
async fn a_worker_becomes_a_manager_and_a_worker_again() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Worker).await;
    let id = n2.id();
    for round in ["first", "second"] {
        n1.set_role(&id, Role::Manager).await.expect("promoted");
        let arrived = tokio::time::timeout(DEADLINE, n2.swarm.wait_until_manager()).await;
        assert!(arrived.is_ok() && n2.swarm.manager().is_some(), "it holds the table that it waited for");
        n2.is_manager(true).await;
        n1.table("it votes", |s| node(s, "n2", |n| n.voter && is_ready(n))).await;
        set_label(&n2, round).await.expect("it takes writes");
        assert!(matches!(&*n2.swarm.membership().borrow(), Membership::Active { role: Role::Manager, .. }));

        n1.set_role(&id, Role::Worker).await.expect("demoted");
        n2.is_manager(false).await;
        n1.table("it has no vote and is ready", |s| node(s, "n2", |n| !n.voter && is_ready(n))).await;
        set_label(&n1, &format!("{round}-after")).await.expect("one manager is a quorum");
    }
    assert!(!n2.place.dir().join("swarm/raft.redb").exists(), "a worker keeps no table");
    assert!(!n2.place.dir().join("swarm/manager.json").exists(), "and no key");
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_leader_that_is_demoted_steps_aside() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Manager).await;
    let n3 = Daemon::joined("n3", &n1, Role::Manager).await;
    n1.table("all vote", |s| s.nodes.values().filter(|n| n.voter).count() == 3).await;
    let id = n1.id();
    n2.set_role(&id, Role::Worker).await.expect("demoted");
    n1.is_manager(false).await;
    let leader = leader_among(&[&n2, &n3]).await;
    leader.table("it is a ready worker", |s| node(s, "n1", |n| !n.voter && !n.is_manager() && is_ready(n))).await;
    set_label(&n3, "without-it").await.expect("the others go on");
    n2.table("all have it", |s| has_label(s, "without-it")).await;
    for daemon in [n3, n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn the_last_manager_stays_one() {
    let n1 = Daemon::first("n1").await;
    let id = n1.id();
    let refused = n1.set_role(&id, Role::Worker).await.expect_err("the last manager");
    assert!(matches!(refused, ProposeError::Rejected(Rejection::LastManager { .. })), "{refused}");
    n1.stop().await;
}

#[tokio::test]
async fn a_lost_manager_can_be_demoted_and_removed() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Manager).await;
    let n3 = Daemon::joined("n3", &n1, Role::Manager).await;
    n1.table("all vote", |s| s.nodes.values().filter(|n| n.voter).count() == 3).await;
    let id = n3.id();
    drop(n3.stop().await);
    n1.set_role(&id, Role::Worker).await.expect("demoted");
    n1.table("it has no vote", |s| node(s, "n3", |n| !n.voter)).await;
    n1.manager().propose(weft_model::Command::RemoveNode { id, force: true }).await.expect("removed");
    assert_eq!(n1.manager().other_managers().len(), 1);
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn certificates_are_renewed_before_they_end_and_nobody_notices() {
    let n1 = Daemon::new("n1").await;
    let mut options = n1.init_options();
    options.spec.cert_expiry_ms = 6_000;
    n1.swarm.init(options).await.expect("it forms a cluster");
    let n2 = Daemon::joined("n2", &n1, Role::Manager).await;
    let first = n2.certificate().await;
    n1.table("both vote", |s| s.nodes.values().filter(|n| n.voter && is_ready(n)).count() == 2).await;
    // By the third certificate the first has ended.
    let mut seen = vec![first];
    while seen.len() < 3 {
        seen.push(n2.next_certificate(&seen[seen.len() - 1]).await);
    }
    let n3 = Daemon::joined("n3", &n2, Role::Worker).await;
    n1.table("a node can join", |s| node(s, "n3", is_ready)).await;
    set_label(&n2, "renewed").await.expect("managers understand each other");
    let place = n2.stop().await;
    let n2 = place.start().await;
    n2.is_manager(true).await;
    n2.table("and after a restart too", |s| has_label(s, "renewed")).await;
    for daemon in [n3, n2, n1] {
        daemon.stop().await;
    }
}
