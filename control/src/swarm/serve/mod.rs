//! The node RPC's services: what each call does, and who may make it. Workers serve all of them and refuse what only a
//! manager can do.

mod authority;
mod dispatcher;
mod logs;
mod quorum;

use std::sync::Arc;

use axum::Router;
use tonic::{Status, service::Routes};

use super::{Manager, node::Node};
use crate::{
    pki::PkiError,
    rpc::{
        MAX_MESSAGE_BYTES,
        pb::{
            authority_server::AuthorityServer, dispatcher_server::DispatcherServer, logs_server::LogsServer,
            quorum_server::QuorumServer,
        },
    },
};

/// All services of one node.
#[derive(Debug, Clone)]
struct Services {
    node: Arc<Node>,
}

/// The services of `node`, to be served by [`crate::rpc::serve`].
pub(super) fn routes(node: Arc<Node>) -> Router {
    let services = Services { node };
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
                .max_decoding_message_size(MAX_MESSAGE_BYTES)
                .max_encoding_message_size(MAX_MESSAGE_BYTES),
        )
        .add_service(LogsServer::new(services));
    routes.routes().prepare().into_axum_router()
}

impl Services {
    fn manager(&self) -> Result<Manager, Status> {
        self.node.manager().ok_or_else(|| Status::failed_precondition("this node is not a manager"))
    }
}

fn internal(error: &PkiError) -> Status {
    Status::internal(error.to_string())
}
