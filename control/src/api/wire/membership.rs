//! Converts the membership of this node: the requests to create and to join a cluster from JSON,
//! and the membership in `info` to JSON.
//!
//! One field of `info` is an extension of weft: `Swarm.Encryption`, whether and how this node
//! encrypts, and its WireGuard keys.

use std::net::IpAddr;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bollard_stubs::models;
use serde_json::Value;
use weft_model::{
    ClusterState, DEFAULT_TUNNEL_PORT, NodeReport,
    spec::{Availability, ClusterSpec},
};

use super::{
    cluster, encryption,
    fields::{self, Ignored},
    unsupported,
    values::{set, signed, to_json},
};
use crate::api::error::ApiError;

/// The request of `swarm init`. The addresses are not parsed yet.
#[derive(Debug)]
pub(crate) struct InitRequest {
    pub(crate) spec: ClusterSpec,
    /// Whether managers are locked.
    pub(crate) auto_lock: bool,
    /// Form the cluster of this manager again. Its settings stay, so the request has none.
    pub(crate) force_new_cluster: bool,
    pub(crate) tunnel_port: u16,
    pub(crate) listen_addr: String,
    pub(crate) advertise_addr: String,
    /// Empty: the advertised address.
    pub(crate) tunnel_addr: String,
    pub(crate) availability: Availability,
}

/// The request of `swarm join`. The addresses are not parsed yet.
#[derive(Debug)]
pub(crate) struct JoinRequest {
    pub(crate) managers: Vec<String>,
    pub(crate) token: String,
    pub(crate) listen_addr: String,
    pub(crate) advertise_addr: String,
    /// Empty: the advertised address.
    pub(crate) tunnel_addr: String,
    pub(crate) availability: Availability,
}

/// What the docker client sends if the user gives no `--listen-addr`.
const DEFAULT_LISTEN_ADDR: &str = "0.0.0.0:2377";

pub(crate) fn read_init(body: &mut Value, ignored: &mut Ignored) -> Result<InitRequest, ApiError> {
    let request: models::SwarmInitRequest = fields::read_known(body, ignored)?;
    let (mut spec, locks_by_spec) = match body.get_mut("Spec") {
        None | Some(Value::Null) => (ClusterSpec::default(), false),
        Some(spec) => cluster::read(spec, &ClusterSpec::default(), false, ignored)?,
    };
    // The docker client sets both.
    let auto_lock = read_auto_lock(body)? || locks_by_spec;
    cluster::read_pools(&mut spec, &request.default_addr_pool.unwrap_or_default(), request.subnet_size)?;
    let tunnel_port = match request.data_path_port.unwrap_or_default() {
        0 => DEFAULT_TUNNEL_PORT,
        port => u16::try_from(port)
            .map_err(|_| ApiError::Invalid(format!("{port} is not a port: give one to --data-path-port")))?,
    };
    let availability = read_availability(body)?;
    let force_new_cluster = request.force_new_cluster == Some(true);
    let has_settings = spec != ClusterSpec::default() || auto_lock || availability != Availability::Active;
    let init = InitRequest {
        spec,
        auto_lock,
        force_new_cluster,
        tunnel_port,
        tunnel_addr: request.data_path_addr.unwrap_or_default(),
        listen_addr: request.listen_addr.unwrap_or_default(),
        advertise_addr: request.advertise_addr.unwrap_or_default(),
        availability,
    };
    if force_new_cluster {
        refuse_changes(&init, has_settings)?;
    }
    Ok(init)
}

/// Refuses the settings that a cluster which is formed again keeps. Default values pass: the docker
/// client sends them whatever the user gives.
fn refuse_changes(init: &InitRequest, has_settings: bool) -> Result<(), ApiError> {
    if has_settings {
        return Err(ApiError::Invalid(
            "a forced new cluster keeps its settings: leave them out, and change them with \"weft swarm update\" and \
             \"weft node update\" afterwards"
                .to_owned(),
        ));
    }
    let keeps_tunnel = init.tunnel_addr.is_empty() && init.tunnel_port == DEFAULT_TUNNEL_PORT;
    let keeps_listening = matches!(init.listen_addr.as_str(), "" | DEFAULT_LISTEN_ADDR);
    for (keeps, flags) in [(keeps_tunnel, "--data-path-addr and --data-path-port"), (keeps_listening, "--listen-addr")]
    {
        if !keeps {
            return Err(ApiError::Invalid(format!(
                "a forced new cluster keeps the addresses and ports of its tunnels and managers: leave {flags} out"
            )));
        }
    }
    Ok(())
}

/// The key of `swarm unlock`, not parsed yet.
pub(crate) fn read_unlock_key(body: &mut Value, ignored: &mut Ignored) -> Result<String, ApiError> {
    let request: models::SwarmUnlockRequest = fields::read_known(body, ignored)?;
    Ok(request.unlock_key.unwrap_or_default())
}

