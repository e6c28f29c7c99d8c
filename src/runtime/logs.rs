//! Selects the log records that a reader requested. Pure.
//!
//! The log readers of both runtimes call it.

use std::collections::VecDeque;

use weft_model::{LogOptions, LogRecord};

/// Depth of the channel between the task that reads a log and the stream of records. The
/// reader can read ahead by this many records.
pub(super) const STREAM_DEPTH: usize = 256;

/// Whether `options` request a record, by its time and its stream.
pub(super) fn is_requested(options: &LogOptions, record: &LogRecord) -> bool {
    let time_ms = record.time_ns / 1_000_000;
    let stream = if record.stderr { options.stderr } else { options.stdout };
    stream
        && options.since_ms.is_none_or(|since_ms| time_ms >= since_ms)
        && options.until_ms.is_none_or(|until_ms| time_ms <= until_ms)
}

/// Keeps the newest records, up to a fixed number.
#[derive(Debug)]
pub(super) struct Tail {
    len: usize,
    records: VecDeque<LogRecord>,
}

impl Tail {
    pub(super) fn new(len: u64) -> Self {
        Self { len: usize::try_from(len).unwrap_or(usize::MAX), records: VecDeque::new() }
    }

    pub(super) fn push(&mut self, record: LogRecord) {
        self.records.push_back(record);
        if self.records.len() > self.len {
            self.records.pop_front();
        }
    }

    pub(super) fn into_records(self) -> VecDeque<LogRecord> {
        self.records
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(time_ms: u64, stderr: bool) -> LogRecord {
        LogRecord { time_ns: time_ms * 1_000_000 + 7, stderr, line: Bytes::from_static(b"x") }
    }

    #[test]
    fn selects_by_time_and_stream() {
        let options = LogOptions { stdout: true, since_ms: Some(10), until_ms: Some(20), ..LogOptions::default() };
        let check = |time_ms, stderr, want| assert_eq!(is_requested(&options, &record(time_ms, stderr)), want);
        check(9, false, false);
        check(10, false, true);
        check(20, false, true);
        check(21, false, false);
        check(15, true, false);
    }

    #[test]
    fn a_tail_keeps_the_newest_records() {
        let mut tail = Tail::new(2);
        (0..5).for_each(|time| tail.push(record(time, false)));
        let times: Vec<_> = tail.into_records().iter().map(|r| r.time_ns / 1_000_000).collect();
        assert_eq!(times, [3, 4]);
        let mut none = Tail::new(0);
        none.push(record(1, false));
        assert!(none.into_records().is_empty());
    }
}
