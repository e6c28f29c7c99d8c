//! The daemon's side of a log: reads both files, and follows the log of a running task.

use std::{
    fs::File,
    io::{self, Read},
    ops::ControlFlow,
    os::unix::fs::MetadataExt,
    path::Path,
};

use tokio::sync::mpsc;
use weft_model::{LogOptions, LogRecord};

use super::{super::dir::TaskDir, record::decode, watch::DirWatch};
use crate::runtime::logs::{Tail, is_requested};

/// Bytes of a log that are read in one call.
const CHUNK_BYTES: usize = 64 << 10;

/// Sends the records that `options` request. Returns after the last one, or once the receiver is
/// closed.
pub(in crate::runtime::process) async fn read(
    dir: TaskDir,
    options: LogOptions,
    out: mpsc::Sender<LogRecord>,
) -> io::Result<()> {
    // The watch starts before the first read, so that no change between them is missed.
    let watch = options.follow.then(|| DirWatch::new(dir.path())).transpose()?;
    let mut log = Reader::open(&dir.join("log"))?;
    let older = Reader::open(&dir.join("log.1"))?;
    let mut sink = RecordSink { options: &options, tail: options.tail.map(Tail::new), out: &out };
    let rotated_meanwhile = log.as_ref().map(|r| r.inode) == older.as_ref().map(|r| r.inode);
    for reader in older.filter(|_| !rotated_meanwhile).as_mut().into_iter().chain(log.as_mut()) {
        if sink.drain(reader).await?.is_break() {
            return Ok(());
        }
    }
    if sink.flush_tail().await.is_break() {
        return Ok(());
    }
    match watch {
        Some(watch) => follow(&dir, log, &watch, &mut sink).await,
        None => Ok(()),
    }
}

/// Sends the requested records to the receiver. Its methods return `Break` once the receiver is
/// closed.
struct RecordSink<'a> {
    options: &'a LogOptions,
    /// Keeps the newest records until all existing records are read. `None` after that, and if no
    /// tail was requested.
    tail: Option<Tail>,
    out: &'a mpsc::Sender<LogRecord>,
}

