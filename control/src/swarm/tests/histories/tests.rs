//! Tests of [`check()`]. Histories of the real state machine with random overlap are linearizable,
//! and histories to which an answer was added that no order allows are not.

use std::ops::Range;

use proptest::prelude::*;
use weft_model::{Command, Rejection, ServiceId, spec::ServiceSpec, state::Service};

use super::{
    check::check,
    operation::{
        Answer::{self, Conflict, Done, NotFound},
        Call, Found, Operation, Outcome,
    },
};
use crate::fixture::{TestCluster, parse, service_spec};

/// An operation that was called and answered at these times.
fn operation(times: Range<u64>, call: Call, answer: Answer) -> Operation {
    let outcome = Some(Outcome { returned_us: times.end, answer, stale: false });
    Operation { client: 0, manager: 0, invoked_us: times.start, call, outcome }
}

/// The service that `create` creates. Value N has version 10 × N.
const ID: &str = "a";

fn create(times: Range<u64>, value: u64) -> Operation {
    operation(times, Call::Create { value }, Answer::Created { id: ID.to_owned() })
}

/// An update of the service while it has the value `from`.
fn update(times: Range<u64>, from: u64, value: u64, answer: Answer) -> Operation {
    operation(times, Call::Update { id: ID.to_owned(), version: 10 * from, value }, answer)
}

fn remove(times: Range<u64>, answer: Answer) -> Operation {
    operation(times, Call::Remove { id: ID.to_owned() }, answer)
}

fn read(times: Range<u64>, value: u64) -> Operation {
    found(times, ID, 10 * value, value)
}

fn found(times: Range<u64>, id: &str, version: u64, value: u64) -> Operation {
    operation(times, Call::Read, Answer::Found(Found { id: id.to_owned(), version, value }))
}

fn absent(times: Range<u64>) -> Operation {
    operation(times, Call::Read, NotFound)
}

fn unknown(operation: Operation) -> Operation {
    Operation { outcome: None, ..operation }
}

fn stale(mut operation: Operation) -> Operation {
    operation.outcome.as_mut().expect("an outcome").stale = true;
    operation
}

#[track_caller]
fn linearizable(history: &[Operation]) {
    if let Err(text) = check(history) {
        panic!("{text}");
    }
}

#[track_caller]
fn refused(history: &[Operation]) {
    assert!(check(history).is_err(), "{history:#?}");
}

#[test]
fn answers_of_one_operation_after_the_other_are_linearizable() {
    linearizable(&[]);
    linearizable(&[
        absent(0..1),
        create(2..3, 1),
        operation(4..5, Call::Create { value: 2 }, Conflict),
        read(6..7, 1),
        update(8..9, 1, 3, Done),
        update(10..11, 1, 4, Conflict),
        read(12..13, 3),
        remove(14..15, Done),
        remove(16..17, NotFound),
        update(18..19, 3, 5, NotFound),
        absent(20..21),
    ]);
}

#[test]
fn a_read_sees_an_overlapping_write_or_not() {
    for value in [1, 2] {
        linearizable(&[create(0..1, 1), read(2..3, 1), update(4..9, 1, 2, Done), read(5..6, value)]);
    }
    refused(&[create(0..1, 1), read(2..3, 1), update(4..9, 1, 2, Done), read(5..6, 2), read(7..8, 1)]);
}

#[test]
fn a_read_of_what_was_replaced_before_is_refused_unless_it_has_a_warning() {
    let written = [create(0..1, 1), read(2..3, 1), update(4..5, 1, 2, Done)];
    refused(&[&written[..], &[read(6..7, 1)]].concat());
    linearizable(&[&written[..], &[stale(read(6..7, 1))]].concat());
    refused(&[&written[..], &[absent(6..7)]].concat());
    linearizable(&[&written[..], &[stale(absent(6..7))]].concat());
    // Also an answer that may be old tells of what was written before it was given.
    refused(&[create(0..1, 1), read(2..3, 1), stale(read(4..5, 2)), update(6..7, 1, 2, Done)]);
}

#[test]
fn two_updates_of_the_same_version_are_not_both_made() {
    let created = [create(0..1, 1), read(2..3, 1)];
    refused(&[&created[..], &[update(4..5, 1, 2, Done), update(6..7, 1, 3, Done)]].concat());
    refused(&[&created[..], &[update(4..9, 1, 2, Done), update(4..9, 1, 3, Done)]].concat());
    linearizable(&[&created[..], &[update(4..9, 1, 2, Done), update(4..9, 1, 3, Conflict)]].concat());
    refused(&[&created[..], &[update(4..9, 1, 2, Conflict), read(10..11, 1)]].concat());
}

