//! The handler of `events`: sends an event to the client for each change of the cluster state.
//!
//! weft does not store past events. A client gets only the events that happen while its request is
//! open. Each such request has a task that compares each new cluster state with the one before it.
//! [`diff`] does that, and [`local`] translates the events of the local container engine.

mod diff;
mod local;

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
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
    features,
    query::{Filters, Params},
};

/// How many events wait for one client at most. If the client is slow, its task waits too, and
/// later compares with a newer cluster state.
const QUEUE: usize = 256;
const FILTERS: &[&str] = &["event", "label", "network", "node", "scope", "service", "type"];
/// Filters by objects that only a container engine has. No event of the cluster matches them.
const ENGINE_FILTERS: &[&str] = &["builder", "config", "container", "daemon", "image", "plugin", "secret", "volume"];

/// `GET /events`: streams the events of the cluster, and those of the local container engine if the
/// node has one.
pub(super) async fn stream(State(api): State<Api>, params: Params, request: Request) -> Result<Response, ApiError> {
    let has_engine = api.node.engine.is_some();
    let known = if has_engine { [FILTERS, ENGINE_FILTERS].concat() } else { FILTERS.to_vec() };
    let filters = Filters::read(&params, &known)?;
    let cluster = match api.cluster() {
        Err(_) if has_engine => {
            return match local_events(api, filters, request).await? {
                Ok(lines) => Ok(answer(lines)),
                Err(refusal) => Ok(refusal),
            };
        }
        cluster => cluster?,
    };
    let now_ms = crate::host::now_ms();
    if params.time_ms("since")?.is_some_and(|since| since + 1_000 < now_ms) {
        return Err(features::PAST_EVENTS.refusal());
    }
    let listen_for = params.time_ms("until")?.map(|until| Duration::from_millis(until.saturating_sub(now_ms)));
    let (sender, receiver) = mpsc::channel(QUEUE);
    let mut state = cluster.state();
    // The state is read before the task starts, so that the task misses no change after the
    // request.
    let before = Arc::clone(&state.borrow_and_update());
    let cluster_filters = filters.clone();
    tokio::spawn(async move {
        let sending = send_changes(before, state, cluster_filters, sender);
        match listen_for {
            Some(limit) => drop(timeout(limit, sending).await),
            None => sending.await,
        }
    });
    let lines = ReceiverStream::new(receiver).map(Ok::<_, axum::Error>);
    if !has_engine {
        return Ok(answer(lines));
    }
    Ok(match local_events(api, filters, request).await? {
        // Both streams end at `until`. If the engine's stream fails earlier, the client gets the
        // error.
        Ok(local) => answer(select(lines, local)),
        Err(refusal) => refusal,
    })
}

fn answer(lines: impl Stream<Item = Result<Bytes, axum::Error>> + Send + 'static) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
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
        for event in diff::events(&before, &after).iter().filter(|event| matches(&filters, event)) {
            let Ok(mut line) = serde_json::to_vec(event) else { continue };
            line.push(b'\n');
            if sender.send(Bytes::from(line)).await.is_err() {
                return;
            }
        }
        before = after;
    }
}

fn matches(filters: &Filters, event: &EventMessage) -> bool {
    let actor = event.actor.clone().unwrap_or_default();
    let (id, attributes) = (actor.id.unwrap_or_default(), actor.attributes.unwrap_or_default());
    let is_named = |text: &str| id.starts_with(text) || attributes.get("name").is_some_and(|name| name == text);
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
        && ENGINE_FILTERS.iter().all(|filter| filters.values(filter).is_empty())
}
