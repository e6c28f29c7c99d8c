//! Tests of the replacement of the certificate authority.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};
use weft_model::{
    ClusterState, Command, NodeId, Rejection,
    spec::{
        ClusterSpec,
        Role::{Manager, Worker},
    },
    state::RootRotation,
};

use super::{
    expiry::{first_with_short_lived_certificates, wait_until_expired},
    fixture::{
        DEADLINE, Daemon, Host, cluster, has_label, is_down, is_ready, leader_among, node, set_label, stop, voters,
    },
};
use crate::{
    pki::{Ca, JoinToken},
    swarm::{Membership, ProposeError, RotateError, SwarmError, clock::now_ms, dispatch},
};

async fn rotate(daemon: &Daemon, own: Option<(String, String)>) -> Result<(), RotateError> {
    let (version, spec) = settings(daemon);
    daemon.manager().rotate_root(version, spec, own).await
}

/// The version and the spec of the cluster.
fn settings(daemon: &Daemon) -> (u64, ClusterSpec) {
    let state = daemon.manager().state().borrow().clone();
    let cluster = state.cluster.as_ref().expect("a cluster");
    (cluster.meta.version, cluster.spec.clone())
}

fn root(daemon: &Daemon) -> String {
    daemon.manager().state().borrow().cluster.as_ref().expect("a cluster").ca_cert_pem.clone()
}

fn is_rotating(state: &ClusterState) -> bool {
    state.cluster.as_ref().is_some_and(|cluster| cluster.root_rotation.is_some())
}

fn rotated(state: &ClusterState) -> usize {
    state.nodes.values().filter(|node| node.rotated).count()
}

/// Waits until the node trusts only this CA and has a certificate of it.
async fn wait_until_only_trusts(daemon: &Daemon, root: &str) {
    let mut interval = tokio::time::interval(Duration::from_millis(50));
    let trusts = async {
        loop {
            let identity = daemon.identity().await;
            if identity.ca_pem == root && identity.is_of_signing_ca() {
                return;
            }
            interval.tick().await;
        }
    };
    timeout(DEADLINE, trusts).await.expect("the new CA in time");
}

#[tokio::test]
async fn the_ca_is_replaced_while_the_cluster_serves_and_join_tokens_follow_it() {
    let [n1, n2, n3, n4] = cluster([Manager, Manager, Manager, Worker]).await;
    let (old_root, old_token) = (root(&n1), n1.manager().join_token(Worker));
    let n4 = n4.stop().await;
    rotate(&n2, None).await.expect("the rotation begins");
    n1.wait_until("the managers use the new CA", |s| rotated(s) == 3).await;
    assert!(is_rotating(&n1.manager().state().borrow()), "the stopped node has a certificate of the old CA");
    assert_eq!(n1.manager().join_token(Worker), old_token);

    // Another manager continues the rotation. The two remaining ones connect again.
    let leader = leader_among(&[&n1, &n2, &n3]).await.id();
    let (stopped, [n2, n3]) = stop_one([n1, n2, n3], &leader).await;
    set_label(&n2, "during").await.expect("the managers trust each other");
    let n5 = Daemon::joined("n5", &n3, Worker).await;
    n2.wait_until("the node that joined meanwhile uses the new CA", |s| rotated(s) == 4).await;
    assert_eq!(root(&n2), old_root);
    let n4 = n4.start().await;
    for manager in [&n2, &n3] {
        manager.wait_until("the rotation is complete", |s| !is_rotating(s)).await;
    }
    let new_root = root(&n2);
    assert_ne!(new_root, old_root);

    // The manager that was stopped before the end trusts the new CA already.
    let n1 = stopped.start().await;
    n1.becomes_manager().await;
    n1.wait_until("its log has the end of the rotation", |s| !is_rotating(s)).await;
    for daemon in [&n1, &n2, &n3, &n4, &n5] {
        wait_until_only_trusts(daemon, &new_root).await;
    }
    let token: JoinToken = n1.manager().join_token(Worker).parse().expect("a token");
    assert!(token.names(&new_root));
    let n6 = Daemon::new("n6").await;
    let refused = n6.swarm.join(n6.join_options(n2.rpc_addr(), &old_token)).await.expect_err("the old CA's token");
    assert!(matches!(refused, SwarmError::WrongCa { .. }), "{refused}");
    // Its certificate comes without the cross-signed one.
    n6.join(&n2, Manager).await.expect("the new token is accepted");
    n1.wait_until("the new manager votes", |s| voters(s) == 4).await;

    let n4 = n4.stop().await;
    assert_eq!(n4.identity().ca_pem, new_root, "the new CA is stored");
    let n4 = n4.start().await;
    set_label(&n6, "after").await.expect("the new manager is trusted");
    n1.wait_until("both changes are there", |s| has_label(s, "during") && has_label(s, "after")).await;
    n1.wait_until("the restarted worker is ready", |s| node(s, "n4", is_ready)).await;
    stop([n1, n2, n3, n4, n5, n6]).await;
}

