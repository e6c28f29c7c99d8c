//! Sends openraft's requests to other voters through the node RPC, and assembles received
//! snapshots. openraft calls [`Network`], and `swarm::dispatch` calls [`receive_snapshot`].

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use openraft::{
    OptionalSend, RaftNetworkFactory, Snapshot, SnapshotMeta, Vote,
    error::{Fatal, PayloadTooLarge, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable},
    network::{Backoff, RPCOption, RaftNetwork},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::sync::watch;
use tonic::{Code, Request, Response, Status, transport::Channel};
use weft_model::{ClusterState, NodeId, state::FEATURE_LEVEL};

use super::{TypeConfig, Voter, machine::Replica};
use crate::{
    codec::{self, CodecError, RAFT_MESSAGE, SNAPSHOT},
    rpc::{
        MAX_MESSAGE_BYTES, Peers,
        pb::{RaftReply, RaftRequest, SnapshotPart, quorum_client::QuorumClient},
    },
};

/// Bytes of a snapshot in one message.
const SNAPSHOT_PART_BYTES: usize = 1 << 20;
/// Limit in bytes of the log entries in one append, unless a single entry is larger: far below
/// [`MAX_MESSAGE_BYTES`], and small enough to be sent within the time limit of one append.
const MAX_APPEND_BYTES: usize = 4 << 20;
/// Largest snapshot accepted, in bytes. The state of many thousand tasks takes some megabytes.
const MAX_SNAPSHOT_BYTES: usize = 1 << 30;
/// Pause before the next attempt to reach a voter that did not answer.
const RETRY: Duration = Duration::from_millis(200);

/// The managers that did not answer the last append. Shared by all connections, because openraft
/// opens new ones often.
type Unresponsive = Arc<Mutex<BTreeSet<NodeId>>>;

/// Opens connections to other voters.
#[derive(Debug, Clone)]
pub struct Network {
    peers: Peers,
    raft_id: u64,
    state: watch::Receiver<Arc<ClusterState>>,
    unresponsive: Unresponsive,
}

impl Network {
    /// Connects as the voter `raft_id`. Messages have the feature level of `state`.
    pub fn new(peers: Peers, raft_id: u64, state: watch::Receiver<Arc<ClusterState>>) -> Self {
        Self { peers, raft_id, state, unresponsive: Unresponsive::default() }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, voter: &Voter) -> Link {
        Link {
            peers: self.peers.clone(),
            source: self.raft_id,
            target,
            voter: voter.clone(),
            state: self.state.clone(),
            unresponsive: self.unresponsive.clone(),
        }
    }
}

/// The connection to one voter.
#[derive(Debug)]
pub struct Link {
    peers: Peers,
    source: u64,
    target: u64,
    voter: Voter,
    state: watch::Receiver<Arc<ClusterState>>,
    unresponsive: Unresponsive,
}

type CallError = RPCError<u64, Voter, RaftError<u64>>;

impl Link {
    fn client(&self) -> Result<QuorumClient<Channel>, Unreachable> {
        let Voter { node, rpc_addr } = &self.voter;
        let channel = self.peers.channel(*rpc_addr, node).ok_or_else(|| unreachable(&InvalidServerName))?;
        Ok(QuorumClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// Logs when the voter stops answering and when it answers again. openraft would log each
    /// attempt in between.
    fn log_change(&self, error: Option<&Unreachable>) {
        let Voter { node, rpc_addr } = &self.voter;
        let mut unresponsive = self.unresponsive.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) if unresponsive.insert(node.clone()) => {
                tracing::warn!(%node, %rpc_addr, %error, "manager does not answer");
            }
            None if unresponsive.remove(node) => tracing::info!(%node, %rpc_addr, "manager answers again"),
            _ => {}
        }
    }

    fn level(&self) -> u32 {
        self.state.borrow().feature_level
    }

    /// A message of the cluster's feature level. The log contains an entry that needs a higher
    /// level only if all managers support it: the entry that raises the level, and entries of an
    /// earlier leader that have not been applied here yet.
    fn request<T: Serialize>(&self, body: &T) -> Result<RaftRequest, Unreachable> {
        let body = codec::encode_at(&RAFT_MESSAGE, self.level(), body)
            .or_else(|_| codec::encode(&RAFT_MESSAGE, body))
            .map_err(|e| unreachable(&e))?;
        Ok(RaftRequest { source: self.source, target: self.target, body: body.into() })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("its node id is not a DNS name")]
struct InvalidServerName;

fn unreachable(error: &(impl std::error::Error + 'static)) -> Unreachable {
    Unreachable::new(error)
}

fn decode_reply<T: DeserializeOwned>(reply: Result<Response<RaftReply>, Status>) -> Result<T, Unreachable> {
    let reply = reply.map_err(|status| unreachable(&status))?.into_inner();
    codec::decode(&RAFT_MESSAGE, &reply.body).map_err(|e| unreachable(&e))
}

/// If an append of this size is too large, returns the number of entries to retry with.
fn smaller_append(entries: usize, bytes: usize) -> Option<u64> {
    (entries > 1 && bytes > MAX_APPEND_BYTES).then_some(entries as u64 / 2)
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        append: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        let request = self.request(&append)?;
        if let Some(fewer) = smaller_append(append.entries.len(), request.body.len()) {
            return Err(PayloadTooLarge::new_entries_hint(fewer).into());
        }
        // Use the soft time limit. At the hard limit openraft drops this future, and then the
        // failure would not be logged.
        let request = with_timeout(request, option.soft_ttl());
        let reply = decode_reply(self.client()?.append(request).await);
        self.log_change(reply.as_ref().err());
        Ok(reply?)
    }

    async fn vote(&mut self, vote: VoteRequest<u64>, option: RPCOption) -> Result<VoteResponse<u64>, CallError> {
        let request = with_timeout(self.request(&vote)?, option.hard_ttl());
        Ok(decode_reply(self.client()?.vote(request).await)?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote<u64>,
        snapshot: Snapshot<TypeConfig>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<TypeConfig, Fatal<u64>>> {
        let header = SnapshotHeader { vote, meta: snapshot.meta };
        let mut request = Some(self.request(&header)?);
        let bytes = bytes::Bytes::from(snapshot_at(self.level(), *snapshot.snapshot).map_err(|e| unreachable(&e))?);
        // At least one part, even of an empty snapshot, because the first part carries the request.
        let parts: Vec<_> = (0..bytes.len().max(1))
            .step_by(SNAPSHOT_PART_BYTES)
            .map(|at| {
                let data = bytes.slice(at..bytes.len().min(at + SNAPSHOT_PART_BYTES));
                SnapshotPart { request: request.take(), data }
            })
            .collect();
        let mut client = self.client()?;
        tokio::select! {
            closed = cancel => Err(closed.into()),
            reply = client.snapshot(with_timeout(futures_util::stream::iter(parts), option.hard_ttl())) => Ok(decode_reply(reply)?),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY))
    }
}

/// The bytes of a stored snapshot, for a reader that supports this feature level.
fn snapshot_at(level: u32, stored: Vec<u8>) -> Result<Vec<u8>, CodecError> {
    if level == FEATURE_LEVEL {
        return Ok(stored);
    }
    codec::encode_at(&SNAPSHOT, level, &codec::decode::<Replica>(&SNAPSHOT, &stored)?)
}

fn with_timeout<T>(body: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(body);
    request.set_timeout(timeout);
    request
}

/// Precedes the bytes of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotHeader {
    pub(crate) vote: Vote<u64>,
    pub(crate) meta: SnapshotMeta<u64, Voter>,
}

/// Assembles a snapshot from its parts. Calls `admit` with the request before it stores any byte.
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed or too large snapshot, and what `admit` returns.
pub async fn receive_snapshot(
    mut parts: tonic::Streaming<SnapshotPart>,
    admit: impl FnOnce(&RaftRequest) -> Result<(), Status>,
) -> Result<(Vote<u64>, Snapshot<TypeConfig>), Status> {
    let invalid = |what: String| Status::new(Code::InvalidArgument, what);
    let first = parts.message().await?.ok_or_else(|| invalid("the snapshot has no parts".to_owned()))?;
    let request = first.request.ok_or_else(|| invalid("the first part of the snapshot has no request".to_owned()))?;
    admit(&request)?;
    let header: SnapshotHeader = codec::decode(&RAFT_MESSAGE, &request.body).map_err(|e| invalid(e.to_string()))?;
    let mut bytes = first.data.to_vec();
    while let Some(part) = parts.message().await? {
        if bytes.len() + part.data.len() > MAX_SNAPSHOT_BYTES {
            return Err(invalid(format!("the snapshot has more than {MAX_SNAPSHOT_BYTES} bytes")));
        }
        bytes.extend_from_slice(&part.data);
    }
    Ok((header.vote, Snapshot { meta: header.meta, snapshot: Box::new(bytes) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_appends_are_halved_until_they_fit_or_have_one_entry() {
        let mut entries = 300;
        let mut tries = 0;
        // Entries of 1 MiB each.
        while let Some(fewer) = smaller_append(entries, entries << 20) {
            entries = usize::try_from(fewer).expect("a count");
            tries += 1;
        }
        assert_eq!((entries, tries), (4, 6));
        assert_eq!(smaller_append(1, MAX_APPEND_BYTES + 1), None);
    }
}
