//! One session with one manager, from the connection to its end. The link's loop runs one session
//! at a time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use weft_model::{NodePlan, NodeReport, plan::PlanVersion, state::FEATURE_LEVEL};

use super::{
    acks::AckTracker,
    inbox::{FORMER_CLUSTER, Received, receive},
};
use crate::{
    codec,
    rpc::{
        Dialer, MAX_MESSAGE_BYTES, connect_now,
        pb::{LeaderMessage, NodeMessage, dispatcher_client::DispatcherClient, leader_message::Message},
    },
    swarm::{
        context::{Context, HealthIssue},
        dispatch::exchange::MAX_PLAN_BYTES,
        error::{is_of_unknown_ca, root_cause},
        liveness::CertificateStatus,
    },
};

/// A manager sends its first message as soon as it has received this node's first message.
const FIRST_REPLY_TIMEOUT: Duration = Duration::from_secs(3);
/// Length of the queue of messages to the leader. Each message holds the state at the time when it
/// was queued, so a longer queue would hold outdated messages.
const OUTBOX: usize = 1;
/// The heartbeat interval until a plan contains one.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(1);

/// How a session ended.
pub(super) enum SessionEnd {
    /// This manager does not lead. The leader's address, if the manager knows one.
    Redirected(Option<SocketAddr>),
    /// There was no connection, or it broke.
    Disconnected(String),
    /// A CA that this node does not trust has signed the manager's certificate.
    Untrusted,
    /// The cluster state no longer contains this node.
    Removed(String),
    /// The manager has an earlier plan than the one that this node has. The text says why, and what
    /// to do.
    Outdated(String),
}

pub(super) struct Session<'a> {
    context: &'a Context,
    acks: &'a mut AckTracker,
    /// The parts of a plan whose last part has not come yet.
    parts: Vec<u8>,
    established: bool,
}

/// The last message to the leader.
struct Sent {
    acked: PlanVersion,
    certificate: CertificateStatus,
    /// The feature level of the last report.
    level: u32,
    at: Instant,
}

impl<'a> Session<'a> {
    pub(super) fn new(context: &'a Context, acks: &'a mut AckTracker) -> Self {
        Self { context, acks, parts: Vec::new(), established: false }
    }

    /// Whether the manager sent a plan or a generation, which only the leader does.
    pub(super) fn is_established(&self) -> bool {
        self.established
    }

    /// Connects to the manager at `addr` and keeps the session until it ends.
    pub(super) async fn run(&mut self, addr: SocketAddr) -> SessionEnd {
        match self.connect(addr).await {
            Ok(end) => end,
            Err(status) if status.code() == Code::PermissionDenied => SessionEnd::Removed(status.message().to_owned()),
            Err(status) if status.code() == Code::OutOfRange => {
                SessionEnd::Outdated(format!("{}: {FORMER_CLUSTER}", status.message()))
            }
            Err(status) => SessionEnd::Disconnected(status.message().to_owned()),
        }
    }

    async fn connect(&mut self, addr: SocketAddr) -> Result<SessionEnd, Status> {
        let dialer = Dialer::manager(addr, self.context.credentials.client());
        let channel = match connect_now(&dialer).await {
            Ok(channel) => channel,
            Err(error) if is_of_unknown_ca(&error) => return Ok(SessionEnd::Untrusted),
            Err(error) => return Err(Status::unavailable(root_cause(&error))),
        };
        let mut client = DispatcherClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let mut reports = self.context.channels.reports.subscribe();
        let addr_now = *self.context.addr.borrow();
        let report = NodeReport { addr: Some(addr_now), ..reports.borrow_and_update().clone() };
        let acked = self.acks.ack(report.in_effect(), *self.context.stored_version.borrow());
        let certificate = self.context.certificate_status();
        let level = self.feature_level();
        let first_message = message(acked, encode(level, &report)?, &certificate);
        outbox.send(first_message).await.map_err(|_| Status::unavailable("the connection broke"))?;
        let mut sent = Sent { acked, certificate, level, at: Instant::now() };
        let inbox = timeout(FIRST_REPLY_TIMEOUT, client.session(ReceiverStream::new(messages))).await;
        let mut inbox =
            inbox.map_err(|_| Status::deadline_exceeded("the manager did not answer in time"))??.into_inner();
        let first = timeout(FIRST_REPLY_TIMEOUT, inbox.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("the manager sent no first message in time"))??;
        if let Some(end) = self.handle_message(first)? {
            return Ok(end);
        }
        tracing::debug!(%addr, "session with the leader established");
        self.context.set_issue(HealthIssue::Removed, None);
        self.context.set_issue(HealthIssue::Outdated, None);
        self.context.set_issue(HealthIssue::Authority, None);
        self.exchange(&mut inbox, &outbox, &mut reports, report, &mut sent).await
    }