/// Stops the daemon of this node, and returns it and the others.
async fn stop_one(daemons: [Daemon; 3], node: &NodeId) -> (Host, [Daemon; 2]) {
    let (stopped, others): (Vec<_>, Vec<_>) = daemons.into_iter().partition(|daemon| daemon.id() == *node);
    let mut stopped = stopped.into_iter();
    let host = stopped.next().expect("a daemon of this node").stop().await;
    (host, others.try_into().unwrap_or_else(|_| unreachable!("one of three was stopped")))
}

#[tokio::test]
async fn a_node_that_was_off_until_its_certificate_expired_takes_part_in_the_rotation() {
    let n1 = first_with_short_lived_certificates().await;
    let n2 = Daemon::joined("n2", &n1, Worker).await;
    n1.wait_until("the worker is ready", |s| node(s, "n2", is_ready)).await;
    let host = n2.stop().await;
    rotate(&n1, None).await.expect("the rotation begins");
    wait_until_expired(&[&host]).await;
    n1.wait_until("the manager uses the new CA", |s| rotated(s) == 1).await;
    let n2 = host.start().await;
    n1.wait_until("the rotation is complete", |s| !is_rotating(s)).await;
    let new_root = root(&n1);
    for daemon in [&n1, &n2] {
        wait_until_only_trusts(daemon, &new_root).await;
    }
    stop([n1, n2]).await;
}

/// The manager that lags behind signs with the old CA, for itself too.
#[tokio::test]
async fn a_certificate_of_the_new_ca_is_not_replaced_by_one_of_a_manager_that_lags_behind() {
    let n1 = first_with_short_lived_certificates().await;
    let n2 = Daemon::joined("n2", &n1, Manager).await;
    let n3 = Daemon::joined("n3", &n1, Manager).await;
    let n4 = Daemon::joined("n4", &n1, Worker).await;
    let n5 = Daemon::joined("n5", &n1, Worker).await;
    let complete = |s: &ClusterState| voters(s) == 3 && s.nodes.values().filter(|node| is_ready(node)).count() == 5;
    n1.wait_until("all nodes are ready and all managers vote", complete).await;
    let leader = leader_among(&[&n1, &n2, &n3]).await.id();
    let (n2, n3) = if n3.id() == leader { (n3, n2) } else { (n2, n3) };
    // Without this node the rotation is not complete.
    let n5 = n5.stop().await;
    n3.swarm.lifecycle.channels.hold_appends.send_replace(true);
    rotate(&n1, None).await.expect("the rotation begins");
    n1.wait_until("the other nodes use the new CA", |s| rotated(s) == 4).await;
    assert!(!is_rotating(&n3.manager().state().borrow()), "n3 lags behind");
    let (n1, n2) = tokio::join!(n1.stop(), n2.stop());

    // From the middle of the lives of their certificates on, n3 and n4 can ask only n3.
    let mut of_new_ca = [n3.identity().await, n4.identity().await];
    let mut interval = tokio::time::interval(Duration::from_millis(50));
    let expired = async {
        while !of_new_ca.iter().all(|identity| identity.validity.has_expired(now_ms())) {
            for (daemon, last) in [&n3, &n4].into_iter().zip(&mut of_new_ca) {
                let now = daemon.identity().await;
                if now.is_of_signing_ca() {
                    *last = now;
                } else {
                    assert!(last.validity.has_expired(now_ms()), "replaced by a certificate of the old CA");
                }
            }
            interval.tick().await;
        }
    };
    timeout(DEADLINE, expired).await.expect("expired in time");

    let (n1, n2) = tokio::join!(n1.start(), n2.start());
    n3.swarm.lifecycle.channels.hold_appends.send_replace(false);
    n1.becomes_manager().await;
    let renewed = async {
        while !n3.identity().await.is_of_signing_ca() {
            interval.tick().await;
        }
    };
    timeout(DEADLINE, renewed).await.expect("a certificate of the new CA again");
    let n5 = n5.start().await;
    n1.wait_until("the rotation is complete", |s| !is_rotating(s)).await;
    let new_root = root(&n1);
    for daemon in [&n1, &n2, &n3, &n4, &n5] {
        wait_until_only_trusts(daemon, &new_root).await;
    }
    set_label(&n3, "after").await.expect("the managers trust each other");
    stop([n1, n2, n3, n4, n5]).await;
}

