//! Changes of the cluster state: a command is sent to the leader, which writes it to the log.
//!
//! A command carries an id, and the state machine remembers the outcome of each id. So a command
//! that is sent several times, because an answer was lost or the leader changed, is applied once.

use std::{fmt, time::Duration};

use openraft::error::{ClientWriteError, Fatal, RaftError};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request};
use weft_model::{
    Applied, Command, NodeId, Rejection,
    spec::{NodeSpec, Role},
    state::FEATURE_LEVEL,
};

use super::{Manager, voters::check_promotion};
use crate::{
    codec::{self, COMMAND, CodecError, OUTCOME},
    pki,
    raft::{Proposal, ProposalId, Voter},
    rpc::{
        MAX_MESSAGE_BYTES,
        pb::{ProposeRequest, quorum_client::QuorumClient},
    },
    swarm::error::ProposeError,
};

/// How long a proposal may take. Long enough for an election.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a proposal waits until this manager has applied the change that the leader confirmed.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest encoded command. Requests to the API are smaller; an entry must fit into one message to
/// the other managers with room to spare.
pub(in crate::swarm) const MAX_ENTRY_BYTES: usize = 16 << 20;
/// The pause between two attempts, unless the leader changes before.
const RETRY: Duration = Duration::from_millis(100);

/// The index of a command's log entry, and the result of applying the command.
type Outcome = (u64, Result<Applied, Rejection>);

/// Why a command was not written to the log.
#[derive(Debug, thiserror::Error)]
pub(in crate::swarm) enum WriteError {
    #[error(transparent)]
    Raft(Box<RaftError<u64, ClientWriteError<u64, Voter>>>),
    /// It could be written, but never be sent to the other managers.
    #[error("the change has {size} bytes, and an entry of the log has {MAX_ENTRY_BYTES} at most: make it smaller")]
    TooLarge { size: usize },
    #[error(
        "the cluster has feature level {level}, and the change needs a higher one: upgrade all managers, then try again \
         ({source})"
    )]
    Level { level: u32, source: CodecError },
}

impl WriteError {
    /// Whether other commands can still be written.
    pub(in crate::swarm) fn concerns_only_the_command(&self) -> bool {
        matches!(self, Self::Level { .. } | Self::TooLarge { .. })
    }
}

/// Why one attempt got no outcome.
enum Attempt {
    /// Another attempt may succeed.
    Retry(String),
    /// No other attempt can succeed.
    Fatal(ProposeError),
}

