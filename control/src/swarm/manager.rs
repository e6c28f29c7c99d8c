//! A manager's view of the table and its way to change it.

use std::{collections::BTreeSet, fmt, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream::BoxStream};
use openraft::error::{ClientWriteError, RaftError};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use tonic::{Code, Request, transport::Channel};
use weft_model::{Applied, ClusterState, Command, NodeId, Rejection, TaskId, id::ClusterId, spec::Role};

use super::{ProposeError, clock::ClusterClock, desk::NodeTracker};
use crate::{
    codec,
    pki::{self, Ca, JoinToken, PkiError},
    raft::{Proposal, ProposalId, Raft, Store, Voter},
    rpc::{
        MAX_MESSAGE_BYTES, Peers,
        pb::{ConfirmedRequest, LogsRequest, ProposeRequest, logs_client::LogsClient, quorum_client::QuorumClient},
    },
};
use weft_model::{LogError, LogOptions, LogRecord, LogSource};

/// How long a change may take, a change of leader included.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long this node may lag behind a change that the leader has confirmed.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reader waits for the leader to confirm what this node holds.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);
/// Between tries where nothing tells that another would go better.
const RETRY: Duration = Duration::from_millis(100);

/// A manager's view of the table and its way to change it. Cheap to clone.
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

/// What a manager is made of.
pub(super) struct Inner {
    pub node: NodeId,
    pub cluster: ClusterId,
    pub raft_id: u64,
    pub raft: Raft,
    pub store: Store,
    pub state: watch::Receiver<Arc<ClusterState>>,
    pub kek: pki::Kek,
    pub peers: Peers,
    pub tracker: NodeTracker,
    pub clock: ClusterClock,
    /// Managers that answered lately.
    pub reachable: watch::Sender<BTreeSet<NodeId>>,
    pub logs: Arc<dyn LogSource>,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

/// Why one try of a change did not lead to an answer.
enum Attempt {
    /// Another try may go better; with what went wrong.
    Retry(String),
    /// No other try can.
    Fatal(ProposeError),
}

impl Manager {
    pub(super) fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.inner
    }

    pub fn node(&self) -> &NodeId {
        &self.inner.node
    }

    pub fn cluster(&self) -> &ClusterId {
        &self.inner.cluster
    }