impl RecordSink<'_> {
    /// Reads a file to its current end.
    async fn drain(&mut self, reader: &mut Reader) -> io::Result<ControlFlow<()>> {
        while let Some(records) = reader.next()? {
            if self.send(records).await.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn send(&mut self, records: impl IntoIterator<Item = LogRecord>) -> ControlFlow<()> {
        for record in records.into_iter().filter(|record| is_requested(self.options, record)) {
            match &mut self.tail {
                Some(tail) => tail.push(record),
                None if self.out.send(record).await.is_err() => return ControlFlow::Break(()),
                None => {}
            }
        }
        ControlFlow::Continue(())
    }

    /// Sends the kept records. Later records are sent at once.
    async fn flush_tail(&mut self) -> ControlFlow<()> {
        let kept = self.tail.take().map(Tail::into_records);
        self.send(kept.into_iter().flatten()).await
    }
}

/// Sends new records until the task has ended, across rotations of the log.
async fn follow(dir: &TaskDir, mut log: Option<Reader>, watch: &DirWatch, sink: &mut RecordSink<'_>) -> io::Result<()> {
    loop {
        // Checked before the reads below: the shim writes `exit.json` after the last record, so
        // these reads then find all records.
        let ended = dir.join("exit.json").exists() || !dir.join("record.json").exists();
        loop {
            if let Some(log) = &mut log
                && sink.drain(log).await?.is_break()
            {
                return Ok(());
            }
            let newest = Reader::open(&dir.join("log"))?;
            if newest.as_ref().map(|r| r.inode) == log.as_ref().map(|r| r.inode) {
                break;
            }
            // The log was rotated. The shim may have written records to the old file after the read
            // above.
            if let Some(old) = &mut log
                && sink.drain(old).await?.is_break()
            {
                return Ok(());
            }
            log = newest;
        }
        if ended {
            return Ok(());
        }
        tokio::select! {
            () = sink.out.closed() => return Ok(()),
            changed = watch.changed() => changed?,
        }
    }
}

/// Reads the records of one log file from its beginning.
#[derive(Debug)]
struct Reader {
    file: File,
    inode: u64,
    partial: Vec<u8>,
}

impl Reader {
    fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            Ok(file) => Ok(Some(Self { inode: file.metadata()?.ino(), file, partial: Vec::new() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The next records. `None` at the current end of the file.
    fn next(&mut self) -> io::Result<Option<Vec<LogRecord>>> {
        let start = self.partial.len();
        self.partial.resize(start + CHUNK_BYTES, 0);
        let read = self.file.read(&mut self.partial[start..]);
        self.partial.truncate(start + *read.as_ref().unwrap_or(&0));
        if read? == 0 {
            return Ok(None);
        }
        let whole = self.partial.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let rest = self.partial.split_off(whole);
        let text = std::mem::replace(&mut self.partial, rest);
        Ok(Some(text.split(|&byte| byte == b'\n').filter_map(decode).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::{
            record::{Stream, encode},
            writer::{MAX_FILE_BYTES, Writer},
        },
        *,
    };

    async fn read_all(dir: &TaskDir, options: LogOptions) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(1024);
        read(dir.clone(), options, sender).await.expect("a readable log");
        let mut out = Vec::new();
        while let Some(record) = receiver.recv().await {
            out.push(String::from_utf8(record.line.to_vec()).expect("a line in UTF-8"));
        }
        out
    }

    #[tokio::test]
    async fn reads_both_files_and_counts_the_tail_over_both() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dir = TaskDir::new(tmp.path());
        let text = |range: std::ops::Range<u64>| {
            let mut out = Vec::new();
            let stream = |n| if n % 2 == 1 { Stream::Stderr } else { Stream::Stdout };
            range.for_each(|n| encode(&mut out, n.into(), stream(n), format!("line {n}").as_bytes()));
            out
        };
        fs::write(dir.join("log.1"), text(0..3)).expect("a writable directory");
        fs::write(dir.join("log"), text(3..6)).expect("a writable directory");
        let both = LogOptions { stdout: true, stderr: true, ..LogOptions::default() };
        assert_eq!(read_all(&dir, both.clone()).await.len(), 6);
        assert_eq!(read_all(&dir, LogOptions { tail: Some(4), ..both.clone() }).await[0], "line 2");
        assert_eq!(read_all(&dir, LogOptions { stdout: false, ..both }).await, ["line 1", "line 3", "line 5"]);
    }

    #[tokio::test]
    async fn follows_a_log_across_rotations_until_the_task_ends() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dir = TaskDir::new(tmp.path());
        fs::write(dir.join("record.json"), b"{}").expect("a writable directory");
        let mut writer = Writer::open(&dir).expect("a writable directory");
        let mut write = |n: u32, rotate: bool| {
            let mut out = Vec::new();
            encode(&mut out, n.into(), Stream::Stdout, n.to_string().as_bytes());
            writer.len = if rotate { MAX_FILE_BYTES } else { 0 };
            writer.append(&out).expect("a writable log");
        };
        write(0, false);
        let (sender, mut receiver) = mpsc::channel(1);
        let options = LogOptions { follow: true, stdout: true, ..LogOptions::default() };
        let reading = tokio::spawn(read(dir.clone(), options, sender));
        for n in 1..20 {
            assert_eq!(receiver.recv().await.expect("another record").line, (n - 1).to_string());
            write(n, n % 7 == 0);
        }
        assert_eq!(receiver.recv().await.expect("another record").line, "19");
        fs::write(dir.join("exit.json"), b"{}").expect("a writable directory");
        assert!(receiver.recv().await.is_none());
        reading.await.expect("the reader does not panic").expect("a readable log");
    }
}
