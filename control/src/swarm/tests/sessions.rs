//! Plans, acks, reports, heartbeats, logs.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tokio::time::timeout;
use weft_model::{
    Command, ServiceId,
    spec::{Role, ServiceSpec},
    state::TaskState,
};

use super::lab::{DEADLINE, Daemon, FOLLOWED, is_down, is_ready, node, set_label};
use crate::fixture;
use weft_model::LogOptions;

fn service(name: &str, replicas: u64) -> Box<ServiceSpec> {
    Box::new(fixture::service_spec(name, replicas, &[]))
}

#[tokio::test]
async fn tasks_run_where_the_leader_puts_them_and_their_logs_are_read_from_there() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Worker).await;
    n1.table("both are ready", |s| s.nodes.values().filter(|n| is_ready(n)).count() == 2).await;
    let id = ServiceId::from_random(rand::random());
    let create = Command::CreateService { id: id.clone(), spec: service("web", 4) };
    n1.manager().propose(create).await.expect("created");
    n1.table("four tasks run", |s| s.tasks_of(&id).filter(|t| t.status.state == TaskState::Running).count() == 4).await;
    assert_eq!(n2.swarm.plans().borrow().as_ref().expect("a plan").tasks.len(), 2, "spread over both nodes");

    let tasks: Vec<_> = n1.manager().state().borrow().tasks.keys().cloned().collect();
    for task in tasks {
        let options = LogOptions { stdout: true, ..LogOptions::default() };
        let mut lines = n1.manager().task_logs(&task, options).await.expect("its node has them");
        let record = timeout(DEADLINE, lines.next()).await.expect("in time").expect("one line");
        assert_eq!(record.line.as_ref(), task.as_str().as_bytes());
        assert!(lines.next().await.is_none());
    }

    n1.manager().propose(Command::RemoveService { id: id.clone() }).await.expect("removed");
    n1.table("and all is gone", |s| s.services.is_empty() && s.tasks.is_empty()).await;
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}

/// A stream fills the window of its connection when nobody reads it, and holds up all that shares
/// the connection.
#[tokio::test]
async fn a_reader_of_logs_who_pauses_holds_up_nothing_else() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Manager).await;
    n1.table("both vote and are ready", |s| s.nodes.values().filter(|n| n.voter && is_ready(n)).count() == 2).await;
    let id = ServiceId::from_random(rand::random());
    let create = Command::CreateService { id: id.clone(), spec: service("web", 2) };
    n1.manager().propose(create).await.expect("created");
    n1.table("both tasks run", |s| s.tasks_of(&id).filter(|t| t.status.state == TaskState::Running).count() == 2).await;
    let n2_id = n2.manager().node().clone();
    let there =
        |s: &weft_model::ClusterState| s.tasks.values().find(|t| t.node.as_ref() == Some(&n2_id)).map(|t| t.id.clone());
    let task = there(&n1.manager().state().borrow()).expect("one task is on the other node");

    let options = LogOptions { stdout: true, follow: true, ..LogOptions::default() };
    let mut lines = n1.manager().task_logs(&task, options).await.expect("its node has them");
    timeout(DEADLINE, lines.next()).await.expect("in time").expect("a line");
    let mut before = 0;
    while before != FOLLOWED.load(Ordering::Relaxed) {
        before = FOLLOWED.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for round in 0..10 {
        let written = timeout(Duration::from_secs(2), set_label(&n1, &format!("round-{round}"))).await;
        written.expect("nothing waits for the reader").expect("written");
    }
    drop(lines);
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn acks_travel_fast_also_where_a_plan_did_not_change() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Worker).await;
    n1.table("both are ready", |s| s.nodes.values().filter(|n| is_ready(n)).count() == 2).await;
    let tracker = n1.manager().tracker().clone();
    let mut times = Vec::new();
    for round in 0..20 {
        set_label(&n1, &format!("round-{round}")).await.expect("written");
        let index = n1.manager().state().borrow().index;
        let asked = Instant::now();
        let mut changes = tracker.changes();
        let acked = async {
            loop {
                changes.mark_unchanged();
                let view = tracker.view().expect("it leads");
                if view.nodes.len() == 2 && view.nodes.values().all(|liveness| liveness.acked >= index) {
                    return;
                }
                changes.changed().await.expect("the tracker lives");
            }
        };
        timeout(DEADLINE, acked).await.expect("acked in time");
        times.push(asked.elapsed());
    }
    times.sort();
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(50), "a drain waits for this: {median:?}");
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_silent_node_is_down_and_its_tasks_run_elsewhere_until_it_is_back() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Worker).await;
    n1.table("both are ready", |s| s.nodes.values().filter(|n| is_ready(n)).count() == 2).await;
    let id = ServiceId::from_random(rand::random());
    let create = Command::CreateService { id: id.clone(), spec: service("web", 2) };
    n1.manager().propose(create).await.expect("created");
    let running = |s: &weft_model::ClusterState, node: &weft_model::NodeId| {
        s.tasks_on(node).filter(|t| t.status.state == TaskState::Running).count()
    };
    let (first, second) = (n1.id(), n2.id());
    n1.table("one task on each", |s| running(s, &first) == 1 && running(s, &second) == 1).await;

    let place = n2.stop().await;
    n1.table("it is down, and says why", |s| node(s, "n2", |n| is_down(n) && n.message.contains("heartbeat"))).await;
    n1.table("both tasks run on the other", |s| running(s, &first) == 2).await;
    let n2 = place.start().await;
    n1.table("it is back", |s| node(s, "n2", is_ready)).await;
    n1.table("without its old task", |s| running(s, &second) == 0).await;
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}
