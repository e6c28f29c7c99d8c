//! What a node changes about its own containers that are no tasks: it attaches them to networks,
//! and detaches them. The dispatcher's handler calls [`answer`].
//!
//! Any manager may be called. A node can change only what belongs to itself, and `apply` bounds how
//! many containers it may have. [`Rate`] bounds how many log entries it may cause.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use tonic::{Request, Response, Status};
use weft_model::{Command, NodeId};

use super::{Services, status::removed};
use crate::{
    codec,
    raft::ProposalId,
    rpc::{
        Caller,
        pb::{AttachReply, AttachRequest},
    },
    swarm::clock::monotonic_ms,
};

/// How many changes of a node this manager takes within a time, in milliseconds. To start a
/// container takes two.
const MAX_CALLS: usize = 200;
const CALLS_WITHIN_MS: u64 = 10_000;
/// Largest change, in octets: the names and aliases of one container on all its networks.
const MAX_CHANGE_BYTES: usize = 64 << 10;

/// When each node has called last, on the monotonic clock.
#[derive(Debug, Clone, Default)]
pub(super) struct Rate(Arc<Mutex<BTreeMap<NodeId, VecDeque<u64>>>>);

impl Rate {
    fn admit(&self, node: &NodeId, now_ms: u64) -> bool {
        // Each change is complete before anything can panic.
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        calls.retain(|_, calls| calls.back().is_some_and(|last| now_ms.saturating_sub(*last) < CALLS_WITHIN_MS));
        let calls = calls.entry(node.clone()).or_default();
        calls.retain(|at| now_ms.saturating_sub(*at) < CALLS_WITHIN_MS);
        if calls.len() >= MAX_CALLS {
            return false;
        }
        calls.push_back(now_ms);
        true
    }
}

pub(super) async fn answer(
    services: &Services,
    request: Request<AttachRequest>,
) -> Result<Response<AttachReply>, Status> {
    let caller = Caller::member(request.extensions(), &services.context.record.cluster)?.node.clone();
    let manager = services.manager()?;
    if !manager.state().borrow().nodes.contains_key(&caller) {
        return Err(removed(&caller));
    }
    let AttachRequest { id, command } = request.into_inner();
    if command.len() > MAX_CHANGE_BYTES {
        return Err(Status::invalid_argument(format!("a change of a container has {MAX_CHANGE_BYTES} octets at most")));
    }
    let id = id.as_ref().try_into().map_err(|_| Status::invalid_argument("a proposal id has 16 bytes"))?;
    let command: Command =
        codec::decode(&codec::COMMAND, &command).map_err(|e| Status::invalid_argument(e.to_string()))?;
    if owner(&command) != Some(&caller) {
        return Err(Status::permission_denied("a node can only attach and detach its own containers"));
    }
    if !services.attach_rate.admit(&caller, monotonic_ms()) {
        return Err(Status::resource_exhausted("this node starts too many containers at once: wait some seconds"));
    }
    let submitted = manager.submit(ProposalId(u128::from_be_bytes(id)), command).await;
    let (_, outcome) = submitted.map_err(|error| Status::unavailable(error.to_string()))?;
    let outcome = codec::encode_at(&codec::OUTCOME, manager.feature_level(), &outcome)
        .map_err(|e| Status::internal(e.to_string()))?;
    Ok(Response::new(AttachReply { outcome: outcome.into() }))
}

/// The node whose containers the command changes. `None` for other commands.
fn owner(command: &Command) -> Option<&NodeId> {
    match command {
        Command::AttachContainer(attach) => Some(&attach.node),
        Command::DetachContainer { node, .. } => Some(node),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_limited_and_others_are_not() {
        let (rate, node, other) = (Rate::default(), NodeId::from_random(1), NodeId::from_random(2));
        assert!((0..MAX_CALLS).all(|_| rate.admit(&node, 5)));
        assert!(!rate.admit(&node, CALLS_WITHIN_MS));
        assert!(rate.admit(&other, CALLS_WITHIN_MS));
        assert!(rate.admit(&node, CALLS_WITHIN_MS + 5));
    }

    #[test]
    fn other_commands_belong_to_no_node() {
        let node = NodeId::from_random(1);
        let detach = |networks| Command::DetachContainer {
            node: node.clone(),
            id: weft_model::TaskId::from_random(2),
            networks,
        };
        assert_eq!(owner(&detach(vec![])), Some(&node));
        assert_eq!(owner(&Command::RemoveNode { id: node.clone(), force: true }), None);
        assert_eq!(owner(&Command::Batch(vec![detach(vec![])])), None);
    }
}
