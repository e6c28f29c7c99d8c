//! Tests of forming and joining a cluster, resuming a membership, and leaving.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::Code;
use weft_model::{
    Command,
    spec::Role::{Manager, Worker},
    state::FEATURE_LEVEL,
};

use super::fixture::{
    DEADLINE, Daemon, Host, cluster, has_label, is_down, is_ready, node, set_label, stop, unused_loopback,
};
use crate::{
    pki::{JoinToken, KeyRequest, pinned_client, random_secret},
    rpc::{
        Dialer, connect_now,
        pb::{JoinRequest, authority_client::AuthorityClient},
    },
    swarm::{Membership, SwarmError},
};

#[tokio::test]
async fn a_node_that_forms_a_cluster_is_its_ready_leader() {
    let n1 = Daemon::first("n1").await;
    assert_eq!(n1.manager().leader(), Some(n1.id()));
    n1.wait_until("n1 is ready and votes", |s| node(s, "n1", |n| is_ready(n) && n.voter)).await;
    let membership = n1.swarm.membership().borrow().clone();
    assert!(matches!(membership, Membership::Active { role: Manager, .. }), "{membership:?}");
    assert!(n1.manager().join_token(Worker).starts_with("SWMTKN-1-"));
    let again = n1.swarm.init(n1.init_options()).await.expect_err("n1 is a member already");
    assert!(matches!(again, SwarmError::AlreadyMember), "{again}");
    stop([n1]).await;
}

#[tokio::test]
async fn nodes_join_in_the_role_of_their_token() {
    let [n1, n2, n3] = cluster([Manager, Manager, Worker]).await;
    n1.wait_until("n2 votes and is ready", |s| node(s, "n2", |n| n.voter && is_ready(n))).await;
    n2.wait_until("n3 is a ready worker", |s| node(s, "n3", |n| is_ready(n) && !n.is_manager())).await;
    assert!(n3.swarm.manager().is_none());
    assert_eq!(n2.manager().leader(), Some(n1.id()));

    set_label(&n2, "by-the-follower").await.expect("any manager accepts changes");
    assert!(has_label(&n2.manager().state().borrow(), "by-the-follower"), "the change is applied where it was made");
    n1.wait_until("the leader has the change", |s| has_label(s, "by-the-follower")).await;

    // n4 joins through a manager that does not lead.
    let n4 = Daemon::joined("n4", &n2, Worker).await;
    n1.wait_until("n4 is ready", |s| node(s, "n4", is_ready)).await;
    let again = n4.join(&n1, Worker).await.expect_err("n4 is a member already");
    assert!(again.to_string().contains("already part of a swarm"), "{again}");
    stop([n1, n2, n3, n4]).await;
}

#[tokio::test]
async fn a_wrong_token_is_refused_with_its_reason_and_changes_nothing() {
    let [n1] = cluster([Manager]).await;
    let n2 = Daemon::new("n2").await;
    let good = n1.manager().join_token(Worker);
    let ca_pem = n1.manager().state().borrow().cluster.as_ref().expect("a cluster").ca_cert_pem.clone();
    let refusal_of = async |token: &str| {
        n2.swarm.join(n2.join_options(n1.rpc_addr(), token)).await.expect_err("the token is wrong").to_string()
    };

    let truncated = refusal_of(&good[..good.len() - 3]).await;
    assert!(truncated.contains("invalid join token") && truncated.contains("cut off"), "{truncated}");
    let wrong_secret = refusal_of(&JoinToken::new(&ca_pem, &random_secret()).to_string()).await;
    assert!(wrong_secret.contains("invalid join token"), "{wrong_secret}");
    let wrong_ca = refusal_of(&JoinToken::new("another", &random_secret()).to_string()).await;
    assert!(wrong_ca.contains("certificate authority"), "{wrong_ca}");

    let new = n1.manager().rotate_token(Worker).await.expect("the token is rotated");
    assert_ne!(new, good);
    let rotated = refusal_of(&good).await;
    assert!(rotated.contains("rotated"), "{rotated}");

    assert_eq!(*n2.swarm.membership().borrow(), Membership::None);
    assert_eq!(n1.manager().state().borrow().nodes.len(), 1, "no node joined");
    n2.swarm.join(n2.join_options(n1.rpc_addr(), &new)).await.expect("the new token is accepted");
    stop([n1, n2]).await;
}

