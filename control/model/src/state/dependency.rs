//! Secrets and configs, as the cluster stores them.

use serde::{Deserialize, Serialize};

use super::Meta;
use crate::{id::DependencyId, spec::DependencySpec};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    pub id: DependencyId,
    pub meta: Meta,
    pub spec: DependencySpec,
}

impl Dependency {
    /// The feature level from which on managers know secrets and configs, and nodes can give them
    /// to tasks.
    pub const LEVEL: u32 = 1;
}
