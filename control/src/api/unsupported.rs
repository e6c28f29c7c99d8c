//! Handlers for objects that weft does not support: secrets, configs and plugins.
//!
//! A request for a list gets an empty list, so that clients that only list such objects (`docker
//! stack rm`) continue. All other requests get an error that names the feature.

use axum::{
    Json,
    extract::{Request, State},
    http::Method,
    response::{IntoResponse as _, Response},
};

use super::{
    Api, engine,
    error::ApiError,
    features::{self, Feature},
};

fn empty_list_or_refusal(feature: &Feature, request: &Request) -> Result<Response, ApiError> {
    let is_list = request.method() == Method::GET && request.uri().path().matches('/').count() == 1;
    if is_list { Ok(Json([(); 0]).into_response()) } else { Err(feature.refusal()) }
}

pub(super) async fn secrets(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    api.cluster()?;
    empty_list_or_refusal(&features::SECRETS, &request)
}

pub(super) async fn configs(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    api.cluster()?;
    empty_list_or_refusal(&features::CONFIGS, &request)
}

/// Plugins belong to the local container engine. Without an engine, there are none.
pub(super) async fn plugins(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    match &api.node.engine {
        Some(_) => engine::forward(State(api), request).await,
        None => empty_list_or_refusal(&features::PLUGINS, &request),
    }
}
