//! Tests of the replacement of the certificate authority.

use std::time::Duration;

use tokio::time::timeout;
use weft_model::{
    ClusterState, NodeId, Rejection,
    spec::Role::{Manager, Worker},
};

use super::{
    expiry::{first_with_short_lived_certificates, wait_until_expired},
    fixture::{DEADLINE, Daemon, Host, cluster, has_label, is_ready, leader_among, node, set_label, stop, voters},
};
use crate::{
    pki::{Ca, JoinToken},
    swarm::{ProposeError, RotateError, SwarmError},
};

async fn rotate(daemon: &Daemon, own: Option<(String, String)>) -> Result<(), RotateError> {
    let (version, spec) = {
        let state = daemon.manager().state().borrow().clone();
        let cluster = state.cluster.as_ref().expect("a cluster");
        (cluster.meta.version, cluster.spec.clone())
    };
    daemon.manager().rotate_root(version, spec, own).await
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
