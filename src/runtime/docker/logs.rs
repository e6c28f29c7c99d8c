//! A task's log, as the engine keeps it.

use std::collections::HashMap;

use bollard::{
    Docker,
    container::LogOutput,
    errors::Error,
    query_parameters::{ListContainersOptionsBuilder, LogsOptionsBuilder},
};
use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use tokio::sync::mpsc;
use weft_model::{LogOptions, LogRecord};
use weft_model::{NodeName, TaskId};

use super::container::{NODE_LABEL, Part, TASK_LABEL, identify};
use crate::runtime::logs::wanted;

/// Sends what `options` ask for, until that is all or nobody listens any more. Nothing where the task has no container.
pub(super) async fn read(
    docker: &Docker,
    node: &NodeName,
    task: &TaskId,
    options: &LogOptions,
    out: &mpsc::Sender<LogRecord>,
) -> Result<(), Error> {
    let labels = vec![format!("{NODE_LABEL}={node}"), format!("{TASK_LABEL}={task}")];
    let filters = HashMap::from([("label", labels)]);
    let containers = docker
        .list_containers(Some(ListContainersOptionsBuilder::default().all(true).filters(&filters).build()))
        .await?;
    let own = containers.into_iter().find(|c| matches!(identify(c.labels.as_ref()), Some((_, Part::Task))));
    let Some(id) = own.and_then(|own| own.id) else { return Ok(()) };
    let mut query = LogsOptionsBuilder::default()
        .follow(options.follow)
        .stdout(options.stdout)
        .stderr(options.stderr)
        .timestamps(true)
        .tail(&options.tail.map_or_else(|| "all".to_owned(), |tail| tail.to_string()));
    // The engine is asked in whole seconds; the rest is done here.
    if let Some(since) = options.since_ms.and_then(|ms| i32::try_from(ms / 1000).ok()) {
        query = query.since(since);
    }
    if let Some(until) = options.until_ms.and_then(|ms| i32::try_from(ms.div_ceil(1000)).ok()) {
        query = query.until(until);
    }
    let mut output = std::pin::pin!(docker.logs(&id, Some(query.build())));
    loop {
        let output = tokio::select! {
            () = out.closed() => return Ok(()),
            output = output.next() => output,
        };
        let Some(output) = output.transpose()? else { return Ok(()) };
        for record in records(output).into_iter().filter(|record| wanted(options, record)) {
            if out.send(record).await.is_err() {
                return Ok(());
            }
        }
    }
}

/// The lines of one frame, each behind its time.
fn records(output: LogOutput) -> Vec<LogRecord> {
    let stderr = matches!(output, LogOutput::StdErr { .. });
    let text = output.into_bytes();
    let text = text.strip_suffix(b"\n").map_or(text.clone(), |text_less| text.slice_ref(text_less));
    text.split(|&byte| byte == b'\n').filter_map(|line| record(text.slice_ref(line), stderr)).collect()
}

/// `2026-01-02T03:04:05.678901234Z listening`.
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
    fn each_line_has_its_time() {
        let message = Bytes::from_static(b"2026-01-02T03:04:05.000000007Z a b\n2026-01-02T03:04:06Z \n");
        let records = records(LogOutput::StdErr { message });
        let got: Vec<_> = records.iter().map(|r| (r.time_ns, r.stderr, &r.line[..])).collect();
        assert_eq!(got, [(1_767_323_045_000_000_007, true, &b"a b"[..]), (1_767_323_046_000_000_000, true, b"")]);
    }
}
