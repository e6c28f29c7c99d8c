//! Handlers of `service logs`: send the log records of one task, or of all tasks of a service.
//!
//! A handler starts a tokio task that copies records from the nodes to the client, and answers with
//! the stream of frames. The tokio task ends when there are no more records or when the client
//! disconnects.

mod frame;

use std::{collections::BTreeSet, convert::Infallible, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt as _, stream::BoxStream};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::wrappers::ReceiverStream;
use weft_model::{ClusterState, LogError, LogOptions, LogRecord, ServiceId, state::TaskState};

use self::frame::{LineFormat, LogSource, frame};
use super::{Api, cluster::ClusterHandle, error::ApiError, find, query::Params};

/// How many frames of all tasks together wait for one client at most. If the client is slow, the
/// nodes wait before they send more.
const QUEUE: usize = 256;

pub(super) async fn of_service(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let service = find::service(&*api.state()?, &id)?.id.clone();
    let (options, format) = read_query(&params)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(copy_service(cluster, service, options, format, sender));
    Ok(stream(receiver))
}

pub(super) async fn of_task(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let cluster = api.cluster()?;
    let (options, format) = read_query(&params)?;
    let source = LogSource::of(find::task(&*api.state()?, &id)?);
    let records = cluster.task_logs(&source.task, options).await?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        copy_records(records, &source, format, &sender).await;
    });
    Ok(stream(receiver))
}

fn stream(receiver: mpsc::Receiver<Bytes>) -> Response {
    let frames = ReceiverStream::new(receiver).map(Ok::<_, Infallible>);
    let content_type = [(header::CONTENT_TYPE, "application/vnd.docker.multiplexed-stream")];
    (content_type, Body::from_stream(frames)).into_response()
}

fn read_query(params: &Params) -> Result<(LogOptions, LineFormat), ApiError> {
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
    let options = LogOptions {
        follow: params.flag("follow"),
        tail,
        since_ms: limit_ms("since")?,
        until_ms: limit_ms("until")?,
        stdout,
        stderr,
    };
    Ok((options, LineFormat { timestamps: params.flag("timestamps"), details: params.flag("details") }))
}

/// Copies the logs of all tasks of the service. With `follow` it also copies the logs of tasks that
/// start later, until the service is removed or the client disconnects.
async fn copy_service(
    cluster: Arc<dyn ClusterHandle>,
    service: ServiceId,
    options: LogOptions,
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
