//! `service logs`: the records of one task, or of all tasks of a service as they come, in the frames that clients read.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    body::{Body, Bytes},
    extract::{Path, State},
    http::header,
    response::{IntoResponse, Response},
};
use futures_util::StreamExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_model::{
    ClusterState, ServiceId, TaskId,
    state::{Task, TaskState},
};

use super::{Api, cluster::ClusterHandle, error::ApiError, find, query::Params};
use weft_model::{LogError, LogOptions, LogRecord};

/// Records on their way to a client, from all tasks together: what a slow client makes the nodes hold back.
const QUEUE: usize = 256;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

pub(super) async fn of_service(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let table = api.table()?;
    let service = find::service(&*api.state()?, &id)?.id.clone();
    let (options, form) = options(&params)?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(follow_service(table, service, options, form, sender));
    Ok(framed(receiver))
}

pub(super) async fn of_task(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
) -> Result<Response, ApiError> {
    let table = api.table()?;
    let (options, form) = options(&params)?;
    let context = Context::of(find::task(&*api.state()?, &id)?);
    let records = table.task_logs(&context.task, options).await?;
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        copy(records, &context, form, &sender).await;
    });
    Ok(framed(receiver))
}

fn framed(receiver: mpsc::Receiver<Bytes>) -> Response {
    let frames = ReceiverStream::new(receiver).map(Ok::<_, std::convert::Infallible>);
    let content_type = [(header::CONTENT_TYPE, "application/vnd.docker.multiplexed-stream")];
    (content_type, Body::from_stream(frames)).into_response()
}

/// How a record is written.
#[derive(Debug, Clone, Copy)]
struct Form {
    timestamps: bool,
    /// Node, service and task before each line: clients make the prefix of it.
    details: bool,
}

/// Where a record comes from.
#[derive(Debug, Clone)]
struct Context {
    task: TaskId,
    name: String,
    service: ServiceId,
    node: String,
}

impl Context {
    fn of(task: &Task) -> Self {
        let node = task.node.as_ref().map(ToString::to_string).unwrap_or_default();
        Self { task: task.id.clone(), name: task.name.clone(), service: task.service.clone(), node }
    }
}

fn options(params: &Params) -> Result<(LogOptions, Form), ApiError> {
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
    let time =
        |name: &str| Some(params.text(name)).filter(|text| !matches!(*text, "" | "0")).map(|text| unix_ms(name, text));
    let options = LogOptions {
        follow: params.flag("follow"),
        tail,
        since_ms: time("since").transpose()?,
        until_ms: time("until").transpose()?,
        stdout,
        stderr,
    };
    Ok((options, Form { timestamps: params.flag("timestamps"), details: params.flag("details") }))
}

/// Unix seconds with a fraction, or RFC 3339, as milliseconds.
pub(super) fn unix_ms(name: &str, text: &str) -> Result<u64, ApiError> {
    let invalid =
        || ApiError::Invalid(format!("invalid {name} {text:?}: give Unix seconds or a time like 2026-01-02T15:04:05Z"));
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return u64::try_from(time.as_millisecond()).map_err(|_| invalid());
    }
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: u64 = seconds.parse().map_err(|_| invalid())?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return Err(invalid());
    }
    let millis: u64 = format!("{fraction:0<3}")[..3].parse().map_err(|_| invalid())?;
    seconds.checked_mul(1_000).and_then(|ms| ms.checked_add(millis)).ok_or_else(invalid)
}

