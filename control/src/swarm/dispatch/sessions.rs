//! The dispatcher: sessions in which nodes report and ack, and the leader sends each node its plan.
//!
//! One task for each session. It ends when the node closes the session or opens a newer one, when
//! this manager's term ends, or when the membership ends. A manager that does not lead redirects
//! the node to the leader. See [`super::super::link`] for the node's side and the state diagram.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use weft_model::{Command, NodeId, NodeReport, Rejection, state::NodeStatus};

use super::{
    Services, attach, bounds,
    exchange::{Acked, Opening, Outgoing, PlanMessage, plan_messages},
    status::{former_cluster, removed},
};
use crate::{
    codec,
    plan::plan,
    rpc::{
        Caller,
        pb::{
            AttachReply, AttachRequest, LeaderMessage, LeaveReply, LeaveRequest, NodeMessage, Redirect,
            dispatcher_server::Dispatcher, leader_message::Message,
        },
    },
    swarm::{
        context::Context,
        error::ProposeError,
        liveness::{CertificateStatus, SessionId},
        manager::Manager,
    },
};

/// Length of the queue of messages to a node: one message waits while another is sent. A longer
/// queue would hold outdated plans.
const OUTBOX: usize = 1;
/// A node sends its first message as soon as the session is open.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a quorum has to confirm that a node was removed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

const LEFT: &str = "it left the swarm";
const EXPIRED: &str = "its certificate has expired, and it has not renewed it yet: \"weft info\" on the node says why";
const UNTRUSTED: &str = "a machine with its address trusts another certificate authority than the swarm has, or has a \
                         certificate of another one: let it leave the swarm, remove the node, and join again";

/// What the managers' log and `weft node ls` say if a disk was set back.
const SET_BACK: &str = "the node has a later plan than this leader ever sent: the disk of a manager was set back, for \
                        example by a snapshot of its machine. The node keeps its plan. Run \"weft swarm init \
                        --force-new-cluster\" on the leader";

type Outbox = mpsc::Sender<Result<LeaderMessage, Status>>;

#[tonic::async_trait]
impl Dispatcher for Services {
    type SessionStream = ReceiverStream<Result<LeaderMessage, Status>>;

