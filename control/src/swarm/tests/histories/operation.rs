//! What a client asked the API for, and what it was told. A history is a list of such operations on
//! one name, under which there is a service or none.

use std::fmt;

/// A request, and its outcome. Times are in microseconds since the history began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operation {
    /// Who asked which manager, for the reader of a failure.
    pub(super) client: usize,
    pub(super) manager: usize,
    pub(super) invoked_us: u64,
    pub(super) call: Call,
    /// `None` if the outcome is unknown: the call may have taken effect at any time since it was
    /// made, may do so later, or never.
    pub(super) outcome: Option<Outcome>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    /// Creates the service with this value.
    Create { value: u64 },
    /// Gives the service with this id another value, if it still has this version.
    Update { id: String, version: u64, value: u64 },
    /// Removes the service with this id.
    Remove { id: String },
    /// Reads the service with this name.
    Read,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) returned_us: u64,
    pub(super) answer: Answer,
    /// Whether the answer has the warning that it may be out of date.
    pub(super) stale: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// The service was created, and has this id.
    Created {
        id: String,
    },
    /// The service was changed or removed.
    Done,
    Found(Found),
    /// There is no service with this name, or with the id that was given. Nothing changed.
    NotFound,
    /// The name is in use, or the service has another version than the one given. Nothing changed.
    Conflict,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) id: String,
    pub(super) version: u64,
    pub(super) value: u64,
}

impl Operation {
    /// Whether the answer says that the service was changed.
    pub(super) fn is_confirmed_change(&self) -> bool {
        self.outcome.as_ref().is_some_and(|outcome| matches!(outcome.answer, Answer::Created { .. } | Answer::Done))
    }

    /// The earliest time at which the service may have been as the answer says. What was found in a
    /// state that may be old may have been so at any time before.
    pub(super) fn earliest_us(&self) -> u64 {
        match &self.outcome {
            Some(Outcome { stale: true, answer: Answer::Found(_) | Answer::NotFound, .. }) => 0,
            _ => self.invoked_us,
        }
    }

    /// The latest time at which the call may have taken effect.
    pub(super) fn latest_us(&self) -> u64 {
        self.outcome.as_ref().map_or(u64::MAX, |outcome| outcome.returned_us)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1_000.0;
        write!(f, "{:>10.3} ms to ", ms(self.invoked_us))?;
        match &self.outcome {
            Some(outcome) => write!(f, "{:>10.3} ms", ms(outcome.returned_us))?,
            None => write!(f, "{:>13}", "?")?,
        }
        write!(f, ", client {} at n{}: ", self.client, self.manager + 1)?;
        match &self.call {
            Call::Create { value } => write!(f, "create with value {value}")?,
            Call::Update { id, version, value } => write!(f, "update {id} of version {version} to value {value}")?,
            Call::Remove { id } => write!(f, "remove {id}")?,
            Call::Read => write!(f, "read")?,
        }
        let Some(Outcome { answer, stale, .. }) = &self.outcome else { return write!(f, " → unknown") };
        match answer {
            Answer::Created { id } => write!(f, " → {id}")?,
            Answer::Done => write!(f, " → done")?,
            Answer::Found(Found { id, version, value }) => write!(f, " → {id} of version {version}, value {value}")?,
            Answer::NotFound => write!(f, " → not found")?,
            Answer::Conflict => write!(f, " → conflict")?,
        }
        if *stale { write!(f, " (may be out of date)") } else { Ok(()) }
    }
}