#[tokio::test]
async fn an_unreachable_manager_is_named_and_the_next_one_is_asked() {
    let [n1] = cluster([Manager]).await;
    let token = n1.manager().join_token(Worker);
    let n2 = Daemon::new("n2").await;
    let unreachable = SocketAddr::new(unused_loopback(1), 9);
    let error = n2.swarm.join(n2.join_options(unreachable, &token)).await.expect_err("no manager is there").to_string();
    assert!(error.contains("127.78.0.1:9") && error.contains("could be reached"), "{error}");
    let mut options = n2.join_options(unreachable, &token);
    options.remotes.push(n1.rpc_addr());
    n2.swarm.join(options).await.expect("the second manager accepts the node");
    stop([n1, n2]).await;
}

#[tokio::test]
async fn a_repeated_join_request_adds_one_node_and_an_invalid_one_adds_none() {
    let [n1] = cluster([Manager]).await;
    let (ca_pem, secret) = {
        let state = n1.manager().state().borrow().clone();
        let cluster = state.cluster.as_ref().expect("a cluster");
        (cluster.ca_cert_pem.clone(), cluster.worker_secret.clone())
    };
    let dialer = Dialer::manager(n1.rpc_addr(), pinned_client(&ca_pem).expect("a TLS configuration"));
    let ask = async |csr_pem: &str| {
        let request = JoinRequest {
            feature_level: FEATURE_LEVEL,
            secret: secret.clone(),
            csr_pem: csr_pem.to_owned(),
            hostname: "n2".to_owned(),
            addr: "127.78.0.2".to_owned(),
            rpc_addr: "127.78.0.2:2377".to_owned(),
            availability: 0,
            tunnel_addr: "127.78.0.2".to_owned(),
        };
        AuthorityClient::new(connect_now(&dialer).await.expect("a connection")).join(request).await
    };
    let refused = ask("nonsense").await.expect_err("an invalid certificate request");
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert_eq!(n1.manager().state().borrow().nodes.len(), 1, "no node joined");

    let request = KeyRequest::generate().expect("a certificate request");
    let first = ask(request.csr_pem()).await.expect("the node joins").into_inner();
    let second = ask(request.csr_pem()).await.expect("the node joins again").into_inner();
    assert_eq!(first.node, second.node);
    request.finish(&second.cert_pem, &ca_pem).expect("the second certificate is valid too");
    assert_eq!(n1.manager().state().borrow().nodes.len(), 2, "one node joined");
    stop([n1]).await;
}

#[tokio::test]
async fn init_on_a_used_address_fails_and_leaves_no_membership() {
    let [n1] = cluster([Manager]).await;
    let n2 = Daemon::new("n2").await;
    let mut options = n2.init_options();
    options.listen_addr = n1.rpc_addr();
    let error = n2.swarm.init(options).await.expect_err("the address is used").to_string();
    assert!(error.contains("--listen-addr"), "{error}");
    assert_eq!(*n2.swarm.membership().borrow(), Membership::None);
    stop([n1, n2]).await;
}

#[tokio::test]
async fn a_worker_leaves_without_force_and_joins_again_as_another_node() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let before = n2.id();
    n2.swarm.leave(false).await.expect("a worker may leave");
    let left = |s: &weft_model::ClusterState| node(s, "n2", |n| is_down(n) && n.message.contains("left"));
    n1.wait_until("n2 is down at once and its message says why", left).await;
    assert_eq!(*n2.swarm.membership().borrow(), Membership::None);
    assert!(n2.swarm.plans().borrow().is_none());
    let twice = n2.swarm.leave(false).await.expect_err("n2 is no longer a member");
    assert!(matches!(twice, SwarmError::NotMember), "{twice}");
    n2.join(&n1, Worker).await.expect("n2 joins again");
    assert_ne!(n2.id(), before);
    stop([n1, n2]).await;
}

