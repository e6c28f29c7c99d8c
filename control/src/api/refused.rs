//! Paths of the cluster's API that weft does not have yet, each refused by its name.

use super::error::ApiError;

fn refuse(what: &str) -> ApiError {
    ApiError::Unsupported(format!("weft does not support {what} yet"))
}

pub(super) async fn secrets() -> ApiError {
    refuse("secrets")
}

pub(super) async fn configs() -> ApiError {
    refuse("configs")
}

pub(super) async fn plugins() -> ApiError {
    refuse("plugins")
}

/// Clients ask for an image's digest before they create a service, and go on with a warning where there is none.
pub(super) async fn distribution() -> ApiError {
    refuse("pinning images to the digest that a registry names")
}
