//! Tests of clusters that lose their managers: one survivor forms the cluster again, and a backup
//! is restored on an empty machine.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::time::timeout;
use weft_model::{
    ClusterState, Command, NetworkId, NodePlan, ServiceId,
    spec::{
        Availability,
        Role::{Manager, Worker},
    },
    state::{NodeStatus, TaskState},
};

use super::fixture::{
    DEADLINE, Daemon, cluster, has_label, is_ready, node, propose_label, set_label, stop, unused_loopback, voters,
};
use crate::{
    fixture::{network_spec, service_spec},
    swarm::{Backup, Membership, RestoreOptions, SwarmError},
};

/// Creates a service, and waits until its tasks run.
async fn run_service(daemon: &Daemon, replicas: u64) -> ServiceId {
    let id = ServiceId::from_random(7);
    let spec = Box::new(service_spec("web", replicas, &[]));
    daemon.manager().propose(Command::CreateService { id: id.clone(), spec }).await.expect("created");
    daemon.wait_until("the tasks run", |state| running(state) as u64 == replicas).await;
    id
}

fn running(state: &ClusterState) -> usize {
    state.tasks.values().filter(|task| task.status.state == TaskState::Running).count()
}

fn all_ready(state: &ClusterState, count: usize) -> bool {
    state.nodes.values().filter(|node| node.status == NodeStatus::Ready).count() == count
}

/// The node cannot find out by itself which address replaces its own.
#[tokio::test]
async fn a_survivor_of_a_moved_machine_advertises_the_address_that_the_user_gives() {
    let [n1] = cluster([Manager]).await;
    let addr = unused_loopback(9);
    set_label(&n1, "before").await.expect("a quorum");
    n1.swarm.reform(Some(addr)).await.expect("the cluster is formed again");
    let is_there =
        |state: &ClusterState| node(state, "n1", |n| (n.addr, n.tunnel_addr, n.rpc_addr.ip()) == (addr, addr, addr));
    assert!(has_label(&n1.manager().state().borrow(), "before") && is_there(&n1.manager().state().borrow()));
    let n1 = n1.stop().await.start().await;
    n1.becomes_manager().await;
    set_label(&n1, "after").await.expect("a quorum");
    assert!(is_there(&n1.manager().state().borrow()), "the address is stored");
    assert!(matches!(&*n1.swarm.membership().borrow(), Membership::Active { addr: shown, .. } if *shown == addr));
    stop([n1]).await;
}

#[tokio::test]
async fn one_survivor_of_three_managers_forms_the_cluster_again_and_takes_the_others_back() {
    let [n1, n2, n3, n4] = cluster([Manager, Manager, Manager, Worker]).await;
    let service = run_service(&n1, 4).await;
    set_label(&n1, "before").await.expect("a quorum");
    n3.wait_until("it has the change", |state| has_label(state, "before")).await;
    let before = n3.manager().state().borrow().clone();
    let hosts = [n1.stop().await, n2.stop().await];
    assert!(set_label(&n3, "lost").await.is_err(), "there is no quorum");
    let refused = n4.swarm.reform(None).await.expect_err("a worker");
    assert!(matches!(refused, SwarmError::NotManager), "{refused}");
    let refused = n3.swarm.reform(Some([224, 0, 0, 1].into())).await.expect_err("an address of no node");
    assert!(matches!(refused, SwarmError::UnusableAdvertiseAddr { .. }), "{refused}");
    assert!(matches!(&*n3.swarm.membership().borrow(), Membership::Active { .. }));

    n3.swarm.reform(None).await.expect("the cluster is formed again");
    let state = n3.manager().state().borrow().clone();
    assert!(state.epoch > before.epoch);
    assert!(has_label(&state, "before") && state.services.contains_key(&service));
    assert_eq!(
        state.tasks.values().map(|t| &t.id).collect::<Vec<_>>(),
        before.tasks.values().map(|t| &t.id).collect::<Vec<_>>()
    );
    assert_eq!(state.cluster, before.cluster, "the settings, tokens and the authority are the same");
    set_label(&n3, "after").await.expect("it leads alone");
    n3.wait_until("the worker is back", |state| node(state, "n4", is_ready)).await;

    // Together the other two have a quorum of the former log. They must not use it.
    let [h1, h2] = hosts;
    let (n1, n2) = tokio::join!(h1.start(), h2.start());
    n1.becomes_worker().await;
    n2.becomes_worker().await;
    n3.wait_until("all nodes are back", |state| all_ready(state, 4) && voters(state) == 1).await;
    assert!(!has_label(&n3.manager().state().borrow(), "lost"));
    n3.set_role(&n1.id(), Manager).await.expect("accepted");
    n1.becomes_manager().await;
    n3.wait_until("it votes again", |state| voters(state) == 2).await;
    assert!(has_label(&n1.manager().state().borrow(), "after"));

    // A restart keeps the new log and the new keys.
    let n3 = n3.stop().await.start().await;
    n3.becomes_manager().await;
    n1.wait_until("the survivor is back", |state| all_ready(state, 4)).await;
    set_label(&n1, "restarted").await.expect("a quorum");
    stop([n1, n2, n3, n4]).await;
}

