//! This node's session with the leader: it finds the leader, reports and acks, and takes its plan. One task, which tries
//! again until the node stops; the plan in force stays in force meanwhile.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use weft_model::{NodePlan, NodeReport};

use super::{
    acks::AckTracker,
    join::root_cause,
    node::{HealthIssue, Node},
};
use crate::{
    codec,
    rpc::{
        Dialer, MAX_MESSAGE_BYTES, one_off,
        pb::{LeaderMessage, NodeMessage, dispatcher_client::DispatcherClient, leader_message::Message},
    },
};

/// Pause between tries: doubled from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// A leader's first word comes at once.
const FIRST_REPLY_TIMEOUT: Duration = Duration::from_secs(3);
/// Messages on their way to the leader; each holds the latest, so more would be outdated.
const OUTBOX: usize = 1;
/// Until a plan says otherwise.
const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(1);

/// How a session ended.
enum SessionEnd {
    /// Another manager leads, if one is known.
    Redirected(Option<SocketAddr>),
    /// The connection broke or was refused.
    Lost(String),
    /// The cluster does not know this node any more.
    Removed(String),
}

/// Keeps a session until the node stops.
pub(super) async fn run(node: Arc<Node>) {
    let mut acks = AckTracker::default();
    if let Some(plan) = node.channels().plans.borrow().as_ref() {
        acks.deliver(plan.generation);
    }
    let mut pause = FIRST_PAUSE;
    let mut next_addr = 0;
    let mut leader = None;
    loop {
        let addrs = node.manager_addrs();
        let hinted = leader.take();
        let Some(addr) = hinted.or_else(|| addrs.get(next_addr % addrs.len().max(1)).copied()) else {
            return tracing::error!("no manager's address is known: let this node leave and join again");
        };
        let mut session = Session { node: &node, acks: &mut acks, established: false };
        let end = session.run(addr).await;
        if session.established {
            pause = FIRST_PAUSE;
        }
        match end {
            // At once, but only once: two managers may each take the other for the leader.
            SessionEnd::Redirected(Some(other)) if hinted.is_none() && other != addr => {
                leader = Some(other);
                continue;
            }
            SessionEnd::Redirected(_) => tracing::debug!(%addr, "no leader there"),
            SessionEnd::Lost(reason) => tracing::debug!(%addr, reason, "no session with the leader"),
            SessionEnd::Removed(reason) => {
                let text =
                    format!("{reason}: its tasks are stopped; run \"weft swarm leave --force\", then join again");
                node.set_issue(HealthIssue::Removed, Some(text));
                node.channels().plans.send_replace(None);
                pause = LAST_PAUSE;
            }
        }
        next_addr += 1;
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.8..1.2))).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

struct Session<'a> {
    node: &'a Node,
    acks: &'a mut AckTracker,
    /// Whether the leader sent anything but a redirect.
    established: bool,
}

/// What was last sent.
struct Sent {
    acked: u64,
    at: Instant,
}

