//! Sessions: nodes report and ack, the leader sends each its plan. One task for each session; it ends when the node goes,
//! the leader loses its term, or the daemon stops.

use std::time::Duration;

use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_model::{Command, NodeId, NodePlan, NodeReport, state::NodeStatus};

use super::{Services, authority::removed};
use crate::{
    codec,
    rpc::{
        Caller,
        pb::{
            LeaderMessage, LeaveReply, LeaveRequest, NodeMessage, Redirect, dispatcher_server::Dispatcher,
            leader_message::Message,
        },
    },
    swarm::{Manager, desk::SessionId},
};

/// Messages on their way to a node: one is written while one waits. More would be outdated when they arrive.
const OUTBOX: usize = 1;
/// A node's first message comes at once.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);

type Outbox = mpsc::Sender<Result<LeaderMessage, Status>>;

#[tonic::async_trait]
impl Dispatcher for Services {
    type SessionStream = ReceiverStream<Result<LeaderMessage, Status>>;

    async fn session(&self, request: Request<Streaming<NodeMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        let caller = Caller::member(request.extensions(), &self.node.record().cluster)?.node.clone();
        let manager = self.manager()?;
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let inbox = request.into_inner();
        self.node.spawn(async move {
            if let Err(status) = run_session(&manager, &caller, inbox, &outbox).await {
                // Where the node is gone there is nobody to tell.
                let _ = outbox.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        let caller = Caller::member(request.extensions(), &self.node.record().cluster)?.node.clone();
        let manager = self.manager()?;
        // Only the leader knows when the node was last heard, and has to forget it.
        if !manager.inner().tracker.forget_node(&caller) {
            return Err(Status::unavailable("this manager does not lead"));
        }
        let left =
            Command::SetNodeStatus { id: caller, status: NodeStatus::Down, message: "it left the swarm".to_owned() };
        manager.propose(left).await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(LeaveReply {}))
    }
}

async fn run_session(
    manager: &Manager,
    caller: &NodeId,
    mut inbox: Streaming<NodeMessage>,
    outbox: &Outbox,
) -> Result<(), Status> {
    let first = timeout(FIRST_MESSAGE_TIMEOUT, inbox.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no first message"))??;
    let first = first.ok_or_else(|| Status::invalid_argument("no first message"))?;
    let report = decode_report(&first)?.ok_or_else(|| Status::invalid_argument("the first message holds no report"))?;
    let tracker = &manager.inner().tracker;
    let mut term = tracker.term();
    let led = *term.borrow_and_update();
    // The leader's table is complete: whoever is not in it is no member any more.
    if led.is_some() && !manager.state().borrow().nodes.contains_key(caller) {
        return Err(removed(caller));
    }
    let Some(session) = tracker.begin_session(caller, NodeReport { acked: first.acked, ..report }) else {
        return send_redirect(manager, outbox).await;
    };
    let end = tokio::select! {
        end = receive_messages(manager, caller, session, inbox) => end,
        end = send_plans(manager, caller, outbox) => end,
        _ = term.wait_for(|now| *now != led) => Ok(()),
        () = outbox.closed() => return Ok(()),
    };
    end?;
    send_redirect(manager, outbox).await
}

/// Where to go instead.
async fn send_redirect(manager: &Manager, outbox: &Outbox) -> Result<(), Status> {
    let leader = manager.leading_voter().filter(|voter| voter.node != *manager.node());
    let addr = leader.map_or_else(String::new, |voter| voter.rpc_addr.to_string());
    let _ = outbox.send(Ok(LeaderMessage { message: Some(Message::Redirect(Redirect { addr })) })).await;
    Ok(())
}

/// Writes down what the node says. Ends well when the node does, or is heard on a newer session.
async fn receive_messages(
    manager: &Manager,
    caller: &NodeId,
    session: SessionId,
    mut inbox: Streaming<NodeMessage>,
) -> Result<(), Status> {
    while let Some(message) = inbox.message().await? {
        let report = decode_report(&message)?;
        if !manager.inner().tracker.record_message(caller, session, message.acked, report) {
            return Ok(());
        }
    }
    Ok(())
}

fn decode_report(message: &NodeMessage) -> Result<Option<NodeReport>, Status> {
    if message.report.is_empty() {
        return Ok(None);
    }
    codec::decode(&message.report).map(Some).map_err(|e| Status::invalid_argument(e.to_string()))
}

/// Sends the plan whenever it changed, and otherwise that it did not.
async fn send_plans(manager: &Manager, caller: &NodeId, outbox: &Outbox) -> Result<(), Status> {
    let mut states = manager.state();
    let mut sent: Option<NodePlan> = None;
    loop {
        let state = states.borrow_and_update().clone();
        let plan = crate::plan::plan(&state, caller).ok_or_else(|| removed(caller))?;
        drop(state);
        if let Some(before) = &mut sent {
            before.generation = plan.generation;
        }
        let message = if sent.as_ref() == Some(&plan) {
            Message::Unchanged(plan.generation)
        } else {
            let bytes = codec::encode(&plan).map_err(|e| Status::internal(e.to_string()))?;
            sent = Some(plan);
            Message::Plan(bytes.into())
        };
        if outbox.send(Ok(LeaderMessage { message: Some(message) })).await.is_err() || states.changed().await.is_err() {
            return Ok(());
        }
    }
}
