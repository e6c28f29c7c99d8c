//! Tests of promotion, demotion, and the renewal of certificates.

use std::time::Duration;

use tokio::time::timeout;
use weft_model::{
    Command, NetworkId, Rejection,
    spec::Role::{Manager, Worker},
};

use super::fixture::{DEADLINE, Daemon, cluster, has_label, is_ready, leader_among, node, set_label, stop, voters};
use crate::{
    fixture::network_spec,
    swarm::{Membership, ProposeError},
};

#[tokio::test]
async fn a_worker_is_promoted_and_demoted_repeatedly() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let id = n2.id();
    for round in ["first", "second"] {
        n1.set_role(&id, Manager).await.expect("n2 is promoted");
        let waited = timeout(DEADLINE, n2.swarm.wait_until_manager()).await;
        assert!(waited.is_ok() && n2.swarm.manager().is_some(), "n2 has the cluster state that it waited for");
        n2.becomes_manager().await;
        n1.wait_until("n2 votes", |s| node(s, "n2", |n| n.voter && is_ready(n))).await;
        set_label(&n2, round).await.expect("n2 accepts changes");
        assert!(matches!(&*n2.swarm.membership().borrow(), Membership::Active { role: Manager, .. }));

        n1.set_role(&id, Worker).await.expect("n2 is demoted");
        n2.becomes_worker().await;
        n1.wait_until("n2 has no vote and is ready", |s| node(s, "n2", |n| !n.voter && is_ready(n))).await;
        set_label(&n1, &format!("{round}-after")).await.expect("one manager is a quorum");
    }
    assert!(!n2.host.dir().join("swarm/raft.redb").exists(), "a worker keeps no log");
    assert!(!n2.host.dir().join("swarm/manager.json").exists(), "a worker keeps no manager's keys");
    stop([n1, n2]).await;
}

/// With an older plan on its disk, a restart could make it a worker again after it has voted.
#[tokio::test]
async fn a_worker_becomes_no_manager_before_it_has_stored_the_plan_that_says_so() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let id = n2.id();
    let context = n2.context().await;
    // A plan is written to this file first.
    let obstacle = n2.host.dir().join("swarm/plan.new");
    std::fs::create_dir(&obstacle).expect("a directory in the way");
    n1.set_role(&id, Manager).await.expect("n2 is promoted");
    let mut tried = context.stored_version.subscribe();
    let promoted = || n2.swarm.plans().borrow().as_ref().is_some_and(|plan| plan.role == Manager);
    let has_tried = tried.wait_for(|version| {
        promoted() && n2.swarm.plans().borrow().as_ref().is_some_and(|plan| plan.version() <= *version)
    });
    timeout(DEADLINE, has_tried).await.expect("tried in time").expect("the daemon runs");
    let mut managers = n2.swarm.lifecycle.channels.manager.subscribe();
    // Longer than the node waits for the plan in one step.
    let started = timeout(Duration::from_secs(2), managers.wait_for(Option::is_some)).await;
    assert!(started.is_err(), "a manager without a stored plan");
    assert!(!n2.host.dir().join("swarm/raft.redb").exists());

    std::fs::remove_dir(&obstacle).expect("empty");
    // Another plan, which the node stores.
    let spec = Box::new(network_spec("app"));
    n1.manager().propose(Command::CreateNetwork { id: NetworkId::from_random(1), spec }).await.expect("made");
    n2.becomes_manager().await;
    stop([n1, n2]).await;
}

/// After a restart, the stored plan of a manager could begin a second log with the same Raft id.
#[tokio::test]
async fn a_manager_keeps_its_log_until_it_has_stored_the_plan_that_demotes_it() {
    let [n1, n2] = cluster([Manager, Manager]).await;
    let id = n2.id();
    let obstacle = n2.host.dir().join("swarm/plan.new");
    std::fs::create_dir(&obstacle).expect("a directory in the way");
    n1.set_role(&id, Worker).await.expect("n2 is demoted");
    let mut plans = n2.swarm.plans();
    let demoted = plans.wait_for(|plan| plan.as_ref().is_some_and(|plan| plan.role == Worker));
    timeout(DEADLINE, demoted).await.expect("in time").expect("the daemon runs");
    let mut managers = n2.swarm.lifecycle.channels.manager.subscribe();
    let stopped = timeout(Duration::from_secs(2), managers.wait_for(Option::is_none)).await;
    assert!(stopped.is_err(), "a worker without a stored plan");
    assert!(n2.host.dir().join("swarm/raft.redb").exists());

    std::fs::remove_dir(&obstacle).expect("empty");
    // Another plan, which the node stores.
    let spec = Box::new(network_spec("app"));
    n1.manager().propose(Command::CreateNetwork { id: NetworkId::from_random(1), spec }).await.expect("made");
    n2.becomes_worker().await;
    stop([n1, n2]).await;
}

