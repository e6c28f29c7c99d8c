//! The errors of all layers in one reconcile.
//!
//! [`super::reconcile`] collects them here, so that the other layers are still configured if one
//! layer fails. After a pass with an error, the agent starts no program of a task, does not
//! acknowledge the plan, and retries after a short delay.
//!
//! A panic is different: [`LayerErrors::collect`] returns it at once, and the agent ends.

use anyhow::{Result, anyhow};

use super::blocking;

#[derive(Debug, Default)]
pub(super) struct LayerErrors(Vec<anyhow::Error>);

impl LayerErrors {
    /// Returns the value if the layer succeeded. If it failed, keeps its error and returns `None`.
    ///
    /// # Errors
    /// Only if the layer panicked.
    pub(super) fn collect<T>(&mut self, outcome: Result<T>) -> Result<Option<T>> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) if blocking::is_panic(&error) => Err(error),
            Err(error) => {
                self.0.push(error);
                Ok(None)
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All collected errors in one line. Empty if there are none.
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("; ")
    }

    /// All collected errors as one.
    pub(super) fn into_result(mut self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(self.0.remove(0)),
            _ => Err(anyhow!(self.text())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_names_every_error() {
        let mut errors = LayerErrors::default();
        assert_eq!(errors.collect(Ok(7)).expect("no panic"), Some(7));
        assert!(errors.is_empty());
        for layer in ["the overlay", "the mesh"] {
            assert_eq!(errors.collect(Err::<(), _>(anyhow!("busy").context(layer))).expect("no panic"), None);
        }
        assert!(!errors.is_empty());
        let error = errors.into_result().expect_err("two errors were collected");
        assert_eq!(error.to_string(), "the overlay: busy; the mesh: busy");
        assert!(LayerErrors::default().into_result().is_ok());
    }

    #[tokio::test]
    async fn returns_a_panic_at_once() {
        let panicked = blocking::run_blocking("program the data plane", || panic!("a defect")).await;
        let error = LayerErrors::default().collect::<()>(panicked).expect_err("the work panicked");
        assert!(blocking::is_panic(&error));
    }
}