/// Sends the logs of every task of the service; with `follow`, of tasks to come too, until the service is removed or the
/// client is gone.
async fn follow_service(
    table: Arc<dyn ClusterHandle>,
    service: ServiceId,
    options: LogOptions,
    form: Form,
    sender: mpsc::Sender<Bytes>,
) {
    let mut state = table.state();
    let mut known = BTreeSet::new();
    let mut copies = tokio::task::JoinSet::new();
    loop {
        let now: Arc<ClusterState> = Arc::clone(&state.borrow_and_update());
        // Before it runs it has written nothing, and its node may not know of it.
        for task in now.tasks_of(&service).filter(|task| task.node.is_some() && task.status.state >= TaskState::Running)
        {
            if known.insert(task.id.clone()) {
                copies.spawn(copy_task(Arc::clone(&table), Context::of(task), options.clone(), form, sender.clone()));
            }
        }
        // An ended task is asked only once, its record is whole; a removed one cannot come back.
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
    table: Arc<dyn ClusterHandle>,
    context: Context,
    options: LogOptions,
    form: Form,
    sender: mpsc::Sender<Bytes>,
) {
    match table.task_logs(&context.task, options).await {
        Ok(records) => copy(records, &context, form, &sender).await,
        // A node that is away does not keep the others' logs back; the reader sees whose are missing.
        Err(error @ (LogError::NodeUnreachable { .. } | LogError::Unreadable { .. })) => {
            let line = Bytes::from(format!("weft: {error}"));
            let now_ns = u64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(0);
            let _ = sender.send(frame(&LogRecord { time_ns: now_ns, stderr: true, line }, &context, form)).await;
        }
        Err(LogError::NoSuchTask(_) | LogError::NotAssigned(_)) => {}
    }
}

async fn copy(
    mut records: futures_util::stream::BoxStream<'static, LogRecord>,
    context: &Context,
    form: Form,
    sender: &mpsc::Sender<Bytes>,
) {
    loop {
        tokio::select! {
            record = records.next() => match record {
                Some(record) => if sender.send(frame(&record, context, form)).await.is_err() { return },
                None => return,
            },
            () = sender.closed() => return,
        }
    }
}

/// `[stream, 0, 0, 0, length (big endian, 4 bytes)]` and one line: clients take each frame for a whole line.
fn frame(record: &LogRecord, context: &Context, form: Form) -> Bytes {
    let mut line = Vec::with_capacity(record.line.len() + 160);
    if form.timestamps {
        line.extend_from_slice(timestamp(record.time_ns).as_bytes());
        line.push(b' ');
    }
    if form.details {
        let Context { node, service, task, name } = context;
        line.extend_from_slice(
            format!(
                "com.docker.swarm.node.id={node},com.docker.swarm.service.id={service},com.docker.swarm.task.id={task},com.docker.swarm.task.name={name} "
            )
            .as_bytes(),
        );
    }
    line.extend_from_slice(&record.line);
    line.push(b'\n');
    let length = u32::try_from(line.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = Vec::with_capacity(8 + line.len());
    frame.extend_from_slice(&[if record.stderr { 2 } else { 1 }, 0, 0, 0]);
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&line);
    Bytes::from(frame)
}

/// RFC 3339 with nine digits, so that lines stay aligned.
fn timestamp(unix_ns: u64) -> String {
    let seconds = i64::try_from(unix_ns / NANOS_PER_SECOND).unwrap_or(i64::MAX);
    let whole = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX).strftime("%Y-%m-%dT%H:%M:%S");
    format!("{whole}.{:09}Z", unix_ns % NANOS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_holds_one_line() {
        let record = LogRecord { time_ns: 1_000_000_001, stderr: true, line: Bytes::from_static(b"hello") };
        let context = Context {
            task: TaskId::from_random(1),
            name: "web.1.x".into(),
            service: ServiceId::from_random(2),
            node: "n".into(),
        };
        let plain = frame(&record, &context, Form { timestamps: false, details: false });
        assert_eq!(&plain[..], b"\x02\0\0\0\0\0\0\x06hello\n");
        let timed = frame(&record, &context, Form { timestamps: true, details: true });
        let text = String::from_utf8_lossy(&timed[8..]).into_owned();
        assert!(text.starts_with("1970-01-01T00:00:01.000000001Z com.docker.swarm.node.id=n,com.docker"), "{text}");
        assert!(text.ends_with(" hello\n"), "{text}");
    }

    #[test]
    fn times_are_read_in_both_forms() {
        for (text, ms) in [
            ("1700000000", 1_700_000_000_000),
            ("1700000000.123456789", 1_700_000_000_123),
            ("1970-01-01T00:00:02Z", 2_000),
        ] {
            assert_eq!(unix_ms("since", text), Ok(ms), "{text}");
        }
        assert!(unix_ms("since", "yesterday").is_err());
    }
}