/// The first entry of the log makes the first manager the only voter. A node that has only this
/// part of the log and the Raft id of that manager would elect itself.
#[tokio::test]
async fn the_first_manager_cannot_lead_with_the_beginning_of_the_log_when_it_is_promoted_again() {
    let [n1] = cluster([Manager]).await;
    for _ in 0..500 {
        n1.manager().rotate_token(Worker).await.expect("the change is made");
    }
    let n2 = Daemon::joined("n2", &n1, Manager).await;
    let n3 = Daemon::joined("n3", &n1, Manager).await;
    n2.wait_until("three managers vote", |s| voters(s) == 3).await;
    let id = n1.id();
    n2.set_role(&id, Worker).await.expect("n1 is demoted");
    n2.wait_until("n1 is in no Raft configuration", |s| node(s, "n1", |n| !n.in_raft_config)).await;
    n1.becomes_worker().await;

    n1.swarm.lifecycle.channels.hold_appends.send_replace(true);
    n2.set_role(&id, Manager).await.expect("n1 is promoted");
    let mut managers = n1.swarm.lifecycle.channels.manager.subscribe();
    let started = timeout(DEADLINE, managers.wait_for(Option::is_some)).await.expect("a manager in time");
    let manager = started.expect("the daemon runs").clone().expect("a manager");
    let last = timeout(DEADLINE, manager.wait_for_entries()).await.expect("the first entries in time");
    assert!(last < 500, "n1 has got {last} entries already");
    let raft_id = manager.keys().raft_id;
    // Several times the longest election timeout.
    let led = timeout(Duration::from_secs(4), manager.wait_for_leader(&[raft_id])).await;
    assert!(led.is_err(), "n1 leads with {last} entries: {}", manager.log_metrics());
    set_label(&n2, "meanwhile").await.expect("two managers are a quorum");

    n1.swarm.lifecycle.channels.hold_appends.send_replace(false);
    n2.wait_until("n1 votes again", |s| node(s, "n1", |n| n.voter && is_ready(n))).await;
    n1.wait_until("n1 has caught up", |s| has_label(s, "meanwhile")).await;
    assert_eq!(raft_id, 4, "each promotion gives the next id");
    stop([n1, n2, n3]).await;
}

/// The node is stopped during its demotion, so it never gets a plan as a worker.
#[tokio::test]
async fn a_manager_that_was_demoted_and_promoted_while_it_was_stopped_starts_with_an_empty_log() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    let (id, raft_id) = (n3.id(), n3.manager().keys().raft_id);
    let stopped = n3.stop().await;
    n1.set_role(&id, Worker).await.expect("n3 is demoted");
    n1.wait_until("n3 is in no Raft configuration", |s| node(s, "n3", |n| !n.in_raft_config)).await;
    n1.set_role(&id, Manager).await.expect("n3 is promoted");
    let n3 = stopped.start().await;
    n1.wait_until("n3 votes again", |s| node(s, "n3", |n| n.voter && is_ready(n))).await;
    n3.becomes_manager().await;
    assert_eq!((raft_id, n3.manager().keys().raft_id), (3, 4));
    set_label(&n3, "after").await.expect("n3 accepts changes");
    stop([n1, n2, n3]).await;
}

#[tokio::test]
async fn a_demoted_leader_becomes_a_worker_and_another_manager_leads() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    let id = n1.id();
    n2.set_role(&id, Worker).await.expect("n1 is demoted");
    n1.becomes_worker().await;
    let leader = leader_among(&[&n2, &n3]).await;
    leader.wait_until("n1 is a ready worker", |s| node(s, "n1", |n| !n.voter && !n.is_manager() && is_ready(n))).await;
    set_label(&n3, "without-n1").await.expect("two managers are a quorum");
    n2.wait_until("the change is replicated", |s| has_label(s, "without-n1")).await;
    stop([n1, n2, n3]).await;
}

#[tokio::test]
async fn the_last_manager_cannot_be_demoted() {
    let [n1] = cluster([Manager]).await;
    let id = n1.id();
    let refused = n1.set_role(&id, Worker).await.expect_err("n1 is the last manager");
    assert!(matches!(refused, ProposeError::Rejected(Rejection::LastManager { .. })), "{refused}");
    stop([n1]).await;
}

#[tokio::test]
async fn a_stopped_manager_can_be_demoted_and_removed() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    let id = n3.id();
    drop(n3.stop().await);
    n1.set_role(&id, Worker).await.expect("n3 is demoted");
    // The leader may remove the vote and the node's entry in the Raft configuration in two steps.
    n1.wait_until("n3 is in no Raft configuration", |s| node(s, "n3", |n| !n.voter && !n.in_raft_config)).await;
    n1.manager().propose(Command::RemoveNode { id, force: true }).await.expect("n3 is removed");
    assert_eq!(n1.manager().other_managers().len(), 1);
    stop([n1, n2]).await;
}

#[tokio::test]
async fn certificates_are_renewed_before_they_expire_without_interruption() {
    let n1 = Daemon::new("n1").await;
    let mut options = n1.init_options();
    options.spec.cert_expiry_ms = 6_000;
    n1.swarm.init(options).await.expect("the node forms a cluster");
    let n2 = Daemon::joined("n2", &n1, Manager).await;
    let first = n2.certificate().await;
    let ready = |s: &weft_model::ClusterState| s.nodes.values().filter(|n| n.voter && is_ready(n)).count() == 2;
    n1.wait_until("both managers vote and are ready", ready).await;
    // The first certificate has expired when the node gets the third one.
    let mut seen = vec![first];
    while seen.len() < 3 {
        seen.push(n2.next_certificate(&seen[seen.len() - 1]).await);
    }
    let n3 = Daemon::joined("n3", &n2, Worker).await;
    n1.wait_until("a new node is ready", |s| node(s, "n3", is_ready)).await;
    set_label(&n2, "renewed").await.expect("managers accept each other's certificates");
    let host = n2.stop().await;
    let n2 = host.start().await;
    n2.becomes_manager().await;
    n2.wait_until("the restarted manager has the change", |s| has_label(s, "renewed")).await;
    stop([n1, n2, n3]).await;
}
