//! The cluster: its settings both ways, and the cluster as the API shows it.
//!
//! One field is weft's own: `Dispatcher.HeartbeatMisses`, how many heartbeats a node may miss before it is down. Other
//! clients do not send it; then it stays as it is.

use std::net::IpAddr;

use bollard_stubs::models as wire;
use ipnetwork::Ipv4Network;
use serde_json::{Value, json};
use weft_model::{TUNNEL_PORT, spec::ClusterSpec, state::Cluster};

use super::{date, fields, json as to_json, millis, nanos, service::labels, set, signed, unsupported, version};
use crate::api::{error::ApiError, features};

/// The name that Swarm gives to every cluster's spec.
const SPEC_NAME: &str = "default";
/// Shortest life of a node certificate, as in Swarm.
const MIN_CERT_EXPIRY_MS: u64 = 3_600_000;

/// Reads settings; what is absent or zero stays as it is in `current`, but labels.
pub(crate) fn read(body: &mut Value, current: &ClusterSpec) -> Result<ClusterSpec, ApiError> {
    let asked: wire::SwarmSpec = fields::read(body)?;
    if let Some(dispatcher) = body.get_mut("Dispatcher") {
        fields::rename(dispatcher, "HeartbeatMisses")?;
    }
    if asked.name.as_deref().is_some_and(|name| !name.is_empty() && name != SPEC_NAME) {
        return Err(ApiError::Invalid(format!("swarm spec must be named {SPEC_NAME:?}")));
    }
    let mut spec = ClusterSpec {
        labels: asked.labels.map_or_else(|| current.labels.clone(), |labels| labels.into_iter().collect()),
        ..current.clone()
    };
    if let Some(limit) = asked.orchestration.and_then(|o| o.task_history_retention_limit) {
        spec.task_history_limit = u32::try_from(limit)
            .map_err(|_| ApiError::Invalid(format!("task history limit {limit} is out of range: give 0 or more")))?;
    }
    if let Some(period) = asked.dispatcher.and_then(|d| d.heartbeat_period).filter(|&period| period != 0) {
        spec.heartbeat_ms = millis("Dispatcher.HeartbeatPeriod", period)?;
    }
    if let Some(misses) = body.pointer("/Dispatcher/HeartbeatMisses").filter(|misses| !misses.is_null()) {
        spec.heartbeat_misses =
            misses.as_u64().and_then(|m| u32::try_from(m).ok()).filter(|&m| m > 0).ok_or_else(|| {
                ApiError::Invalid(format!("{misses} missed heartbeats are no bound: give a number of 1 or more"))
            })?;
    }
    if let Some(expiry) = asked.ca_config.and_then(|ca| ca.node_cert_expiry).filter(|&expiry| expiry != 0) {
        spec.cert_expiry_ms = millis("CAConfig.NodeCertExpiry", expiry)?;
        if spec.cert_expiry_ms < MIN_CERT_EXPIRY_MS {
            return Err(ApiError::Invalid(
                "a node certificate's life must be one hour or longer (--cert-expiry)".into(),
            ));
        }
    }
    unsupported::refuse(body, &write(&spec))?;
    Ok(spec)
}

fn write(spec: &ClusterSpec) -> Value {
    let mut shown = to_json(wire::SwarmSpec {
        name: Some(SPEC_NAME.into()),
        labels: Some(labels(&spec.labels)),
        orchestration: Some(wire::SwarmSpecOrchestration {
            task_history_retention_limit: Some(i64::from(spec.task_history_limit)),
        }),
        raft: Some(wire::SwarmSpecRaft::default()),
        dispatcher: Some(wire::SwarmSpecDispatcher { heartbeat_period: Some(nanos(spec.heartbeat_ms)) }),
        ca_config: Some(wire::SwarmSpecCaConfig {
            node_cert_expiry: Some(nanos(spec.cert_expiry_ms)),
            ..Default::default()
        }),
        encryption_config: Some(wire::SwarmSpecEncryptionConfig { auto_lock_managers: Some(false) }),
        task_defaults: Some(wire::SwarmSpecTaskDefaults::default()),
    });
    set(&mut shown["Dispatcher"], "HeartbeatMisses", json!(spec.heartbeat_misses));
    shown
}