/// The survivor was stopped for a while, so its log ends long before the plans that the worker has.
#[tokio::test]
async fn plans_of_a_cluster_that_was_formed_again_replace_later_ones_of_the_lost_managers() {
    let [n1, n2, n3, n4] = cluster([Manager, Manager, Manager, Worker]).await;
    let survivor = n3.stop().await;
    for number in 0..20 {
        let spec = Box::new(network_spec(&format!("net{number}")));
        n1.manager().propose(Command::CreateNetwork { id: NetworkId::from_random(number), spec }).await.expect("made");
    }
    let networks = |plan: &Option<Arc<NodePlan>>| plan.as_ref().map_or(0, |plan| plan.networks.len());
    let mut plans = n4.swarm.plans();
    let late = timeout(DEADLINE, plans.wait_for(|plan| networks(plan) >= 20)).await.expect("the plan in time");
    let late = late.expect("a member").as_ref().expect("a plan").version();
    drop([n1.stop().await, n2.stop().await]);

    let n3 = survivor.start().await;
    n3.swarm.reform(None).await.expect("the cluster is formed again");
    let (tracker, worker) = (n3.manager().tracker().clone(), n4.id());
    let mut changes = tracker.changes();
    let acked = async {
        loop {
            changes.mark_unchanged();
            let acked = tracker.view().and_then(|view| Some(view.nodes.get(&worker)?.acked)).unwrap_or(0);
            assert!(acked < late.generation, "the worker acked a plan of the lost managers: {acked}, {late:?}");
            if acked > 0 {
                return;
            }
            changes.changed().await.expect("the tracker exists");
        }
    };
    timeout(DEADLINE, acked).await.expect("an ack of the new plan in time");
    let plan = plans.borrow().clone();
    assert!(networks(&plan) < 20, "it has the plan of the survivor");
    let version = plan.expect("a plan").version();
    assert!(version > late && version.generation < late.generation, "{version:?} after {late:?}");
    stop([n3, n4]).await;
}

