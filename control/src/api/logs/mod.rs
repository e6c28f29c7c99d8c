//! Handlers of `service logs`: send the log records of one task, or of all tasks of a service.
//!
//! A handler starts a tokio task that copies records from the nodes to the client, and answers with
//! the stream of frames. The tokio task ends when there are no more records or when the client
//! disconnects.

mod frame;

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Extension, Path, State},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt as _, stream::BoxStream};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use weft_model::{ClusterState, LogError, LogOptions, LogRecord, ServiceId, state::TaskState};

use self::frame::{LineFormat, LogSource, frame};
use super::{
    Api,
    cluster::ClusterHandle,
    error::ApiError,
    find,
    query::Params,
    version::{ApiVersion, ClientVersion},
};

/// How many frames of all tasks together wait for one client at most. If the client is slow, the
/// nodes wait before they send more.
const QUEUE: usize = 256;
/// The first version of the API whose multiplexed streams have a type of their own.
const MULTIPLEXED_VERSION: ApiVersion = ApiVersion::new(1, 42);
/// How long the last lines before `until` may need from their node to the client.
const DELIVERY_TIME: Duration = Duration::from_secs(1);

pub(super) async fn of_service(
    State(api): State<Api>,
    Path(id): Path<String>,
    client: Extension<ClientVersion>,
    params: Params,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let service = find::service(&*api.state()?, &id)?.id.clone();
    let Query { options, format, limit } = read_query(&params)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(within(limit, copy_service(cluster, service, options, format, sender)));
    Ok(stream(client.0, receiver))
}

pub(super) async fn of_task(
    State(api): State<Api>,
    Path(id): Path<String>,
    client: Extension<ClientVersion>,
    params: Params,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let Query { options, format, limit } = read_query(&params)?;
    let source = LogSource::of(find::task(&*api.state()?, &id)?);
    let records = cluster.task_logs(&source.task, options).await?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(within(limit, async move {
        copy_records(records, &source, format, &sender).await;
    }));
    Ok(stream(client.0, receiver))
}

/// The type is that of an engine of the client's version. No task has a terminal, so each stream is
/// multiplexed, but old versions do not say so.
fn stream(client: ClientVersion, receiver: mpsc::Receiver<Bytes>) -> Response {
    let frames = ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    let content_type = match client.0 {
        Some(version) if version < MULTIPLEXED_VERSION => "application/vnd.docker.raw-stream",
        _ => "application/vnd.docker.multiplexed-stream",
    };
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(frames)).into_response()
}

/// Ends `copying` after `limit`, if there is one.
async fn within(limit: Option<Duration>, copying: impl Future<Output = ()>) {
    match limit {
        Some(limit) => drop(timeout(limit, copying).await),
        None => copying.await,
    }
}

/// What a client asks for.
struct Query {
    options: LogOptions,
    format: LineFormat,
    /// How long records are sent at most.
    limit: Option<Duration>,
}

fn read_query(params: &Params) -> Result<Query, ApiError> {
    let (stdout, stderr) = (params.flag("stdout"), params.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::Invalid("you must choose at least one stream: stdout=true or stderr=true".into()));
    }
    let tail = match params.text("tail") {
        "" | "all" => None,
        text => Some(
            text.parse()
                .map_err(|_| ApiError::Invalid(format!("invalid tail {text:?}: give a number of lines, or all")))?,
        ),
    };
    // Clients send 0 for "no limit".
    let limit_ms = |name| Ok::<_, ApiError>(params.time_ms(name)?.filter(|&ms| ms != 0));
    let until_ms = limit_ms("until")?;
    let left_ms = until_ms.map(|until| until.saturating_sub(crate::host::now_ms()));
    // There is nothing to wait for after `until`.
    let follow = params.flag("follow") && left_ms != Some(0);
    let limit = left_ms.filter(|_| follow).map(|left_ms| Duration::from_millis(left_ms) + DELIVERY_TIME);
    let options = LogOptions { follow, tail, since_ms: limit_ms("since")?, until_ms, stdout, stderr };
    let format = LineFormat { timestamps: params.flag("timestamps"), details: params.flag("details") };
    Ok(Query { options, format, limit })
}

/// Copies the logs of all tasks of the service. With `follow` it also copies the logs of tasks that
/// start later, until the service is removed or the client disconnects.
async fn copy_service(
    cluster: Arc<dyn ClusterHandle>,
    service: ServiceId,
    mut options: LogOptions,
    format: LineFormat,
    sender: mpsc::Sender<Bytes>,
) {
    let mut state = cluster.state();
    let mut known = BTreeSet::new();
    let mut copies = JoinSet::new();
    loop {
        let now: Arc<ClusterState> = Arc::clone(&state.borrow_and_update());
        // A task that has not started yet has no logs, and its node may not know the task yet.
        let started = |state: TaskState| state >= TaskState::Running;
        for task in now.tasks_of(&service).filter(|task| task.node.is_some() && started(task.status.state)) {
            if known.insert(task.id.clone()) {
                let source = LogSource::of(task);
                copies.spawn(copy_task(Arc::clone(&cluster), source, options.clone(), format, sender.clone()));
            }
        }
        // `tail` is about what there was at the time of the request. What starts later is new.
        options.tail = None;
        // Ids are never reused, so ids of removed tasks are not needed any more.
        known.retain(|task| now.tasks.contains_key(task));
        if !options.follow || !now.services.contains_key(&service) {
            break;
        }
        tokio::select! {
            changed = state.changed() => if changed.is_err() { break },
            () = sender.closed() => return,
        }
    }
    drop(sender);
    while copies.join_next().await.is_some() {}
}

async fn copy_task(
    cluster: Arc<dyn ClusterHandle>,
    source: LogSource,
    options: LogOptions,
    format: LineFormat,
    sender: mpsc::Sender<Bytes>,
) {
    match cluster.task_logs(&source.task, options).await {
        Ok(records) => copy_records(records, &source, format, &sender).await,
        // The logs of the other tasks are still sent. Instead of the missing logs, the client gets
        // a line that says why they are missing.
        Err(error @ (LogError::NodeUnreachable { .. } | LogError::Unreadable { .. })) => {
            let line = Bytes::from(format!("weft: {error}"));
            let time_ns = u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0);
            let record = LogRecord { time_ns, stderr: true, line };
            // This fails if the client has disconnected.
            drop(sender.send(frame(&record, &source, format)).await);
        }
        Err(LogError::NoSuchTask(_) | LogError::NotAssigned(_)) => {}
    }
}

async fn copy_records(
    mut records: BoxStream<'static, LogRecord>,
    source: &LogSource,
    format: LineFormat,
    sender: &mpsc::Sender<Bytes>,
) {
    loop {
        tokio::select! {
            record = records.next() => match record {
                Some(record) => if sender.send(frame(&record, source, format)).await.is_err() { return },
                None => return,
            },
            () = sender.closed() => return,
        }
    }
}
