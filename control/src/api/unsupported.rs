//! Paths of objects that weft does not have: secrets, configs and plugins, and digests of images.
//!
//! A list of them is empty, so that clients that only list them (`docker stack rm`) continue. All
//! other requests for them are refused by the name of the feature.

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

fn none_of(feature: &Feature, request: &Request) -> Result<Response, ApiError> {
    let is_list = request.method() == Method::GET && request.uri().path().matches('/').count() == 1;
    if is_list { Ok(Json([(); 0]).into_response()) } else { Err(feature.refusal()) }
}

pub(super) async fn secrets(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    api.cluster()?;
    none_of(&features::SECRETS, &request)
}

pub(super) async fn configs(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    api.cluster()?;
    none_of(&features::CONFIGS, &request)
}

/// Plugins belong to the local container engine, where there is one.
pub(super) async fn plugins(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    match &api.node.engine {
        Some(_) => engine::forward(State(api), request).await,
        None => none_of(&features::PLUGINS, &request),
    }
}

/// Clients ask for an image's digest before they create a service. They print a warning when this
/// fails, and continue.
pub(super) async fn distribution() -> ApiError {
    features::IMAGE_DIGESTS.refusal()
}
