//! Tests of who may make the calls between managers.

use std::sync::Arc;

use openraft::{Vote, raft::AppendEntriesRequest};
use tokio::time::timeout;
use tokio_stream::StreamExt as _;
use tonic::{Code, Status, transport::Channel};
use weft_model::spec::Role::{Manager, Worker};

use super::fixture::{DEADLINE, Daemon, cluster, node, set_label, stop};
use crate::{
    codec,
    pki::{Credentials, Identity},
    raft::TypeConfig,
    rpc::{
        Dialer, connect_now,
        pb::{
            ConfirmedRequest, LeaderMessage, LeaveRequest, LogsRequest, NodeMessage, PingRequest, ProposeRequest,
            RaftRequest, ReplaceRequest, SnapshotPart, WelcomeRequest, dispatcher_client::DispatcherClient,
            logs_client::LogsClient, quorum_client::QuorumClient,
        },
    },
};

/// A connection to `to` with the certificate that `from` has now.
pub(super) async fn connect(from: &Daemon, to: &Daemon) -> Channel {
    let (pem, manager) = (from.certificate().await, to.manager());
    let ca_pem = manager.state().borrow().cluster.as_ref().expect("a cluster").ca_cert_pem.clone();
    let identity = Identity::from_pem(&pem, &ca_pem).expect("a certificate");
    let credentials = Credentials::new(Arc::new(identity)).expect("credentials");
    connect_now(&Dialer::manager(to.rpc_addr(), credentials.client())).await.expect("a connection")
}

/// Opens a session with this first message, and returns the first answer.
pub(super) async fn first_answer(channel: &Channel, first: NodeMessage) -> Result<Option<LeaderMessage>, Status> {
    let messages = tokio_stream::iter([first]).chain(tokio_stream::pending());
    let mut client = DispatcherClient::new(channel.clone()).max_encoding_message_size(usize::MAX);
    let answer = async { client.session(messages).await?.into_inner().message().await };
    timeout(DEADLINE, answer).await.expect("an answer in time")
}

/// The results of the three calls of Raft.
async fn raft_calls(channel: &Channel, request: &RaftRequest) -> [Option<Code>; 3] {
    let mut client = QuorumClient::new(channel.clone());
    let part = SnapshotPart { request: Some(request.clone()), data: Default::default() };
    [
        client.append(request.clone()).await.err().map(|status| status.code()),
        client.vote(request.clone()).await.err().map(|status| status.code()),
        client.snapshot(futures_util::stream::iter([part])).await.err().map(|status| status.code()),
    ]
}

#[tokio::test]
async fn a_worker_can_make_no_call_of_managers() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let channel = connect(&n2, &n1).await;
    let denied = Some(Code::PermissionDenied);
    assert_eq!(
        raft_calls(&channel, &RaftRequest { source: 2, target: 1, body: Default::default() }).await,
        [denied; 3]
    );
    let mut client = QuorumClient::new(channel.clone());
    let others = [
        client.propose(ProposeRequest::default()).await.err().map(|status| status.code()),
        client.welcome(WelcomeRequest {}).await.err().map(|status| status.code()),
        client.replace(ReplaceRequest { raft_id: 1 }).await.err().map(|status| status.code()),
        client.confirmed(ConfirmedRequest {}).await.err().map(|status| status.code()),
        client.ping(PingRequest {}).await.err().map(|status| status.code()),
        LogsClient::new(channel).read(LogsRequest::default()).await.err().map(|status| status.code()),
    ];
    assert_eq!(others, [denied; 6]);
    stop([n1, n2]).await;
}

/// A node that leaves asks one manager after the other, and takes a refusal as the leader's.
#[tokio::test]
async fn a_node_that_runs_no_manager_refuses_no_call_for_the_others() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let addr = n1.manager().state().borrow().nodes[&n2.id()].rpc_addr;
    let dialer = Dialer::node(addr, &n2.id(), n1.context().await.credentials.client()).expect("a name");
    let channel = connect_now(&dialer).await.expect("a connection");
    let asked = DispatcherClient::new(channel).leave(LeaveRequest {}).await.expect_err("a worker");
    assert_eq!(asked.code(), Code::Unavailable, "{asked}");
    stop([n1, n2]).await;
}

/// Its certificate is valid for months, and it may not have noticed its demotion.
#[tokio::test]
async fn a_demoted_manager_cannot_append_vote_or_install_a_snapshot() {
    let [n1, n2] = cluster([Manager, Manager]).await;
    let channel = connect(&n2, &n1).await;
    let raft_id = n2.manager().keys().raft_id;
    let append = AppendEntriesRequest::<TypeConfig> {
        vote: Vote::new_committed(1_000, raft_id),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    };
    let body = codec::encode(&codec::RAFT_MESSAGE, &append).expect("encoded");
    let request = RaftRequest { source: raft_id, target: 1, body: body.into() };
    n1.set_role(&n2.id(), Worker).await.expect("n2 is demoted");
    n2.becomes_worker().await;
    n1.wait_until("n2 is in no Raft configuration", |s| node(s, "n2", |n| !n.in_raft_config)).await;

    assert_eq!(raft_calls(&channel, &request).await, [Some(Code::PermissionDenied); 3]);
    let mut client = QuorumClient::new(channel);
    let others = [
        client.propose(ProposeRequest::default()).await.err().map(|status| status.code()),
        client.welcome(WelcomeRequest {}).await.err().map(|status| status.code()),
        client.replace(ReplaceRequest { raft_id: 1 }).await.err().map(|status| status.code()),
        client.confirmed(ConfirmedRequest {}).await.err().map(|status| status.code()),
    ];
    assert_eq!(others, [Some(Code::PermissionDenied); 4]);
    assert!(n1.manager().is_leader(), "{}", n1.manager().log_metrics());
    set_label(&n1, "after").await.expect("n1 leads");
    stop([n1, n2]).await;
}
