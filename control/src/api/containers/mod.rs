//! Handlers of `GET /containers/json`, `/containers/{id}/json` and `/system/df`: the answers of the
//! engine, as users of the cluster know containers. All other requests about containers are
//! forwarded unchanged.
//!
//! The engine knows a task as a container on docker networks, without published ports. Rewritten
//! is what differs from that for a user, and nothing else:
//!
//! | In the engine's answer | Shown |
//! |---|---|
//! | a docker network that stands for one of the cluster, by its name or its id | the cluster's network |
//! | no ports, because the data plane publishes them and not the engine | the published ports of the task's service |
//! | the options by which the network driver knows a container | nothing |
//! | filters by network or port | the containers that match what is shown |
//!
//! `show` rewrites bodies, [`ports`] knows the ports, and [`filters`] rewrites the query of a list.
//! They are pure. Fields that they do not know stay as they are, and an answer without anything to
//! rewrite is passed on octet by octet.

mod filters;
mod ports;
mod show;

use axum::{
    body::Body,
    extract::{Request, State},
    http::header,
    response::Response,
};
use serde_json::Value;

use self::{filters::ListQuery, ports::Ports, show::View};
use super::{Api, docker_networks::DockerNetworks, engine, error::ApiError};

/// `GET /containers/json`.
pub(super) async fn list(State(api): State<Api>, mut request: Request) -> Result<Response, ApiError> {
    let view = View::of(&api).await?;
    let query = ListQuery::read(request.uri(), &view.networks)?;
    *request.uri_mut() = query.forwarded;
    rewrite(api, request, |containers| {
        let Some(containers) = containers.as_array_mut() else { return false };
        let mut is_changed = show::all(&view, containers);
        if let Some(selection) = &query.selection {
            selection.apply(containers);
            is_changed = true;
        }
        is_changed
    })
    .await
}

/// `GET /containers/{id}/json`.
pub(super) async fn inspect(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let view = View::of(&api).await?;
    rewrite(api, request, |container| view.show_inspected(container)).await
}

/// `GET /system/df`: its list of containers. The field has another name from version 1.52 on.
pub(super) async fn disk_usage(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let view = View::of(&api).await?;
    rewrite(api, request, |usage| {
        let lists = ["/Containers", "/ContainerUsage/Items", "/ContainersDiskUsage/Items"];
        let mut is_changed = false;
        for list in lists {
            if let Some(Value::Array(containers)) = usage.pointer_mut(list) {
                is_changed |= show::all(&view, containers);
            }
        }
        is_changed
    })
    .await
}

/// Forwards a request, and lets `change` rewrite the engine's answer if it is a success. `change`
/// returns whether it has changed anything.
async fn rewrite(api: Api, request: Request, change: impl FnOnce(&mut Value) -> bool) -> Result<Response, ApiError> {
    let response = engine::forward(State(api), request).await?;
    if !response.status().is_success() {
        return Ok(response);
    }
    let (mut head, body) = response.into_parts();
    let (mut bytes, mut value) = engine::read_json(body).await?;
    if change(&mut value) {
        bytes = value.to_string().into();
    }
    for length in [header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        head.headers.remove(length);
    }
    Ok(Response::from_parts(head, Body::from(bytes)))
}

impl View {
    /// What the node knows now. A node without an engine has no containers to show.
    async fn of(api: &Api) -> Result<Self, ApiError> {
        let ports = api.member.plan().map(|plan| Ports::of(&plan)).unwrap_or_default();
        Ok(Self { networks: DockerNetworks::of(api).await?, ports })
    }
}
