//! Which version of the Engine API this node announces: the lower of weft's own and that of the
//! container engine.
//!
//! `serve` asks for it with each request, because a client that was told a version expects it of
//! all answers, also of those that the engine gives. A newer client reads the disk usage, for
//! example, in a form that an older engine does not have. The engine can start after weft and be
//! upgraded meanwhile, so its version is what it has told in the last [`MAX_AGE`].
//!
//! Invariant: a request never waits longer than [`PING_TIMEOUT`] for an engine that hangs, and not
//! again before [`RETRY_AFTER`].

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{sync::Mutex, time::timeout};

use super::{
    engine,
    version::{API_VERSION, ApiVersion},
};

/// How long an answer of the engine is used, or that its socket refuses connections.
const MAX_AGE: Duration = Duration::from_secs(2);
/// How long the engine has to answer. It answers within a millisecond, unless it hangs.
const PING_TIMEOUT: Duration = Duration::from_millis(500);
/// How long an engine that hangs is not asked again.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// The version of the API that this node announces.
#[derive(Debug)]
pub(super) struct Announced {
    engine: Option<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// The version that the engine has told last. `None`: it has told none, and weft's own counts.
    version: Option<ApiVersion>,
    ask_after: Option<Instant>,
}

impl Announced {
    pub(super) fn new(engine: Option<PathBuf>) -> Self {
        Self { engine, known: Mutex::default() }
    }

    /// Asks the engine again with the next request.
    #[cfg(test)]
    pub(super) async fn forget(&self) {
        self.known.lock().await.ask_after = None;
    }

    /// The newest version that weft and the engine have. While the engine does not answer, what it
    /// told last counts.
    pub(super) async fn version(&self) -> ApiVersion {
        let Some(socket) = &self.engine else { return API_VERSION };
        let mut known = self.known.lock().await;
        if known.ask_after.is_none_or(|at| at <= Instant::now()) {
            let answer = timeout(PING_TIMEOUT, engine::version(socket)).await;
            let pause = if answer.is_ok() { MAX_AGE } else { RETRY_AFTER };
            if let Ok(Ok(version)) = answer {
                known.version = version;
            }
            known.ask_after = Some(Instant::now() + pause);
        }
        known.version.map_or(API_VERSION, |version| version.min(API_VERSION))
    }
}
