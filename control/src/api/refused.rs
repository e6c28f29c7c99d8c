//! Parts of the cluster's API that weft does not have yet, each refused by its name. There are none of them: that is what
//! lists say, and clients that only look (`docker stack rm`) go on.

use axum::{
    Json,
    extract::{Request, State},
    http::Method,
    response::{IntoResponse as _, Response},
};

use super::{Api, engine, error::ApiError};

fn refuse(what: &str) -> ApiError {
    ApiError::Unsupported(format!("weft does not support {what} yet"))
}

fn none_of(what: &str, request: &Request) -> Result<Response, ApiError> {
    let lists = request.method() == Method::GET && request.uri().path().matches('/').count() == 1;
    if lists { Ok(Json([(); 0]).into_response()) } else { Err(refuse(what)) }
}

pub(super) async fn secrets(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    api.table()?;
    none_of("secrets", &request)
}

pub(super) async fn configs(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    api.table()?;
    none_of("configs", &request)
}

/// Plugins are the local engine's.
pub(super) async fn plugins(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    if api.node.engine.is_some() { engine::pass_on(State(api), request).await } else { none_of("plugins", &request) }
}

/// Clients ask for an image's digest before they create a service, and go on with a warning where there is none.
pub(super) async fn distribution() -> ApiError {
    refuse("pinning images to the digest that a registry names")
}
