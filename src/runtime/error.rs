//! The errors of both runtimes: why a task cannot be prepared, started, stopped or removed.

use std::{io, path::PathBuf};

/// A failed call to a runtime. `service ps` shows it to the user.
///
/// The text does not include the source. Callers that show an error use
/// [`error_chain`](weft_model::error_chain), which appends it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    #[error(
        "no image {image} on this node: the process runtime has weft/whoami and host; start the daemon with --runtime docker to run other images"
    )]
    NoSuchImage { image: String },
    #[error("cannot get image {image}: {reason}")]
    Image { image: String, reason: String },
    #[error("image {image} has no command of its own: give one after the image")]
    NoCommand { image: String },
    #[error("user {user:?}: {reason}")]
    User { user: String, reason: &'static str },
    #[error("{signal:?} is not a signal: use a name such as SIGTERM, or a number")]
    Signal { signal: String },
    #[error("environment variable {entry:?} is neither of the form KEY=value nor a name")]
    Environment { entry: String },
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot {action}")]
    Kernel { action: &'static str, source: io::Error },
    #[error("{reason}")]
    Start { reason: String },
    #[error("the task is not prepared")]
    NotPrepared,
    #[error("cancelled: the task is not wanted any more")]
    Cancelled,
    #[error("weft panicked in this step: this is a bug in weft, the daemon's log shows where")]
    Panicked,
    #[error("cannot {action}: {reason}")]
    Engine { action: &'static str, reason: String },
}

impl RuntimeError {
    /// For `map_err`. `action` and `path` complete the text "cannot …".
    pub(crate) fn io<E: Into<io::Error>>(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |error| Self::Io { action, path, source: error.into() }
    }

    /// For `map_err`. `action` completes the text "cannot …".
    pub(crate) fn kernel<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Kernel { action, source: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_model::error_chain;

    const CAUSE: &str = "the one cause";

    /// One error of each variant. [`has_cause`] does not compile without a new variant; add it here
    /// too.
    fn every_variant() -> Vec<RuntimeError> {
        let text = || "text".to_owned();
        let cause = || io::Error::other(CAUSE);
        vec![
            RuntimeError::NoSuchImage { image: text() },
            RuntimeError::Image { image: text(), reason: CAUSE.to_owned() },
            RuntimeError::NoCommand { image: text() },
            RuntimeError::User { user: text(), reason: CAUSE },
            RuntimeError::Signal { signal: text() },
            RuntimeError::Environment { entry: text() },
            RuntimeError::io("read", "/a/path")(cause()),
            RuntimeError::kernel("make a pipe")(cause()),
            RuntimeError::Start { reason: CAUSE.to_owned() },
            RuntimeError::NotPrepared,
            RuntimeError::Cancelled,
            RuntimeError::Panicked,
            RuntimeError::Engine { action: "list containers", reason: CAUSE.to_owned() },
        ]
    }

    fn has_cause(error: &RuntimeError) -> bool {
        match error {
            RuntimeError::Image { .. }
            | RuntimeError::User { .. }
            | RuntimeError::Io { .. }
            | RuntimeError::Kernel { .. }
            | RuntimeError::Start { .. }
            | RuntimeError::Engine { .. } => true,
            RuntimeError::NoSuchImage { .. }
            | RuntimeError::NoCommand { .. }
            | RuntimeError::Signal { .. }
            | RuntimeError::Environment { .. }
            | RuntimeError::NotPrepared
            | RuntimeError::Cancelled
            | RuntimeError::Panicked => false,
        }
    }

    #[test]
    fn each_error_shows_its_cause_once() {
        for error in every_variant() {
            let (want, text) = (usize::from(has_cause(&error)), error_chain(&error));
            assert_eq!(text.matches(CAUSE).count(), want, "{text}");
            // The command line and the daemon's log format errors with anyhow.
            let text = format!("{:#}", anyhow::Error::from(error));
            assert_eq!(text.matches(CAUSE).count(), want, "{text}");
        }
    }

    #[test]
    fn the_cause_follows_the_error() {
        let error = RuntimeError::kernel("do it")(io::Error::other(CAUSE));
        assert_eq!(error_chain(&error), format!("cannot do it: {CAUSE}"));
    }
}
