//! Runs blocking work on a thread that may block, and turns a panic of the work into an error that
//! ends the agent.
//!
//! [`super::data_plane`] calls it for each call into the mesh.
//!
//! After a panic, the state of a layer is unknown. A retry on that state could fail repeatedly
//! while the daemon still seems to be healthy. So a panic ends the agent, and then the daemon. The
//! supervisor then starts a new daemon, which adopts the kernel's state and the tasks without an
//! interruption of their traffic.

use anyhow::{Context as _, Result};

#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: weft panicked ({message}). This is a bug in weft: restart the daemon, it adopts all tasks")]
pub(super) struct Panicked {
    action: &'static str,
    message: String,
}

/// Whether a panic is the cause of this error. If it is, the agent must end instead of retrying.
pub(super) fn is_panic(error: &anyhow::Error) -> bool {
    error.is::<Panicked>()
}

/// Runs `work` on a thread that may block. `action` completes the error text "cannot …".
///
/// # Errors
/// [`Panicked`] if `work` panicked; another error if tokio is shutting down.
pub(super) async fn run_blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Err(error) if error.is_panic() => {
            Err(Panicked { action, message: panic_message(&*error.into_panic()).to_owned() }.into())
        }
        // The only other error: tokio is shutting down.
        done => done.with_context(|| format!("cannot {action}")),
    }
}

fn panic_message(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn recognizes_a_panic_behind_any_context() {
        let answer: Result<u8> = run_blocking("program the data plane", || panic!("index {} of 3", 7)).await;
        let error = answer.expect_err("the work panics");
        assert!(is_panic(&error));
        assert!(error.to_string().contains("program the data plane: weft panicked (index 7 of 3)"), "{error}");
        assert!(is_panic(&error.context("reconcile failed").context("the agent ended")));
    }

    #[tokio::test]
    async fn an_error_of_the_work_is_not_a_panic() {
        assert_eq!(run_blocking("count", || 7).await.expect("the work succeeds"), 7);
        let busy = run_blocking("ask", || Err::<(), _>(std::io::Error::other("busy"))).await;
        let error = busy.expect("the work runs to its end").expect_err("the work fails");
        assert!(!is_panic(&anyhow::Error::from(error).context("the overlay")));
    }
}
