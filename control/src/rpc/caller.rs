//! Who is calling: what the peer's certificate says, checked on every call.

use tonic::{Extensions, Status};
use weft_model::{NodeId, id::ClusterId, spec::Role};

use crate::pki::PeerIdentity;

/// The peer of a connection; attached to each of its requests.
#[derive(Debug, Clone)]
pub struct Caller(Option<PeerIdentity>);

impl Caller {
    pub(super) fn new(identity: Option<PeerIdentity>) -> Self {
        Self(identity)
    }

    /// The calling node, which must be a member of `cluster`.
    pub fn member<'a>(extensions: &'a Extensions, cluster: &ClusterId) -> Result<&'a PeerIdentity, Status> {
        let Some(Self(Some(peer))) = extensions.get() else {
            return Err(Status::unauthenticated("this call needs a node certificate"));
        };
        if peer.cluster != *cluster {
            return Err(Status::permission_denied("the certificate is of another swarm"));
        }
        Ok(peer)
    }

    /// The calling node, which must be a manager of `cluster`.
    pub fn manager<'a>(extensions: &'a Extensions, cluster: &ClusterId) -> Result<&'a NodeId, Status> {
        let peer = Self::member(extensions, cluster)?;
        if peer.role != Role::Manager {
            return Err(Status::permission_denied("only managers may call this"));
        }
        Ok(&peer.node)
    }
}
