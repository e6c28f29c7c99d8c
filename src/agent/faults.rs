//! What failed in one sync, over all layers. One layer that fails keeps no other from its work: the sync goes on with what it
//! has, and what failed shows in three things: no task is started, the plan is not acked, and the next sync comes soon.
//!
//! A panic is different: it ends the agent, and with it the sync, at once.

use anyhow::{Result, anyhow};

use super::aside;

#[derive(Debug, Default)]
pub(super) struct Faults(Vec<anyhow::Error>);

impl Faults {
    /// What a layer came to, if it came to anything. An error only where the agent must end.
    pub(super) fn collect<T>(&mut self, outcome: Result<T>) -> Result<Option<T>> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) if aside::is_final(&error) => Err(error),
            Err(error) => {
                self.0.push(error);
                Ok(None)
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them as one error.
    pub(super) fn into_result(mut self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(self.0.remove(0)),
            _ => {
                let told: Vec<String> = self.0.iter().map(|error| format!("{error:#}")).collect();
                Err(anyhow!("{}", told.join("; ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_told() {
        let mut faults = Faults::default();
        assert_eq!(faults.collect(Ok(7)).unwrap(), Some(7));
        assert!(faults.is_empty());
        for layer in ["the overlay", "the mesh"] {
            assert_eq!(faults.collect(Err::<(), _>(anyhow!("busy").context(layer))).unwrap(), None);
        }
        assert!(!faults.is_empty());
        assert_eq!(faults.into_result().unwrap_err().to_string(), "the overlay: busy; the mesh: busy");
        assert!(Faults::default().into_result().is_ok());
    }

    #[tokio::test]
    async fn a_panic_ends_the_sync() {
        let panicked = aside::blocking("program the data plane", || panic!("a defect")).await;
        assert!(aside::is_final(&Faults::default().collect::<()>(panicked).unwrap_err()));
    }
}