    /// The table as applied here; rings at every change.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.inner.state.clone()
    }

    /// Changes the table, through whichever manager leads, and returns once this node has applied the change. It happens
    /// once, also where a leader is lost on the way.
    ///
    /// # Errors
    /// [`ProposeError::Rejected`] where the table refused: then nothing changed.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let (index, outcome) = self.submit(ProposalId::random(), command).await?;
        let applied = outcome?;
        let caught_up = self.wait_for_index(index, Instant::now() + CATCH_UP_TIMEOUT).await;
        if !caught_up {
            tracing::warn!(index, "a change is made, yet this manager lags behind it");
        }
        Ok(applied)
    }

    /// Returns once the table here holds every change that was answered, on whichever manager, before this call: a reader
    /// sees what was written before. `false` where no leader confirms it in time: then the table may be old.
    pub async fn catch_up(&self) -> bool {
        let deadline = Instant::now() + CONFIRM_TIMEOUT;
        while Instant::now() < deadline {
            if let Ok(Some(index)) = timeout_at(deadline, self.leader_confirmed_index()).await {
                let applied = self.inner.raft.wait(Some(deadline.saturating_duration_since(Instant::now())));
                return applied.applied_index_at_least(Some(index), "a reader waits").await.is_ok();
            }
            tokio::time::sleep_until((Instant::now() + RETRY).min(deadline)).await;
        }
        false
    }

    async fn leader_confirmed_index(&self) -> Option<u64> {
        if self.is_leader() {
            return self.confirm_leadership().await.ok();
        }
        let reply = QuorumClient::new(self.leader_channel()?).confirmed(ConfirmedRequest {}).await.ok()?;
        Some(reply.into_inner().index)
    }

    /// How far the log is confirmed, where this manager leads and most voters say so now.
    pub(super) async fn confirm_leadership(&self) -> Result<u64, String> {
        let (confirmed, _) = self.inner.raft.get_read_log_id().await.map_err(|error| error.to_string())?;
        Ok(confirmed.map_or(0, |id| id.index))
    }

    /// The node that leads now, as far as this one knows.
    pub fn leader(&self) -> Option<NodeId> {
        self.leading_voter().map(|voter| voter.node)
    }

    pub fn is_leader(&self) -> bool {
        self.leader().as_ref() == Some(&self.inner.node)
    }

    pub fn manager_reachable(&self, node: &NodeId) -> bool {
        *node == self.inner.node || self.inner.reachable.borrow().contains(node)
    }

    /// The current token of a role, `SWMTKN-1-…`.
    pub fn join_token(&self, role: Role) -> String {
        let state = self.inner.state.borrow();
        state.cluster.as_ref().map_or_else(String::new, |cluster| {
            let secret = match role {
                Role::Worker => &cluster.worker_secret,
                Role::Manager => &cluster.manager_secret,
            };
            JoinToken::new(&cluster.ca_cert_pem, secret).to_string()
        })
    }

    /// Replaces the token of a role and returns the new one. The old one opens nothing from then on; nodes that joined
    /// with it are not disturbed.
    pub async fn rotate_token(&self, role: Role) -> Result<String, ProposeError> {
        self.propose(Command::RotateToken { role, secret: pki::random_secret() }).await?;
        Ok(self.join_token(role))
    }

    /// The logs of a task, asked from its node.
    pub async fn task_logs(
        &self,
        task: &TaskId,
        options: LogOptions,
    ) -> Result<BoxStream<'static, LogRecord>, LogError> {
        let (node, addr) = {
            let state = self.inner.state.borrow();
            let known = state.tasks.get(task).ok_or_else(|| LogError::NoSuchTask(task.clone()))?;
            let node = known.node.clone().ok_or_else(|| LogError::NotAssigned(task.clone()))?;
            let addr = state.nodes.get(&node).map(|node| node.rpc_addr);
            (node, addr)
        };
        if node == self.inner.node {
            return self.inner.logs.logs(task, &options);
        }
        let failed = |reason: String| LogError::NodeUnreachable { node: node.clone(), task: task.clone(), reason };
        let addr = addr.ok_or_else(|| failed("it was removed from the swarm".to_owned()))?;
        let channel = self.inner.peers.apart(addr, &node).ok_or_else(|| failed("its id is no name".to_owned()))?;
        let options = codec::encode(&options).map_err(|e| failed(e.to_string()))?;
        let request = LogsRequest { task: task.to_string(), options: options.into() };
        let lines = LogsClient::new(channel).read(request).await.map_err(|status| match status.code() {
            Code::NotFound | Code::FailedPrecondition => {
                LogError::Unreadable { task: task.clone(), reason: status.message().to_owned() }
            }
            _ => failed(status.message().to_owned()),
        })?;
        // The stream ends where the connection breaks: there is no more to be had.
        let records = lines.into_inner().take_while(|line| std::future::ready(line.is_ok())).filter_map(|line| {
            let record =
                line.ok().map(|line| LogRecord { time_ns: line.time_ns, stderr: line.stderr, line: line.line });
            std::future::ready(record)
        });
        Ok(records.boxed())
    }

    /// The leader as the log knows it.
    pub(super) fn leading_voter(&self) -> Option<Voter> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow();
        metrics.current_leader.and_then(|id| metrics.membership_config.membership().get_node(&id).cloned())
    }

    /// A connection to the leader, where that is another manager.
    pub(super) fn leader_channel(&self) -> Option<Channel> {
        let voter = self.leading_voter().filter(|voter| voter.node != self.inner.node)?;
        self.inner.peers.channel(voter.rpc_addr, &voter.node)
    }

    /// The authority, ready to sign.
    pub(super) fn authority(&self) -> Result<Ca, PkiError> {
        let state = self.inner.state.borrow().clone();
        let cluster = state.cluster.as_ref().ok_or_else(|| PkiError {
            what: "open the certificate authority",
            reason: "this manager has not received the table yet".to_owned(),
        })?;
        Ca::open(&cluster.id, &cluster.ca_cert_pem, &cluster.ca_key_sealed, &self.inner.kek)
    }

    /// Sends a change to whichever manager leads until there is an answer: the index of its entry and what it did.
    pub(super) async fn submit(
        &self,
        id: ProposalId,
        command: Command,
    ) -> Result<(u64, Result<Applied, Rejection>), ProposeError> {
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let mut metrics = self.inner.raft.server_metrics();
        loop {
            if let Err(stopped) = &self.inner.raft.metrics().borrow().running_state {
                return Err(self.log_stopped(stopped));
            }
            let leader = metrics.borrow_and_update().current_leader;
            let attempt = async {
                match leader {
                    Some(leader) if leader == self.inner.raft_id => self.write_attempt(id, command.clone()).await,
                    Some(_) => self.forward(id, &command).await,
                    None => Err(Attempt::Retry("there is no leader".to_owned())),
                }
            };
            let attempt = tokio::select! {
                attempt = attempt => attempt,
                _ = metrics.wait_for(|now| now.current_leader != leader) => {
                    Err(Attempt::Retry("the leader changed".to_owned()))
                }
                () = tokio::time::sleep_until(deadline) => return Err(self.no_quorum()),
            };
            match attempt {
                Ok(done) => return Ok(done),
                Err(Attempt::Fatal(error)) => return Err(error),
                Err(Attempt::Retry(reason)) => tracing::debug!(reason, "a change is sent again"),
            }
            // Another leader may take over any moment; otherwise the same one may be back.
            let pause = Instant::now() + RETRY;
            let _ = timeout_at(pause.min(deadline), metrics.wait_for(|now| now.current_leader != leader)).await;
            if Instant::now() >= deadline {
                return Err(self.no_quorum());
            }
        }
    }

    /// The table's time, as this manager would log it now.
    pub(super) fn now_ms(&self) -> u64 {
        let cluster_ms = self.inner.state.borrow().now_ms;
        self.inner.clock.now_ms(cluster_ms)
    }

    /// Writes to the log, where this manager leads. Bounded by the caller.
    pub(super) async fn write(
        &self,
        id: ProposalId,
        command: Command,
    ) -> Result<(u64, Result<Applied, Rejection>), RaftError<u64, ClientWriteError<u64, Voter>>> {
        let written = self.inner.raft.client_write(Proposal::new(id, self.now_ms(), command)).await?;
        // A proposal always has an outcome; openraft's own entries are never answered here.
        let outcome = written.data.0.unwrap_or(Ok(Applied::Done));
        Ok((written.log_id.index, outcome))
    }

    async fn write_attempt(
        &self,
        id: ProposalId,
        command: Command,
    ) -> Result<(u64, Result<Applied, Rejection>), Attempt> {
        // What cannot be confirmed now must not stand in the log and happen later, long after it was refused.
        self.confirm_leadership().await.map_err(Attempt::Retry)?;
        self.write(id, command).await.map_err(|error| match error {
            RaftError::Fatal(error) => Attempt::Fatal(self.log_stopped(&error)),
            RaftError::APIError(error) => Attempt::Retry(error.to_string()),
        })
    }

    async fn forward(&self, id: ProposalId, command: &Command) -> Result<(u64, Result<Applied, Rejection>), Attempt> {
        let channel = self.leader_channel().ok_or_else(|| Attempt::Retry("there is no leader".to_owned()))?;
        let command =
            codec::encode(command).map_err(|e| Attempt::Fatal(ProposeError::Unavailable { reason: e.to_string() }))?;
        let request = ProposeRequest { id: id.0.to_be_bytes().to_vec().into(), command: command.into() };
        let mut client = QuorumClient::new(channel).max_encoding_message_size(MAX_MESSAGE_BYTES);
        let reply = client.propose(Request::new(request)).await.map_err(|status| match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => {
                Attempt::Fatal(ProposeError::Unavailable { reason: status.message().to_owned() })
            }
            _ => Attempt::Retry(status.message().to_owned()),
        })?;
        let reply = reply.into_inner();
        let outcome = codec::decode(&reply.outcome)
            .map_err(|e| Attempt::Fatal(ProposeError::Unavailable { reason: e.to_string() }))?;
        Ok((reply.index, outcome))
    }

    /// Waits until the table here has reached `index`. False where `deadline` comes first.
    pub(super) async fn wait_for_index(&self, index: u64, deadline: Instant) -> bool {
        let mut state = self.inner.state.clone();
        matches!(timeout_at(deadline, state.wait_for(|state| state.index >= index)).await, Ok(Ok(_)))
    }

    /// What to say when the log itself has stopped.
    pub(super) fn log_stopped(&self, error: &dyn fmt::Display) -> ProposeError {
        let reason = self.inner.store.failure().unwrap_or_else(|| error.to_string());
        ProposeError::Unavailable { reason }
    }

    fn no_quorum(&self) -> ProposeError {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow();
        let voters = metrics.membership_config.membership();
        let nodes: Vec<_> = voters.voter_ids().filter_map(|id| voters.get_node(&id)).collect();
        let managers = nodes.len();
        let reachable = nodes.iter().filter(|voter| self.manager_reachable(&voter.node)).count();
        ProposeError::NoQuorum { reachable, managers, needed: managers / 2 + 1 }
    }

    /// The other voters and learners.
    pub(super) fn other_managers(&self) -> Vec<(NodeId, SocketAddr)> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow();
        let nodes = metrics.membership_config.membership().nodes();
        nodes.filter(|(id, _)| **id != self.inner.raft_id).map(|(_, v)| (v.node.clone(), v.rpc_addr)).collect()
    }
}
