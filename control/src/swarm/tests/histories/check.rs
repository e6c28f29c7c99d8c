//! Whether a history is linearizable: whether every operation can have taken effect at one moment
//! between its call and its answer, so that all answers are those of a single service that does one
//! operation after the other. This is the search of Wing and Gong, with Lowe's memory of what was
//! already tried.
//!
//! Each write has a value of its own. So the value of a service tells which write it is, and all
//! answers that contain it tell its id and version. The state of the search is this value alone.

use std::collections::{BTreeMap, HashSet};

use super::operation::{Answer, Call, Found, Operation};

/// The value of the service; `None` if there is no service.
type State = Option<u64>;

/// The search ends without a result after this many positions. Histories of a test have some
/// thousand operations, and need about as many positions.
const MAX_POSITIONS: usize = 1_000_000;

/// What answers tell about the write of a value. `None` if no answer tells it.
#[derive(Debug, Default)]
struct Write {
    id: Option<String>,
    version: Option<u64>,
}

/// The operations that have taken effect, one bit for each.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Set(Vec<u64>);

impl Set {
    fn contains(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    fn insert(&mut self, at: usize) {
        self.0[at / 64] |= 1 << (at % 64);
    }
}

/// A part of the search: these operations have taken effect, and this is the state after them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Position {
    done: Set,
    state: State,
}

struct Search<'a> {
    /// Ordered by the time from which on they may take effect.
    operations: Vec<&'a Operation>,
    writes: BTreeMap<u64, Write>,
}

/// Checks the history of one name, which begins without a service.
///
/// # Errors
/// A text that shows where no operation can be the next one.
pub(super) fn check(history: &[Operation]) -> Result<(), String> {
    let mut operations: Vec<&Operation> = history.iter().collect();
    operations.sort_by_key(|operation| (operation.earliest_us(), operation.latest_us()));
    Search { writes: writes(history)?, operations }.run()
}

/// # Errors
/// If answers contradict each other.
fn writes(history: &[Operation]) -> Result<BTreeMap<u64, Write>, String> {
    let mut writes = BTreeMap::<u64, Write>::new();
    for operation in history {
        let answer = operation.outcome.as_ref().map(|outcome| &outcome.answer);
        let (value, id, version) = match (&operation.call, answer) {
            (Call::Update { id, value, .. }, _) => (*value, Some(id), None),
            (Call::Create { value }, Some(Answer::Created { id })) => (*value, Some(id), None),
            (_, Some(Answer::Found(Found { id, version, value }))) => (*value, Some(id), Some(*version)),
            _ => continue,
        };
        let write = writes.entry(value).or_default();
        let other_id = id.is_some_and(|id| write.id.get_or_insert_with(|| id.clone()) != id);
        let other_version = version.is_some_and(|version| *write.version.get_or_insert(version) != version);
        if other_id || other_version {
            return Err(format!("another id or version of value {value} than {write:?}:\n  {operation}"));
        }
    }
    Ok(writes)
}