impl Session<'_> {
    async fn run(&mut self, addr: SocketAddr) -> SessionEnd {
        match self.open(addr).await {
            Ok(end) => end,
            Err(status) if status.code() == Code::PermissionDenied => SessionEnd::Removed(status.message().to_owned()),
            Err(status) => SessionEnd::Lost(status.message().to_owned()),
        }
    }

    async fn open(&mut self, addr: SocketAddr) -> Result<SessionEnd, Status> {
        let dialer = Dialer::manager(addr, self.node.credentials().client());
        let channel = one_off(&dialer).await.map_err(|e| Status::unavailable(root_cause(&e)))?;
        let mut client = DispatcherClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (outbox, messages) = mpsc::channel(OUTBOX);
        let mut reports = self.node.channels().reports.subscribe();
        let report = reports.borrow_and_update().clone();
        let acked = self.acks.ack(report.acked, *self.node.stored_generation().borrow());
        let first_message = NodeMessage { acked, report: encode(&report)?.into() };
        outbox.send(first_message).await.map_err(|_| Status::unavailable("the connection broke"))?;
        let mut sent = Sent { acked, at: Instant::now() };
        let inbox = timeout(FIRST_REPLY_TIMEOUT, client.session(ReceiverStream::new(messages))).await;
        let mut inbox = inbox.map_err(|_| Status::deadline_exceeded("no answer"))??.into_inner();
        let first = timeout(FIRST_REPLY_TIMEOUT, inbox.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("no first word"))??;
        if let Some(end) = self.handle_message(first)? {
            return Ok(end);
        }
        tracing::debug!(%addr, "session with the leader");
        self.node.set_issue(HealthIssue::Removed, None);
        self.exchange(&mut inbox, &outbox, &mut reports, report, &mut sent).await
    }

    /// Says and hears until the session ends.
    async fn exchange(
        &mut self,
        inbox: &mut Streaming<LeaderMessage>,
        outbox: &mpsc::Sender<NodeMessage>,
        reports: &mut watch::Receiver<NodeReport>,
        mut last_report: NodeReport,
        sent: &mut Sent,
    ) -> Result<SessionEnd, Status> {
        let gone = || Status::unavailable("the connection broke");
        let mut stored = self.node.stored_generation();
        loop {
            let report = reports.borrow_and_update().clone();
            let acked = self.acks.ack(report.acked, *stored.borrow_and_update());
            let news = report.description != last_report.description || report.tasks != last_report.tasks;
            if news || acked != sent.acked || sent.at.elapsed() >= self.heartbeat() {
                let body = if news { encode(&report)? } else { Vec::new() };
                outbox.send(NodeMessage { acked, report: body.into() }).await.map_err(|_| gone())?;
                *sent = Sent { acked, at: Instant::now() };
                last_report = report;
            }
            tokio::select! {
                message = inbox.message() => {
                    if let Some(end) = self.handle_message(message?)? {
                        return Ok(end);
                    }
                }
                changed = reports.changed() => changed.map_err(|_| gone())?,
                changed = stored.changed() => changed.map_err(|_| gone())?,
                () = sleep_until(sent.at + self.heartbeat()) => {}
            }
        }
    }

    fn heartbeat(&self) -> Duration {
        let plan = self.node.channels().plans.borrow();
        plan.as_ref().map_or(DEFAULT_HEARTBEAT, |plan| Duration::from_millis(plan.heartbeat_ms.max(1)))
    }

    /// Takes the leader's word; an end where it is one.
    fn handle_message(&mut self, message: Option<LeaderMessage>) -> Result<Option<SessionEnd>, Status> {
        let Some(message) = message else {
            return Ok(Some(SessionEnd::Lost("the leader closed the session".to_owned())));
        };
        match message.message {
            Some(Message::Redirect(redirect)) => return Ok(Some(SessionEnd::Redirected(redirect.addr.parse().ok()))),
            Some(Message::Unchanged(generation)) => self.acks.unchanged(generation),
            Some(Message::Plan(bytes)) => {
                let plan = codec::decode(&bytes).map_err(|e| Status::internal(e.to_string()))?;
                self.publish_plan(plan);
            }
            None => return Err(Status::internal("an empty message")),
        }
        self.established = true;
        Ok(None)
    }

    /// Puts a plan in force; the agent is woken only where there is something to do.
    fn publish_plan(&mut self, mut plan: NodePlan) {
        let generation = plan.generation;
        let current = self.node.channels().plans.borrow().clone();
        if let Some(current) = current {
            plan.generation = current.generation;
            if plan == *current {
                return self.acks.unchanged(generation);
            }
            plan.generation = generation;
        }
        self.acks.deliver(generation);
        self.node.channels().plans.send_replace(Some(Arc::new(plan)));
    }
}

fn encode(report: &NodeReport) -> Result<Vec<u8>, Status> {
    codec::encode(report).map_err(|e| Status::internal(e.to_string()))
}
