//! Blocking work on a thread that may block, and what a panic there means.
//!
//! A layer that panicked in the middle of its work is in no known state, and trying again on it would fail for ever while
//! the daemon goes on saying that it is well. So a panic ends the agent and with it the daemon: whoever supervises it starts
//! another, which finds the kernel, the tasks and their traffic as they are, and adopts them.

use anyhow::{Context as _, Result};

#[derive(Debug, thiserror::Error)]
#[error("weft panicked when it was to {action} ({message}): a defect of weft; a daemon started anew adopts what runs")]
pub(super) struct Panicked {
    action: &'static str,
    message: String,
}

/// Whether the agent must end: another attempt would go by what the panic left.
pub(super) fn is_final(error: &anyhow::Error) -> bool {
    error.is::<Panicked>()
}

/// Runs `work`, which is to do `action`, where it holds up nobody else.
pub(super) async fn blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Err(error) if error.is_panic() => {
            Err(Panicked { action, message: message(&*error.into_panic()).to_owned() }.into())
        }
        // The program is ending.
        done => done.with_context(|| format!("cannot {action}")),
    }
}

fn message(payload: &(dyn std::any::Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_final_however_it_is_told() {
        let answer: Result<u8> = blocking("program the data plane", || panic!("index {} of 3", 7)).await;
        let error = answer.unwrap_err();
        assert!(is_final(&error));
        assert!(error.to_string().contains("program the data plane (index 7 of 3)"), "{error}");
        assert!(is_final(&error.context("a sync failed").context("the agent ended")));
    }

    #[tokio::test]
    async fn a_refusal_is_not_final() {
        assert_eq!(blocking("count", || 7).await.unwrap(), 7);
        let refused = blocking("ask", || Err::<(), _>(std::io::Error::other("busy"))).await.unwrap();
        assert!(!is_final(&anyhow::Error::from(refused.unwrap_err()).context("the overlay")));
    }
}
