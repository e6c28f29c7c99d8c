//! Handlers of `service`: create, list, inspect, update, roll back and remove services.

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
};
use serde_json::{Value, json};
use weft_model::{
    ClusterState, Command, NetworkId, ServiceId,
    command::ObjectKind,
    spec::{NodeNetwork, RegistryAuth, ServiceMode, ServiceSpec},
    state::{Node, Service},
};

use super::{
    Api,
    body::JsonBody,
    credentials::{self, Header},
    dependencies, distribution,
    docker_networks::networks_of_users,
    error::ApiError,
    find,
    query::{Filters, Params},
    version::{ApiVersion, ClientVersion},
    wire::{self, fields::Ignored, network::predefined, service::Options},
};
use crate::schedule::needs_encryption;

/// A service that was created without a name gets a name from this many characters of its id, which
/// makes 36^8 possible names.
const NAME_LEN: usize = 8;
/// The values of the query `registryAuthFrom`.
const SPEC: &str = "spec";
const PREVIOUS_SPEC: &str = "previous-spec";
/// The version of the API that added the numbers of tasks to the list of services. As in moby, the
/// parameter has no effect in earlier ones.
const STATUS_SINCE: ApiVersion = ApiVersion::new(1, 41);
/// The version that has the networks of a service only in its task template.
const NETWORKS_ONCE_SINCE: ApiVersion = ApiVersion::new(1, 25);
/// The feature level from which on the cluster state has credentials and platforms.
const REGISTRY_LEVEL: u32 = 1;

pub(super) async fn list(
    State(api): State<Api>,
    client: Extension<ClientVersion>,
    params: Params,
) -> Result<Json<Vec<Value>>, ApiError> {
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
    let status = !client.is_before(STATUS_SINCE) && params.strict_flag("status")?;
    let options = Options { status, defaults: false, networks_twice: client.is_before(NETWORKS_ONCE_SINCE) };
    let services = state.services.values().filter(matches);
    Ok(Json(services.map(|service| wire::service::show(&state, service, options)).collect()))
}

pub(super) async fn inspect(
    State(api): State<Api>,
    Path(id): Path<String>,
    client: Extension<ClientVersion>,
    params: Params,
) -> Result<Json<Value>, ApiError> {
    let defaults = params.strict_flag("insertDefaults")?;
    let options = Options { status: false, defaults, networks_twice: client.is_before(NETWORKS_ONCE_SINCE) };
    let state = api.state()?;
    Ok(Json(wire::service::show(&state, find::service(&state, &id)?, options)))
}

