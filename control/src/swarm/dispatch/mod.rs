//! The node RPC's services: what each call does and who may make it.
//!
//! The supervisor serves [`routes`] on the node's listen address, on workers too: a worker answers
//! calls for its task logs and for the authority's certificate, and refuses all others. All calls
//! except the two of a node that joins need a node certificate, which [`crate::rpc::Caller`]
//! checks; only the renewal accepts one that has expired. A node's certificate stays valid after
//! the node was removed, so most calls also check that the cluster state contains the caller.
//!
//! - `bounds`: how much a node may report.
//! - `sessions`: the dispatcher. Nodes report and ack, the leader sends each node its plan. Its
//!   pure parts are in `exchange`.
//! - `attach`: what a node changes about its containers that are no tasks.
//! - `authority`: first certificates for nodes that join, and renewals.
//! - `quorum`: calls between managers: the log's replication, proposals, what a new manager needs.
//! - `logs`: serves this node's task logs to managers.
//!
//! A handler changes the cluster state only through [`Manager`], and writes no file.

mod status;
mod bounds;
pub(super) mod exchange;
mod attach;
mod sessions;
mod authority;
mod quorum;
mod logs;

use std::sync::Arc;

use axum::Router;
use tokio::sync::Mutex;
use tonic::{Status, service::Routes};

pub(crate) use bounds::limit as limit_report;
pub(super) use sessions::report_untrusted;

use super::{context::Context, manager::Manager, tasks::TaskGroup};
use crate::rpc::{
    MAX_MESSAGE_BYTES,
    pb::{
        authority_server::AuthorityServer, dispatcher_server::DispatcherServer, logs_server::LogsServer,
        quorum_server::QuorumServer,
    },
};

/// All services of one node.
#[derive(Debug, Clone)]
struct Services {
    context: Arc<Context>,
    /// Sessions run in this group, so that they end with the membership.
    sessions: TaskGroup,
    /// Held while the other managers are asked on behalf of a caller without a certificate.
    absence_check: Arc<Mutex<()>>,
    attach_rate: attach::Rate,
}

/// The services of a node, to be served by [`crate::rpc::serve`]. Sessions run in `sessions`.
pub(super) fn routes(context: Arc<Context>, sessions: TaskGroup) -> Router {
    let services = Services { context, sessions, attach_rate: attach::Rate::default(), absence_check: Arc::default() };
    let mut routes = Routes::builder();
    routes
        .add_service(AuthorityServer::new(services.clone()))
        .add_service(
            QuorumServer::new(services.clone())
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(
            DispatcherServer::new(services.clone())
                .max_decoding_message_size(bounds::MAX_NODE_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(LogsServer::new(services));
    routes.routes().prepare().into_axum_router()
}

impl Services {
    /// The manager of this node, or an error if this node is a worker, or its manager does not run
    /// now. Another node may answer the same call, so the error is not one of a refusal.
    fn manager(&self) -> Result<Manager, Status> {
        self.context.manager().ok_or_else(|| Status::unavailable("this node is not a manager"))
    }
}
