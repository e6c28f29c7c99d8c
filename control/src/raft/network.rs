//! openraft's requests as calls of the node RPC.

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
use tonic::{Code, Request, Response, Status, transport::Channel};
use weft_model::NodeId;

use super::{TypeConfig, Voter};
use crate::rpc::{
    MAX_MESSAGE_BYTES, Peers, codec,
    pb::{RaftReply, RaftRequest, SnapshotPart, quorum_client::QuorumClient},
};

/// Bytes of the table in one message of a snapshot.
const SNAPSHOT_PART_BYTES: usize = 1 << 20;
/// Of log entries in one message, unless a single one is larger: far below [`MAX_MESSAGE_BYTES`], and sent well within the
/// time that one append has.
const MAX_APPEND_BYTES: usize = 4 << 20;
/// Largest snapshot accepted: a table of many thousand tasks is some megabytes.
const MAX_SNAPSHOT_BYTES: usize = 1 << 30;
/// Between tries to reach a voter that does not answer.
const RETRY: Duration = Duration::from_millis(200);

/// The managers that did not answer the last append. openraft makes links anew all the time: they share it.
type Silent = Arc<Mutex<BTreeSet<NodeId>>>;

/// Makes connections to other voters.
#[derive(Debug, Clone)]
pub struct Network {
    peers: Peers,
    raft_id: u64,
    silent: Silent,
}

impl Network {
    /// For the voter `raft_id`.
    pub fn new(peers: Peers, raft_id: u64) -> Self {
        Self { peers, raft_id, silent: Silent::default() }
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
            silent: self.silent.clone(),
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
    silent: Silent,
}

type CallError = RPCError<u64, Voter, RaftError<u64>>;

impl Link {
    fn client(&self) -> Result<QuorumClient<Channel>, Unreachable> {
        let Voter { node, rpc_addr } = &self.voter;
        let channel = self.peers.channel(*rpc_addr, node).ok_or_else(|| unreachable(&NoName))?;
        Ok(QuorumClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// Logs when the voter falls silent, and when it is back; not each try in between, as openraft would.
    fn note(&self, error: Option<&Unreachable>) {
        let Voter { node, rpc_addr } = &self.voter;
        let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) if silent.insert(node.clone()) => {
                tracing::warn!(%node, %rpc_addr, %error, "a manager does not answer");
            }
            None if silent.remove(node) => tracing::info!(%node, %rpc_addr, "a manager answers again"),
            _ => {}
        }
    }

    fn request<T: Serialize>(&self, body: &T) -> Result<RaftRequest, Unreachable> {
        let body = codec::encode(body).map_err(|e| unreachable(&e))?;
        Ok(RaftRequest { source: self.source, target: self.target, body: body.into() })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("its node id is no DNS name")]
struct NoName;

fn unreachable(error: &(impl std::error::Error + 'static)) -> Unreachable {
    Unreachable::new(error)
}

fn answer<T: DeserializeOwned>(reply: Result<Response<RaftReply>, Status>) -> Result<T, Unreachable> {
    let reply = reply.map_err(|status| unreachable(&status))?.into_inner();
    codec::decode(&reply.body).map_err(|e| unreachable(&e))
}

/// Where an append of so many bytes is too large, with how many entries it shall come again.
fn too_large(entries: usize, bytes: usize) -> Option<u64> {
    (entries > 1 && bytes > MAX_APPEND_BYTES).then_some(entries as u64 / 2)
}

impl RaftNetwork<TypeConfig> for Link {
    async fn append_entries(
        &mut self,
        append: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, CallError> {
        let request = self.request(&append)?;
        if let Some(fewer) = too_large(append.entries.len(), request.body.len()) {
            return Err(PayloadTooLarge::new_entries_hint(fewer).into());
        }
        // Within the softer limit: at the hard one this future is dropped, and nothing would be noted.
        let request = timed(request, option.soft_ttl());
        let reply = answer(self.client()?.append(request).await);
        self.note(reply.as_ref().err());
        Ok(reply?)
    }

    async fn vote(&mut self, vote: VoteRequest<u64>, option: RPCOption) -> Result<VoteResponse<u64>, CallError> {
        let request = timed(self.request(&vote)?, option.hard_ttl());
        Ok(answer(self.client()?.vote(request).await)?)
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
        let bytes = bytes::Bytes::from(*snapshot.snapshot);
        // At least one part, also of nothing: it carries the request.
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
            reply = client.snapshot(timed(futures_util::stream::iter(parts), option.hard_ttl())) => Ok(answer(reply)?),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(RETRY))
    }
}

fn timed<T>(body: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(body);
    request.set_timeout(timeout);
    request
}

/// What goes before a snapshot's bytes.
#[derive(Debug, Serialize, Deserialize)]
struct SnapshotHeader {
    vote: Vote<u64>,
    meta: SnapshotMeta<u64, Voter>,
}

/// Puts a snapshot together from its parts. `admit` sees the request before anything is kept.
pub async fn receive_snapshot(
    mut parts: tonic::Streaming<SnapshotPart>,
    admit: impl FnOnce(&RaftRequest) -> Result<(), Status>,
) -> Result<(Vote<u64>, Snapshot<TypeConfig>), Status> {
    let invalid = |what: String| Status::new(Code::InvalidArgument, what);
    let first = parts.message().await?.ok_or_else(|| invalid("an empty snapshot".to_owned()))?;
    let request = first.request.ok_or_else(|| invalid("a snapshot without its request".to_owned()))?;
    admit(&request)?;
    let header: SnapshotHeader = codec::decode(&request.body).map_err(|e| invalid(e.to_string()))?;
    let mut bytes = first.data.to_vec();
    while let Some(part) = parts.message().await? {
        if bytes.len() + part.data.len() > MAX_SNAPSHOT_BYTES {
            return Err(invalid(format!("a snapshot of more than {MAX_SNAPSHOT_BYTES} bytes")));
        }
        bytes.extend_from_slice(&part.data);
    }
    Ok((header.vote, Snapshot { meta: header.meta, snapshot: Box::new(bytes) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_appends_are_halved_until_they_fit_or_cannot_be() {
        let mut entries = 300;
        let mut tries = 0;
        // As of specs of a megabyte each.
        while let Some(fewer) = too_large(entries, entries << 20) {
            entries = usize::try_from(fewer).expect("a count");
            tries += 1;
        }
        assert_eq!((entries, tries), (4, 6));
        assert_eq!(too_large(1, MAX_APPEND_BYTES + 1), None);
    }
}
