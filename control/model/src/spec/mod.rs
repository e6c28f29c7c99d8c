//! The specs: what users request. Only users change specs. The decisions of the cluster are in
//! [`crate::state`].
//!
//! Fields have Swarm's meaning and defaults. A Swarm option that weft does not support has no field
//! here: the API refuses a request that sets such an option, and the error contains the name of the
//! option.

mod cluster;
mod node;
mod network;
mod service;
mod names;
mod credentials;
mod dependency;
mod task;

use std::collections::BTreeMap;

pub use cluster::ClusterSpec;
pub use credentials::RegistryAuth;
pub use dependency::{
    DependencyKind, DependencyName, DependencySpec, FileData, FileReference, InvalidDependencyName, MAX_FILE_MODE,
};
pub use names::{
    DnsConfig, HostEntry, HostName, InvalidHostEntry, InvalidResolverOption, InvalidSearchDomain, MAX_NAME_SERVERS,
    ResolverOption, SearchDomain,
};
pub use network::{NETWORK_MTU, NetworkSpec, SubnetSpec};
pub use node::{Availability, NodeSpec, Role};
pub use service::{
    EndpointMode, EndpointSpec, FailureAction, PortSpec, Protocol, ServiceMode, ServiceSpec, SpecPart, UpdateConfig,
    UpdateOrder,
};
pub use task::{
    Constraint, ContainerSpec, NetworkAttachment, NodeAttribute, NodeNetwork, Placement, Platform, Resources,
    RestartCondition, RestartPolicy, STOP_GRACE_MS, TaskSpec,
};

/// Key-value pairs that users attach to objects.
pub type Labels = BTreeMap<String, String>;
