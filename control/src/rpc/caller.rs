//! The caller of an RPC, as its certificate identifies it. Every service checks the caller on every
//! call.

use tonic::{Extensions, Status};
use weft_model::{NodeId, id::ClusterId, spec::Role};

use crate::pki::PeerIdentity;

/// The peer of a connection. The server attaches the caller to each request.
#[derive(Debug, Clone)]
pub enum Caller {
    /// The peer presented no certificate.
    Anonymous,
    /// A node with a certificate that was valid in the handshake.
    Node(PeerIdentity),
    /// A node whose certificate had expired. It may only renew the certificate.
    Expired(PeerIdentity),
}

impl Caller {
    /// Returns the calling node if it is a member of `cluster`.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` without a certificate and with one that has expired, `PERMISSION_DENIED`
    /// with one of another cluster.
    pub fn member<'a>(extensions: &'a Extensions, cluster: &ClusterId) -> Result<&'a PeerIdentity, Status> {
        match Self::known(extensions, cluster)? {
            (peer, false) => Ok(peer),
            (_, true) => Err(Status::unauthenticated("the node's certificate has expired: the node must renew it")),
        }
    }

    /// Returns the calling node, and whether its certificate has expired. Only for the renewal.
    ///
    /// # Errors
    /// As [`Self::member`], except for a certificate that has expired.
    pub fn known<'a>(extensions: &'a Extensions, cluster: &ClusterId) -> Result<(&'a PeerIdentity, bool), Status> {
        let (peer, expired) = match extensions.get() {
            Some(Self::Node(peer)) => (peer, false),
            Some(Self::Expired(peer)) => (peer, true),
            Some(Self::Anonymous) | None => return Err(Status::unauthenticated("this call needs a node certificate")),
        };
        if peer.cluster != *cluster {
            return Err(Status::permission_denied("the certificate belongs to another swarm"));
        }
        Ok((peer, expired))
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
