//! The caller of an RPC, as its certificate identifies it. Every service checks the caller on every
//! call.

use tonic::{Extensions, Status};
use weft_model::{NodeId, id::ClusterId, spec::Role};

use crate::pki::PeerIdentity;

/// The peer of a connection, `None` if the peer presented no certificate. The server attaches the
/// caller to each request.
#[derive(Debug, Clone)]
pub struct Caller(Option<PeerIdentity>);

impl Caller {
    pub(super) fn new(identity: Option<PeerIdentity>) -> Self {
        Self(identity)
    }

    /// Returns the calling node if it is a member of `cluster`.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without a certificate, `PERMISSION_DENIED` with one of another cluster.
    pub fn member<'a>(extensions: &'a Extensions, cluster: &ClusterId) -> Result<&'a PeerIdentity, Status> {
        let Some(Self(Some(peer))) = extensions.get() else {
            return Err(Status::unauthenticated("this call needs a node certificate"));
        };
        if peer.cluster != *cluster {
            return Err(Status::permission_denied("the certificate belongs to another swarm"));
        }
        Ok(peer)
    }

    /// Returns the calling node if it is a manager of `cluster`.
    ///
    /// # Errors
    /// As [`Self::member`], and `PERMISSION_DENIED` for a worker.
    pub fn manager<'a>(extensions: &'a Extensions, cluster: &ClusterId) -> Result<&'a NodeId, Status> {
        let peer = Self::member(extensions, cluster)?;
        if peer.role != Role::Manager {
            return Err(Status::permission_denied("only managers may call this"));
        }
        Ok(&peer.node)
    }
}
