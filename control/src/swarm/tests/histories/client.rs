//! Clients of the Engine API. They ask the managers for changes of a few services, one after the
//! other, and record what they were told.
//!
//! The services have no tasks, so only the clients change them. A label contains the value.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{Method, Request, StatusCode, header},
};
use http_body_util::BodyExt as _;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

use super::{
    check::check,
    operation::{Answer, Call, Found, Operation, Outcome},
};
use crate::{
    api::{self, LocalNode},
    fixture::simulated,
    host,
    swarm::Swarm,
};

/// How many services the clients change.
const SERVICES: usize = 3;
/// The pause of a client after each answer, in milliseconds.
const PAUSE_MS: Range<u64> = 50..400;
/// How long a client waits for the answer to a change, in milliseconds. Without a leader, the API
/// answers after 10 s.
const CHANGE_MS: Range<u64> = 300..2_500;
/// Some clients give up at once: one of ten changes has so little time that it may be interrupted
/// at any point.
const HASTY_MS: Range<u64> = 1..30;
/// How long a client waits for the answer to a read. Without a leader, the API answers after 2 s,
/// with a warning.
const READ_TIMEOUT: Duration = Duration::from_millis(3_000);

/// What the clients have recorded.
#[derive(Debug, Default)]
pub(in crate::swarm::tests) struct Recorder(Mutex<Recorded>);

#[derive(Debug, Default)]
struct Recorded {
    histories: [Vec<Operation>; SERVICES],
    /// The number of values that were given to calls.
    values: u64,
    ended: bool,
}

impl Recorder {
    pub(in crate::swarm::tests) fn new() -> Arc<Self> {
        Arc::default()
    }

    fn with<T>(&self, change: impl FnOnce(&mut Recorded) -> T) -> T {
        change(&mut self.0.lock().expect("no test thread panicked"))
    }

    /// A value that no call has had before.
    fn new_value(&self) -> u64 {
        self.with(|recorded| {
            recorded.values += 1;
            recorded.values
        })
    }

    /// Tells the clients to end.
    pub(in crate::swarm::tests) fn end(&self) {
        self.with(|recorded| recorded.ended = true);
    }

    /// Checks that the history of each service is linearizable. Returns the number of operations.
    ///
    /// # Errors
    /// A text that shows where no operation can be the next one.
    pub(in crate::swarm::tests) fn check(&self) -> Result<usize, String> {
        let mut count = 0;
        for (service, mut history) in self.with(|recorded| recorded.histories.clone()).into_iter().enumerate() {
            // A read without an answer says nothing.
            history.retain(|operation| operation.outcome.is_some() || operation.call != Call::Read);
            count += history.len();
            check(&history).map_err(|text| format!("the history of service-{service} is not linearizable: {text}"))?;
        }
        Ok(count)
    }
}

/// The time on the machine of the caller, which is that of the simulation.
fn now_us() -> u64 {
    simulated::current().expect("a simulated machine").now().as_micros() as u64
}

/// What a client has been told last of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    Nothing,
    Absent,
    Present { id: String, version: u64 },
}

/// A client at one manager that has one request at a time. It runs on the manager's machine, and
/// ends with it.
pub(in crate::swarm::tests) struct Client {
    number: usize,
    manager: usize,
    router: Router,
    recorder: Arc<Recorder>,
    known: [Known; SERVICES],
    rng: StdRng,
}

impl Client {
    pub(in crate::swarm::tests) fn new(number: usize, manager: usize, swarm: &Swarm, recorder: Arc<Recorder>) -> Self {
        let known = [const { Known::Nothing }; SERVICES];
        let rng = StdRng::seed_from_u64(host::random());
        Self { number, manager, router: router(swarm), recorder, known, rng }
    }

    /// Reads and changes random services until the recorder says to end.
    pub(in crate::swarm::tests) async fn run(mut self) {
        while !self.recorder.with(|recorded| recorded.ended) {
            let service = self.rng.random_range(0..SERVICES);
            let call = self.choose(service);
            self.ask(service, call).await;
            sleep(Duration::from_millis(self.rng.random_range(PAUSE_MS))).await;
        }
    }

    /// Reads all services until the answers are not out of date.
    pub(in crate::swarm::tests) async fn read_all(mut self) {
        for service in 0..SERVICES {
            let is_current = |recorded: &mut Recorded| {
                recorded.histories[service].last().and_then(|last| last.outcome.as_ref()).is_some_and(|o| !o.stale)
            };
            while !(self.ask(service, Call::Read).await && self.recorder.with(is_current)) {}
        }
    }

    fn choose(&mut self, service: usize) -> Call {
        match (self.known[service].clone(), self.rng.random_range(0..20)) {
            (Known::Nothing, _) | (_, 0..6) => Call::Read,
            (Known::Absent, _) => Call::Create { value: self.recorder.new_value() },
            (Known::Present { id, .. }, 6) => Call::Remove { id },
            (Known::Present { id, version }, _) => Call::Update { id, version, value: self.recorder.new_value() },
        }
    }

