//! Handlers of `secret` and `config`: create, list, inspect, update and remove. Both have the same
//! routes, and differ in their names and in whether the data is shown.

use axum::{
    Json, Router,
    extract::{Path, State},
    http::StatusCode,
    routing::{get, post},
};
use serde_json::{Value, json};
use weft_model::{
    ClusterState, Command, DependencyId,
    spec::{DependencyKind, ServiceSpec},
    state::Dependency,
};

use super::{
    Api,
    body::JsonBody,
    error::ApiError,
    find,
    query::{Filters, Params},
    wire::{self, fields::Ignored},
};

/// Adds the routes of both kinds.
pub(super) fn add_routes(router: Router<Api>) -> Router<Api> {
    [DependencyKind::Secret, DependencyKind::Config].into_iter().fold(router, |router, kind| {
        let path = |rest: &str| format!("/{kind}s{rest}");
        let inspected = get(move |api: State<Api>, id: Path<String>| inspect(kind, api, id));
        router
            .route(&path(""), get(move |api: State<Api>, params: Params| list(kind, api, params)))
            .route(&path("/create"), post(move |api: State<Api>, body: JsonBody| create(kind, api, body)))
            .route(&path("/{id}"), inspected.delete(move |api: State<Api>, id: Path<String>| remove(kind, api, id)))
            .route(
                &path("/{id}/update"),
                post(move |api: State<Api>, id: Path<String>, params: Params, body: JsonBody| {
                    update(kind, api, id, params, body)
                }),
            )
    })
}

/// The error for a service with secrets or configs in a cluster with a manager that does not know
/// them: it would run the tasks without them.
pub(super) fn check_level(state: &ClusterState, spec: &ServiceSpec) -> Result<(), ApiError> {
    match spec.task.container.files().next() {
        Some((kind, _)) => check_kind(state, kind),
        None => Ok(()),
    }
}

fn check_kind(state: &ClusterState, kind: DependencyKind) -> Result<(), ApiError> {
    if state.feature_level >= Dependency::LEVEL {
        return Ok(());
    }
    Err(ApiError::Conflict(format!(
        "a manager runs an earlier release of weft, which has no {kind}s: upgrade all managers"
    )))
}

async fn list(kind: DependencyKind, State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    const NAMING: [&str; 3] = ["id", "name", "names"];
    let state = api.state()?;
    let filters = Filters::read(&params, &["id", "label", "name", "names"])?;
    let names_all = NAMING.iter().all(|filter| filters.values(filter).is_empty());
    let matches = |found: &&Dependency| {
        let name = found.spec.name.as_str().to_ascii_lowercase();
        let is = |filter: &str, accepts: &dyn Fn(&str) -> bool| filters.values(filter).iter().any(|text| accepts(text));
        // As in Swarm, an object matches if one of these filters names it.
        let is_named = is("id", &|id| found.id.as_str().starts_with(id))
            || is("name", &|prefix| name.starts_with(&prefix.to_ascii_lowercase()))
            || is("names", &|wanted| name == wanted.to_ascii_lowercase());
        found.spec.kind == kind && (names_all || is_named) && filters.labels("label", |key| found.spec.labels.get(key))
    };
    Ok(Json(state.dependencies.values().filter(matches).map(wire::dependency::show).collect()))
}

async fn inspect(
    kind: DependencyKind,
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(wire::dependency::show(find::dependency(&*api.state()?, kind, &id)?)))
}

async fn create(
    kind: DependencyKind,
    State(api): State<Api>,
    JsonBody(body): JsonBody,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let cluster = api.cluster()?;
    check_kind(&*api.state()?, kind)?;
    let mut ignored = Ignored::default();
    let spec = Box::new(wire::dependency::read(kind, body, &mut ignored)?);
    ignored.log(&format!("{kind} create"));
    let id = DependencyId::from_random(crate::host::random());
    cluster.propose(Command::CreateDependency { id: id.clone(), spec }).await?;
    Ok((StatusCode::CREATED, Json(json!({"ID": id.as_str()}))))
}

async fn update(
    kind: DependencyKind,
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
    JsonBody(body): JsonBody,
) -> Result<(), ApiError> {
    let cluster = api.cluster()?;
    let version = params.version()?;
    let state = api.state()?;
    let found = find::dependency(&state, kind, &id)?;
    // Name and data never change, so another command cannot make this outdated.
    let mut ignored = Ignored::default();
    let labels = wire::dependency::read_labels(&found.spec, body, &mut ignored)?;
    ignored.log(&format!("{kind} update"));
    cluster.propose(Command::UpdateDependency { id: found.id.clone(), version, labels }).await?;
    Ok(())
}

async fn remove(kind: DependencyKind, State(api): State<Api>, Path(id): Path<String>) -> Result<StatusCode, ApiError> {
    let cluster = api.cluster()?;
    let id = find::dependency(&*api.state()?, kind, &id)?.id.clone();
    cluster.propose(Command::RemoveDependency { id }).await?;
    Ok(StatusCode::NO_CONTENT)
}