#[tokio::test]
async fn a_backup_is_restored_on_an_empty_machine_with_the_address_of_a_former_manager() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let service = run_service(&n1, 2).await;
    set_label(&n1, "saved").await.expect("a quorum");
    let refused = n1.swarm.back_up("short".to_owned()).await.expect_err("a short passphrase");
    assert!(refused.to_string().contains("choose a longer one"), "{refused}");
    let refused = n2.swarm.back_up("correct horse".to_owned()).await.expect_err("a worker");
    assert!(matches!(refused, SwarmError::NotManager), "{refused}");
    let file = n1.swarm.back_up("correct horse".to_owned()).await.expect("a backup");
    set_label(&n1, "later").await.expect("a quorum");
    let before = n1.manager().state().borrow().clone();
    let listen_addr = n1.rpc_addr();
    drop(n1.stop().await);

    let restored = Daemon::new("n9").await;
    let options = |passphrase: &str, listen_addr: SocketAddr| RestoreOptions {
        file: file.clone(),
        passphrase: passphrase.to_owned(),
        advertise_addr: None,
        listen_addr,
        tunnel_addr: None,
        availability: Availability::Active,
    };
    let refused = restored.swarm.restore(options("wrong horse", listen_addr)).await.expect_err("refused");
    assert!(refused.to_string().contains("passphrase is wrong"), "{refused}");
    restored.swarm.restore(options("correct horse", listen_addr)).await.expect("restored");
    let state = restored.manager().state().borrow().clone();
    assert!(has_label(&state, "saved") && !has_label(&state, "later") && state.services.contains_key(&service));
    let secrets = |state: &ClusterState| {
        let cluster = state.cluster.clone().expect("a cluster");
        (cluster.id, cluster.worker_secret, cluster.manager_secret, cluster.ca_cert_pem)
    };
    assert_eq!(secrets(&state), secrets(&before));
    restored.wait_until("the worker is back", |state| node(state, "n2", is_ready)).await;
    restored.wait_until("the tasks of the lost node run", |state| running(state) == 2).await;
    let n3 = Daemon::joined("n3", &restored, Worker).await;
    let again = restored.swarm.restore(options("correct horse", listen_addr)).await.expect_err("a member");
    assert!(matches!(again, SwarmError::AlreadyMember), "{again}");
    stop([restored, n2, n3]).await;
}

/// The numbers that are labels of the cluster.
fn numbers(state: &ClusterState) -> BTreeSet<usize> {
    let labels = &state.cluster.as_ref().expect("a cluster").spec.labels;
    labels.keys().map(|key| key.parse().expect("a number")).collect()
}

#[tokio::test]
async fn a_backup_is_the_state_of_one_moment_also_under_writes_and_on_a_manager_that_lags_behind() {
    let [n1, n2, n3] = cluster([Manager; 3]).await;
    let follower = if n2.manager().is_leader() { &n1 } else { &n2 };
    let (manager, ended) = (follower.manager(), Arc::new(AtomicBool::new(false)));
    let writer = tokio::spawn({
        let (manager, ended) = (n3.manager(), ended.clone());
        async move {
            let mut number = 0;
            while !ended.load(Ordering::Relaxed) {
                propose_label(&manager, &number.to_string()).await.expect("a quorum");
                number += 1;
            }
            number
        }
    });
    let mut taken = Vec::new();
    for at_least in [1, 10] {
        follower.wait_until("changes are made", |state| numbers(state).len() >= at_least).await;
        let before = numbers(&manager.state().borrow());
        let file = follower.swarm.back_up("correct horse".to_owned()).await.expect("a backup");
        taken.push((before, file));
    }
    // From now on it gets no entries.
    follower.swarm.lifecycle.channels.hold_appends.send_replace(true);
    let held = numbers(&manager.state().borrow()).len();
    n3.wait_until("the others go on", |state| numbers(state).len() > held + 10).await;
    let before = numbers(&manager.state().borrow());
    let file = follower.swarm.back_up("correct horse".to_owned()).await.expect("a backup");
    let lagging = Backup::open(file.clone(), "correct horse".to_owned()).await.expect("opened").state;
    assert!(lagging.index < n3.manager().state().borrow().index, "it lags behind");
    taken.push((before, file.clone()));
    follower.swarm.lifecycle.channels.hold_appends.send_replace(false);
    ended.store(true, Ordering::Relaxed);
    let written = timeout(DEADLINE, writer).await.expect("the writer ends in time").expect("all writes were made");

    for (before, file) in taken {
        let state = Backup::open(file, "correct horse".to_owned()).await.expect("opened").state;
        let saved = numbers(&state);
        assert!(saved.is_superset(&before), "{saved:?} after {before:?}");
        assert!(saved.len() <= written && saved.iter().copied().eq(0..saved.len()), "a state in between: {saved:?}");
    }
    follower.wait_until("it catches up", |state| numbers(state).len() == written).await;
    let listen_addr = follower.rpc_addr();
    stop([n1, n2, n3]).await;

    let restored = Daemon::restored("n9", file, "correct horse", listen_addr).await;
    assert_eq!(numbers(&restored.manager().state().borrow()), numbers(&lagging));
    stop([restored]).await;
}
