//! Tests of changes of managers while managers are stopped, and of several at once.

use std::time::Duration;

use tokio::time::timeout;
use weft_model::spec::Role::{Manager, Worker};

use super::fixture::{
    DEADLINE, Daemon, Host, cluster, cluster_on, has_label, is_ready, leader_among, node, set_label, stop, voters,
};
use crate::{
    fixture::journal,
    swarm::{Membership, SwarmError},
};

#[tokio::test]
async fn no_change_of_managers_leaves_the_cluster_without_a_quorum() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    let (id2, id3) = (n2.id(), n3.id());
    let addr3 = n3.rpc_addr().to_string();
    let stopped = n3.stop().await;
    leader_among(&[&n1, &n2]).await;

    for (from, id) in [(&n1, &id2), (&n2, &id2)] {
        let refused = from.set_role(id, Worker).await.expect_err("one of two managers would remain").to_string();
        assert!(refused.contains("n3") && refused.contains(&addr3) && refused.contains("start these"), "{refused}");
    }
    let refused = n2.swarm.leave(true).await.expect_err("one of two managers would remain");
    assert!(matches!(refused, SwarmError::LeaveRefused { .. }) && refused.to_string().contains(&addr3), "{refused}");
    set_label(&n1, "after-the-refusals").await.expect("two of three managers are a quorum");
    n2.wait_until("n2 is still a manager", |s| has_label(s, "after-the-refusals") && voters(s) == 3).await;

    n1.set_role(&id3, Worker).await.expect("the stopped manager can be demoted");
    n1.wait_until("n3 has no vote", |s| node(s, "n3", |n| !n.voter && !n.in_raft_config)).await;
    n2.swarm.leave(true).await.expect("one of one manager remains");
    set_label(&n1, "alone").await.expect("one manager is a quorum");
    drop(stopped);
    stop([n1, n2]).await;
}

#[tokio::test]
async fn a_manager_does_not_leave_while_there_is_no_leader_and_says_which_managers_are_missing() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    let addr2 = n2.rpc_addr().to_string();
    let hosts = (n2.stop().await, n3.stop().await);
    let refused = n1.swarm.leave(true).await.expect_err("there is no leader").to_string();
    assert!(refused.contains(&addr2) && refused.contains("start them"), "{refused}");
    let n2 = hosts.0.start().await;
    n2.becomes_manager().await;
    set_label(&n1, "kept").await.expect("n1 still votes");
    stop([n1, n2]).await;
}

#[tokio::test]
async fn a_demotion_waits_if_a_manager_fails_after_it_was_accepted() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    let id3 = n3.id();
    let managers = [n1.manager(), n2.manager(), n3.manager()];
    managers.iter().for_each(|manager| manager.hold_voter_changes(true));
    n1.set_role(&id3, Worker).await.expect("all managers answer");
    let mut interval = tokio::time::interval(Duration::from_millis(10));
    let chosen = async {
        while !managers.iter().any(crate::swarm::Manager::has_held_voter_change) {
            interval.tick().await;
        }
    };
    timeout(DEADLINE, chosen).await.expect("the leader begins the step in time");
    let stopped = n2.stop().await;
    managers.iter().for_each(|manager| manager.hold_voter_changes(false));

    // Without the vote of n3, n1 would need that of n2.
    set_label(&n1, "without-n2").await.expect("two of three managers are a quorum");
    n3.wait_until("n3 still votes", |s| has_label(s, "without-n2") && voters(s) == 3).await;
    let n2 = stopped.start().await;
    n1.wait_until("n3 has no vote", |s| node(s, "n3", |n| !n.voter && !n.in_raft_config)).await;
    n3.becomes_worker().await;
    set_label(&n1, "after").await.expect("two managers are a quorum");
    n2.becomes_manager().await;
    stop([n1, n2, n3]).await;
}

/// With an empty log and its former id, it could vote a second time in a term, and help a manager
/// that lacks a confirmed change to become the leader.
#[tokio::test]
async fn a_manager_whose_log_is_lost_does_not_vote_and_comes_back_with_another_raft_id() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    set_label(&n1, "before").await.expect("the change is made");
    let log = n3.host.dir().join("swarm/raft.redb");
    let host3 = n3.stop().await;
    std::fs::remove_file(&log).expect("the log is lost");
    let (host2, host1) = (n2.stop().await, n1.stop().await);

    let n3 = host3.start().await;
    let mut membership = n3.swarm.membership();
    let published = timeout(DEADLINE, membership.wait_for(|m| matches!(m, Membership::Error(_)))).await;
    let published = published.expect("an error in time").expect("the daemon runs").clone();
    assert!(matches!(&published, Membership::Error(text) if text.contains("log is missing")), "{published:?}");
    assert!(!log.exists() && n3.swarm.lifecycle.channels.manager.borrow().is_none(), "n3 does not vote");

    let (n1, n2) = (host1.start().await, host2.start().await);
    n3.becomes_manager().await;
    n1.wait_until("n3 votes again", |s| voters(s) == 3 && node(s, "n3", |n| n.voter && is_ready(n))).await;
    n3.wait_until("n3 has the state", |s| has_label(s, "before")).await;
    assert_eq!(n3.manager().keys().raft_id, 4);
    assert_eq!(n1.manager().other_managers().len(), 2, "the former id has been removed");
    assert!(matches!(&*n3.swarm.membership().borrow(), Membership::Active { .. }));
    stop([n1, n2, n3]).await;
}