    /// Makes a call and records it, first without an outcome: this machine may end before the
    /// answer. Returns whether there was an answer.
    async fn ask(&mut self, service: usize, call: Call) -> bool {
        let limit = match call {
            Call::Read => READ_TIMEOUT,
            _ if self.rng.random_range(0..10) == 0 => Duration::from_millis(self.rng.random_range(HASTY_MS)),
            _ => Duration::from_millis(self.rng.random_range(CHANGE_MS)),
        };
        let operation = Operation {
            client: self.number,
            manager: self.manager,
            invoked_us: now_us(),
            call: call.clone(),
            outcome: None,
        };
        let at = self.recorder.with(|recorded| {
            recorded.histories[service].push(operation);
            recorded.histories[service].len() - 1
        });
        let asked = timeout(limit, send(self.router.clone(), service, &call)).await;
        let returned_us = now_us();
        let outcome = asked.ok().and_then(|(answer, stale)| Some(Outcome { returned_us, answer: answer?, stale }));
        // A machine without power receives no answer.
        let outcome = outcome.filter(|_| simulated::current().is_some_and(|host| host.disk.is_on()));
        let answered = outcome.is_some();
        match outcome.as_ref().map(|outcome| &outcome.answer) {
            Some(Answer::Found(Found { id, version, .. })) => {
                self.known[service] = Known::Present { id: id.clone(), version: *version };
            }
            Some(Answer::NotFound) => self.known[service] = Known::Absent,
            // Sometimes the client goes on with what it knew before, and should be refused.
            _ if self.rng.random_range(0..4) > 0 => self.known[service] = Known::Nothing,
            _ => {}
        }
        self.recorder.with(|recorded| recorded.histories[service][at].outcome = outcome);
        answered
    }
}

/// Sends a call to the API of a manager. Returns the answer, unless it leaves open whether the call
/// took effect, and whether it has the warning that it may be out of date.
async fn send(router: Router, service: usize, call: &Call) -> (Option<Answer>, bool) {
    let name = format!("service-{service}");
    let spec = |value: u64| {
        json!({
            "Name": name,
            "Labels": {"value": value.to_string()},
            "TaskTemplate": {"ContainerSpec": {"Image": "weft/whoami"}},
            "Mode": {"Replicated": {"Replicas": 0}},
        })
    };
    let (method, path, body) = match call {
        Call::Create { value } => (Method::POST, "/services/create".to_owned(), Some(spec(*value))),
        Call::Update { id, version, value } => {
            (Method::POST, format!("/services/{id}/update?version={version}"), Some(spec(*value)))
        }
        Call::Remove { id } => (Method::DELETE, format!("/services/{id}"), None),
        Call::Read => (Method::GET, format!("/services/{name}"), None),
    };
    let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    let request = Request::builder().method(method).uri(path).body(body).expect("a request");
    let response = router.oneshot(request).await.unwrap_or_else(|never| match never {});
    let status = response.status();
    let stale = response.headers().contains_key(header::WARNING);
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    (read_answer(call, status, &body), stale)
}

fn router(swarm: &Swarm) -> Router {
    let node = LocalNode {
        hostname: "node".parse().expect("a name"),
        version: String::new(),
        runtime: "process".into(),
        data_dir: "/nonexistent".into(),
        engine: None,
        networks: None,
    };
    api::router(swarm.clone(), node)
}

/// # Panics
/// If the API should not give such an answer to the call.
fn read_answer(call: &Call, status: StatusCode, body: &Value) -> Option<Answer> {
    let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    match (call, status) {
        // The leader was not found, or did not answer: the call may take effect.
        (_, StatusCode::SERVICE_UNAVAILABLE) => None,
        (Call::Create { .. }, StatusCode::CREATED) => Some(Answer::Created { id: text("/ID").to_owned() }),
        (Call::Create { .. }, StatusCode::CONFLICT) if text("/message").contains("is in use by") => {
            Some(Answer::Conflict)
        }
        (Call::Update { .. }, StatusCode::CONFLICT) if text("/message").contains("out of sequence") => {
            Some(Answer::Conflict)
        }
        (Call::Update { .. } | Call::Remove { .. }, StatusCode::OK) => Some(Answer::Done),
        (Call::Read, StatusCode::OK) => Some(Answer::Found(Found {
            id: text("/ID").to_owned(),
            version: body.pointer("/Version/Index").and_then(Value::as_u64).expect("a version"),
            value: text("/Spec/Labels/value").parse().expect("a value"),
        })),
        (Call::Update { .. } | Call::Remove { .. } | Call::Read, StatusCode::NOT_FOUND) => Some(Answer::NotFound),
        _ => panic!("{call:?} was answered with {status}: {body}"),
    }
}
