//! Tests of the sessions between nodes and the leader (plans, acks, reports, heartbeats), and of
//! task logs.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use tokio::time::timeout;
use weft_model::{
    ClusterState, Command, LogOptions, NetworkId, NodeId, NodePlan, Rejection, ServiceId, TaskId,
    command::{AttachContainer, WantedLink},
    spec::{
        NetworkSpec,
        Role::{Manager, Worker},
    },
    state::TaskState,
};

use super::fixture::{DEADLINE, Daemon, FOLLOWED_LINES, cluster, is_down, is_ready, key_of, node, set_label, stop};
use crate::{
    fixture::{network_spec, service_spec},
    swarm::{ProposeError, SwarmError},
};

/// Creates the service `web` and returns its id.
async fn create_service(daemon: &Daemon, replicas: u64) -> ServiceId {
    let id = ServiceId::from_random(rand::random());
    let spec = Box::new(service_spec("web", replicas, &[]));
    daemon.manager().propose(Command::CreateService { id: id.clone(), spec }).await.expect("the service is created");
    id
}

fn running_tasks(state: &ClusterState, service: &ServiceId) -> usize {
    state.tasks_of(service).filter(|task| task.status.state == TaskState::Running).count()
}

fn running_on(state: &ClusterState, node: &NodeId) -> usize {
    state.tasks_on(node).filter(|task| task.status.state == TaskState::Running).count()
}

#[tokio::test]
async fn tasks_run_on_both_nodes_and_their_logs_are_read_from_there() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let id = create_service(&n1, 4).await;
    n1.wait_until("four tasks run", |s| running_tasks(s, &id) == 4).await;
    assert_eq!(n2.swarm.plans().borrow().as_ref().expect("a plan").tasks.len(), 2, "the tasks are spread");

    let tasks: Vec<_> = n1.manager().state().borrow().tasks.keys().cloned().collect();
    for task in tasks {
        let options = LogOptions { stdout: true, ..LogOptions::default() };
        let mut lines = n1.manager().task_logs(&task, options).await.expect("the log of the task's node");
        let record = timeout(DEADLINE, lines.next()).await.expect("an answer in time").expect("one line");
        assert_eq!(record.line.as_ref(), task.as_str().as_bytes());
        assert!(lines.next().await.is_none());
    }

    n1.manager().propose(Command::RemoveService { id: id.clone() }).await.expect("the service is removed");
    n1.wait_until("service and tasks are gone", |s| s.services.is_empty() && s.tasks.is_empty()).await;
    stop([n1, n2]).await;
}

/// A stream that is not read fills the window of its connection, which blocks all other streams of
/// that connection.
#[tokio::test]
async fn a_paused_reader_of_logs_blocks_no_other_call() {
    let [n1, n2] = cluster([Manager; 2]).await;
    let id = create_service(&n1, 2).await;
    n1.wait_until("both tasks run", |s| running_tasks(s, &id) == 2).await;
    let n2_id = n2.manager().node().clone();
    let task = {
        let state = n1.manager().state().borrow().clone();
        state.tasks.values().find(|t| t.node.as_ref() == Some(&n2_id)).expect("one task is on n2").id.clone()
    };

    let options = LogOptions { stdout: true, follow: true, ..LogOptions::default() };
    let mut lines = n1.manager().task_logs(&task, options).await.expect("the log of the task's node");
    timeout(DEADLINE, lines.next()).await.expect("an answer in time").expect("a line");
    let mut before = 0;
    while before != FOLLOWED_LINES.load(Ordering::Relaxed) {
        before = FOLLOWED_LINES.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for round in 0..10 {
        let written = timeout(Duration::from_secs(2), set_label(&n1, &format!("round-{round}"))).await;
        written.expect("the write does not wait for the reader").expect("the change is made");
    }
    drop(lines);
    stop([n1, n2]).await;
}

#[tokio::test]
async fn acks_of_unchanged_plans_arrive_within_milliseconds() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let tracker = n1.manager().tracker().clone();
    let mut times = Vec::new();
    for round in 0..20 {
        set_label(&n1, &format!("round-{round}")).await.expect("the change is made");
        let index = n1.manager().state().borrow().index;
        let asked = Instant::now();
        let mut changes = tracker.changes();
        let acked = async {
            loop {
                changes.mark_unchanged();
                let view = tracker.view().expect("n1 leads");
                if view.nodes.len() == 2 && view.nodes.values().all(|liveness| liveness.acked >= index) {
                    return;
                }
                changes.changed().await.expect("the tracker exists");
            }
        };
        timeout(DEADLINE, acked).await.expect("all acks in time");
        times.push(asked.elapsed());
    }
    times.sort();
    let median = times[times.len() / 2];
    assert!(median < Duration::from_millis(50), "draining a backend waits for acks: {median:?}");
    stop([n1, n2]).await;
}

