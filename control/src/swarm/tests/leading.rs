//! Losing managers.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use weft_model::spec::Role;

use super::lab::{DEADLINE, Daemon, has_label, is_ready, leader_among, node, set_label};
use crate::swarm::{Manager, ProposeError};

async fn three() -> [Daemon; 3] {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Manager).await;
    let n3 = Daemon::joined("n3", &n1, Role::Manager).await;
    for daemon in [&n1, &n2, &n3] {
        daemon.table("all three vote", |s| s.nodes.values().filter(|n| n.voter && is_ready(n)).count() == 3).await;
    }
    [n1, n2, n3]
}

#[tokio::test]
async fn another_manager_takes_over_and_the_lost_one_comes_back() {
    let [n1, n2, n3] = three().await;
    set_label(&n1, "before").await.expect("written");
    n2.table("it is everywhere", |s| has_label(s, "before")).await;
    let lost = n1.stop().await;

    // The write waits for the election, and then happens.
    let asked = Instant::now();
    set_label(&n2, "meanwhile").await.expect("two of three are a quorum");
    assert!(asked.elapsed() < Duration::from_secs(8), "no leader for {:?}", asked.elapsed());
    n3.table("the other follower has it", |s| has_label(s, "meanwhile")).await;
    let leader = leader_among(&[&n2, &n3]).await;
    leader.table("the lost manager is down", |s| node(s, "n1", super::lab::is_down)).await;

    let n1 = lost.start().await;
    n1.is_manager(true).await;
    n1.table("it has caught up", |s| has_label(s, "before") && has_label(s, "meanwhile")).await;
    n1.table("and is ready again", |s| node(s, "n1", is_ready)).await;
    set_label(&n1, "after").await.expect("it takes writes");
    for daemon in [n3, n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn without_a_quorum_nothing_is_written_and_it_says_so() {
    let [n1, n2, n3] = three().await;
    let (p2, p3) = (n2.stop().await, n3.stop().await);
    let error = set_label(&n1, "lonely").await.expect_err("one of three is no quorum");
    assert!(matches!(error, ProposeError::NoQuorum { managers: 3, needed: 2, .. }), "{error}");
    assert!(error.to_string().contains("start the missing"), "{error}");
    let n2 = p2.start().await;
    n2.is_manager(true).await;
    set_label(&n2, "together").await.expect("two of three are");
    n1.table("and the first has it too", |s| has_label(s, "together")).await;
    assert!(!has_label(&n1.manager().state().borrow(), "lonely"), "what was refused does not happen later");
    let n3 = p3.start().await;
    n3.is_manager(true).await;
    n3.table("the last one catches up", |s| has_label(s, "together")).await;
    for daemon in [n3, n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_worker_restarts_with_its_plan_where_no_manager_answers() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Worker).await;
    n1.table("it is ready", |s| node(s, "n2", is_ready)).await;
    let id = n2.id();
    let (p2, p1) = (n2.stop().await, n1.stop().await);
    let n2 = p2.start().await;
    assert_eq!(n2.id(), id, "the plan is there at once");
    let n1 = p1.start().await;
    n1.is_manager(true).await;
    n1.table("it finds the manager again", |s| node(s, "n2", is_ready)).await;
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn five_managers_stand_the_loss_of_two() {
    let [n1, n2, n3] = three().await;
    let n4 = Daemon::joined("n4", &n2, Role::Manager).await;
    let n5 = Daemon::joined("n5", &n3, Role::Manager).await;
    n1.table("all five vote", |s| s.nodes.values().filter(|n| n.voter).count() == 5).await;
    let (p1, p2) = (n1.stop().await, n2.stop().await);
    set_label(&n4, "three-of-five").await.expect("three of five are a quorum");
    n5.table("all have it", |s| has_label(s, "three-of-five")).await;
    drop((p1, p2));
    for daemon in [n5, n4, n3] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_log_that_has_stopped_is_opened_again() {
    let n1 = Daemon::first("n1").await;
    set_label(&n1, "before").await.expect("written");
    let stopped = n1.manager();
    stopped.stop_log().await;
    let error = stopped.rotate_token(Role::Worker).await.expect_err("this one is over");
    assert!(matches!(error, ProposeError::Unavailable { .. }), "{error}");
    let mut managers = n1.swarm.lifecycle.channels.manager.subscribe();
    let again = managers.wait_for(|m| m.as_ref().is_some_and(Manager::log_is_running));
    timeout(DEADLINE, again).await.expect("opened in time").expect("the daemon runs");
    n1.table("nothing is lost", |s| has_label(s, "before")).await;
    set_label(&n1, "after").await.expect("and it goes on");
    n1.stop().await;
}