    /// Sends and receives messages until the session ends.
    async fn exchange(
        &mut self,
        inbox: &mut Streaming<LeaderMessage>,
        outbox: &mpsc::Sender<NodeMessage>,
        reports: &mut watch::Receiver<NodeReport>,
        mut last_report: NodeReport,
        sent: &mut Sent,
    ) -> Result<SessionEnd, Status> {
        let disconnected = || Status::unavailable("the connection broke");
        let mut stored = self.context.stored_version.subscribe();
        let mut problems = self.context.certificate_problem.subscribe();
        let mut addrs = self.context.addr.subscribe();
        loop {
            let addr = *addrs.borrow_and_update();
            let report = NodeReport { addr: Some(addr), ..reports.borrow_and_update().clone() };
            let acked = self.acks.ack(report.in_effect(), *stored.borrow_and_update());
            let (acked_before, epoch) = (last_report.acked, last_report.epoch);
            // At another level, the leader reads other facts of the same report.
            let level = self.feature_level();
            let changed =
                level != sent.level || NodeReport { acked: acked_before, epoch, ..report.clone() } != last_report;
            problems.mark_unchanged();
            let (identity, certificate) = (self.context.credentials.identity(), self.context.certificate_status());
            let sends = changed || acked != sent.acked || certificate != sent.certificate;
            if sends || sent.at.elapsed() >= self.heartbeat() {
                let body = if changed { encode(level, &report)? } else { Vec::new() };
                outbox.send(message(acked, body, &certificate)).await.map_err(|_| disconnected())?;
                *sent = Sent { acked, certificate, level, at: Instant::now() };
                last_report = report;
            }
            tokio::select! {
                message = inbox.message() => {
                    if let Some(end) = self.handle_message(message?)? {
                        return Ok(end);
                    }
                }
                changed = reports.changed() => changed.map_err(|_| disconnected())?,
                changed = stored.changed() => changed.map_err(|_| disconnected())?,
                changed = problems.changed() => changed.map_err(|_| disconnected())?,
                changed = addrs.changed() => changed.map_err(|_| disconnected())?,
                () = self.context.credentials.wait_until_replaced(&identity) => {}
                () = sleep_until(sent.at + self.heartbeat()) => {}
            }
        }
    }

    /// The cluster's feature level, as far as this node knows it: a manager of that level reads its
    /// reports.
    fn feature_level(&self) -> u32 {
        self.context.channels.plans.borrow().as_ref().map_or(0, |plan| plan.feature_level)
    }

    fn heartbeat(&self) -> Duration {
        let plan = self.context.channels.plans.borrow();
        plan.as_ref().map_or(DEFAULT_HEARTBEAT, |plan| Duration::from_millis(plan.heartbeat_ms.max(1)))
    }

    /// Handles one message of the leader. Returns how the session ended, if the message ends it.
    fn handle_message(&mut self, message: Option<LeaderMessage>) -> Result<Option<SessionEnd>, Status> {
        let Some(message) = message else {
            return Ok(Some(SessionEnd::Disconnected("the leader closed the session".to_owned())));
        };
        match message.message {
            Some(Message::Redirect(redirect)) => return Ok(Some(SessionEnd::Redirected(redirect.addr.parse().ok()))),
            // It means the plan that this session has sent before, which this node has taken.
            Some(Message::Unchanged(_)) if !self.established => {
                return Err(Status::internal("the leader sent no plan before it sent a generation"));
            }
            Some(Message::Unchanged(generation)) => self.acks.unchanged(generation),
            Some(Message::PlanPart(part)) => {
                if self.parts.len() + part.len() > MAX_PLAN_BYTES {
                    let reason = format!("the plan of this node is longer than {} MiB", MAX_PLAN_BYTES >> 20);
                    return Err(Status::resource_exhausted(reason));
                }
                self.parts.extend_from_slice(&part);
                return Ok(None);
            }
            Some(Message::Plan(last)) => {
                let mut bytes = std::mem::take(&mut self.parts);
                bytes.extend_from_slice(&last);
                let plan = codec::plan::decode(&bytes).map_err(|e| Status::internal(e.to_string()))?;
                if let Some(end) = self.publish_plan(plan) {
                    return Ok(Some(end));
                }
            }
            None => return Err(Status::internal("the leader sent an empty message")),
        }
        self.established = true;
        Ok(None)
    }

    /// Publishes a plan, unless the node has it already. Returns how the session ended, if the
    /// plan ends it.
    fn publish_plan(&mut self, plan: NodePlan) -> Option<SessionEnd> {
        let current = self.context.channels.plans.borrow().clone();
        match receive(self.acks, current.as_deref(), plan) {
            Received::Publish(plan) => {
                self.context.channels.plans.send_replace(Some(Arc::from(plan)));
                None
            }
            Received::Unchanged => None,
            Received::Outdated(reason) => Some(SessionEnd::Outdated(reason)),
        }
    }
}

/// `report` is encoded, or empty if it is the last one.
fn message(acked: PlanVersion, report: Vec<u8>, certificate: &CertificateStatus) -> NodeMessage {
    NodeMessage {
        acked: acked.generation,
        epoch: acked.epoch,
        report: report.into(),
        feature_level: FEATURE_LEVEL,
        ca_sha256: certificate.ca_sha256.clone().into(),
        certificate_problem: certificate.problem.clone(),
    }
}

fn encode(level: u32, report: &NodeReport) -> Result<Vec<u8>, Status> {
    codec::encode_at(&codec::REPORT, level, report).map_err(|e| Status::internal(e.to_string()))
}
