//! Converts the settings of the cluster in both directions, and the cluster to JSON.
//!
//! Four fields are extensions of weft. Only weft's own client sends them. If one is absent, the
//! setting does not change.
//!
//! - `Dispatcher.HeartbeatMisses`: the number of heartbeats that a node may miss before it is down;
//! - `EncryptionConfig.KeyRotationPeriod`, in nanoseconds: the time after which the WireGuard key
//!   of a node is replaced;
//! - `DefaultAddrPool` and `SubnetSize`: the address pools and the prefix length of their subnets.
//!   In Swarm they are fields of the request of `swarm init` only, and never change.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bollard_stubs::models;
use serde_json::{Value, json};
use weft_model::{
    spec::ClusterSpec,
    state::{Cluster, Node},
};

use super::{
    fields::{self, Ignored},
    unsupported,
    values::{date, labels, millis, nanos, set, signed, to_json, version},
};
use crate::{api::error::ApiError, pki, raft};

/// The name of every cluster's spec, as in Swarm.
const SPEC_NAME: &str = "default";
/// The shortest lifetime of a node certificate, as in Swarm.
const MIN_CERT_EXPIRY_MS: u64 = 3_600_000;

/// Reads the settings, and whether managers are locked. A setting that is absent or zero keeps its
/// value from `current` and `is_locked`. Labels replace all labels of `current`, unless they are
/// absent.
pub(crate) fn read(
    body: &mut Value,
    current: &ClusterSpec,
    is_locked: bool,
    ignored: &mut Ignored,
) -> Result<(ClusterSpec, bool), ApiError> {
    let requested: models::SwarmSpec = fields::read_known(body, ignored)?;
    if requested.name.as_deref().is_some_and(|name| !name.is_empty() && name != SPEC_NAME) {
        return Err(ApiError::Invalid(format!("swarm spec must be named {SPEC_NAME:?}")));
    }
    let mut spec = ClusterSpec {
        labels: requested.labels.map_or_else(|| current.labels.clone(), |labels| labels.into_iter().collect()),
        ..current.clone()
    };
    if let Some(limit) = requested.orchestration.and_then(|o| o.task_history_retention_limit) {
        spec.task_history_limit = u32::try_from(limit)
            .map_err(|_| ApiError::Invalid(format!("task history limit {limit} is out of range: give 0 or more")))?;
    }
    if let Some(period) = requested.dispatcher.and_then(|d| d.heartbeat_period).filter(|&period| period != 0) {
        spec.heartbeat_ms = millis("Dispatcher.HeartbeatPeriod", period)?;
    }
    if let Some(misses) = body.pointer("/Dispatcher/HeartbeatMisses").filter(|misses| !misses.is_null()) {
        spec.heartbeat_misses =
            misses.as_u64().and_then(|m| u32::try_from(m).ok()).filter(|&m| m > 0).ok_or_else(|| {
                ApiError::Invalid(format!("Dispatcher.HeartbeatMisses is {misses}: give a number of 1 or more"))
            })?;
    }
    if let Some(count) = requested.ca_config.as_ref().and_then(|ca| ca.force_rotate).filter(|&n| n != 0) {
        spec.force_rotate = count;
    }
    if let Some(expiry) = requested.ca_config.and_then(|ca| ca.node_cert_expiry).filter(|&expiry| expiry != 0) {
        spec.cert_expiry_ms = millis("CAConfig.NodeCertExpiry", expiry)?;
        if spec.cert_expiry_ms < MIN_CERT_EXPIRY_MS {
            return Err(ApiError::Invalid(
                "the lifetime of a node certificate must be one hour or longer (--cert-expiry)".into(),
            ));
        }
    }
    if let Some(period) = body.pointer("/EncryptionConfig/KeyRotationPeriod").filter(|period| !period.is_null()) {
        let field = "EncryptionConfig.KeyRotationPeriod";
        let period = period
            .as_i64()
            .ok_or_else(|| ApiError::Invalid(format!("{field} is {period}: give a number of nanoseconds")))?;
        spec.key_rotation_ms = millis(field, period)?;
    }
    let pools = body.get("DefaultAddrPool").filter(|pools| !pools.is_null());
    let pools = pools.map(|pools| serde_json::from_value::<Vec<String>>(pools.clone())).transpose();
    let pools = pools.map_err(|_| ApiError::Invalid("DefaultAddrPool must be a list of subnets".into()))?;
    let size = body.get("SubnetSize").filter(|size| !size.is_null());
    let size = size.map(|size| size.as_u64().and_then(|size| u32::try_from(size).ok()).ok_or(size)).transpose();
    let size = size.map_err(|size| ApiError::Invalid(format!("SubnetSize is {size}: give a prefix length")))?;
    read_pools(&mut spec, &pools.unwrap_or_default(), size)?;
    let auto_lock =
        requested.encryption_config.and_then(|encryption| encryption.auto_lock_managers).unwrap_or(is_locked);
    unsupported::refuse(body, &write(&spec, auto_lock))?;
    Ok((spec, auto_lock))
}

/// Reads the address pools and the prefix length of their subnets. If one is absent, it keeps its
/// value.
pub(super) fn read_pools(spec: &mut ClusterSpec, pools: &[String], size: Option<u32>) -> Result<(), ApiError> {
    if !pools.is_empty() {
        let parse = |pool: &String| {
            pool.parse().map_err(|_| {
                ApiError::Invalid(format!("invalid address pool {pool:?}: give an IPv4 subnet such as 10.20.0.0/16"))
            })
        };
        spec.pools = pools.iter().map(parse).collect::<Result<_, _>>()?;
    }
    if let Some(size) = size.filter(|&size| size != 0) {
        spec.pool_prefix = u8::try_from(size).map_err(|_| {
            ApiError::Invalid(format!("a mask length of {size} is out of range (--default-addr-pool-mask-length)"))
        })?;
    }
    Ok(())
}