#[tokio::test]
async fn a_manager_leaves_only_with_force_and_gives_up_its_vote() {
    let [n1, n2] = cluster([Manager; 2]).await;
    let refused = n2.swarm.leave(false).await.expect_err("n2 is a manager").to_string();
    assert!(refused.contains("--force") && refused.contains("manager"), "{refused}");
    n2.swarm.leave(true).await.expect("n2 leaves with force");
    n1.wait_until("n2 has no vote", |s| node(s, "n2", |n| !n.voter && !n.is_manager())).await;
    set_label(&n1, "alone").await.expect("one manager is a quorum again");
    let refused = n1.swarm.leave(false).await.expect_err("n1 is the last manager").to_string();
    assert!(refused.contains("last manager"), "{refused}");
    n1.swarm.leave(true).await.expect("n1 leaves with force");
    n1.swarm.init(n1.init_options()).await.expect("n1 forms another cluster");
    stop([n1, n2]).await;
}

#[tokio::test]
async fn a_removed_node_stops_its_tasks_and_its_membership_says_why() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let id = n2.id();
    n1.manager().propose(Command::RemoveNode { id, force: true }).await.expect("n2 is removed");
    let mut membership = n2.swarm.membership();
    let published = timeout(DEADLINE, membership.wait_for(|m| matches!(m, Membership::Error(_)))).await;
    let published = published.expect("an error in time").expect("the daemon runs").clone();
    assert!(matches!(&published, Membership::Error(text) if text.contains("removed")), "{published:?}");
    assert!(n2.swarm.plans().borrow().is_none(), "without a plan the tasks stop");
    // The stored plan is removed too: a daemon that is killed now restarts without one.
    let stored = n2.host.dir().join("swarm/plan");
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    let removed = async {
        while stored.exists() {
            interval.tick().await;
        }
    };
    timeout(DEADLINE, removed).await.expect("the plan is removed in time");
    n2.swarm.leave(false).await.expect("n2 leaves");
    n2.join(&n1, Worker).await.expect("n2 joins again");
    stop([n1, n2]).await;
}

#[tokio::test]
async fn a_manager_resumes_from_its_data_directory() {
    let [n1] = cluster([Manager]).await;
    set_label(&n1, "kept").await.expect("the change is made");
    let (id, token) = (n1.id(), n1.manager().join_token(Worker));
    let host: Host = n1.stop().await;
    let n1 = host.start().await;
    n1.becomes_manager().await;
    n1.wait_until("the cluster state is there", |s| has_label(s, "kept")).await;
    assert_eq!(n1.manager().node(), &id);
    assert_eq!(n1.manager().join_token(Worker), token);
    set_label(&n1, "more").await.expect("the manager accepts changes");
    stop([n1]).await;
}

#[tokio::test]
async fn files_of_an_interrupted_init_do_not_count_as_a_membership() {
    let host = Host::new("n1");
    std::fs::create_dir_all(host.dir().join("swarm")).expect("the directory is created");
    std::fs::write(host.dir().join("swarm/identity.pem"), b"half").expect("the file is written");
    std::fs::write(host.dir().join("swarm/raft.redb"), b"half").expect("the file is written");
    let n1 = host.start().await;
    assert_eq!(*n1.swarm.membership().borrow(), Membership::None);
    n1.swarm.init(n1.init_options()).await.expect("the files do not prevent a new attempt");
    let plan: Arc<_> = n1.swarm.plans().borrow().clone().expect("a plan");
    assert_eq!(plan.managers.len(), 1);
    stop([n1]).await;
}
