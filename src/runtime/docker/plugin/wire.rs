//! The messages of the engine and their answers, as far as weft uses them. The names are those of
//! the protocol.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct CreateEndpoint {
    #[serde(rename = "EndpointID")]
    pub(super) endpoint: String,
    #[serde(default)]
    pub(super) options: Option<Map<String, Value>>,
    #[serde(default)]
    pub(super) interface: Option<Interface>,
}

/// The addresses of an endpoint. A field is empty if the engine has not chosen it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Interface {
    pub(super) address: String,
    #[serde(rename = "AddressIPv6")]
    pub(super) address_v6: String,
    pub(super) mac_address: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Join {
    #[serde(rename = "EndpointID")]
    pub(super) endpoint: String,
    /// The path of the network namespace, which exists only on engines from version 28 on.
    pub(super) sandbox_key: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Endpoint {
    #[serde(rename = "EndpointID")]
    pub(super) endpoint: String,
}

/// The answer to a `Join`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Joined {
    /// `None` if the link is in the namespace already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) interface_name: Option<InterfaceName>,
    /// The gateways of the default routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) gateway: Option<IpAddr>,
    #[serde(rename = "GatewayIPv6", skip_serializing_if = "Option::is_none")]
    pub(super) gateway_v6: Option<IpAddr>,
    pub(super) static_routes: Vec<StaticRoute>,
    /// Without it, the engine gives a container without a gateway a link to a bridge of its own.
    pub(super) disable_gateway_service: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct InterfaceName {
    pub(super) src_name: String,
    pub(super) dst_prefix: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct StaticRoute {
    pub(super) destination: IpNetwork,
    /// 0: through `next_hop`.
    pub(super) route_type: u8,
    pub(super) next_hop: IpAddr,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RequestPool {
    pub(super) address_space: String,
    #[serde(default)]
    pub(super) pool: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RequestAddress {
    #[serde(rename = "PoolID")]
    pub(super) pool: String,
    #[serde(default)]
    pub(super) address: String,
}