/// Takes the CA that a request gives (`swarm ca --ca-cert --ca-key`) out of the settings: its
/// certificate and its private key, in PEM. The key is a secret, so no error contains it.
pub(crate) fn take_ca(body: &mut Value, ignored: &mut Ignored) -> Result<Option<(String, String)>, ApiError> {
    fields::read_known::<models::SwarmSpec>(body, ignored)?;
    let Some(settings) = body.get_mut("CAConfig").and_then(Value::as_object_mut) else { return Ok(None) };
    let mut take = |field: &str| match settings.remove(field) {
        Some(Value::String(pem)) => pem,
        _ => String::new(),
    };
    let (cert_pem, key_pem) = (take("SigningCACert"), take("SigningCAKey"));
    match (cert_pem.is_empty(), key_pem.is_empty()) {
        (true, true) => Ok(None),
        (false, false) => Ok(Some((cert_pem, key_pem))),
        (false, true) => Err(ApiError::Invalid(
            "the certificate of an authority needs its private key too (--ca-key): weft does not use external \
             authorities, which keep their keys"
                .into(),
        )),
        (true, false) => {
            Err(ApiError::Invalid("the private key of an authority needs its certificate too (--ca-cert)".into()))
        }
    }
}

/// The cluster's current CA, and the one that has signed the certificate of `node`, or that signs
/// now if there is no node.
pub(crate) fn show_tls(cluster: &Cluster, node: Option<&Node>) -> models::TlsInfo {
    let (signing_pem, _) = cluster.signing_ca();
    let is_old = cluster.root_rotation.is_some() && node.is_some_and(|node| !node.rotated);
    let issuer = pki::issuer_of(if is_old { &cluster.ca_cert_pem } else { signing_pem });
    let encode = |der: &Vec<u8>| BASE64_STANDARD.encode(der);
    models::TlsInfo {
        trust_root: Some(cluster.ca_cert_pem.clone()),
        cert_issuer_subject: issuer.as_ref().map(|issuer| encode(&issuer.subject)),
        cert_issuer_public_key: issuer.as_ref().map(|issuer| encode(&issuer.public_key)),
    }
}

fn pools(spec: &ClusterSpec) -> Vec<String> {
    spec.pools.iter().map(ToString::to_string).collect()
}

fn write(spec: &ClusterSpec, is_locked: bool) -> Value {
    let mut shown = to_json(models::SwarmSpec {
        name: Some(SPEC_NAME.into()),
        labels: Some(labels(&spec.labels)),
        orchestration: Some(models::SwarmSpecOrchestration {
            task_history_retention_limit: Some(i64::from(spec.task_history_limit)),
        }),
        raft: Some(models::SwarmSpecRaft {
            snapshot_interval: Some(raft::SETTINGS.snapshot_interval),
            // The manager removes a snapshot when it has made a newer one.
            keep_old_snapshots: Some(0),
            log_entries_for_slow_followers: Some(raft::SETTINGS.kept_entries),
            election_tick: Some(signed(raft::SETTINGS.election_ticks)),
            heartbeat_tick: Some(signed(raft::SETTINGS.heartbeat_ticks)),
        }),
        dispatcher: Some(models::SwarmSpecDispatcher { heartbeat_period: Some(nanos(spec.heartbeat_ms)) }),
        ca_config: Some(models::SwarmSpecCaConfig {
            node_cert_expiry: Some(nanos(spec.cert_expiry_ms)),
            force_rotate: Some(spec.force_rotate),
            ..Default::default()
        }),
        encryption_config: Some(models::SwarmSpecEncryptionConfig { auto_lock_managers: Some(is_locked) }),
        task_defaults: Some(models::SwarmSpecTaskDefaults::default()),
    });
    set(&mut shown["Dispatcher"], "HeartbeatMisses", json!(spec.heartbeat_misses));
    set(&mut shown["EncryptionConfig"], "KeyRotationPeriod", json!(nanos(spec.key_rotation_ms)));
    set(&mut shown, "DefaultAddrPool", json!(pools(spec)));
    set(&mut shown, "SubnetSize", json!(spec.pool_prefix));
    shown
}

/// The cluster in the form that managers return for `GET /swarm` and in `info`.
pub(crate) fn show(cluster: &Cluster) -> Value {
    let mut shown = to_json(models::ClusterInfo {
        id: Some(cluster.id.to_string()),
        version: version(&cluster.meta),
        created_at: date(cluster.meta.created_ms),
        updated_at: date(cluster.meta.updated_ms),
        spec: None,
        tls_info: Some(show_tls(cluster, None)),
        root_rotation_in_progress: Some(cluster.root_rotation.is_some()),
        data_path_port: Some(u32::from(cluster.tunnel_port)),
        default_addr_pool: Some(pools(&cluster.spec)),
        subnet_size: Some(u32::from(cluster.spec.pool_prefix)),
    });
    set(&mut shown, "Spec", write(&cluster.spec, cluster.lock.key.is_some()));
    shown
}

/// The join tokens, which `GET /swarm` returns with the cluster.
pub(crate) fn show_tokens(worker: String, manager: String) -> Value {
    to_json(models::JoinTokens { worker: Some(worker), manager: Some(manager) })
}
