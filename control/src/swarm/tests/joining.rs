//! Forming, joining, leaving.

use std::{net::SocketAddr, sync::Arc};

use tokio::time::timeout;
use weft_model::spec::Role;

use super::lab::{DEADLINE, Daemon, Place, has_label, is_down, is_ready, loopback, node, set_label};
use crate::{
    pki::{JoinToken, KeyRequest, pinned_client, random_secret},
    rpc::{
        Dialer, one_off,
        pb::{JoinRequest, authority_client::AuthorityClient},
    },
    swarm::{Membership, SwarmError},
};

#[tokio::test]
async fn a_node_forms_a_cluster_and_is_its_ready_leader() {
    let n1 = Daemon::first("n1").await;
    assert_eq!(n1.manager().leader(), Some(n1.id()));
    n1.table("it is ready and votes", |s| node(s, "n1", |n| is_ready(n) && n.voter)).await;
    let membership = n1.swarm.membership().borrow().clone();
    assert!(matches!(membership, Membership::Active { role: Role::Manager, .. }), "{membership:?}");
    assert!(n1.manager().join_token(Role::Worker).starts_with("SWMTKN-1-"));
    let again = n1.swarm.init(n1.init_options()).await.expect_err("it is a member");
    assert!(matches!(again, SwarmError::AlreadyMember), "{again}");
    n1.stop().await;
}

