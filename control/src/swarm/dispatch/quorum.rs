//! Calls between managers: the log's replication, proposals for the leader, and what a new manager
//! needs.

use serde::{Serialize, de::DeserializeOwned};
use tonic::{Request, Response, Status, Streaming};
use weft_model::{ClusterState, Command, NodeId, state::Node};

use super::{Services, status::removed};
use crate::{
    codec,
    raft::{ProposalId, receive_snapshot},
    rpc::{
        Caller,
        pb::{
            ConfirmedReply, ConfirmedRequest, PingReply, PingRequest, ProposeReply, ProposeRequest, RaftReply,
            RaftRequest, ReplaceReply, ReplaceRequest, SnapshotPart, WelcomeReply, WelcomeRequest,
            quorum_server::Quorum,
        },
    },
    swarm::manager::Manager,
};

#[tonic::async_trait]
impl Quorum for Services {
    async fn append(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let (manager, request) = self.accept_voter(request)?;
        #[cfg(test)]
        self.hold_append(&manager).await;
        let reply = manager.append_entries(decode_body(&request)?).await;
        encode_reply(&manager, &reply.map_err(Status::unavailable)?)
    }

    async fn vote(&self, request: Request<RaftRequest>) -> Result<Response<RaftReply>, Status> {
        let (manager, request) = self.accept_voter(request)?;
        let reply = manager.vote(decode_body(&request)?).await;
        encode_reply(&manager, &reply.map_err(Status::unavailable)?)
    }

    async fn snapshot(&self, request: Request<Streaming<SnapshotPart>>) -> Result<Response<RaftReply>, Status> {
        let caller = Caller::manager(request.extensions(), &self.context.record.cluster)?.clone();
        let manager = self.manager()?;
        let check = |request: &RaftRequest| check_voter(&manager, &caller, request);
        let (vote, snapshot) = receive_snapshot(request.into_inner(), check).await?;
        let reply = manager.install_snapshot(vote, snapshot).await;
        encode_reply(&manager, &reply.map_err(Status::unavailable)?)
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        let caller = Caller::manager(request.extensions(), &self.context.record.cluster)?;
        let manager = self.manager()?;
        check_manager(&manager.state().borrow(), caller)?;
        let ProposeRequest { id, command } = request.into_inner();
        let id = id.as_ref().try_into().map_err(|_| Status::invalid_argument("a proposal id has 16 bytes"))?;
        let command: Command =
            codec::decode(&codec::COMMAND, &command).map_err(|e| Status::invalid_argument(e.to_string()))?;
        manager.confirm_leadership().await.map_err(Status::unavailable)?;
        let written = manager.write_checked(ProposalId(u128::from_be_bytes(id)), command).await;
        let (index, outcome) = written.map_err(|error| match error.concerns_only_the_command() {
            // No other attempt can succeed, so the caller must not repeat it.
            true => Status::invalid_argument(error.to_string()),
            false => Status::unavailable(error.to_string()),
        })?;
        let outcome = codec::encode_at(&codec::OUTCOME, manager.feature_level(), &outcome)
            .map_err(|e| Status::internal(e.to_string()))?;
        Ok(Response::new(ProposeReply { index, outcome: outcome.into() }))
    }

    async fn welcome(&self, request: Request<WelcomeRequest>) -> Result<Response<WelcomeReply>, Status> {
        let caller = Caller::manager(request.extensions(), &self.context.record.cluster)?;
        let manager = self.manager()?;
        let state = manager.state().borrow().clone();
        let node = check_manager(&state, caller)?;
        let kek = manager.keys().kek.as_bytes().to_vec();
        Ok(Response::new(WelcomeReply { raft_id: node.raft_id, kek: kek.into() }))
    }

    async fn replace(&self, request: Request<ReplaceRequest>) -> Result<Response<ReplaceReply>, Status> {
        let caller = Caller::manager(request.extensions(), &self.context.record.cluster)?.clone();
        let manager = self.manager()?;
        check_manager(&manager.state().borrow(), &caller)?;
        let command = Command::ReplaceRaftId { node: caller, raft_id: request.into_inner().raft_id };
        manager.propose(command).await.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(ReplaceReply {}))
    }

    async fn confirmed(&self, request: Request<ConfirmedRequest>) -> Result<Response<ConfirmedReply>, Status> {
        let caller = Caller::manager(request.extensions(), &self.context.record.cluster)?;
        let manager = self.manager()?;
        check_manager(&manager.state().borrow(), caller)?;
        let index = manager.confirm_leadership().await.map_err(Status::unavailable)?;
        Ok(Response::new(ConfirmedReply { index }))
    }

    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PingReply>, Status> {
        Caller::manager(request.extensions(), &self.context.record.cluster)?;
        let epoch = self.manager()?.state().borrow().epoch;
        Ok(Response::new(PingReply { epoch }))
    }
}

impl Services {
    #[cfg(test)]
    async fn hold_append(&self, manager: &Manager) {
        if manager.has_entries() {
            let _ = self.context.channels.hold_appends.subscribe().wait_for(|hold| !hold).await;
        }
    }

    fn accept_voter(&self, request: Request<RaftRequest>) -> Result<(Manager, RaftRequest), Status> {
        let caller = Caller::manager(request.extensions(), &self.context.record.cluster)?.clone();
        let manager = self.manager()?;
        let request = request.into_inner();
        check_voter(&manager, &caller, &request)?;
        Ok((manager, request))
    }
}

/// Refuses Raft messages that are addressed to another voter, or that come from a caller that the
/// Raft configuration does not contain: its certificate as a manager stays valid after its demotion
/// or removal.
fn check_voter(manager: &Manager, caller: &NodeId, request: &RaftRequest) -> Result<(), Status> {
    if request.target != manager.keys().raft_id {
        return Err(Status::failed_precondition("this manager has another raft id than the one called"));
    }
    if manager.may_be_member(caller, request.source) {
        Ok(())
    } else {
        let source = request.source;
        Err(Status::permission_denied(format!(
            "node {caller} with raft id {source} is not in the Raft configuration: it was demoted or removed"
        )))
    }
}

/// Checks in the cluster state that the Raft configuration contains the caller, because the role in
/// its certificate may be out of date. A demoted manager passes until it is removed from the
/// configuration. Returns the caller's node.
fn check_manager<'a>(state: &'a ClusterState, caller: &NodeId) -> Result<&'a Node, Status> {
    let node = state.nodes.get(caller).ok_or_else(|| removed(caller))?;
    if node.in_raft_config {
        Ok(node)
    } else {
        Err(Status::permission_denied(format!("node {caller} is a worker now")))
    }
}

fn decode_body<T: DeserializeOwned>(request: &RaftRequest) -> Result<T, Status> {
    codec::decode(&codec::RAFT_MESSAGE, &request.body).map_err(|e| Status::invalid_argument(e.to_string()))
}

fn encode_reply<T: Serialize>(manager: &Manager, reply: &T) -> Result<Response<RaftReply>, Status> {
    let body = codec::encode_at(&codec::RAFT_MESSAGE, manager.feature_level(), reply)
        .map_err(|e| Status::internal(e.to_string()))?;
    Ok(Response::new(RaftReply { body: body.into() }))
}