/// Its vote is not in use, and is still the one that the others need if its log comes back.
#[tokio::test]
async fn a_manager_without_its_log_leaves_only_when_a_leader_removes_its_vote() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    let addr1 = n1.rpc_addr().to_string();
    let (host3, host2) = (n3.stop().await, n2.stop().await);
    std::fs::remove_file(host2.dir().join("swarm/raft.redb")).expect("the log is lost");
    let n2 = host2.start().await;
    let mut membership = n2.swarm.membership();
    let failed = timeout(DEADLINE, membership.wait_for(|m| matches!(m, Membership::Error(_)))).await;
    failed.expect("an error in time").expect("the daemon runs");

    let refused = n2.swarm.leave(true).await.expect_err("there is no leader").to_string();
    assert!(refused.contains("no leader answers") && refused.contains(&addr1), "{refused}");
    assert!(matches!(&*n2.swarm.membership().borrow(), Membership::Error(_)), "n2 is still a member");

    let n3 = host3.start().await;
    n3.becomes_manager().await;
    leader_among(&[&n1, &n3]).await;
    n2.swarm.leave(true).await.expect("two of two managers remain");
    n1.wait_until("n2 has no vote", |s| node(s, "n2", |n| !n.is_manager() && !n.in_raft_config) && voters(s) == 2)
        .await;
    stop([n1, n2, n3]).await;
}

/// A power loss could otherwise leave a manager that has voted without the mark that says so. With
/// an empty log it would vote again.
#[tokio::test]
async fn the_mark_of_a_managers_log_is_on_the_disk_before_its_first_vote() {
    let hosts = ["n1", "n2"].map(Host::new);
    let dirs = hosts.each_ref().map(|host| host.dir().join("swarm"));
    dirs.iter().for_each(|dir| journal::watch(dir));
    let daemons = cluster_on(hosts, [Manager; 2]).await;
    for dir in &dirs {
        let left = journal::left_at_first_vote(dir).expect("both managers vote");
        let keys = left.get("manager.json").expect("the file with the mark");
        let keys: serde_json::Value = serde_json::from_slice(keys).expect("the content of the file");
        assert_eq!(keys["log_created"], true, "{keys}");
        assert!(left.contains_key("raft.redb"), "{:?}", left.keys());
    }
    stop(daemons).await;
}

/// A configuration of two voters would stop when either one fails.
#[tokio::test]
async fn workers_that_are_promoted_together_begin_to_vote_together() {
    let [n1, n2, n3] = cluster([Manager, Worker, Worker]).await;
    let mut states = n1.manager().state();
    let watching = tokio::spawn(async move {
        let mut seen = vec![voters(&states.borrow_and_update())];
        while seen.last() != Some(&3) && states.changed().await.is_ok() {
            let votes = voters(&states.borrow_and_update());
            if seen.last() != Some(&votes) {
                seen.push(votes);
            }
        }
        seen
    });
    for id in [n2.id(), n3.id()] {
        n1.set_role(&id, Manager).await.expect("a worker is promoted");
    }
    n1.wait_until("all vote", |s| voters(s) == 3 && node(s, "n3", is_ready)).await;
    assert_eq!(watching.await.expect("the task ends"), [1, 3]);

    // The flags follow the log: any one of the three can fail now.
    n2.becomes_manager().await;
    n3.becomes_manager().await;
    let stopped = n1.stop().await;
    set_label(&n2, "without-the-first").await.expect("two of three managers are a quorum");
    n3.wait_until("the change is replicated", |s| has_label(s, "without-the-first")).await;
    let n1: Daemon = stopped.start().await;
    n1.becomes_manager().await;
    stop([n1, n2, n3]).await;
}

/// Its vote is not in use, and its files are complete: with a restart it could vote again.
#[tokio::test]
async fn a_manager_whose_membership_has_stopped_leaves_only_while_the_others_are_a_quorum() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    let addr2 = n2.rpc_addr().to_string();
    n3.swarm.lifecycle.fail().await;
    let host2 = n2.stop().await;
    let refused = n3.swarm.leave(true).await.expect_err("n1 alone is no quorum").to_string();
    assert!(refused.contains(&addr2), "{refused}");

    let n2 = host2.start().await;
    n2.becomes_manager().await;
    set_label(&n1, "both").await.expect("n1 and n2 are a quorum");
    n3.swarm.leave(true).await.expect("n1 and n2 are a quorum without it");
    assert_eq!(*n3.swarm.membership().borrow(), Membership::None);
    stop([n1, n2, n3]).await;
}
