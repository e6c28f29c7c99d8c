//! The error type of this crate. The text of an error never contains its cause: the cause is the
//! `source`, so a caller that prints the whole chain prints it once.

use std::io;

use hickory_resolver::net::NetError;
use weft_model::TaskId;

/// Why the resolver of a task, or the resolver for names outside of the cluster, cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the resolver sockets of task {task}")]
    Sockets { task: TaskId, source: io::Error },
    #[error(
        "an upstream resolver uses TLS, but this machine has no certificates of authorities: install the package \
         ca-certificates, or name a file with SSL_CERT_FILE"
    )]
    Certificates,
    #[error("cannot use TLS for upstream resolvers")]
    Tls(#[source] rustls::Error),
    #[error("cannot use the upstream resolvers")]
    Resolver(#[source] NetError),
}
