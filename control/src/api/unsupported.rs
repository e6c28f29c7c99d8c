//! Handlers for objects that weft does not support: plugins.
//!
//! A request for a list gets an empty list, so that clients that only list such objects (`docker
//! stack rm`) continue. A request about an object by its name gets the answer that there is none,
//! so that clients that look for an object of any kind (`docker inspect`) continue too. All other
//! requests get an error that names the feature.

use axum::{
    Json,
    extract::{Request, State},
    http::Method,
    response::{IntoResponse as _, Response},
};

use super::{Api, engine, error::ApiError, features};

/// The last parts of the paths that name no plugin.
const CREATING: &[&str] = &["create", "privileges", "pull"];
const ACTIONS: &[&str] = &["/disable", "/enable", "/json", "/push", "/set", "/upgrade"];

/// Plugins belong to the local container engine. Without an engine, there are none.
pub(super) async fn plugins(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    if api.node.engine.is_some() {
        return engine::forward(State(api), request).await;
    }
    let path = request.uri().path();
    match path.trim_start_matches('/').split_once('/') {
        None if request.method() == Method::GET => Ok(Json([(); 0]).into_response()),
        Some((_, name)) if !name.is_empty() && !CREATING.contains(&name) => {
            Err(ApiError::Missing(format!("no such plugin: {} ({})", name_in(name), features::PLUGINS.refusal())))
        }
        _ => Err(features::PLUGINS.refusal()),
    }
}

/// The name of the object in the rest of a path, without the action.
fn name_in(rest: &str) -> &str {
    ACTIONS.iter().find_map(|action| rest.strip_suffix(action)).unwrap_or(rest)
}