impl Manager {
    /// Changes the cluster state, through the manager that leads. Resolves when the change is
    /// applied on this node, so that the caller reads its own write from [`Self::state`]. If this
    /// node needs more than 5 s to apply it, the call resolves without waiting longer. The change
    /// is made once, even if the leader fails meanwhile.
    ///
    /// # Errors
    /// - [`ProposeError::Rejected`] if the cluster state does not allow the change. Nothing
    ///   changed.
    /// - [`ProposeError::NoQuorum`] after 10 s without an answer of a leader. If a leader failed
    ///   while it handled the change, the change may still take effect.
    /// - [`ProposeError::Unavailable`] if this manager's log has stopped, if the leader does not
    ///   accept this node as a manager, or if the change is too large for the log or needs a higher
    ///   feature level than the cluster has.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let (index, outcome) = self.submit(ProposalId::random(), command).await?;
        let applied = outcome?;
        let caught_up = self.wait_for_index(index, Instant::now() + APPLY_TIMEOUT).await;
        if !caught_up {
            tracing::warn!(index, "a change was made, but this manager has not applied it yet");
        }
        Ok(applied)
    }

    /// Makes a worker of a manager. Returns whether there is a vote to wait for: `false` if the
    /// node was removed, or is the last manager.
    ///
    /// # Errors
    /// As [`Self::propose`]. The change is rejected if the other managers that answer are no
    /// majority without it.
    pub(in crate::swarm) async fn demote(&self, node: &NodeId) -> Result<bool, ProposeError> {
        loop {
            let demotion = {
                let state = self.inner.state.borrow();
                let Some(node) = state.nodes.get(node) else { return Ok(false) };
                if !node.is_manager() {
                    return Ok(true);
                }
                let spec = NodeSpec { role: Role::Worker, ..node.spec.clone() };
                Command::UpdateNode { id: node.id.clone(), version: node.meta.version, spec }
            };
            match self.propose(demotion).await {
                Err(ProposeError::Rejected(Rejection::OutOfSequence { .. })) => {}
                Ok(_) => return Ok(true),
                Err(ProposeError::Rejected(Rejection::LastManager { .. })) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
    }

    /// Replaces the join token of a role and returns the new one. The old token is invalid from
    /// then on. Nodes that joined with it stay members.
    ///
    /// # Errors
    /// As [`Self::propose`].
    pub async fn rotate_token(&self, role: Role) -> Result<String, ProposeError> {
        self.propose(Command::RotateToken { role, secret: pki::random_secret() }).await?;
        Ok(self.join_token(role))
    }

    /// Sends a command to the manager that leads until there is an outcome. Does not wait until
    /// this node has applied it.
    ///
    /// # Errors
    /// [`ProposeError::NoQuorum`] and [`ProposeError::Unavailable`] as [`Self::propose`]. A
    /// rejection is an outcome, not an error.
    pub(in crate::swarm) async fn submit(&self, id: ProposalId, command: Command) -> Result<Outcome, ProposeError> {
        let deadline = Instant::now() + PROPOSE_TIMEOUT;
        let mut metrics = self.inner.raft.server_metrics();
        loop {
            if let Err(stopped) = &self.inner.raft.metrics().borrow().running_state {
                return Err(self.log_stopped(stopped));
            }
            let leader = metrics.borrow_and_update().current_leader;
            let attempt = async {
                match leader {
                    Some(leader) if leader == self.inner.keys.raft_id => {
                        self.write_confirmed(id, command.clone()).await
                    }
                    Some(_) => self.forward(id, &command).await,
                    None => Err(Attempt::Retry("there is no leader".to_owned())),
                }
            };
            let attempt = tokio::select! {
                attempt = attempt => attempt,
                changed = metrics.wait_for(|now| now.current_leader != leader) => match changed {
                    Ok(_) => Err(Attempt::Retry("the leader changed".to_owned())),
                    // openraft's task has ended without a last report, for example by a panic.
                    Err(_) => return Err(self.log_stopped(&Fatal::<u64>::Stopped)),
                },
                () = tokio::time::sleep_until(deadline) => return Err(self.no_quorum()),
            };
            match attempt {
                Ok(outcome) => return Ok(outcome),
                Err(Attempt::Fatal(error)) => return Err(error),
                Err(Attempt::Retry(reason)) => tracing::debug!(reason, "proposal failed, retrying"),
            }
            let retry_at = Instant::now() + RETRY;
            let changed = timeout_at(retry_at.min(deadline), metrics.wait_for(|now| now.current_leader != leader));
            if matches!(changed.await, Ok(Err(_))) {
                return Err(self.log_stopped(&Fatal::<u64>::Stopped));
            }
            if Instant::now() >= deadline {
                return Err(self.no_quorum());
            }
        }
    }

    /// The feature level of the cluster: what all its managers support.
    pub(in crate::swarm) fn feature_level(&self) -> u32 {
        self.inner.state.borrow().feature_level
    }

    /// Writes a command to this manager's log. Resolves when it is applied here. Without a quorum
    /// it does not resolve, so the caller must set a time limit.
    ///
    /// # Errors
    /// If this manager does not lead, its log has stopped, or the command needs a higher feature
    /// level than the cluster has.
    pub(in crate::swarm) async fn write(&self, id: ProposalId, command: Command) -> Result<Outcome, WriteError> {
        let command = self.at_cluster_level(command)?;
        let written = self.inner.raft.client_write(Proposal::new(id, self.now_ms(), command)).await;
        let written = written.map_err(|error| WriteError::Raft(Box::new(error)))?;
        // Only openraft's own entries have no outcome, and they are not written here.
        let outcome = written.data.0.unwrap_or(Ok(Applied::Done));
        Ok((written.log_id.index, outcome))
    }

    /// The command as managers of the cluster's feature level read it. All managers must apply the
    /// same command, so what they would not receive is not written here either. A cluster that is
    /// being formed gets the level of this release.
    fn at_cluster_level(&self, command: Command) -> Result<Command, WriteError> {
        let level = self.feature_level();
        let forming = self.inner.state.borrow().cluster.is_none();
        let size = codec::encode(&COMMAND, &command).map_err(|source| WriteError::Level { level, source })?.len();
        if size > MAX_ENTRY_BYTES {
            return Err(WriteError::TooLarge { size });
        }
        if level == FEATURE_LEVEL || forming || matches!(command, Command::SetFeatureLevel { .. }) {
            return Ok(command);
        }
        let bytes = codec::encode_at(&COMMAND, level, &command);
        bytes.and_then(|bytes| codec::decode(&COMMAND, &bytes)).map_err(|source| WriteError::Level { level, source })
    }

    /// Writes a command after a quorum confirmed that this manager leads. Without the confirmation,
    /// a command could stay in the log of a leader that has lost its quorum, and take effect long
    /// after the user got an error.
    async fn write_confirmed(&self, id: ProposalId, command: Command) -> Result<Outcome, Attempt> {
        self.confirm_leadership().await.map_err(Attempt::Retry)?;
        self.write_checked(id, command).await.map_err(|error| match &error {
            WriteError::Raft(raft) => match &**raft {
                RaftError::Fatal(error) => Attempt::Fatal(self.log_stopped(error)),
                RaftError::APIError(error) => Attempt::Retry(error.to_string()),
            },
            WriteError::Level { .. } | WriteError::TooLarge { .. } => {
                Attempt::Fatal(ProposeError::Unavailable { reason: error.to_string() })
            }
        })
    }

    /// Writes a command unless it would leave the swarm without a quorum, or make a manager of a
    /// node whose release is too old. `apply` cannot decide that, because the cluster state
    /// contains neither which managers answer nor what the nodes' releases support.
    pub(in crate::swarm) async fn write_checked(
        &self,
        id: ProposalId,
        command: Command,
    ) -> Result<Outcome, WriteError> {
        match self.check_role(&command).await {
            Ok(()) => self.write(id, command).await,
            Err(rejection) => Ok((self.inner.state.borrow().index, Err(rejection))),
        }
    }

    async fn check_role(&self, command: &Command) -> Result<(), Rejection> {
        check_promotion(&self.inner.state.borrow(), command, |node| self.tracker().feature_level(node))?;
        self.check_demotion(command).await
    }

    /// Sends a command to the leader, which is another manager.
    async fn forward(&self, id: ProposalId, command: &Command) -> Result<Outcome, Attempt> {
        let unavailable = |reason: String| Attempt::Fatal(ProposeError::Unavailable { reason });
        let channel = self.leader_channel().ok_or_else(|| Attempt::Retry("there is no leader".to_owned()))?;
        let command =
            codec::encode_at(&COMMAND, self.feature_level(), command).map_err(|e| unavailable(e.to_string()))?;
        let request = ProposeRequest { id: id.0.to_be_bytes().to_vec().into(), command: command.into() };
        let mut client = QuorumClient::new(channel).max_encoding_message_size(MAX_MESSAGE_BYTES);
        let reply = client.propose(Request::new(request)).await.map_err(|status| match status.code() {
            Code::PermissionDenied | Code::Unauthenticated | Code::InvalidArgument => {
                unavailable(status.message().to_owned())
            }
            _ => Attempt::Retry(status.message().to_owned()),
        })?;
        let reply = reply.into_inner();
        let outcome = codec::decode(&OUTCOME, &reply.outcome).map_err(|e| unavailable(e.to_string()))?;
        Ok((reply.index, outcome))
    }

    /// The error for a log that has stopped. If a write failed, the store has the more exact
    /// reason.
    fn log_stopped(&self, error: &dyn fmt::Display) -> ProposeError {
        let reason = self.inner.store.failure().unwrap_or_else(|| error.to_string());
        ProposeError::Unavailable { reason }
    }

    fn no_quorum(&self) -> ProposeError {
        let voters = self.voter_nodes();
        let managers = voters.len();
        let reachable = voters.iter().filter(|node| self.manager_reachable(node)).count();
        ProposeError::NoQuorum { reachable, managers, needed: managers / 2 + 1 }
    }
}