fn read_auto_lock(body: &Value) -> Result<bool, ApiError> {
    match &body["AutoLockManagers"] {
        Value::Null => Ok(false),
        Value::Bool(auto_lock) => Ok(*auto_lock),
        other => Err(ApiError::Invalid(format!("AutoLockManagers is {other}: give true or false"))),
    }
}

pub(crate) fn read_join(body: &mut Value, ignored: &mut Ignored) -> Result<JoinRequest, ApiError> {
    let request: models::SwarmJoinRequest = fields::read_known(body, ignored)?;
    let availability = read_availability(body)?;
    let token = request.join_token.unwrap_or_default();
    if token.is_empty() {
        return Err(ApiError::Invalid(
            "no join token was given: print one with \"weft swarm join-token worker\" on a manager".into(),
        ));
    }
    Ok(JoinRequest {
        managers: request.remote_addrs.unwrap_or_default(),
        token,
        tunnel_addr: request.data_path_addr.unwrap_or_default(),
        listen_addr: request.listen_addr.unwrap_or_default(),
        advertise_addr: request.advertise_addr.unwrap_or_default(),
        availability,
    })
}

/// The request of `backup restore`. The addresses are not parsed yet.
#[derive(Debug)]
pub(crate) struct RestoreRequest {
    pub(crate) file: Vec<u8>,
    pub(crate) passphrase: String,
    pub(crate) listen_addr: String,
    pub(crate) advertise_addr: String,
    /// Empty: the advertised address.
    pub(crate) tunnel_addr: String,
    pub(crate) availability: Availability,
}

pub(crate) fn read_restore(body: &mut Value) -> Result<RestoreRequest, ApiError> {
    let availability = read_availability(body)?;
    for field in ["File", "Passphrase", "ListenAddr", "AdvertiseAddr", "DataPathAddr"] {
        fields::rename(body, field)?;
    }
    let known = ["File", "Passphrase", "ListenAddr", "AdvertiseAddr", "DataPathAddr", "Availability"];
    unsupported::refuse_all_but(&known, body)?;
    let text = |field: &str| body[field].as_str().unwrap_or_default().to_owned();
    let file = STANDARD.decode(text("File"));
    Ok(RestoreRequest {
        file: file.map_err(|error| ApiError::Invalid(format!("File is not base64: {error}")))?,
        passphrase: text("Passphrase"),
        listen_addr: text("ListenAddr"),
        advertise_addr: text("AdvertiseAddr"),
        tunnel_addr: text("DataPathAddr"),
        availability,
    })
}

/// The request of `backup create`.
pub(crate) fn read_passphrase(body: &mut Value) -> Result<String, ApiError> {
    fields::rename(body, "Passphrase")?;
    unsupported::refuse_all_but(&["Passphrase"], body)?;
    Ok(body["Passphrase"].as_str().unwrap_or_default().to_owned())
}

fn read_availability(body: &mut Value) -> Result<Availability, ApiError> {
    fields::rename(body, "Availability")?;
    match &body["Availability"] {
        Value::Null => Ok(Availability::Active),
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "" | "active" => Ok(Availability::Active),
            "pause" => Ok(Availability::Pause),
            "drain" => Ok(Availability::Drain),
            _ => Err(ApiError::Invalid(format!("invalid availability {text:?}: use active, pause or drain"))),
        },
        other => Err(ApiError::Invalid(format!("invalid availability {other}: use active, pause or drain"))),
    }
}

/// This node as a member of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct LocalMember {
    pub(crate) state: models::LocalNodeState,
    pub(crate) node: String,
    pub(crate) addr: Option<IpAddr>,
    pub(crate) error: String,
    /// The ids and addresses of the managers.
    pub(crate) managers: Vec<(String, String)>,
    /// What the agent of this node has reported last.
    pub(crate) report: NodeReport,
}

/// The field `Swarm` of `info`. `state` is `None` on nodes that are not managers.
pub(crate) fn show(member: &LocalMember, state: Option<&ClusterState>) -> Value {
    let count = |managers_only: bool| {
        state.map(|s| signed(s.nodes.values().filter(|n| !managers_only || n.is_manager()).count() as u64))
    };
    let managers: Vec<_> = member
        .managers
        .iter()
        .map(|(node, addr)| models::PeerNode { node_id: Some(node.clone()), addr: Some(addr.clone()) })
        .collect();
    let mut shown = to_json(models::SwarmInfo {
        node_id: Some(member.node.clone()),
        node_addr: Some(member.addr.map(|addr| addr.to_string()).unwrap_or_default()),
        local_node_state: Some(member.state),
        control_available: Some(state.is_some()),
        error: Some(member.error.clone()),
        remote_managers: Some(managers),
        nodes: count(false),
        managers: count(true),
        cluster: None,
    });
    if let Some(machine) = &member.report.description {
        let keys: Vec<_> = member.report.keys.iter().map(encryption::show_key).collect();
        set(&mut shown, "Encryption", encryption::show(&machine.encryption, &keys));
    }
    if let Some(cluster) = state.and_then(|s| s.cluster.as_ref()) {
        set(&mut shown, "Cluster", cluster::show(cluster));
    }
    shown
}
