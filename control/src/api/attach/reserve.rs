//! Confirms and releases the addresses that are reserved for a container.

use weft_model::{NetworkId, NodeId, TaskId, command::AttachContainer, state::ContainerIdentity};

use super::{
    super::{Api, error::ApiError},
    container::Container,
};
use crate::swarm::{ProposeError, SwarmError};

/// Records how the engine calls the container, and that it is on the networks. If no manager
/// answers, the node's next report says so.
///
/// # Errors
/// If the cluster refuses it.
pub(super) async fn confirm(
    api: &Api,
    id: &TaskId,
    container: &str,
    name: &str,
    present: Vec<NetworkId>,
) -> Result<(), ApiError> {
    let name = match name.trim_start_matches('/') {
        "" => Container::find(api, container).await?.identity.name,
        name => name.to_owned(),
    };
    let identity = Some(ContainerIdentity { container: container.to_owned(), name });
    let node = NodeId::from_random(0);
    let attach = AttachContainer { node, id: id.clone(), identity, networks: Vec::new(), present, running: None };
    match api.member.attach(attach).await {
        Err(error @ SwarmError::Change(ProposeError::Rejected(_))) => Err(error.into()),
        Err(error) => {
            tracing::warn!(container = %id, %error, "cannot confirm the networks of a container now");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Frees the addresses of a container. If that fails, they are freed after what the node reports.
pub(super) async fn release(api: &Api, id: &TaskId, networks: Vec<NetworkId>) {
    if let Err(error) = api.member.detach(id.clone(), networks).await {
        tracing::warn!(container = %id, %error, "cannot free the addresses of a container now");
    }
}
