//! Tests of nodes that were switched off until their certificates had expired.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tonic::{Code, Request};
use weft_model::{
    Command, NodeId,
    spec::Role::{Manager, Worker},
};

use super::fixture::{DEADLINE, Daemon, Host, has_label, is_down, is_ready, node, set_label, stop, voters};
use crate::{
    pki::{Credentials, KeyRequest, PeerIdentity},
    rpc::{
        Dialer, connect_now,
        pb::{
            LeaveRequest, PingRequest, RenewRequest, authority_client::AuthorityClient,
            dispatcher_client::DispatcherClient, quorum_client::QuorumClient,
        },
    },
    swarm::{Membership, clock::now_ms},
};

/// Life of the certificates in these tests: enough for a busy machine to renew them.
const LIFE_MS: u64 = 6_000;

pub(super) async fn first_with_short_lived_certificates() -> Daemon {
    let n1 = Daemon::new("n1").await;
    let mut options = n1.init_options();
    options.spec.cert_expiry_ms = LIFE_MS;
    n1.swarm.init(options).await.expect("the node forms a cluster");
    n1
}

pub(super) async fn wait_until_expired(hosts: &[&Host]) {
    let mut interval = tokio::time::interval(Duration::from_millis(50));
    let expired = async {
        while !hosts.iter().all(|host| host.identity().validity.has_expired(now_ms())) {
            interval.tick().await;
        }
    };
    timeout(DEADLINE, expired).await.expect("expired in time");
}

/// Waits until one of the managers leads and has got a message of each of these nodes.
async fn wait_for_sessions(managers: &[&Daemon], nodes: &[NodeId]) {
    let mut interval = tokio::time::interval(Duration::from_millis(50));
    let complete = async {
        while !managers.iter().any(|manager| nodes.iter().all(|node| manager.has_session_of(node))) {
            interval.tick().await;
        }
    };
    timeout(DEADLINE, complete).await.expect("a leader with all sessions in time");
}

#[tokio::test]
async fn a_cluster_comes_back_after_all_its_certificates_have_expired() {
    let n1 = first_with_short_lived_certificates().await;
    let n2 = Daemon::joined("n2", &n1, Manager).await;
    let n3 = Daemon::joined("n3", &n1, Manager).await;
    let n4 = Daemon::joined("n4", &n1, Worker).await;
    n1.wait_until("three managers vote and n4 is ready", |s| voters(s) == 3 && node(s, "n4", is_ready)).await;
    set_label(&n1, "before").await.expect("the change is made");
    let nodes = [n1.id(), n2.id(), n3.id(), n4.id()];

    let hosts = [n4.stop().await, n3.stop().await, n2.stop().await, n1.stop().await];
    wait_until_expired(&hosts.each_ref()).await;
    let [n4, n3, n2, n1] = hosts;
    let (n4, n3, n2, n1) = (n4.start().await, n3.start().await, n2.start().await, n1.start().await);

    for manager in [&n1, &n2, &n3] {
        manager.becomes_manager().await;
    }
    set_label(&n1, "after").await.expect("the managers accept each other's new certificates");
    n3.wait_until("the others have both changes", |s| has_label(s, "before") && has_label(s, "after")).await;
    wait_for_sessions(&[&n1, &n2, &n3], &nodes).await;
    stop([n1, n2, n3, n4]).await;
}

#[tokio::test]
async fn a_worker_with_an_expired_certificate_says_so_until_a_manager_renews_it() {
    let n1 = first_with_short_lived_certificates().await;
    let n2 = Daemon::joined("n2", &n1, Worker).await;
    let id = n2.id();
    let (n2, n1) = (n2.stop().await, n1.stop().await);
    wait_until_expired(&[&n1, &n2]).await;

    let n2 = n2.start().await;
    let mut membership = n2.swarm.membership();
    let failed = timeout(DEADLINE, membership.wait_for(|m| matches!(m, Membership::Error(_)))).await;
    let failed = failed.expect("an error in time").expect("the daemon runs").clone();
    let names_cause =
        |text: &str| text.contains("certificate expired at") && text.contains("Check that a manager runs");
    assert!(matches!(&failed, Membership::Error(text) if names_cause(text)), "{failed:?}");

    let n1 = n1.start().await;
    let active = timeout(DEADLINE, membership.wait_for(|m| matches!(m, Membership::Active { .. }))).await;
    active.expect("renewed in time").expect("the daemon runs");
    wait_for_sessions(&[&n1], &[id]).await;
    stop([n1, n2]).await;
}

#[tokio::test]
async fn an_expired_certificate_is_good_for_the_renewal_only_and_only_of_a_member() {
    let n1 = first_with_short_lived_certificates().await;
    let n2 = Daemon::joined("n2", &n1, Worker).await;
    let id = n2.id();
    let host = n2.stop().await;
    wait_until_expired(&[&host]).await;
    n1.wait_until("the stopped node is down", |s| node(s, "n2", is_down)).await;

    let credentials = Credentials::new(Arc::new(host.identity())).expect("a stored certificate");
    let dialer = Dialer::manager(n1.rpc_addr(), credentials.client());
    let channel = connect_now(&dialer).await.expect("the handshake accepts the certificate");
    let codes = [
        DispatcherClient::new(channel.clone()).session(tokio_stream::empty()).await.map(|_| ()),
        DispatcherClient::new(channel.clone()).leave(LeaveRequest {}).await.map(|_| ()),
        QuorumClient::new(channel.clone()).ping(PingRequest {}).await.map(|_| ()),
    ];
    for refused in codes {
        let status = refused.expect_err("the certificate has expired");
        assert_eq!(status.code(), Code::Unauthenticated, "{status}");
        assert!(status.message().contains("expired"), "{status}");
    }
    let says_why = |s: &weft_model::ClusterState| node(s, "n2", |n| is_down(n) && n.message.contains("expired"));
    n1.wait_until("the cluster state says why the node is down", says_why).await;
    let limited = async {
        loop {
            let refused = DispatcherClient::new(channel.clone()).session(tokio_stream::empty()).await.map(drop);
            match refused.expect_err("the certificate has expired").code() {
                Code::Unauthenticated => {}
                code => return code,
            }
        }
    };
    let code = timeout(DEADLINE, limited).await.expect("a limit for its sessions in time");
    assert_eq!(code, Code::ResourceExhausted);

    let request = KeyRequest::generate().expect("a certificate request");
    let renew = async || {
        let request = Request::new(RenewRequest { csr_pem: request.csr_pem().to_owned() });
        AuthorityClient::new(channel.clone()).renew(request).await
    };
    let renewed = renew().await.expect("a member renews its certificate").into_inner();
    let renewed = PeerIdentity::from_pem(&renewed.cert_pem).expect("a certificate");
    assert_eq!((renewed.node, renewed.role), (id.clone(), Worker));
    n1.manager().propose(Command::RemoveNode { id, force: true }).await.expect("n2 is removed");
    let refused = renew().await.expect_err("the node was removed");
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    stop([n1]).await;
}
