//! Tests of the bounds for what a node sends, through the real calls.

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, transport::Channel};
use weft_model::{
    Command, NodeId, NodeReport,
    spec::Role::Worker,
    state::{FEATURE_LEVEL, NodeStatus},
};

use super::{
    callers::{connect, first_answer},
    fixture::{DEADLINE, Daemon, node, stop},
};
use crate::{
    codec,
    rpc::pb::{NodeMessage, dispatcher_client::DispatcherClient},
};

/// A message with this report and this problem of the certificate.
pub(super) fn message(report: &NodeReport, problem: &str) -> NodeMessage {
    NodeMessage {
        report: codec::encode(&codec::REPORT, report).expect("encoded").into(),
        feature_level: FEATURE_LEVEL,
        certificate_problem: problem.to_owned(),
        ..NodeMessage::default()
    }
}

/// Opens a session that lasts as long as the sender is kept.
pub(super) async fn session(channel: &Channel, first: NodeMessage) -> mpsc::Sender<NodeMessage> {
    let (outbox, messages) = mpsc::channel(1);
    outbox.send(first).await.expect("an empty queue");
    let mut client = DispatcherClient::new(channel.clone()).max_encoding_message_size(usize::MAX);
    let mut inbox = client.session(ReceiverStream::new(messages)).await.expect("a stream").into_inner();
    tokio::spawn(async move { while let Ok(Some(_)) = inbox.message().await {} });
    outbox
}

/// A manager, and the connection and the id of a worker whose daemon is stopped.
pub(super) async fn manager_and_channel_of_worker() -> (Daemon, Channel, NodeId) {
    let n1 = Daemon::new("n1").await;
    let mut options = n1.init_options();
    // The node may begin sessions for half of the heartbeat timeout.
    (options.spec.heartbeat_ms, options.spec.heartbeat_misses) = (1_000, 20);
    n1.swarm.init(options).await.expect("the node forms a cluster");
    let n2 = Daemon::joined("n2", &n1, Worker).await;
    n1.wait_until("n2 is ready", |s| node(s, "n2", |n| n.status == NodeStatus::Ready)).await;
    let (channel, id) = (connect(&n2, &n1).await, n2.id());
    n2.stop().await;
    (n1, channel, id)
}

#[tokio::test]
async fn what_a_node_reports_is_cut_off_in_the_first_message_and_in_later_ones() {
    let (n1, channel, id) = manager_and_channel_of_worker().await;
    let tracker = n1.manager().tracker().clone();
    let long = |first: char| format!("{first}{}", "x".repeat(100_000));
    let arrived = async |first: char| {
        let mut changes = tracker.changes();
        loop {
            changes.mark_unchanged();
            let view = tracker.view().expect("n1 leads");
            if let Some(liveness) = view.nodes.get(&id).filter(|known| known.report.problem.starts_with(first)) {
                return liveness.clone();
            }
            changes.changed().await.expect("the tracker exists");
        }
    };
    let report = |first: char| NodeReport { problem: long(first), ..NodeReport::default() };
    let outbox = session(&channel, message(&report('1'), &long('c'))).await;
    for first in ['1', '2'] {
        let liveness = timeout(DEADLINE, arrived(first)).await.expect("the message arrives in time");
        assert_eq!((liveness.report.problem.len(), liveness.certificate.problem.len()), (1_024, 1_024));
        outbox.send(message(&report('2'), &long('c'))).await.expect("the session lasts");
    }

    let huge = NodeReport { problem: "x".repeat(9 << 20), ..NodeReport::default() };
    let refused = first_answer(&channel, message(&huge, "")).await.expect_err("a message of 9 MiB");
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    stop([n1]).await;
}

/// Opens sessions until one is refused because there were too many, and returns how often another
/// answer came before.
async fn open_too_many(channel: &Channel, expected: impl Fn(Result<(), Status>)) -> usize {
    for count in 0..20 {
        match first_answer(channel, message(&NodeReport::default(), "")).await.map(drop) {
            Err(refused) if refused.code() == Code::ResourceExhausted => {
                assert!(refused.message().contains("too many sessions"), "{refused}");
                return count;
            }
            answer => expected(answer),
        }
    }
    panic!("no session was refused");
}

#[tokio::test]
async fn a_node_that_opens_too_many_sessions_is_refused_also_if_it_was_removed() {
    let (n1, channel, id) = manager_and_channel_of_worker().await;
    let admitted = open_too_many(&channel, |answer| answer.expect("a plan")).await;
    assert!(admitted >= 2, "its daemon has opened one, and {admitted} were admitted");

    // Another node, which has opened one session.
    let n3 = Daemon::joined("n3", &n1, Worker).await;
    let (channel3, id3) = (connect(&n3, &n1).await, n3.id());
    n3.stop().await;
    for id in [id, id3] {
        n1.manager().propose(Command::RemoveNode { id, force: true }).await.expect("removed");
    }
    let was_removed = |answer: Result<(), Status>| {
        let refused = answer.expect_err("removed");
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains("was removed"), "{refused}");
    };
    let answered = open_too_many(&channel3, was_removed).await;
    assert!(answered >= 1, "it hears that it was removed");
    stop([n1]).await;
}
