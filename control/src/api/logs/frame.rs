//! Encodes log records as the frames that clients read. Each frame holds one line. Pure.

use axum::body::Bytes;
use weft_model::{LogRecord, ServiceId, TaskId, state::Task};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// What a line contains before the text of its record.
#[derive(Debug, Clone, Copy)]
pub(super) struct LineFormat {
    pub(super) timestamps: bool,
    /// The ids of node, service and task, and the name of the task. Clients build the prefix of the
    /// line from them.
    pub(super) details: bool,
}

/// The task that records come from.
#[derive(Debug, Clone)]
pub(super) struct LogSource {
    pub(super) task: TaskId,
    name: String,
    service: ServiceId,
    node: String,
}

impl LogSource {
    pub(super) fn of(task: &Task) -> Self {
        let node = task.node.as_ref().map(ToString::to_string).unwrap_or_default();
        Self { task: task.id.clone(), name: task.name.clone(), service: task.service.clone(), node }
    }
}

/// Encodes a record as the header `[stream, 0, 0, 0, length (big endian, 4 bytes)]` and one line.
/// Clients expect that each frame is a whole line.
pub(super) fn frame(record: &LogRecord, source: &LogSource, format: LineFormat) -> Bytes {
    let mut line = Vec::with_capacity(record.line.len() + 160);
    if format.timestamps {
        line.extend_from_slice(timestamp(record.time_ns).as_bytes());
        line.push(b' ');
    }
    if format.details {
        let LogSource { node, service, task, name } = source;
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

/// The time in the format of RFC 3339. Seconds always have nine decimals, so that lines are
/// aligned.
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
        let source = LogSource {
            task: TaskId::from_random(1),
            name: "web.1.x".into(),
            service: ServiceId::from_random(2),
            node: "n".into(),
        };
        let plain = frame(&record, &source, LineFormat { timestamps: false, details: false });
        assert_eq!(&plain[..], b"\x02\0\0\0\0\0\0\x06hello\n");
        let timed = frame(&record, &source, LineFormat { timestamps: true, details: true });
        let text = String::from_utf8_lossy(&timed[8..]).into_owned();
        assert!(text.starts_with("1970-01-01T00:00:01.000000001Z com.docker.swarm.node.id=n,com.docker"), "{text}");
        assert!(text.ends_with(" hello\n"), "{text}");
    }
}
