//! Handlers of `service`: create, list, inspect, update, roll back and remove services.

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode},
};
use serde_json::{Value, json};
use weft_model::{
    ClusterState, Command, NetworkId, ServiceId,
    spec::{ServiceMode, ServiceSpec},
    state::{Node, Service},
};

use super::{
    Api,
    body::JsonBody,
    error::ApiError,
    features, find,
    query::{Filters, Params},
    wire,
};
use crate::schedule::needs_encryption;

/// A service that was created without a name gets a name from this many characters of its id, which
/// makes 36^8 possible names.
const NAME_LEN: usize = 8;

pub(super) async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let state = api.state()?;
    let filters = Filters::read(&params, &["id", "label", "mode", "name", "runtime"])?;
    let matches = |service: &&Service| {
        let mode = match service.spec.mode {
            ServiceMode::Replicated { .. } => "replicated",
            ServiceMode::Global => "global",
        };
        !service.removing
            && filters.any("id", |id| service.id.as_str().starts_with(id))
            && filters.any("name", |name| service.spec.name.as_str().starts_with(name))
            && filters.any("mode", |wanted| wanted == mode)
            && filters.any("runtime", |runtime| runtime == "container")
            && filters.labels("label", |key| service.spec.labels.get(key))
    };
    let with_status = params.strict_flag("status")?;
    let services = state.services.values().filter(matches);
    Ok(Json(services.map(|service| wire::service::show(&state, service, with_status)).collect()))
}

pub(super) async fn inspect(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    // A spec is always shown with its defaults, so the value has no effect.
    params.strict_flag("insertDefaults")?;
    let state = api.state()?;
    Ok(Json(wire::service::show(&state, find::service(&state, &id)?, false)))
}

pub(super) async fn create(
    State(api): State<Api>,
    headers: HeaderMap,
    JsonBody(mut body): JsonBody,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let cluster = api.cluster()?;
    refuse_credentials(&headers)?;
    let id = ServiceId::from_random(rand::random());
    wire::fields::rename(&mut body, "Name")?;
    if body["Name"].as_str().is_none_or(str::is_empty) {
        wire::set(&mut body, "Name", json!(format!("service-{}", &id.as_str()[..NAME_LEN])));
    }
    let state = api.state()?;
    let spec = Box::new(read(&state, body)?);
    let warnings: Vec<String> = encryption_warning(&state, &spec).into_iter().collect();
    cluster.propose(Command::CreateService { id: id.clone(), spec }).await?;
    Ok((StatusCode::CREATED, Json(json!({"ID": id.as_str(), "Warnings": warnings}))))
}

/// The warning for a service on an encrypted network in a cluster in which no node can encrypt.
fn encryption_warning(state: &ClusterState, spec: &ServiceSpec) -> Option<String> {
    let is_stuck = needs_encryption(state, &spec.task) && !state.nodes.values().any(Node::can_encrypt);
    is_stuck.then(|| {
        "the service is on an encrypted network, and no node can encrypt: its tasks wait (see \"weft node inspect \
         --pretty\")"
            .to_owned()
    })
}

pub(super) async fn update(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let cluster = api.cluster()?;
    refuse_credentials(&headers)?;
    let version = params.version()?;
    let is_rollback = match params.text("rollback") {
        "" => false,
        "previous" => true,
        other => return Err(ApiError::Invalid(format!("invalid rollback {other:?}: the only one is \"previous\""))),
    };
    let command = {
        let state = api.state()?;
        let id = find::service(&state, &id)?.id.clone();
        if is_rollback {
            Command::RollbackService {
                id,
                version,
                message: "manually requested rollback".to_owned(),
                automatic: false,
            }
        } else {
            Command::UpdateService { id, version, spec: Box::new(read(&state, body)?) }
        }
    };
    cluster.propose(command).await?;
    Ok(Json(json!({"Warnings": null})))
}

pub(super) async fn remove(State(api): State<Api>, Path(id): Path<String>) -> Result<(), ApiError> {
    let cluster = api.cluster()?;
    let id = find::service(&*api.state()?, &id)?.id.clone();
    cluster.propose(Command::RemoveService { id }).await?;
    Ok(())
}

/// Reads a spec, and replaces the names of its networks by their ids.
fn read(state: &ClusterState, body: Value) -> Result<ServiceSpec, ApiError> {
    let resolve = |text: &str| -> Result<NetworkId, ApiError> {
        if find::network(state, text).is_err() && find::configuration(state, text).is_ok() {
            return Err(ApiError::Invalid(format!(
                "network {text} only holds options: create a network with --config-from {text} and use that"
            )));
        }
        let network = find::network(state, text)?;
        if network.spec.ingress {
            return Err(ApiError::Invalid(format!(
                "network {text} is the ingress network: a service cannot be attached to it by name"
            )));
        }
        Ok(network.id.clone())
    };
    wire::service::read(body, &resolve)
}

/// Refuses credentials of a registry. Clients send them in a header, as JSON in base64. A client
/// without credentials sends `{}`, `null` or no header.
fn refuse_credentials(headers: &HeaderMap) -> Result<(), ApiError> {
    match headers.get("x-registry-auth").map(HeaderValue::as_bytes) {
        None | Some(b"" | b"e30=" | b"e30" | b"bnVsbA==") => Ok(()),
        Some(_) => Err(features::REGISTRY_CREDENTIALS.refusal()),
    }
}
