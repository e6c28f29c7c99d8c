//! What reads octets that come from a disk or from another node: one function for each target in
//! `fuzz/`.
//!
//! No octets may make one of these functions panic, or use more time or memory than their length
//! explains. The functions also check that a value that was read is written and read again without
//! a change. [`crate::api::fuzzing`] has the functions for what users send.

use std::sync::Arc;

use openraft::{
    Vote,
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};
use prost::Message;
use serde::{Serialize, de::DeserializeOwned};
use weft_model::{ClusterState, Command, Entry, LogOptions, NodePlan, NodeReport, state::FEATURE_LEVEL};

use crate::{
    codec::{self, Kind},
    pki::{self, JoinToken},
    raft::{LogEntry, Replica, SnapshotHeader, TypeConfig},
    rpc::pb,
    state,
    swarm::limit_report,
};

/// Reads a record. If it is one, checks that it can be written and read again.
fn record<T: Serialize + DeserializeOwned>(kind: &Kind, data: &[u8]) -> Option<T> {
    let value: T = codec::decode(kind, data).ok()?;
    let written = codec::encode(kind, &value).expect("what was read can be written");
    let read: T = codec::decode(kind, &written).expect("what was written can be read");
    assert!(codec::encode(kind, &read).expect("written again") == written, "a {kind:?} changed");
    Some(value)
}

/// An entry of the log, a position in it, or a vote.
pub fn log(data: &[u8]) {
    record::<LogEntry>(&codec::LOG_ENTRY, data);
    record::<Vote<u64>>(&codec::LOG_POSITION, data);
}

/// A snapshot of the cluster state. Some states of the fuzzer are no cluster's; they must not stop
/// a reader.
pub fn snapshot(data: &[u8]) {
    record::<Replica>(&codec::SNAPSHOT, data);
}

/// A plan, as a node receives and stores it.
pub fn plan(data: &[u8]) {
    record::<NodePlan>(&codec::PLAN, data);
    let Ok(plan) = codec::plan::decode(data) else { return };
    let written = codec::plan::encode(&plan, FEATURE_LEVEL).expect("what was read can be written");
    assert!(codec::plan::decode(&written).expect("what was written can be read") == plan, "a plan changed");
}

/// A change of the cluster state that another manager proposes, applied to the state of this
/// snapshot.
pub fn command(snapshot: &[u8], data: &[u8]) {
    let Some(command) = record::<Command>(&codec::COMMAND, data) else { return };
    let replica: Replica = codec::decode(&codec::SNAPSHOT, snapshot).expect("a snapshot");
    let (mut first, mut second) = (Arc::unwrap_or_clone(replica.state), ClusterState::default());
    for state in [&mut first, &mut second] {
        let (index, now_ms) = (state.index + 1, state.now_ms + 1);
        // A refusal is an answer too.
        drop(state::apply(state, index, Entry { now_ms, command: command.clone() }));
    }
}

/// A message between nodes: the protobuf message, or a record in one of its fields.
pub fn message(data: &[u8]) {
    drop(pb::JoinRequest::decode(data));
    drop(pb::JoinReply::decode(data));
    drop(pb::RenewRequest::decode(data));
    drop(pb::RaftRequest::decode(data));
    drop(pb::SnapshotPart::decode(data));
    drop(pb::ProposeRequest::decode(data));
    record::<AppendEntriesRequest<TypeConfig>>(&codec::RAFT_MESSAGE, data);
    record::<AppendEntriesResponse<u64>>(&codec::RAFT_MESSAGE, data);
    record::<VoteRequest<u64>>(&codec::RAFT_MESSAGE, data);
    record::<VoteResponse<u64>>(&codec::RAFT_MESSAGE, data);
    record::<SnapshotHeader>(&codec::RAFT_MESSAGE, data);
    record::<SnapshotResponse<u64>>(&codec::RAFT_MESSAGE, data);
    record::<LogOptions>(&codec::LOG_OPTIONS, data);
    if let Some(mut report) = record::<NodeReport>(&codec::REPORT, data) {
        limit_report(&mut report);
        assert!(!limit_report(&mut report), "what was cut is within the bounds");
    }
}

/// A join token, as a user types it.
pub fn token(text: &str) {
    if let Ok(token) = text.parse::<JoinToken>() {
        assert_eq!(token.to_string().parse(), Ok(token));
    }
}

/// A certificate request of a node that is in no cluster yet, or a certificate.
pub fn certificate_request(text: &str) {
    drop(pki::node_id_of_request(text));
    drop(pki::issuer_of(text));
    drop(pki::ca_digest(text));
}
