//! Reads a task's log from the engine. [`super::DockerRuntime`] calls it for each reader.

use bollard::{container::LogOutput, query_parameters::LogsOptionsBuilder};
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use weft_model::{LogOptions, LogRecord, TaskId};

use super::{
    container::{Part, identify},
    engine::Engine,
    error::engine_error,
};
use crate::runtime::{RuntimeError, logs::is_requested};

/// Sends the records that `options` request. Returns after the last one, or once the receiver is
/// closed. Sends none if the task has no container.
pub(super) async fn read(
    engine: &Engine,
    task: &TaskId,
    options: &LogOptions,
    out: &mpsc::Sender<LogRecord>,
) -> Result<(), RuntimeError> {
    let containers = engine.list(Some(task)).await?;
    let own = containers.into_iter().find(|c| matches!(identify(c.labels.as_ref()), Some((_, Part::Task))));
    let Some(id) = own.and_then(|own| own.id) else { return Ok(()) };
    let mut query = LogsOptionsBuilder::default()
        .follow(options.follow)
        .stdout(options.stdout)
        .stderr(options.stderr)
        .timestamps(true)
        .tail(&options.tail.map_or_else(|| "all".to_owned(), |tail| tail.to_string()));
    // The engine takes whole seconds. `is_requested` drops the records that are too early or too
    // late.
    if let Some(since) = options.since_ms.and_then(|ms| i32::try_from(ms / 1000).ok()) {
        query = query.since(since);
    }
    if let Some(until) = options.until_ms.and_then(|ms| i32::try_from(ms.div_ceil(1000)).ok()) {
        query = query.until(until);
    }
    let docker = engine.docker().await?;
    let mut output = std::pin::pin!(docker.logs(&id, Some(query.build())));
    loop {
        let output = tokio::select! {
            () = out.closed() => return Ok(()),
            output = output.next() => output,
        };
        let output = output.transpose().map_err(engine_error("read the log"))?;
        let Some(output) = output else { return Ok(()) };
        for record in records(output).into_iter().filter(|record| is_requested(options, record)) {
            if out.send(record).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// The records of one frame: each line starts with its time.
fn records(output: LogOutput) -> Vec<LogRecord> {
    let stderr = matches!(output, LogOutput::StdErr { .. });
    let text = output.into_bytes();
    let text = text.strip_suffix(b"\n").map_or(text.clone(), |stripped| text.slice_ref(stripped));
    text.split(|&byte| byte == b'\n').filter_map(|line| record(text.slice_ref(line), stderr)).collect()
}

/// Parses a line such as `2026-01-02T03:04:05.678901234Z listening`.
fn record(mut line: Bytes, stderr: bool) -> Option<LogRecord> {
    let end = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
    let time: jiff::Timestamp = std::str::from_utf8(&line[..end]).ok()?.parse().ok()?;
    line.advance((end + 1).min(line.len()));
    Some(LogRecord { time_ns: u64::try_from(time.as_nanosecond()).ok()?, stderr, line })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_the_time_of_each_line() {
        let message = Bytes::from_static(b"2026-01-02T03:04:05.000000007Z a b\n2026-01-02T03:04:06Z \n");
        let records = records(LogOutput::StdErr { message });
        let got: Vec<_> = records.iter().map(|r| (r.time_ns, r.stderr, &r.line[..])).collect();
        assert_eq!(got, [(1_767_323_045_000_000_007, true, &b"a b"[..]), (1_767_323_046_000_000_000, true, b"")]);
    }
}
