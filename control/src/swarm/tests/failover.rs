//! Tests of managers and workers that stop and restart.

use std::time::{Duration, Instant};

use tokio::time::timeout;
use weft_model::spec::Role::{Manager, Worker};

use super::fixture::{
    DEADLINE, Daemon, Host, cluster, cluster_on, has_label, is_down, is_ready, leader_among, node, propose_label,
    set_label, stop, voters,
};
use crate::{
    fixture::disk::Disk,
    swarm::{self, ProposeError},
};

#[tokio::test]
async fn another_manager_leads_after_the_leader_stops_and_the_restarted_one_catches_up() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    set_label(&n1, "before").await.expect("the change is made");
    n2.wait_until("the change is replicated", |s| has_label(s, "before")).await;
    let stopped = n1.stop().await;

    // The write waits for the election.
    let asked = Instant::now();
    set_label(&n2, "meanwhile").await.expect("two of three managers are a quorum");
    assert!(asked.elapsed() < Duration::from_secs(8), "no leader for {:?}", asked.elapsed());
    n3.wait_until("the other follower has the change", |s| has_label(s, "meanwhile")).await;
    let leader = leader_among(&[&n2, &n3]).await;
    leader.wait_until("the stopped manager is down", |s| node(s, "n1", is_down)).await;

    let n1 = stopped.start().await;
    n1.becomes_manager().await;
    n1.wait_until("it has caught up", |s| has_label(s, "before") && has_label(s, "meanwhile")).await;
    n1.wait_until("it is ready again", |s| node(s, "n1", is_ready)).await;
    set_label(&n1, "after").await.expect("the restarted manager accepts changes");
    stop([n1, n2, n3]).await;
}

/// Makes changes until the log of the daemon's manager stops. A log has some room on a full disk.
async fn fill_log(daemon: &Daemon) {
    let manager = daemon.manager();
    for change in 0..1_000 {
        if propose_label(&manager, &format!("fills-the-log-{change}")).await.is_err() {
            return;
        }
    }
    panic!("the log has not stopped");
}

/// Its log is opened again and again, and could lead each time until the next write.
#[tokio::test]
async fn a_leader_with_a_full_disk_does_not_lead_again_and_catches_up_once_there_is_room() {
    let hosts = ["n1", "n2", "n3"].map(Host::new);
    let disks = hosts.each_ref().map(|host| Disk::under(&host.dir().join("swarm")));
    let daemons = cluster_on(hosts, [Manager; 3]).await;
    let [n1, n2, n3] = &daemons;
    let leader = leader_among(&[n1, n2, n3]).await.id();
    let (full, others): (Vec<_>, Vec<_>) = daemons.iter().zip(&disks).partition(|(daemon, _)| daemon.id() == leader);
    let [(daemon, disk)] = full[..] else { panic!("one leader") };
    disk.set_full(true);
    fill_log(daemon).await;
    let others: Vec<&Daemon> = others.into_iter().map(|(daemon, _)| daemon).collect();
    leader_among(&others).await;
    for change in 0..5 {
        set_label(others[0], &format!("meanwhile-{change}")).await.expect("two of three managers are a quorum");
    }

    disk.set_full(false);
    daemon.becomes_manager().await;
    daemon.wait_until("it has caught up", |s| has_label(s, "meanwhile-4")).await;
    stop(daemons).await;
}

#[tokio::test]
async fn a_single_manager_leads_again_once_its_disk_has_room() {
    let host = Host::new("n1");
    let disk = Disk::under(&host.dir().join("swarm"));
    let [n1] = cluster_on([host], [Manager]).await;
    disk.set_full(true);
    fill_log(&n1).await;
    disk.set_full(false);
    n1.becomes_manager().await;
    set_label(&n1, "after").await.expect("it leads");
    stop([n1]).await;
}

#[tokio::test]
async fn a_change_without_a_quorum_is_refused_and_does_not_happen_later() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    let (host2, host3) = (n2.stop().await, n3.stop().await);
    let error = set_label(&n1, "lonely").await.expect_err("one of three managers is no quorum");
    assert!(matches!(error, ProposeError::NoQuorum { managers: 3, needed: 2, .. }), "{error}");
    assert!(error.to_string().contains("start the missing"), "{error}");
    // By now the quorum has been missing for longer than an election takes.
    let manager = n1.manager();
    let asked = Instant::now();
    assert!(!manager.catch_up().await, "no leader confirms the state");
    assert!(asked.elapsed() < Duration::from_millis(500), "a reader waited for {:?}", asked.elapsed());
    let n2 = host2.start().await;
    n2.becomes_manager().await;
    set_label(&n2, "together").await.expect("two of three managers are a quorum");
    n1.wait_until("the first manager has the change", |s| has_label(s, "together")).await;
    assert!(!has_label(&n1.manager().state().borrow(), "lonely"), "the refused change does not happen later");
    let n3 = host3.start().await;
    n3.becomes_manager().await;
    n3.wait_until("the last manager catches up", |s| has_label(s, "together")).await;
    stop([n1, n2, n3]).await;
}

#[tokio::test]
async fn a_worker_that_restarts_without_managers_has_its_stored_plan() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let id = n2.id();
    let (host2, host1) = (n2.stop().await, n1.stop().await);
    let n2 = host2.start().await;
    assert_eq!(n2.id(), id, "the plan is there at once");
    let n1 = host1.start().await;
    n1.becomes_manager().await;
    n1.wait_until("the worker has a session again", |s| node(s, "n2", is_ready)).await;
    stop([n1, n2]).await;
}

#[tokio::test]
async fn five_managers_tolerate_the_loss_of_two() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    let n4 = Daemon::joined("n4", &n2, Manager).await;
    let n5 = Daemon::joined("n5", &n3, Manager).await;
    n1.wait_until("all five managers vote", |s| voters(s) == 5).await;
    let hosts = (n1.stop().await, n2.stop().await);
    set_label(&n4, "three-of-five").await.expect("three of five managers are a quorum");
    n5.wait_until("the change is replicated", |s| has_label(s, "three-of-five")).await;
    drop(hosts);
    stop([n3, n4, n5]).await;
}

#[tokio::test]
async fn a_log_that_has_stopped_is_opened_again() {
    let [n1] = cluster([Manager]).await;
    set_label(&n1, "before").await.expect("the change is made");
    let stopped = n1.manager();
    stopped.stop_log().await;
    let error = stopped.rotate_token(Worker).await.expect_err("the log has stopped");
    assert!(matches!(error, ProposeError::Unavailable { .. }), "{error}");
    let mut managers = n1.swarm.lifecycle.channels.manager.subscribe();
    let reopened = managers.wait_for(|m| m.as_ref().is_some_and(swarm::Manager::log_is_running));
    timeout(DEADLINE, reopened).await.expect("an open log in time").expect("the daemon runs");
    n1.wait_until("the reopened log has the change", |s| has_label(s, "before")).await;
    set_label(&n1, "after").await.expect("the manager accepts changes");
    stop([n1]).await;
}