pub(super) async fn create(
    State(api): State<Api>,
    client: Extension<ClientVersion>,
    headers: HeaderMap,
    JsonBody(mut body): JsonBody,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let cluster = api.cluster()?;
    let header = credentials::read(&headers)?;
    let id = ServiceId::from_random(crate::host::random());
    wire::fields::rename(&mut body, "Name")?;
    if body["Name"].as_str().is_none_or(str::is_empty) {
        wire::set(&mut body, "Name", json!(format!("service-{}", &id.as_str()[..NAME_LEN])));
    }
    let state = api.state()?;
    let mut ignored = Ignored::default();
    let mut spec = Box::new(read(&api, &state, body, &mut ignored).await?);
    let mut warnings: Vec<String> = ignored.warnings().chain(encryption_warning(&state, &spec)).collect();
    warnings.extend(undecodable_warning(&header));
    if let Header::Given(Some(auth)) = header {
        spec.task.registry_auth = Some(auth);
    }
    warnings.extend(level_warning(&state, &spec));
    warnings.extend(pin(&api, client.0, &mut spec).await);
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
    client: Extension<ClientVersion>,
    params: Params,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Json<Value>, ApiError> {
    let cluster = api.cluster()?;
    let header = credentials::read(&headers)?;
    let from = params.text("registryAuthFrom");
    if !["", SPEC, PREVIOUS_SPEC].contains(&from) {
        return Err(ApiError::Invalid(format!(
            "invalid registryAuthFrom {from:?}: give {SPEC:?} or {PREVIOUS_SPEC:?}"
        )));
    }
    let version = params.version()?;
    let is_rollback = match params.text("rollback") {
        // Clients of version 29 always write the parameter.
        "" | "none" => false,
        "previous" => true,
        other => return Err(ApiError::Invalid(format!("invalid rollback {other:?}: give \"previous\" or \"none\""))),
    };
    let state = api.state()?;
    let service = find::service(&state, &id)?;
    let id = service.id.clone();
    let mut warnings = Vec::new();
    let command = if is_rollback {
        // The previous spec has its own credentials, so those of the request have no effect.
        Command::RollbackService { id, version, message: "manually requested rollback".to_owned(), automatic: false }
    } else {
        let mut ignored = Ignored::default();
        let mut spec = Box::new(read(&api, &state, body, &mut ignored).await?);
        warnings.extend(ignored.warnings());
        warnings.extend(undecodable_warning(&header));
        spec.task.registry_auth = match header {
            Header::Given(auth) => auth,
            Header::Absent | Header::Undecodable(_) => kept_credentials(service, from)?,
        };
        warnings.extend(level_warning(&state, &spec));
        warnings.extend(pin(&api, client.0, &mut spec).await);
        Command::UpdateService { id, version, spec }
    };
    cluster.propose(command).await?;
    Ok(Json(json!({"Warnings": (!warnings.is_empty()).then_some(warnings)})))
}

pub(super) async fn remove(State(api): State<Api>, Path(id): Path<String>) -> Result<(), ApiError> {
    let cluster = api.cluster()?;
    let id = find::service(&*api.state()?, &id)?.id.clone();
    cluster.propose(Command::RemoveService { id }).await?;
    Ok(())
}

/// Reads a spec, and replaces the names of its networks by their ids. Clients may name a network of
/// the nodes by the id that it has in this node's engine.
async fn read(api: &Api, state: &ClusterState, body: Value, ignored: &mut Ignored) -> Result<ServiceSpec, ApiError> {
    let spec = match (read_with(state, body.clone(), &[], ignored), &api.node.engine) {
        (Err(ApiError::NotFound { kind: ObjectKind::Network, .. }), Some(engine)) => {
            read_with(state, body, &networks_of_users(engine, "", None).await.unwrap_or_default(), ignored)?
        }
        (read, _) => read?,
    };
    let placement = &spec.task.placement;
    let attributes = placement.constraints.iter().map(|constraint| &constraint.attribute).chain(&placement.spread);
    if let Some(unknown) = attributes.into_iter().find(|attribute| attribute.level() > state.feature_level) {
        return Err(ApiError::Conflict(format!(
            "a manager runs an earlier release of weft, which has no {} in placements: upgrade all managers",
            wire::placement::write_attribute(unknown)
        )));
    }
    dependencies::check_level(state, &spec)?;
    match spec.task.node_network {
        Some(network) if state.feature_level < NodeNetwork::LEVEL => Err(ApiError::Conflict(format!(
            "a manager runs an earlier release of weft, which has no network {} for services: upgrade all managers",
            network.as_str()
        ))),
        _ => Ok(spec),
    }
}

/// Like [`read`]. `local` has the networks of this node's engine.
fn read_with(
    state: &ClusterState,
    body: Value,
    local: &[Value],
    ignored: &mut Ignored,
) -> Result<ServiceSpec, ApiError> {
    let resolve = |text: &str| -> Result<NetworkId, ApiError> {
        // A cluster of an earlier release can have a network of that name.
        if let Some(network) = predefined::find(text).filter(|_| state.network_by_name(text).is_none()) {
            return Ok(predefined::id(network));
        }
        if find::network(state, text).is_err() && find::configuration(state, text).is_ok() {
            return Err(ApiError::Invalid(format!(
                "network {text} only holds options: create a network with --config-from {text} and use that"
            )));
        }
        let network = match find::network(state, text) {
            Err(missing @ ApiError::NotFound { .. }) => return resolve_local(text, local, missing),
            found => found?,
        };
        if network.spec.ingress {
            return Err(ApiError::Invalid(format!(
                "network {text} is the ingress network: a service cannot be attached to it by name"
            )));
        }
        Ok(network.id.clone())
    };
    wire::service::read(body, &resolve, ignored)
}

/// The warning for a header with credentials that weft ignores.
fn undecodable_warning(header: &Header) -> Option<String> {
    let Header::Undecodable(reason) = header else { return None };
    tracing::warn!(reason, "a request has a header X-Registry-Auth that cannot be decoded");
    Some(format!("the header X-Registry-Auth was ignored, because {reason}"))
}

/// The warning for a service with parts that a manager of an older release does not know. The log
/// is written for the oldest manager, without these parts.
fn level_warning(state: &ClusterState, spec: &ServiceSpec) -> Option<String> {
    let parts = [
        ("registry credentials", spec.task.registry_auth.is_some()),
        ("platforms", !spec.task.placement.platforms.is_empty()),
    ];
    let parts: Vec<&str> = parts.into_iter().filter(|(_, is_used)| *is_used).map(|(name, _)| name).collect();
    (state.feature_level < REGISTRY_LEVEL && !parts.is_empty()).then(|| {
        format!(
            "the {} of the service were left out, because a manager is of an older release: upgrade it, then update \
             the service",
            parts.join(" and ")
        )
    })
}

/// The credentials of an update whose request has none: those of the spec that the query names.
fn kept_credentials(service: &Service, from: &str) -> Result<Option<RegistryAuth>, ApiError> {
    if from != PREVIOUS_SPEC {
        return Ok(service.spec.task.registry_auth.clone());
    }
    let previous = service.previous.as_ref().ok_or_else(|| {
        ApiError::Invalid(format!("service {} has no previous spec: give registryAuthFrom={SPEC}", service.spec.name))
    })?;
    Ok(previous.task.registry_auth.clone())
}

/// Pins the image of a service by its digest for clients that do not do it. Returns a warning if
/// this fails.
async fn pin(api: &Api, client: ClientVersion, spec: &mut ServiceSpec) -> Option<String> {
    let mut image = spec.task.container.image.clone();
    let warning = distribution::pin(api, client, &mut image, spec.task.registry_auth.as_ref()).await;
    if image != spec.task.container.image {
        spec.task.container.image = image;
    }
    warning
}

/// Finds the network of the nodes that a network of the engine is. The text is its name, its id, or
/// the beginning of its id.
fn resolve_local(text: &str, local: &[Value], missing: ApiError) -> Result<NetworkId, ApiError> {
    const NONE: &str = "none";
    let named = local.iter().find(|network| network["Name"] == text);
    let mut with_id = local.iter().filter(|network| network["Id"].as_str().is_some_and(|id| id.starts_with(text)));
    let found = named.or_else(|| with_id.next().filter(|_| with_id.next().is_none()));
    match found.map_or(text, |network| network["Name"].as_str().unwrap_or_default()) {
        // As in Swarm: a service can be on all networks that each engine has, except this one.
        NONE => Err(ApiError::Missing(format!(
            "could not find the corresponding predefined swarm network: network {NONE} not found: create a network \
             with --internal, whose tasks cannot reach other hosts"
        ))),
        name => match (predefined::find(name), found) {
            (Some(network), _) => Ok(predefined::id(network)),
            (None, Some(_)) => Err(ApiError::Forbidden(format!(
                "The network {name} cannot be used with services. Only networks scoped to the swarm can be used, such \
                 as those created with the overlay driver."
            ))),
            (None, None) => Err(missing),
        },
    }
}