#[test]
fn a_refused_change_was_not_made() {
    let created = [create(0..1, 1), read(2..3, 1), update(4..5, 1, 2, Done)];
    refused(&[&created[..], &[update(6..7, 1, 3, Conflict), read(8..9, 3)]].concat());
    refused(&[&created[..], &[update(6..7, 1, 3, NotFound)]].concat());
    refused(&[&created[..], &[remove(6..7, NotFound), absent(8..9)]].concat());
}

#[test]
fn a_value_that_was_never_written_is_refused() {
    refused(&[create(0..1, 1), read(2..3, 7)]);
    refused(&[read(0..1, 7)]);
    refused(&[stale(read(0..1, 7))]);
}

#[test]
fn a_confirmed_change_does_not_disappear() {
    refused(&[create(0..1, 1), absent(2..3)]);
    refused(&[create(0..1, 1), read(2..3, 1), update(4..5, 1, 2, Done), read(6..7, 1)]);
    refused(&[create(0..1, 1), remove(2..3, Done), read(4..5, 1)]);
}

#[test]
fn a_change_with_an_unknown_outcome_may_be_made_at_any_time_but_once() {
    let created = [create(0..1, 1), read(2..3, 1), unknown(update(4..5, 1, 2, Done))];
    linearizable(&created);
    linearizable(&[&created[..], &[read(100..101, 1)]].concat());
    linearizable(&[&created[..], &[read(100..101, 1), read(102..103, 2)]].concat());
    refused(&[&created[..], &[read(100..101, 2), read(102..103, 1)]].concat());
    // Another update of the version was made, so this one can no longer be.
    refused(&[&created[..], &[update(6..7, 1, 3, Done), read(8..9, 2)]].concat());
    // It is not made before it was called.
    refused(&[create(0..1, 1), read(2..3, 1), read(4..5, 2), unknown(update(6..7, 1, 2, Done))]);
    let removed = [create(0..1, 1), unknown(remove(2..3, Done))];
    linearizable(&[&removed[..], &[read(4..5, 1), absent(6..7)]].concat());
    refused(&[&removed[..], &[absent(4..5), read(6..7, 1)]].concat());
    linearizable(&[unknown(create(0..1, 1)), absent(2..3), read(4..5, 1)]);
    refused(&[unknown(create(0..1, 1)), read(2..3, 1), absent(4..5)]);
}

#[test]
fn a_value_has_one_id_and_one_version_and_versions_increase() {
    refused(&[create(0..1, 1), read(2..3, 1), found(4..5, ID, 11, 1)]);
    refused(&[create(0..1, 1), found(2..3, "b", 10, 1)]);
    refused(&[create(0..1, 1), read(2..3, 1), update(4..5, 1, 2, Done), found(6..7, ID, 9, 2)]);
    refused(&[create(0..1, 1), read(2..3, 1), update(4..5, 1, 2, Done), found(6..7, ID, 10, 2)]);
}

#[test]
fn a_service_of_the_same_name_is_another_one() {
    let again = Answer::Created { id: "b".to_owned() };
    let again = operation(4..5, Call::Create { value: 2 }, again);
    let replaced = [create(0..1, 1), remove(2..3, Done), again];
    linearizable(&[&replaced[..], &[found(6..7, "b", 20, 2), update(8..9, 1, 3, NotFound)]].concat());
    refused(&[&replaced[..], &[found(6..7, "b", 20, 2), update(8..9, 1, 3, Done)]].concat());
    refused(&[&replaced[..], &[found(6..7, "b", 20, 2), remove(8..9, Done)]].concat());
}

#[test]
fn a_failure_shows_where_no_operation_fits() {
    let history = [create(0..1, 1), read(2..3, 1), update(4..5, 1, 2, Done), read(6..7, 1), absent(8..9)];
    let text = check(&history).expect_err("the read is out of date");
    assert!(text.contains("value 2"), "{text}");
    let candidates = text.split("candidates:").nth(1).and_then(|text| text.split("took effect").next());
    assert!(candidates.is_some_and(|text| text.contains("value 1") && !text.contains("not found")), "{text}");
}

const NAME: &str = "service";
/// The time between the moments in which two operations of a generated history take effect.
const STEP_US: u64 = 100;
/// How long an operation is called before that moment, and answered after it, at most.
const OVERLAP_US: u64 = 6 * STEP_US;

/// What happens to one operation of a generated history: which one it is, how far its call and its
/// answer are from the moment in which it takes effect, and whether its outcome is unknown.
type Draw = (u8, u8, u64, u64, bool);

/// Does operations one after the other on the real state machine.
struct Register {
    cluster: TestCluster,
    /// What reads have found, the newest last.
    known: Vec<Found>,
    history: Vec<Operation>,
    next_value: u64,
}

impl Register {
    fn new() -> Self {
        Self { cluster: TestCluster::new(), known: Vec::new(), history: Vec::new(), next_value: 0 }
    }