#[tokio::test]
async fn a_ca_of_the_user_takes_the_place_of_a_rotation_that_is_not_complete() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let own = Ca::create().expect("a CA");
    // One file often contains both.
    let given = (format!("{}{}", own.cert_pem(), own.key_pem()), own.key_pem());
    let wrong_key = (given.0.clone(), Ca::create().expect("a CA").key_pem());
    let refused = rotate(&n1, Some(wrong_key)).await.expect_err("the key of another CA");
    assert!(matches!(&refused, RotateError::Ca(error) if error.reason.contains("does not belong")), "{refused}");

    let n2 = n2.stop().await;
    rotate(&n1, None).await.expect("the first rotation begins");
    n1.wait_until("the manager uses the first new CA", |s| rotated(s) == 1).await;
    rotate(&n1, Some(given.clone())).await.expect("the second rotation begins");
    let n2 = n2.start().await;
    n1.wait_until("the rotation is complete", |s| !is_rotating(s)).await;
    assert_eq!(root(&n1), own.cert_pem(), "without the private key");
    for daemon in [&n1, &n2] {
        wait_until_only_trusts(daemon, own.cert_pem()).await;
    }
    let again = rotate(&n1, Some(given)).await.expect_err("it is the current CA");
    assert!(matches!(again, RotateError::Propose(ProposeError::Rejected(Rejection::Invalid(_)))), "{again}");
    stop([n1, n2]).await;
}

#[tokio::test]
async fn a_manager_begins_no_rotation_with_another_ca_than_that_of_the_given_version() {
    let [n1] = cluster([Manager]).await;
    let (version, spec) = settings(&n1);
    let nonsense = || Some(("no certificate".to_owned(), "no key".to_owned()));
    let refusal = async |version, own| n1.manager().rotate_root(version, spec.clone(), own).await.expect_err("refused");
    let stale = refusal(version - 1, nonsense()).await;
    assert!(matches!(stale, RotateError::Propose(ProposeError::Rejected(Rejection::OutOfSequence { .. }))), "{stale}");
    let early = refusal(version + 1, nonsense()).await;
    assert!(matches!(early, RotateError::Propose(ProposeError::Unavailable { .. })), "{early}");
    let invalid = refusal(version, nonsense()).await;
    assert!(matches!(invalid, RotateError::Ca(_)), "{invalid}");

    // The key of the current CA cannot be opened: no fault of the caller.
    let rotation = unusable_rotation();
    let ca_cert_pem = rotation.ca_cert_pem.clone();
    let begin = Command::RotateRoot { version, spec: spec.clone(), rotation: Box::new(rotation) };
    let complete = Command::SetRotated { nodes: vec![n1.id()], ca_cert_pem };
    n1.manager().propose(Command::Batch(vec![begin, complete])).await.expect("the CA is replaced");
    let failed = refusal(settings(&n1).0, None).await;
    assert!(matches!(failed, RotateError::Internal(_)), "{failed}");
    stop([n1]).await;
}

