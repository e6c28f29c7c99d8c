//! Networks, with what was allocated for them.

use serde::{Deserialize, Serialize};

use super::Meta;
use crate::{NetworkId, Vni, net::Subnets, spec::NetworkSpec};

/// A configuration-only network: options that other networks take with `--config-from`. Nothing is
/// allocated for it. Its name is unique among the networks too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfiguration {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
    pub vni: Vni,
    pub subnets: Subnets,
}