    fn new_value(&mut self) -> u64 {
        self.next_value += 1;
        self.next_value
    }

    fn spec(value: u64) -> Box<ServiceSpec> {
        let mut spec = service_spec(NAME, 0, &[]);
        spec.labels.insert("value".to_owned(), value.to_string());
        Box::new(spec)
    }

    fn read(&self) -> Answer {
        let found = |service: &Service| Found {
            id: service.id.to_string(),
            version: service.meta.version,
            value: service.spec.labels["value"].parse().expect("a number"),
        };
        self.cluster.state.service_by_name(NAME).map_or(NotFound, |service| Answer::Found(found(service)))
    }

    fn choose(&mut self, kind: u8, which: u8) -> Call {
        let known = self.known.iter().rev().nth(usize::from(which.is_multiple_of(16))).cloned();
        match (kind % 10, known) {
            (0..4, _) => Call::Read,
            (4, Some(Found { id, .. })) => Call::Remove { id },
            (5..9, Some(Found { id, version, .. })) => Call::Update { id, version, value: self.new_value() },
            _ => Call::Create { value: self.new_value() },
        }
    }

    fn apply(&mut self, call: &Call) -> Answer {
        let command = match call {
            Call::Read => {
                let answer = self.read();
                if let Answer::Found(found) = &answer {
                    self.known.push(found.clone());
                }
                return answer;
            }
            Call::Create { value } => {
                let id = ServiceId::from_random(self.cluster.random());
                Command::CreateService { id, spec: Self::spec(*value) }
            }
            Call::Update { id, version, value } => {
                Command::UpdateService { id: parse(id), version: *version, spec: Self::spec(*value) }
            }
            Call::Remove { id } => Command::RemoveService { id: parse(id) },
        };
        let created = match &command {
            Command::CreateService { id, .. } => Some(id.to_string()),
            _ => None,
        };
        match self.cluster.apply(command) {
            Ok(_) => created.map_or(Done, |id| Answer::Created { id }),
            Err(Rejection::NotFound { .. }) => NotFound,
            Err(Rejection::NameInUse { .. } | Rejection::OutOfSequence { .. }) => Conflict,
            Err(other) => panic!("{other}"),
        }
    }

    /// Does an operation at the moment `at_us`.
    fn step(&mut self, at_us: u64, (kind, which, before_us, after_us, is_unknown): Draw) {
        let call = self.choose(kind, which);
        let is_unknown = is_unknown && call != Call::Read;
        // Half of the unknown changes are not made.
        let answer = if is_unknown && which.is_multiple_of(2) { None } else { Some(self.apply(&call)) };
        let times = at_us - before_us..at_us + after_us;
        let operation = operation(times, call, answer.unwrap_or(NotFound));
        self.history.push(if is_unknown { unknown(operation) } else { operation });
    }
}

fn history(draws: Vec<Draw>) -> Register {
    let mut register = Register::new();
    for (number, draw) in draws.into_iter().enumerate() {
        register.step(OVERLAP_US + STEP_US * (number as u64 + 1), draw);
    }
    register
}

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    let unknown = prop::bool::weighted(0.15);
    prop::collection::vec((any::<u8>(), any::<u8>(), 0..OVERLAP_US, 0..OVERLAP_US, unknown), 20..120)
}

/// A confirmed update, the value that it replaced, and its end.
fn replaced(register: &Register) -> Option<(&Found, u64)> {
    register.history.iter().find_map(|operation| {
        let Call::Update { version, .. } = &operation.call else { return None };
        let known = register.known.iter().find(|found| found.version == *version)?;
        operation.is_confirmed_change().then_some((known, operation.latest_us()))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn histories_of_the_state_machine_are_linearizable(draws in draws()) {
        let register = history(draws);
        prop_assert_eq!(check(&register.history), Ok(()));
    }

    #[test]
    fn a_history_with_an_impossible_answer_is_refused(draws in draws(), kind in 0..4, at in 0..20_000_u64) {
        let mut register = history(draws);
        let Some((found, end_us)) = replaced(&register).map(|(found, end)| (found.clone(), end)) else {
            return Err(TestCaseError::reject("no confirmed update"));
        };
        let value = register.new_value();
        let Found { id, version, .. } = found.clone();
        let impossible = match kind {
            // It reads what was replaced before.
            0 => operation(end_us + 1 + at..end_us + 2 + at, Call::Read, Answer::Found(found)),
            // It is a second update of the same version.
            1 => operation(at..at + STEP_US, Call::Update { id, version, value }, Done),
            // It reads what was never written.
            2 => operation(at..at + STEP_US, Call::Read, Answer::Found(Found { id, version: version + 1, value })),
            // It removes a service before there is one.
            _ => operation(0..1, Call::Remove { id }, Done),
        };
        register.history.push(impossible);
        prop_assert!(check(&register.history).is_err());
    }
}