/// A new CA, whose key no manager can open.
fn unusable_rotation() -> RootRotation {
    RootRotation {
        ca_cert_pem: Ca::create().expect("a CA").cert_pem().to_owned(),
        ca_key_sealed: vec![0; 64],
        cross_signed_pem: String::new(),
        worker_secret: String::new(),
        manager_secret: String::new(),
    }
}

#[tokio::test]
async fn a_node_that_gets_no_new_certificate_says_why() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    // No manager signs.
    let (version, spec) = settings(&n1);
    let command = Command::RotateRoot { version, spec, rotation: Box::new(unusable_rotation()) };
    n1.manager().propose(command).await.expect("the rotation begins");
    let why = "the node has no new certificate, and its own expires at";
    let says_why = |s: &ClusterState| node(s, "n2", |n| is_ready(n) && n.message.starts_with(why));
    n1.wait_until("the cluster state has the reason", says_why).await;
    let mut membership = n2.swarm.membership();
    let warns = |m: &Membership| matches!(m, Membership::Active { warning, .. } if warning.starts_with(why));
    timeout(DEADLINE, membership.wait_for(warns)).await.expect("the node says it too").expect("the daemon runs");

    rotate(&n1, None).await.expect("another rotation begins");
    n1.wait_until("the rotation is complete", |s| !is_rotating(s)).await;
    n1.wait_until("the reason is gone", |s| node(s, "n2", |n| is_ready(n) && n.message.is_empty())).await;
    let works = |m: &Membership| matches!(m, Membership::Active { warning, .. } if warning.is_empty());
    timeout(DEADLINE, membership.wait_for(works)).await.expect("no warning is left").expect("the daemon runs");
    stop([n1, n2]).await;
}

#[tokio::test]
async fn a_node_that_trusts_another_ca_says_so() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let addr = n1.manager().state().borrow().nodes[&n2.id()].addr;
    let host = n2.stop().await;
    let path = host.dir().join("swarm").join("node.json");
    let record = std::fs::read_to_string(&path).expect("a record");
    let mut changed: serde_json::Value = serde_json::from_str(&record).expect("a record");
    changed["ca_pem"] = Ca::create().expect("a CA").cert_pem().into();
    changed["ca_plan"] = serde_json::json!([u64::MAX, 0]);
    std::fs::write(&path, changed.to_string()).expect("written");
    n1.wait_until("the stopped node is down", |s| node(s, "n2", is_down)).await;

    let n2 = host.start().await;
    let mut membership = n2.swarm.membership();
    let says_so =
        |m: &Membership| matches!(m, Membership::Error(text) if text.contains("another certificate authority"));
    timeout(DEADLINE, membership.wait_for(says_so)).await.expect("the node says so").expect("the daemon runs");
    // The nodes of this test connect from 127.0.0.1, which is no node's address.
    let (untrusted, reported) = mpsc::channel(1);
    untrusted.send(addr).await.expect("a receiver");
    drop(untrusted);
    dispatch::report_untrusted(n1.context().await, reported).await;
    let says_so =
        |s: &ClusterState| node(s, "n2", |n| is_down(n) && n.message.contains("another certificate authority"));
    n1.wait_until("the cluster state says so", says_so).await;

    let host = n2.stop().await;
    std::fs::write(&path, record).expect("written");
    let n2 = host.start().await;
    n1.wait_until("the node is back", |s| node(s, "n2", |n| is_ready(n) && n.message.is_empty())).await;
    stop([n1, n2]).await;
}
