//! Tests of the order of a node's plans: a leader that goes back, and one of another epoch.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming, service::Routes};
use weft_model::{
    Command, NetworkId, NodePlan,
    plan::PlanVersion,
    spec::Role::{Manager, Worker},
};

use super::{
    callers::connect,
    fixture::{DEADLINE, Host, cluster, stop},
};
use crate::{
    codec,
    fixture::network_spec,
    pki::Credentials,
    rpc::{
        Bound, Limits,
        pb::{
            LeaderMessage, LeaveReply, LeaveRequest, NodeMessage,
            dispatcher_client::DispatcherClient,
            dispatcher_server::{Dispatcher, DispatcherServer},
            leader_message::Message,
        },
        serve,
    },
};

/// The number of a session of a [`ScriptedLeader`], and an ack in it. `None`: the node has ended
/// the session.
type Received = (usize, Option<PlanVersion>);

/// A leader that sends one of these plans in each session, and nothing else.
struct ScriptedLeader {
    plans: Mutex<VecDeque<(usize, NodePlan)>>,
    received: mpsc::Sender<Received>,
}

#[tonic::async_trait]
impl Dispatcher for ScriptedLeader {
    type SessionStream = ReceiverStream<Result<LeaderMessage, Status>>;

    async fn session(&self, request: Request<Streaming<NodeMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        let plan = self.plans.lock().expect("no test thread panicked").pop_front();
        let (session, plan) = plan.ok_or_else(|| Status::unavailable("no plan is left"))?;
        let (outbox, messages) = mpsc::channel(1);
        let bytes = codec::encode(&codec::PLAN, &plan).expect("encoded");
        let message = LeaderMessage { message: Some(Message::Plan(bytes.into())) };
        outbox.send(Ok(message)).await.expect("the queue is empty");
        let (received, mut inbox) = (self.received.clone(), request.into_inner());
        tokio::spawn(async move {
            // The send fails only if the test has ended.
            while let Ok(Some(NodeMessage { acked, epoch, .. })) = inbox.message().await {
                let ack = PlanVersion { epoch, generation: acked };
                let _ = received.send((session, Some(ack))).await;
                // The script goes on once this plan is acked.
                if ack == plan.version() {
                    return;
                }
            }
            drop(outbox);
            let _ = received.send((session, None)).await;
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn leave(&self, _request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        Err(Status::unimplemented("not in the script"))
    }
}

/// Serves at the address of a manager that is stopped, with its certificate.
fn serve_as(host: &Host, addr: SocketAddr, plans: &[NodePlan]) -> (mpsc::Receiver<Received>, CancellationToken) {
    let (received, messages) = mpsc::channel(64);
    let leader = ScriptedLeader { plans: Mutex::new(plans.iter().cloned().enumerate().collect()), received };
    let mut routes = Routes::builder();
    routes.add_service(DispatcherServer::new(leader));
    let routes = routes.routes().prepare().into_axum_router();
    let credentials = Credentials::new(Arc::new(host.identity())).expect("credentials");
    let bound = Bound::bind(addr).expect("the manager is stopped");
    let stop = CancellationToken::new();
    let (untrusted, _) = mpsc::channel(1);
    tokio::spawn(serve(bound, credentials.server(), routes, Limits::default(), untrusted, stop.clone()));
    (messages, stop)
}

#[tokio::test]
async fn a_node_takes_no_older_plan_and_one_of_a_newer_epoch_with_a_lower_generation() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let spec = Box::new(network_spec("app"));
    n1.manager().propose(Command::CreateNetwork { id: NetworkId::from_random(1), spec }).await.expect("made");
    let mut plans = n2.swarm.plans();
    let has_network = |plan: &Option<Arc<NodePlan>>| plan.as_ref().is_some_and(|plan| plan.networks.len() > 1);
    let current = timeout(DEADLINE, plans.wait_for(has_network)).await.expect("in time").expect("a member").clone();
    let current = NodePlan::clone(&current.expect("a plan"));
    let addr = n1.rpc_addr();
    let host = n1.stop().await;

    let older = NodePlan { generation: current.generation - 1, networks: Vec::new(), ..current.clone() };
    let reformed = NodePlan { epoch: 5, generation: 1, networks: Vec::new(), ..current.clone() };
    let former = NodePlan { generation: current.generation + 100, ..current.clone() };
    let script = [older, reformed.clone(), former];
    let (mut received, stop_serving) = serve_as(&host, addr, &script);
    let played = async {
        loop {
            let message = received.recv().await.expect("the server runs");
            let plan = plans.borrow().as_ref().expect("a plan").clone();
            assert!(*plan == reformed || plan.networks == current.networks, "an older plan after {message:?}");
            match message {
                (0, Some(ack)) => assert!(ack >= current.version(), "{ack:?}"),
                // The node has ended the session of the older plan, and later that of the former
                // epoch. The session between them continues until its plan is acked.
                (0, None) | (1, _) => {}
                (_, Some(ack)) => assert_eq!(ack, reformed.version()),
                (_, None) => return,
            }
        }
    };
    timeout(DEADLINE, played).await.expect("the end of the script in time");
    assert_eq!(**plans.borrow().as_ref().expect("a plan"), reformed);

    let n2 = n2.stop().await.start().await;
    assert_eq!(**n2.swarm.plans().borrow().as_ref().expect("the stored plan"), reformed);
    stop_serving.cancel();
    stop([n2]).await;
}

#[tokio::test]
async fn a_leader_of_an_earlier_epoch_refuses_a_node_and_does_not_call_it_removed() {
    let [n1, n2] = cluster([Manager, Worker]).await;
    let report = codec::encode(&codec::REPORT, &weft_model::NodeReport::default()).expect("encoded");
    let first =
        NodeMessage { report: report.into(), epoch: u64::MAX, feature_level: 1, acked: 7, ..NodeMessage::default() };
    let mut client = DispatcherClient::new(connect(&n2, &n1).await);
    let mut inbox = client.session(tokio_stream::iter([first])).await.expect("a stream").into_inner();
    let refused = timeout(DEADLINE, inbox.message()).await.expect("an answer in time").expect_err("refused");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::FailedPrecondition, "the cluster was formed again without this manager",)
    );
    n1.wait_until("the node is still ready", |s| {
        s.nodes.values().all(|node| node.status == weft_model::state::NodeStatus::Ready)
    })
    .await;
    stop([n1, n2]).await;
}
