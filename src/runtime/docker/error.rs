//! Translates errors of the Docker engine to errors of the runtime. Pure. All modules of this
//! folder that call the engine use it.

use bollard::errors::Error;

use crate::runtime::RuntimeError;

/// For `map_err`. `action` completes the text "cannot …".
pub(super) fn engine_error(action: &'static str) -> impl FnOnce(Error) -> RuntimeError {
    move |error| RuntimeError::Engine { action, reason: message(&error) }
}

/// The engine's own message, if the engine sent the error.
pub(super) fn message(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Error::DockerStreamError { error } => error.trim().to_owned(),
        other => other.to_string(),
    }
}

/// HTTP status of the engine's response, if the engine sent the error.
pub(super) fn http_status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}