/// Reads the settings that come with `swarm init`, address pool included.
pub(crate) fn read_init(body: &mut Value) -> Result<ClusterSpec, ApiError> {
    let request: wire::SwarmInitRequest = fields::read(body)?;
    let mut spec = match body.get_mut("Spec") {
        None | Some(Value::Null) => ClusterSpec::default(),
        Some(spec) => read(spec, &ClusterSpec::default())?,
    };
    let pools = request.default_addr_pool.unwrap_or_default();
    match pools.as_slice() {
        [] => {}
        [pool] => {
            spec.pool = pool.parse::<Ipv4Network>().map_err(|_| {
                ApiError::Invalid(format!("invalid address pool {pool:?}: want something like 10.20.0.0/16"))
            })?;
        }
        _ => return Err(features::ADDRESS_POOLS.refusal()),
    }
    if let Some(size) = request.subnet_size.filter(|&size| size != 0) {
        spec.pool_prefix = u8::try_from(size).map_err(|_| {
            ApiError::Invalid(format!("a mask length of {size} is out of range (--default-addr-pool-mask-length)"))
        })?;
    }
    if request.data_path_port.is_some_and(|port| port != 0 && port != u32::from(TUNNEL_PORT)) {
        return Err(features::TUNNEL_PORTS.refusal());
    }
    if request.data_path_addr.is_some_and(|addr| !addr.is_empty()) {
        return Err(features::TUNNEL_ADDRESSES.refusal());
    }
    if request.force_new_cluster == Some(true) {
        return Err(features::FORCED_CLUSTER.refusal());
    }
    Ok(spec)
}

/// The cluster as `info` shows it to managers.
pub(crate) fn show(cluster: &Cluster) -> Value {
    let mut shown = to_json(wire::ClusterInfo {
        id: Some(cluster.id.to_string()),
        version: version(&cluster.meta),
        created_at: date(cluster.meta.created_ms),
        updated_at: date(cluster.meta.updated_ms),
        spec: None,
        tls_info: Some(wire::TlsInfo { trust_root: Some(cluster.ca_cert_pem.clone()), ..Default::default() }),
        root_rotation_in_progress: Some(false),
        data_path_port: Some(u32::from(TUNNEL_PORT)),
        default_addr_pool: Some(vec![cluster.spec.pool.to_string()]),
        subnet_size: Some(u32::from(cluster.spec.pool_prefix)),
    });
    set(&mut shown, "Spec", write(&cluster.spec));
    shown
}

/// Tokens as `GET /swarm` adds them.
pub(crate) fn show_tokens(worker: String, manager: String) -> Value {
    to_json(wire::JoinTokens { worker: Some(worker), manager: Some(manager) })
}

/// How this node stands, as `info` shows it.
#[derive(Debug, Clone)]
pub(crate) struct LocalStanding {
    pub(crate) state: wire::LocalNodeState,
    pub(crate) node: String,
    pub(crate) addr: Option<IpAddr>,
    pub(crate) error: String,
    pub(crate) managers: Vec<(String, String)>,
}

/// The `Swarm` part of `info`.
pub(crate) fn show_standing(standing: &LocalStanding, state: Option<&weft_model::ClusterState>) -> Value {
    let count = |managers_only: bool| {
        state.map(|s| signed(s.nodes.values().filter(|n| !managers_only || n.is_manager()).count() as u64))
    };
    let managers: Vec<_> = standing
        .managers
        .iter()
        .map(|(node, addr)| wire::PeerNode { node_id: Some(node.clone()), addr: Some(addr.clone()) })
        .collect();
    let mut shown = to_json(wire::SwarmInfo {
        node_id: Some(standing.node.clone()),
        node_addr: Some(standing.addr.map(|addr| addr.to_string()).unwrap_or_default()),
        local_node_state: Some(standing.state),
        control_available: Some(state.is_some()),
        error: Some(standing.error.clone()),
        remote_managers: Some(managers),
        nodes: count(false),
        managers: count(true),
        cluster: None,
    });
    if let Some(cluster) = state.and_then(|s| s.cluster.as_ref()) {
        set(&mut shown, "Cluster", show(cluster));
    }
    shown
}
