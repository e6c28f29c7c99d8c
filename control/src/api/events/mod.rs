//! The handler of `events`: sends an event to the client for each change of the cluster state.
//!
//! Each request has a task that compares each new cluster state with the one before it. [`diff`]
//! does that, [`history`] keeps the last events for clients that ask for past ones, and [`local`]
//! translates the events of the local container engine.

mod diff;
mod history;
mod local;

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Extension, Request, State},
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use bollard_stubs::models::{EventMessage, EventMessageTypeEnum as Type};
use futures_util::{
    Stream, StreamExt as _,
    stream::{BoxStream, select},
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use weft_model::ClusterState;

use super::{
    Api, engine,
    error::ApiError,
    query::{Filters, Params},
    version::{ApiVersion, ClientVersion},
};

pub(super) use history::{History, record};

/// The first version of the API whose events have the type of JSON lines.
const JSON_LINES_VERSION: ApiVersion = ApiVersion::new(1, 52);

/// How many events wait for one client at most. If the client is slow, its task waits too, and
/// later compares with a newer cluster state.
const QUEUE: usize = 256;
const FILTERS: &[&str] = &["config", "event", "label", "network", "node", "scope", "secret", "service", "type"];
/// Filters by objects that no event of the cluster is about. Events of an engine match them.
const OTHER_FILTERS: &[&str] = &["builder", "container", "daemon", "image", "plugin", "volume"];

/// `GET /events`: streams the events of the cluster, and those of the local container engine if the
/// node has one. Past events are those that are kept ([`history`]).
pub(super) async fn stream(
    State(api): State<Api>,
    client: Extension<ClientVersion>,
    params: Params,
    request: Request,
) -> Result<Response, ApiError> {
    let has_engine = api.node.engine.is_some();
    let filters = Filters::read(&params, &[FILTERS, OTHER_FILTERS].concat())?;
    let window = Window { since_ms: params.time_ms("since")?, until_ms: params.time_ms("until")? };
    if window.since_ms.zip(window.until_ms).is_some_and(|(since, until)| until < since) {
        return Err(ApiError::Invalid("the time `since` cannot be after the time `until`".into()));
    }
    let cluster = match api.cluster() {
        Err(_) if has_engine => {
            return match local_events(api, filters, request).await? {
                Ok(lines) => Ok(answer(client.0, lines)),
                Err(refusal) => Ok(refusal),
            };
        }
        cluster => cluster?,
    };
    let listen_for = window.until_ms.map(|until| until.saturating_sub(crate::host::now_ms()));
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut state = cluster.state();
    // The state is read before the task starts, so that the task misses no change after the
    // request.
    let (mut past, before) = api.history.past(&mut state);
    past.retain(|event| window.has_past(event));
    let cluster_filters = filters.clone();
    tokio::spawn(async move {
        if !send(&past, &cluster_filters, &sender).await {
            return;
        }
        let sending = send_changes(before, state, cluster_filters, sender);
        match listen_for {
            Some(0) => {}
            Some(limit_ms) => drop(timeout(Duration::from_millis(limit_ms), sending).await),
            None => sending.await,
        }
    });
    let lines = ReceiverStream::new(receiver).map(Ok::<_, axum::Error>);
    if !has_engine {
        return Ok(answer(client.0, lines));
    }
    Ok(match local_events(api, filters, request).await? {
        // Both streams end at `until`. If the engine's stream fails earlier, the client gets the
        // error.
        Ok(local) => answer(client.0, select(lines, local)),
        Err(refusal) => refusal,
    })
}

/// The time of the events that a client asks for.
struct Window {
    since_ms: Option<u64>,
    until_ms: Option<u64>,
}

impl Window {
    /// Whether a kept event belongs to the answer. As in moby, a request without any time asks for
    /// no past events.
    fn has_past(&self, event: &EventMessage) -> bool {
        let time_ms = event.time_nano.and_then(|ns| u64::try_from(ns / 1_000_000).ok()).unwrap_or_default();
        (self.since_ms.is_some() || self.until_ms.is_some())
            && self.since_ms.is_none_or(|since| since <= time_ms)
            && self.until_ms.is_none_or(|until| time_ms <= until)
    }
}

/// The type is that of an engine of the client's version.
fn answer(client: ClientVersion, lines: impl Stream<Item = Result<Bytes, axum::Error>> + Send + 'static) -> Response {
    let is_old = client.0.is_some_and(|version| version < JSON_LINES_VERSION);
    let content_type = if is_old { "application/json" } else { "application/jsonl" };
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(lines)).into_response()
}

/// The events of the local container engine, or its answer if it refuses the request.
async fn local_events(
    api: Api,
    filters: Filters,
    mut request: Request,
) -> Result<Result<BoxStream<'static, Result<Bytes, axum::Error>>, Response>, ApiError> {
    *request.uri_mut() = local::request(request.uri())?;
    use_json_lines(request.headers_mut());
    let response = engine::forward(State(api.clone()), request).await?;
    if !response.status().is_success() {
        return Ok(Err(response));
    }
    Ok(Ok(local::translate(api, filters, response.into_body()).boxed()))
}

/// From version 1.52 on, a client can ask for a form in which each event begins with a record
/// separator (RFC 7464). weft answers with lines, which all clients read.
fn use_json_lines(headers: &mut HeaderMap) {
    headers.remove(header::ACCEPT);
}

/// Sends the events that match the filters, until the client disconnects.
async fn send_changes(
    mut before: Arc<ClusterState>,
    mut state: watch::Receiver<Arc<ClusterState>>,
    filters: Filters,
    sender: mpsc::Sender<Bytes>,
) {
    loop {
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            () = sender.closed() => return,
        }
        let after = Arc::clone(&state.borrow_and_update());
        if !send(&diff::events(&before, &after), &filters, &sender).await {
            return;
        }
        before = after;
    }
}

/// Sends the events that match the filters. Returns `false` if the client has disconnected.
async fn send(events: &[EventMessage], filters: &Filters, sender: &mpsc::Sender<Bytes>) -> bool {
    for event in events.iter().filter(|event| matches(filters, event)) {
        let Ok(mut line) = serde_json::to_vec(event) else { continue };
        line.push(b'\n');
        if sender.send(Bytes::from(line)).await.is_err() {
            return false;
        }
    }
    true
}

fn matches(filters: &Filters, event: &EventMessage) -> bool {
    let actor = event.actor.clone().unwrap_or_default();
    let (id, attributes) = (actor.id.unwrap_or_default(), actor.attributes.unwrap_or_default());
    // As in moby, a filter is a prefix of an id or a name.
    let is_named =
        |text: &str| id.starts_with(text) || attributes.get("name").is_some_and(|name| name.starts_with(text));
    let matches_object = |filter: &str, kind: Type| {
        filters.values(filter).is_empty() || (event.typ == Some(kind) && filters.any(filter, is_named))
    };
    filters.any("event", |wanted| event.action.as_deref() == Some(wanted))
        && filters.any("type", |wanted| event.typ.is_some_and(|kind| kind.as_ref() == wanted))
        && filters.any("scope", |wanted| wanted == "swarm")
        && filters.labels("label", |key| attributes.get(key))
        && matches_object("service", Type::SERVICE)
        && matches_object("node", Type::NODE)
        && matches_object("network", Type::NETWORK)
        && matches_object("secret", Type::SECRET)
        && matches_object("config", Type::CONFIG)
        && OTHER_FILTERS.iter().all(|filter| filters.values(filter).is_empty())
}
