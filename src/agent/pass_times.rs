//! How long each layer took in one pass, for the log at level debug.
//!
//! [`super::reconcile`] calls it. It measures time only; it must not influence a pass.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// Measures a pass from its start.
pub(super) struct PassTimes {
    start: Instant,
    last: Instant,
    layers: Vec<(&'static str, Duration)>,
}

impl PassTimes {
    pub(super) fn start() -> Self {
        let start = Instant::now();
        Self { start, last: start, layers: Vec::new() }
    }

    /// The time since the last call, or since the start, was that of `layer`.
    pub(super) fn end(&mut self, layer: &'static str) {
        let now = Instant::now();
        self.layers.push((layer, now - self.last));
        self.last = now;
    }
}

/// The whole time and the time of each layer, in milliseconds.
impl fmt::Display for PassTimes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        write!(f, "{:.1}", ms(self.last - self.start))?;
        self.layers.iter().try_for_each(|(layer, duration)| write!(f, ", {layer} {:.1}", ms(*duration)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_sum_first_and_then_each_layer() {
        let mut times = PassTimes::start();
        for (layer, ms) in [("tasks", 2), ("links", 40)] {
            times.layers.push((layer, Duration::from_millis(ms)));
            times.last += Duration::from_millis(ms);
        }
        assert_eq!(times.to_string(), "42.0, tasks 2.0, links 40.0");
    }
}