#[tokio::test]
async fn nodes_join_by_token_in_the_role_that_it_gives() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Manager).await;
    let n3 = Daemon::joined("n3", &n1, Role::Worker).await;
    n1.table("the second manager votes", |s| node(s, "n2", |n| n.voter && is_ready(n))).await;
    n2.table("the worker is ready there too", |s| node(s, "n3", |n| is_ready(n) && !n.is_manager())).await;
    assert!(n3.swarm.manager().is_none());
    assert_eq!(n2.manager().leader(), Some(n1.id()));

    set_label(&n2, "by-the-follower").await.expect("any manager takes a write");
    assert!(has_label(&n2.manager().state().borrow(), "by-the-follower"), "applied where it was asked for");
    n1.table("and by the leader", |s| has_label(s, "by-the-follower")).await;

    // A node can join through a manager that does not lead.
    let n4 = Daemon::joined("n4", &n2, Role::Worker).await;
    n1.table("so did the fourth", |s| node(s, "n4", is_ready)).await;
    let again = n4.join(&n1, Role::Worker).await.expect_err("it is a member");
    assert!(again.to_string().contains("already part of a swarm"), "{again}");
    for daemon in [n4, n3, n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_token_that_opens_nothing_says_why_and_changes_nothing() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::new("n2").await;
    let good = n1.manager().join_token(Role::Worker);
    let ca_pem = n1.manager().state().borrow().cluster.as_ref().expect("a cluster").ca_cert_pem.clone();
    let try_token = async |token: &str| {
        n2.swarm.join(n2.join_options(n1.rpc_addr(), token)).await.expect_err("it is of no use").to_string()
    };

    let truncated = try_token(&good[..good.len() - 3]).await;
    assert!(truncated.contains("invalid join token") && truncated.contains("cut off"), "{truncated}");
    let wrong_secret = try_token(&JoinToken::new(&ca_pem, &random_secret()).to_string()).await;
    assert!(wrong_secret.contains("invalid join token"), "{wrong_secret}");
    let wrong_ca = try_token(&JoinToken::new("another", &random_secret()).to_string()).await;
    assert!(wrong_ca.contains("certificate authority"), "{wrong_ca}");

    let new = n1.manager().rotate_token(Role::Worker).await.expect("rotated");
    assert_ne!(new, good);
    let rotated = try_token(&good).await;
    assert!(rotated.contains("rotated"), "{rotated}");

    assert_eq!(*n2.swarm.membership().borrow(), Membership::None);
    assert_eq!(n1.manager().state().borrow().nodes.len(), 1, "nobody joined");
    n2.swarm.join(n2.join_options(n1.rpc_addr(), &new)).await.expect("the new token opens");
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_manager_that_cannot_be_reached_is_named() {
    let n1 = Daemon::first("n1").await;
    let token = n1.manager().join_token(Role::Worker);
    let n2 = Daemon::new("n2").await;
    let nobody = SocketAddr::new(loopback(1), 9);
    let error = n2.swarm.join(n2.join_options(nobody, &token)).await.expect_err("nobody is there").to_string();
    assert!(error.contains("127.78.0.1:9") && error.contains("could be reached"), "{error}");
    let mut options = n2.join_options(nobody, &token);
    options.remotes.push(n1.rpc_addr());
    n2.swarm.join(options).await.expect("the second manager is there");
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn whoever_asks_again_is_the_same_node_and_whoever_asks_for_nonsense_is_none() {
    let n1 = Daemon::first("n1").await;
    let (ca_pem, secret) = {
        let state = n1.manager().state().borrow().clone();
        let cluster = state.cluster.as_ref().expect("a cluster");
        (cluster.ca_cert_pem.clone(), cluster.worker_secret.clone())
    };
    let dialer = Dialer::manager(n1.rpc_addr(), pinned_client(&ca_pem).expect("a configuration"));
    let ask = async |csr_pem: &str| {
        let request = JoinRequest {
            secret: secret.clone(),
            csr_pem: csr_pem.to_owned(),
            hostname: "n2".to_owned(),
            addr: "127.78.0.2".to_owned(),
            rpc_addr: "127.78.0.2:2377".to_owned(),
            availability: 0,
        };
        AuthorityClient::new(one_off(&dialer).await.expect("connected")).join(request).await
    };
    let refused = ask("nonsense").await.expect_err("no request");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    assert_eq!(n1.manager().state().borrow().nodes.len(), 1, "nobody joined");

    let request = KeyRequest::generate().expect("a request");
    let first = ask(request.csr_pem()).await.expect("joined").into_inner();
    let second = ask(request.csr_pem()).await.expect("the answer was lost: joined again").into_inner();
    assert_eq!(first.node, second.node);
    request.finish(&second.cert_pem, &ca_pem).expect("the second certificate is as good");
    assert_eq!(n1.manager().state().borrow().nodes.len(), 2, "one node joined");
    n1.stop().await;
}

#[tokio::test]
async fn an_address_in_use_is_an_error_and_no_membership() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::new("n2").await;
    let mut options = n2.init_options();
    options.listen_addr = n1.rpc_addr();
    let error = n2.swarm.init(options).await.expect_err("the address is taken").to_string();
    assert!(error.contains("--listen-addr"), "{error}");
    assert_eq!(*n2.swarm.membership().borrow(), Membership::None);
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_worker_leaves_freely_and_comes_back_as_another_node() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Worker).await;
    n1.table("it is ready", |s| node(s, "n2", is_ready)).await;
    let before = n2.id();
    n2.swarm.leave(false).await.expect("a worker may leave");
    n1.table("it is down at once, and says why", |s| node(s, "n2", |n| is_down(n) && n.message.contains("left"))).await;
    assert_eq!(*n2.swarm.membership().borrow(), Membership::None);
    assert!(n2.swarm.plans().borrow().is_none());
    let twice = n2.swarm.leave(false).await.expect_err("it is no member");
    assert!(matches!(twice, SwarmError::NotMember), "{twice}");
    n2.join(&n1, Role::Worker).await.expect("it joins again");
    assert_ne!(n2.id(), before);
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_manager_leaves_by_force_only_and_the_others_do_not_miss_it() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Manager).await;
    n1.table("both vote", |s| node(s, "n2", |n| n.voter)).await;
    let refused = n2.swarm.leave(false).await.expect_err("a manager").to_string();
    assert!(refused.contains("--force") && refused.contains("manager"), "{refused}");
    n2.swarm.leave(true).await.expect("by force");
    n1.table("it has no vote", |s| node(s, "n2", |n| !n.voter && !n.is_manager())).await;
    set_label(&n1, "alone").await.expect("one manager is a quorum again");
    let refused = n1.swarm.leave(false).await.expect_err("the last manager").to_string();
    assert!(refused.contains("last manager"), "{refused}");
    n1.swarm.leave(true).await.expect("by force");
    n1.swarm.init(n1.init_options()).await.expect("it may form another cluster");
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_removed_node_is_refused_and_told_so() {
    let n1 = Daemon::first("n1").await;
    let n2 = Daemon::joined("n2", &n1, Role::Worker).await;
    let id = n2.id();
    let remove = weft_model::Command::RemoveNode { id, force: true };
    n1.manager().propose(remove).await.expect("removed");
    let mut membership = n2.swarm.membership();
    let told = timeout(DEADLINE, membership.wait_for(|m| matches!(m, Membership::Error(_)))).await;
    let told = told.expect("in time").expect("the daemon runs").clone();
    assert!(matches!(&told, Membership::Error(text) if text.contains("removed")), "{told:?}");
    assert!(n2.swarm.plans().borrow().is_none(), "its tasks stop");
    // Also where its daemon is killed now: a restart finds no plan.
    let stored = n2.place.dir().join("swarm/plan");
    let mut look = tokio::time::interval(std::time::Duration::from_millis(20));
    let forgotten = async {
        while stored.exists() {
            look.tick().await;
        }
    };
    timeout(DEADLINE, forgotten).await.expect("forgotten in time");
    n2.swarm.leave(false).await.expect("it forgets the cluster");
    n2.join(&n1, Role::Worker).await.expect("it joins again");
    for daemon in [n2, n1] {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_member_resumes_from_its_directory() {
    let n1 = Daemon::first("n1").await;
    set_label(&n1, "kept").await.expect("written");
    let (id, token) = (n1.id(), n1.manager().join_token(Role::Worker));
    let place: Place = n1.stop().await;
    let n1 = place.start().await;
    n1.is_manager(true).await;
    n1.table("the table is there", |s| has_label(s, "kept")).await;
    assert_eq!(n1.manager().node(), &id);
    assert_eq!(n1.manager().join_token(Role::Worker), token);
    set_label(&n1, "more").await.expect("and goes on");
    n1.stop().await;
}

#[tokio::test]
async fn what_an_interrupted_beginning_left_is_no_membership() {
    let place = Place::new("n1");
    std::fs::create_dir_all(place.dir().join("swarm")).expect("a directory");
    std::fs::write(place.dir().join("swarm/identity.pem"), b"half").expect("written");
    std::fs::write(place.dir().join("swarm/raft.redb"), b"half").expect("written");
    let n1 = place.start().await;
    assert_eq!(*n1.swarm.membership().borrow(), Membership::None);
    n1.swarm.init(n1.init_options()).await.expect("nothing is in the way");
    let shared: Arc<_> = n1.swarm.plans().borrow().clone().expect("a plan");
    assert_eq!(shared.managers.len(), 1);
    n1.stop().await;
}
