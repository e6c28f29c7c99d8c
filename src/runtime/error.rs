//! Why a task cannot be prepared, started or stopped, and how that is told.

use std::{io, path::PathBuf};

/// What went wrong, to what. Causes are sources, and no part of the text: who shows an error shows its [`error_chain`](crate::error_chain::error_chain), as
/// `service ps` does.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RuntimeError {
    #[error(
        "no image {image} on this node: the process runtime has weft/whoami and host; start the daemon with --runtime docker to run other images"
    )]
    NoSuchImage { image: String },
    #[error("cannot get image {image}: {reason}")]
    Image { image: String, reason: String },
    #[error("image {image} names no command of its own: give one after the image")]
    NoCommand { image: String },
    #[error("user {user:?}: {reason}")]
    User { user: String, reason: &'static str },
    #[error("{signal:?} is no signal: use a name such as SIGTERM, or a number")]
    Signal { signal: String },
    #[error("environment {entry:?} is not of the form KEY=value")]
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
    #[error("weft panicked in this step: that is a defect of weft, and the daemon's log says where")]
    Panicked,
    #[error("cannot {action}: {reason}")]
    Engine { action: &'static str, reason: String },
}

impl RuntimeError {
    pub(crate) fn io<E: Into<io::Error>>(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |error| Self::Io { action, path, source: error.into() }
    }

    pub(crate) fn kernel<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Kernel { action, source: error.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error_chain::error_chain;

    const CAUSE: &str = "the one cause";

    /// One of every kind; a kind that is missing here does not compile in [`has_cause`].
    fn every_kind() -> Vec<RuntimeError> {
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
    fn each_error_tells_its_cause_once() {
        for error in every_kind() {
            let (want, told) = (usize::from(has_cause(&error)), error_chain(&error));
            assert_eq!(told.matches(CAUSE).count(), want, "{told}");
            // As the command line and the daemon's log show it.
            let told = format!("{:#}", anyhow::Error::from(error));
            assert_eq!(told.matches(CAUSE).count(), want, "{told}");
        }
    }

    #[test]
    fn a_cause_that_an_error_already_told_is_not_told_again() {
        assert_eq!(
            error_chain(&RuntimeError::kernel("do it")(io::Error::other(CAUSE))),
            format!("cannot do it: {CAUSE}")
        );
    }
}