impl Search<'_> {
    fn run(&self) -> Result<(), String> {
        let start = Position { done: Set(vec![0; self.operations.len().div_ceil(64)]), state: None };
        let (mut open, mut seen) = (vec![start], HashSet::new());
        let mut furthest: Option<(usize, Position)> = None;
        while let Some(mut position) = open.pop() {
            self.do_what_keeps_the_state(&mut position);
            let missing: Vec<_> = self.answered().filter(|at| !position.done.contains(*at)).collect();
            if missing.is_empty() {
                return Ok(());
            }
            if !seen.insert(position.clone()) {
                continue;
            }
            if seen.len() > MAX_POSITIONS {
                return Err(format!("no result after {MAX_POSITIONS} positions: too many operations are concurrent"));
            }
            let mut candidates = self.candidates(&position.done);
            // The last one that is pushed is tried first: the one that must take effect first.
            candidates.sort_by_key(|at| std::cmp::Reverse(self.operations[*at].latest_us()));
            for at in candidates {
                if let Some(state) = self.apply(position.state, self.operations[at]) {
                    let mut done = position.done.clone();
                    done.insert(at);
                    open.push(Position { done, state });
                }
            }
            if furthest.as_ref().is_none_or(|(fewest, _)| missing.len() < *fewest) {
                furthest = Some((missing.len(), position));
            }
        }
        Err(furthest.map_or_else(String::new, |(_, position)| self.describe(&position)))
    }

    /// The operations whose outcome is known.
    fn answered(&self) -> impl Iterator<Item = usize> {
        let known = self.operations.iter().enumerate().filter(|(_, operation)| operation.outcome.is_some());
        known.map(|(at, _)| at)
    }

    /// The operations that can be the next one: no other one has ended before they began.
    fn candidates(&self, done: &Set) -> Vec<usize> {
        let (mut candidates, mut first_end_us) = (Vec::new(), u64::MAX);
        for (at, operation) in self.operations.iter().enumerate().filter(|(at, _)| !done.contains(*at)) {
            if operation.earliest_us() > first_end_us {
                break;
            }
            candidates.push(at);
            first_end_us = first_end_us.min(operation.latest_us());
        }
        candidates
    }

    /// An operation that fits and keeps the state, such as a read, can take effect at once: what is
    /// possible without it is possible after it.
    fn do_what_keeps_the_state(&self, position: &mut Position) {
        loop {
            let keeps = |at: &usize| self.apply(position.state, self.operations[*at]) == Some(position.state);
            let fitting: Vec<usize> = self.candidates(&position.done).into_iter().filter(keeps).collect();
            if fitting.is_empty() {
                return;
            }
            fitting.into_iter().for_each(|at| position.done.insert(at));
        }
    }

    /// The state after an operation. `None` if it has another outcome in this state.
    fn apply(&self, state: State, operation: &Operation) -> Option<State> {
        let answer = operation.outcome.as_ref().map(|outcome| &outcome.answer);
        let current = state.and_then(|value| self.writes.get(&value));
        let is_current = |id: &String| current.is_some_and(|write| write.id.as_ref() == Some(id));
        let has_version = |version: &u64| current.is_some_and(|write| write.version.as_ref() == Some(version));
        let (fits, next) = match (&operation.call, answer) {
            (Call::Create { value }, Some(Answer::Created { .. }) | None) => (state.is_none(), Some(*value)),
            (Call::Create { .. }, Some(Answer::Conflict)) => (state.is_some(), state),
            (Call::Update { id, version, value }, Some(Answer::Done) | None) => {
                (is_current(id) && has_version(version) && self.is_newer(*value, *version), Some(*value))
            }
            (Call::Update { id, version, .. }, Some(Answer::Conflict)) => {
                (is_current(id) && !has_version(version), state)
            }
            (Call::Remove { id }, Some(Answer::Done) | None) => (is_current(id), None),
            (Call::Update { id, .. } | Call::Remove { id }, Some(Answer::NotFound)) => (!is_current(id), state),
            (Call::Read, Some(Answer::Found(found))) => (state == Some(found.value), state),
            (Call::Read, Some(Answer::NotFound)) => (state.is_none(), state),
            _ => (false, state),
        };
        fits.then_some(next)
    }

    /// Whether the write of this value has a greater version than this one. An unknown version may
    /// be greater.
    fn is_newer(&self, value: u64, than: u64) -> bool {
        self.writes.get(&value).and_then(|write| write.version).is_none_or(|version| version > than)
    }

    fn describe(&self, position: &Position) -> String {
        let list = |operations: &mut dyn Iterator<Item = usize>| {
            operations.map(|at| format!("\n  {}", self.operations[at])).collect::<String>()
        };
        let state = match position.state.and_then(|value| Some((value, self.writes.get(&value)?))) {
            Some((value, write)) => format!("value {value} ({write:?})"),
            None => format!("{:?}", position.state),
        };
        let candidates = self.candidates(&position.done);
        let shown_from_us = candidates.iter().map(|at| self.operations[*at].invoked_us).max().unwrap_or(0);
        let shown_from_us = shown_from_us.saturating_sub(2_000_000);
        let earlier = |at: &usize| position.done.contains(*at) && self.operations[*at].latest_us() >= shown_from_us;
        format!(
            "no operation can be the next one after the state {state}; candidates:{}\ntook effect in the last two \
             seconds before:{}",
            list(&mut candidates.iter().copied()),
            list(&mut (0..self.operations.len()).filter(earlier)),
        )
    }
}