    async fn session(&self, request: Request<Streaming<NodeMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        let manager = self.manager()?;
        if let (caller, true) = Caller::known(request.extensions(), &self.context.record.cluster)? {
            admit_session(&manager, &caller.node)?;
            report_down(&manager, &caller.node, EXPIRED).await;
        }
        let caller = Caller::member(request.extensions(), &self.context.record.cluster)?.node.clone();
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let inbox = request.into_inner();
        self.sessions.spawn(async move {
            if let Err(status) = run_session(&manager, &caller, inbox, &outbox).await {
                // The send fails if the node has closed the session: then no status is needed.
                let _ = outbox.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Result<Response<AttachReply>, Status> {
        attach::answer(self, request).await
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        let caller = Caller::member(request.extensions(), &self.context.record.cluster)?.node.clone();
        let manager = self.manager()?;
        // Only the leader can handle this call: it must also forget the node's last message, or its
        // next step would make the node ready again.
        let does_not_lead = || Status::unavailable("this manager does not lead");
        if manager.tracker().view().is_none() {
            return Err(does_not_lead());
        }
        // A manager whose log runs has done that itself.
        manager.demote(&caller).await.map_err(|error| match error {
            // Nodes of earlier releases answer with other codes for other reasons.
            ProposeError::Rejected(reason) => Status::aborted(reason.to_string()),
            other => Status::unavailable(other.to_string()),
        })?;
        let Some(had_session) = manager.tracker().forget_node(&caller) else {
            return Err(does_not_lead());
        };
        // A node may repeat this call, and a repetition must cost no log entry.
        if !had_session && has_left(&manager, &caller).await? {
            return Ok(Response::new(LeaveReply {}));
        }
        let left = Command::SetNodeStatus { id: caller, status: NodeStatus::Down, message: LEFT.to_owned() };
        match manager.propose(left).await {
            // The node was removed: there is nothing to leave.
            Ok(_) | Err(ProposeError::Rejected(Rejection::NotFound { .. })) => Ok(Response::new(LeaveReply {})),
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }
}

/// Whether a node has left the cluster already, or was removed.
async fn has_left(manager: &Manager, node: &NodeId) -> Result<bool, Status> {
    manager.confirm_lease().await.map_err(Status::unavailable)?;
    let state = manager.state().borrow().clone();
    Ok(state.nodes.get(node).is_none_or(|node| node.status == NodeStatus::Down && node.message == LEFT))
}

/// Reports the nodes with these addresses, with which no handshake is possible. So the address is
/// all that is known of them, and it is good only to explain why a node is down. Runs until the
/// server has ended.
pub(in crate::swarm) async fn report_untrusted(context: Arc<Context>, mut peers: mpsc::Receiver<IpAddr>) {
    while let Some(addr) = peers.recv().await {
        let Some(manager) = context.manager() else { continue };
        let state = manager.state().borrow().clone();
        // A node that has left needs no other explanation, and could alternate between the two.
        for node in state.nodes.values().filter(|node| node.addr == addr && node.message != LEFT) {
            report_down(&manager, &node.id, UNTRUSTED).await;
        }
    }
}

/// Says in the cluster state why a node that is down cannot come back. A manager that does not lead
/// does nothing: the node asks all managers.
async fn report_down(manager: &Manager, caller: &NodeId, message: &str) {
    let news = manager.state().borrow().nodes.get(caller).is_some_and(|node| {
        node.status == NodeStatus::Down && node.message != message && manager.tracker().view().is_some()
    });
    if !news {
        return;
    }
    let down = Command::SetNodeStatus { id: caller.clone(), status: NodeStatus::Down, message: message.to_owned() };
    if let Err(error) = manager.propose(down).await {
        tracing::debug!(node = %caller, %error, message, "cannot report why the node is down");
    }
}

async fn run_session(
    manager: &Manager,
    caller: &NodeId,
    mut inbox: Streaming<NodeMessage>,
    outbox: &Outbox,
) -> Result<(), Status> {
    let first = timeout(FIRST_MESSAGE_TIMEOUT, inbox.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("the node sent no first message in time"))??;
    let first =
        first.ok_or_else(|| Status::invalid_argument("the node closed the session before its first message"))?;
    let report = decode_report(&first)?.ok_or_else(|| Status::invalid_argument("the first message has no report"))?;
    let tracker = manager.tracker();
    let mut term = tracker.term();
    let led = *term.borrow_and_update();
    let epoch = manager.state().borrow().epoch;
    let known = Acked { epoch: first.epoch, generation: first.acked, level: first.feature_level };
    let opening = known.opening(&manager.state().borrow(), caller);
    if led.is_some() && opening == Opening::FormerCluster {
        if tracker.record_newer_plan(caller) {
            tracing::warn!(
                node = %caller, node_epoch = first.epoch, epoch,
                "refuses a node with a plan of a later cluster: this manager belongs to a former one, or was restored \
                 while a clock was wrong",
            );
        }
        return Err(former_cluster(first.epoch, epoch));
    }
    // The checks below ask the other managers.
    admit_session(manager, caller)?;
    if led.is_some() && opening == Opening::Unknown {
        return Err(confirm_removal(manager, caller).await);
    }
    let (node_level, certificate) = (first.feature_level, certificate_status(&first));
    let index = manager.state().borrow().index;
    let mut report = NodeReport { acked: known.counts_as((epoch, index)), ..report };
    if led.is_some() && known.is_later((epoch, index)) && is_set_back(manager, known).await? {
        SET_BACK.clone_into(&mut report.problem);
        if tracker.record_newer_plan(caller) {
            tracing::warn!(node = %caller, node_generation = first.acked, generation = index, "{SET_BACK}");
        }
    }
    let Some(session) = tracker.begin_session(caller, report, node_level, certificate) else {
        return send_redirect(manager, outbox).await;
    };
    let receiver = Receiver { manager, caller, session, node_level, epoch };
    let end = tokio::select! {
        end = receiver.run(inbox) => end,
        end = send_plans(manager, caller, node_level, outbox) => end,
        _ = term.wait_for(|now| *now != led) => Ok(()),
        () = outbox.closed() => return Ok(()),
    };
    end?;
    send_redirect(manager, outbox).await
}

/// Counts an attempt to begin a session, and refuses it if the node has made too many. A node that
/// was removed is limited too: its certificate stays valid, and each answer costs a round of a
/// quorum.
fn admit_session(manager: &Manager, caller: &NodeId) -> Result<(), Status> {
    let timeout_ms = manager.state().borrow().cluster.as_ref().map_or(0, |cluster| cluster.spec.heartbeat_timeout_ms());
    if manager.tracker().may_begin_session(caller, timeout_ms) {
        Ok(())
    } else {
        Err(Status::resource_exhausted("this node has opened too many sessions: it must wait some seconds"))
    }
}

/// The status for a node that the cluster state here does not contain. A node that hears that it
/// was removed stops its tasks, so the state must be the newest.
async fn confirm_removal(manager: &Manager, caller: &NodeId) -> Status {
    match confirm_state(manager).await {
        Err(status) => status,
        Ok(()) if manager.state().borrow().nodes.contains_key(caller) => {
            Status::unavailable("the node has joined meanwhile")
        }
        Ok(()) => removed(caller),
    }
}

/// Waits until a quorum has confirmed this leader, and the state here is the newest. The state of a
/// deposed leader lacks what has changed meanwhile.
async fn confirm_state(manager: &Manager) -> Result<(), Status> {
    let deadline = Instant::now() + CONFIRM_TIMEOUT;
    match timeout_at(deadline, manager.confirm_leadership()).await {
        Ok(Ok(index)) if manager.wait_for_index(index, deadline).await => Ok(()),
        Ok(Err(reason)) => Err(Status::unavailable(reason)),
        Ok(Ok(_)) | Err(_) => {
            Err(Status::unavailable("no quorum confirms in time that this manager has the newest state"))
        }
    }
}

/// Whether the managers have forgotten changes that they had written: the node has acked a plan
/// with these changes, and no quorum knows them.
async fn is_set_back(manager: &Manager, known: Acked) -> Result<bool, Status> {
    confirm_state(manager).await?;
    let state = manager.state().borrow().clone();
    Ok(known.is_later((state.epoch, state.index)))
}

/// Sends the node the leader's address, or an empty one if this manager leads or knows no leader.
async fn send_redirect(manager: &Manager, outbox: &Outbox) -> Result<(), Status> {
    let leader = manager.leading_voter().filter(|voter| voter.node != *manager.node());
    let addr = leader.map_or_else(String::new, |voter| voter.rpc_addr.to_string());
    let _ = outbox.send(Ok(LeaderMessage { message: Some(Message::Redirect(Redirect { addr })) })).await;
    Ok(())
}

/// The receiving half of a session.
struct Receiver<'a> {
    manager: &'a Manager,
    caller: &'a NodeId,
    session: SessionId,
    node_level: u32,
    epoch: u64,
}

impl Receiver<'_> {
    /// Records the node's messages until the node closes the session or opens a newer one.
    async fn run(self, mut inbox: Streaming<NodeMessage>) -> Result<(), Status> {
        while let Some(message) = inbox.message().await? {
            let index = self.manager.state().borrow().index;
            let known = Acked { epoch: message.epoch, generation: message.acked, level: self.node_level };
            let acked = known.counts_as((self.epoch, index));
            let report = decode_report(&message)?;
            let certificate = certificate_status(&message);
            if !self.manager.tracker().record_message(self.caller, self.session, acked, report, certificate) {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn certificate_status(message: &NodeMessage) -> CertificateStatus {
    let mut status =
        CertificateStatus { ca_sha256: message.ca_sha256.to_vec(), problem: message.certificate_problem.clone() };
    bounds::limit_certificate(&mut status);
    status
}

/// `None` if the message is a heartbeat without a report.
fn decode_report(message: &NodeMessage) -> Result<Option<NodeReport>, Status> {
    if message.report.is_empty() {
        return Ok(None);
    }
    let report = codec::decode(&codec::REPORT, &message.report);
    let mut report: NodeReport = report.map_err(|e| Status::invalid_argument(e.to_string()))?;
    if bounds::limit(&mut report) {
        tracing::warn!("a node reported more than the managers store: the rest of its report is cut off");
    }
    Ok(Some(report))
}

/// Sends the node's plan each time that it changes. For other changes of the cluster state, sends
/// the generation at which the plan is still the same, so that the node can ack it. The plan
/// contains what the cluster's feature level and that of the node allow.
async fn send_plans(manager: &Manager, caller: &NodeId, node_level: u32, outbox: &Outbox) -> Result<(), Status> {
    let mut states = manager.state();
    let mut outgoing = Outgoing::default();
    loop {
        let state = states.borrow_and_update().clone();
        let state_level = state.feature_level;
        let Some(plan) = plan(&state, caller) else {
            return Err(confirm_removal(manager, caller).await);
        };
        drop(state);
        // Another leader may have been elected while this process was paused or cut off.
        if let Err(reason) = manager.confirm_lease().await {
            tracing::debug!(node = %caller, reason, "sends no plan, because no quorum confirms this leader");
            return Ok(());
        }
        let messages = match outgoing.next(plan) {
            PlanMessage::Unchanged(generation) => vec![Message::Unchanged(generation)],
            PlanMessage::Plan(plan) => {
                let level = state_level.min(node_level);
                let bytes = codec::plan::encode(&plan, level).map_err(|e| Status::internal(e.to_string()))?;
                plan_messages(bytes.into(), node_level).map_err(|reason| {
                    tracing::warn!(node = %caller, reason, "the node gets no plan");
                    Status::failed_precondition(reason)
                })?
            }
        };
        for message in messages {
            if outbox.send(Ok(LeaderMessage { message: Some(message) })).await.is_err() {
                return Ok(());
            }
        }
        if states.changed().await.is_err() {
            return Ok(());
        }
    }
}