#[tokio::test]
async fn tasks_of_a_node_without_heartbeats_run_elsewhere_until_it_is_back() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    create_service(&n1, 2).await;
    let (first, second) = (n1.id(), n2.id());
    n1.wait_until("one task runs on each node", |s| running_on(s, &first) == 1 && running_on(s, &second) == 1).await;

    let host = n2.stop().await;
    let why = |s: &ClusterState| node(s, "n2", |n| is_down(n) && n.message.contains("heartbeat"));
    n1.wait_until("the stopped node is down and its message says why", why).await;
    n1.wait_until("both tasks run on the other node", |s| running_on(s, &first) == 2).await;
    let n2 = host.start().await;
    n1.wait_until("the node is ready again", |s| node(s, "n2", is_ready)).await;
    n1.wait_until("its old task is gone", |s| running_on(s, &second) == 0).await;
    stop([n1, n2]).await;
}

#[tokio::test]
async fn nodes_get_the_active_keys_of_all_others_while_a_network_is_encrypted() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let id = NetworkId::from_random(rand::random());
    let spec = Box::new(NetworkSpec { encrypted: true, ..network_spec("secret") });
    n1.manager().propose(Command::CreateNetwork { id: id.clone(), spec }).await.expect("the network is created");
    n1.wait_until("both keys are active", |s| s.nodes.values().all(|node| node.keys.active().is_some())).await;
    let knows_peer = |plan: &Option<Arc<NodePlan>>| {
        let encryption = plan.as_ref().and_then(|plan| plan.encryption.as_ref());
        encryption.is_some_and(|e| e.active.is_some() && e.peers.iter().any(|peer| peer.active.is_some()))
    };
    for daemon in [&n1, &n2] {
        let mut plans = daemon.swarm.plans();
        let plan =
            timeout(DEADLINE, plans.wait_for(knows_peer)).await.expect("a plan in time").expect("a member").clone();
        let plan = plan.expect("a plan");
        let encryption = plan.encryption.as_ref().expect("a plan with keys");
        assert_eq!(encryption.own, [key_of(&plan.node).public_key]);
        let peer = &encryption.peers[0];
        assert_eq!(
            (peer.keys.as_slice(), peer.active),
            (&[key_of(&peer.node)][..], Some(key_of(&peer.node).public_key))
        );
    }
    n1.manager().propose(Command::RemoveNetwork { id }).await.expect("the network is removed");
    n1.wait_until("the keys are removed", |s| s.nodes.values().all(|node| node.keys.keys.is_empty())).await;
    stop([n1, n2]).await;
}

#[tokio::test]
async fn any_node_attaches_and_detaches_its_own_containers() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let [open, closed] = [1, 2].map(NetworkId::from_random);
    for (id, name) in [(&open, "open"), (&closed, "closed")] {
        let spec = Box::new(NetworkSpec { attachable: name == "open", ..network_spec(name) });
        n1.manager().propose(Command::CreateNetwork { id: id.clone(), spec }).await.expect("the network is created");
    }
    for daemon in [&n1, &n2] {
        let node = daemon.swarm.plans().borrow().as_ref().expect("a plan").node.clone();
        let id = TaskId::from_random(rand::random());
        let attach = |network: &NetworkId| AttachContainer {
            // The swarm replaces it by this node.
            node: NodeId::from_random(0),
            id: id.clone(),
            identity: None,
            networks: vec![WantedLink { network: network.clone(), v4: None, v6: None, aliases: vec![] }],
            present: vec![],
            running: None,
        };
        let refused = daemon.swarm.attach(attach(&closed)).await.expect_err("not attachable");
        let expected = Rejection::NotAttachable { network: "closed".to_owned() };
        assert!(
            matches!(&refused, SwarmError::Change(ProposeError::Rejected(found)) if *found == expected),
            "{refused}"
        );
        daemon.swarm.attach(attach(&open)).await.expect("the container is attached");
        let plan = daemon.swarm.plans().borrow().clone().expect("a plan");
        let attached: Vec<_> = plan.attached.iter().map(|container| &container.id).collect();
        assert_eq!(attached, [&id], "the plan has the containers of its node when the call resolves");
        let owns = |state: &ClusterState| state.attached.get(&id).is_some_and(|container| container.node == node);
        n1.wait_until("the container belongs to its node", owns).await;
        daemon.swarm.detach(id.clone(), vec![open.clone()]).await.expect("the container is detached");
        n1.wait_until("its address is free", |state| !state.attached.contains_key(&id)).await;
    }
    stop([n1, n2]).await;
}
