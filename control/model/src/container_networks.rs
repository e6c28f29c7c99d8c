//! How the API gets a docker network for a network of the cluster.
//!
//! The trait connects the control plane, which knows the networks, and the runtime, which makes
//! their counterparts in the engine of its node.

use futures_core::future::BoxFuture;

use crate::plan::NetworkPlan;

/// The runtime of a node, as the maker of the docker networks by which containers are connected to
/// networks of the cluster.
pub trait ContainerNetworks: Send + Sync {
    /// The id of the docker network for this network of the cluster. Creates it if it is missing.
    ///
    /// # Errors
    /// A text for the user.
    fn docker_network<'a>(&'a self, network: &'a NetworkPlan) -> BoxFuture<'a, Result<String, String>>;
}
