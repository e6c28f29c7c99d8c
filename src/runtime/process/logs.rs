//! A task's log: two files of bounded size, written by its shim, read by the daemon, even both at once.
//!
//! A record is a line: Unix nanoseconds, `o` or `e` for the stream, and what the task wrote:
//! `1700000000000000000 o listening`. When `log` is full it becomes `log.1`, in place of an older one.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    ops::ControlFlow,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rustix::fs::inotify;
use tokio::{io::unix::AsyncFd, sync::mpsc};
use weft_model::{LogOptions, LogRecord};

use super::{dir::TaskDir, kernel::proc::readable};
use crate::runtime::logs::{Tail, wanted};

/// A file that has grown to this size is rotated: a task keeps twice as much at most.
const MAX_FILE_BYTES: u64 = 8 << 20;
/// A longer line is cut into several.
const MAX_LINE_BYTES: usize = 16 << 10;
/// What is read of a log at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// Which of a task's outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// How a record names it.
    fn letter(self) -> u8 {
        match self {
            Self::Stdout => b'o',
            Self::Stderr => b'e',
        }
    }
}

/// Cuts what a task writes into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8])) {
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.partial.len();
            let within = &bytes[..bytes.len().min(room)];
            match within.iter().position(|&byte| byte == b'\n') {
                Some(end) => {
                    self.partial.extend_from_slice(&within[..end]);
                    bytes = &bytes[end + 1..];
                }
                None => {
                    self.partial.extend_from_slice(within);
                    bytes = &bytes[within.len()..];
                    if self.partial.len() < MAX_LINE_BYTES {
                        return;
                    }
                }
            }
            line(&self.partial);
            self.partial.clear();
        }
    }

    /// The last line, if it has no end.
    pub(super) fn finish(&mut self, mut line: impl FnMut(&[u8])) {
        if !self.partial.is_empty() {
            line(&std::mem::take(&mut self.partial));
        }
    }
}

/// The shim's end of the log.
#[derive(Debug)]
pub(super) struct Writer {
    dir: PathBuf,
    file: File,
    len: u64,
}

impl Writer {
    pub(super) fn open(dir: &TaskDir) -> io::Result<Self> {
        let file = append_to(&dir.join("log"))?;
        let len = file.metadata()?.len();
        Ok(Self { dir: dir.path().to_owned(), file, len })
    }

    /// Appends whole records, as [`encode`] made them.
    pub(super) fn append(&mut self, records: &[u8]) -> io::Result<()> {
        if self.len >= MAX_FILE_BYTES {
            fs::rename(self.dir.join("log"), self.dir.join("log.1"))?;
            self.file = append_to(&self.dir.join("log"))?;
            self.len = 0;
        }
        self.file.write_all(records)?;
        self.len += records.len() as u64;
        Ok(())
    }
}

/// What a task says is its owner's alone to read.
fn append_to(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

/// Adds a record to `out`.
pub(super) fn encode(out: &mut Vec<u8>, time_ns: u128, stream: Stream, line: &[u8]) {
    out.extend_from_slice(time_ns.to_string().as_bytes());
    out.extend_from_slice(&[b' ', stream.letter(), b' ']);
    out.extend_from_slice(line);
    out.push(b'\n');
}

/// A record from its line; `None` for a line torn by a crash.
fn decode(line: &[u8]) -> Option<LogRecord> {
    let mut parts = line.splitn(3, |&byte| byte == b' ');
    let time_ns = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let letter = parts.next()?;
    let stream = [Stream::Stdout, Stream::Stderr].into_iter().find(|stream| letter == [stream.letter()])?;
    let line = Bytes::copy_from_slice(parts.next()?);
    Some(LogRecord { time_ns, stderr: stream == Stream::Stderr, line })
}

/// Sends what `options` ask for, until that is all or nobody listens any more.
pub(super) async fn read(dir: TaskDir, options: LogOptions, out: mpsc::Sender<LogRecord>) -> io::Result<()> {
    // Watching begins before reading: nothing can be written unseen in between.
    let watch = options.follow.then(|| Watch::new(dir.path())).transpose()?;
    let mut log = Reader::open(&dir.join("log"))?;
    let older = Reader::open(&dir.join("log.1"))?;
    let mut sink = Sink { options: &options, tail: options.tail.map(Tail::new), out: &out };
    let rotated_meanwhile = log.as_ref().map(|r| r.inode) == older.as_ref().map(|r| r.inode);
    for reader in older.filter(|_| !rotated_meanwhile).as_mut().into_iter().chain(log.as_mut()) {
        if sink.drain(reader).await?.is_break() {
            return Ok(());
        }
    }
    if sink.end_tail().await.is_break() {
        return Ok(());
    }
    match watch {
        Some(watch) => follow(&dir, log, &watch, &mut sink).await,
        None => Ok(()),
    }
}

/// Where the wanted records go; `Break` where nobody listens any more.
struct Sink<'a> {
    options: &'a LogOptions,
    /// Until the end is known, only the newest are held.
    tail: Option<Tail>,
    out: &'a mpsc::Sender<LogRecord>,
}

impl Sink<'_> {
    /// Takes all that is in a file by now.
    async fn drain(&mut self, reader: &mut Reader) -> io::Result<ControlFlow<()>> {
        while let Some(records) = reader.next()? {
            if self.take(records).await.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn take(&mut self, records: impl IntoIterator<Item = LogRecord>) -> ControlFlow<()> {
        for record in records.into_iter().filter(|record| wanted(self.options, record)) {
            match &mut self.tail {
                Some(tail) => tail.push(record),
                None if self.out.send(record).await.is_err() => return ControlFlow::Break(()),
                None => {}
            }
        }
        ControlFlow::Continue(())
    }

    /// Lets go of what is held; from here on nothing is.
    async fn end_tail(&mut self) -> ControlFlow<()> {
        let held = self.tail.take().map(Tail::into_records);
        self.take(held.into_iter().flatten()).await
    }
}

async fn follow(dir: &TaskDir, mut log: Option<Reader>, watch: &Watch, sink: &mut Sink<'_>) -> io::Result<()> {
    loop {
        // Looked at before the last read: the shim says that the task ended after it wrote the last record.
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
            // Rotated. What was written to the old file after the read above is in it still.
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

/// Reads one log file from its beginning, record by record, as far as it goes.
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

    /// Some more records; `None` at the end of what is written by now.
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

/// Tells of changes in a directory (inotify(7)).
#[derive(Debug)]
struct Watch(AsyncFd<rustix::fd::OwnedFd>);

impl Watch {
    fn new(dir: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let events = inotify::WatchFlags::MODIFY | inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, dir, events | inotify::WatchFlags::DELETE)?;
        Ok(Self(readable(fd)?))
    }

    async fn changed(&self) -> io::Result<()> {
        let mut events = [0; 4096];
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut events)?)) {
                Ok(read) => return read.map(|_| ()),
                Err(_would_block) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(chunks: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut lines, mut out) = (Lines::default(), Vec::new());
        for chunk in chunks {
            lines.feed(chunk, |line| out.push(line.to_vec()));
        }
        lines.finish(|line| out.push(line.to_vec()));
        out
    }

    #[test]
    fn lines_are_cut_wherever_chunks_end() {
        assert_eq!(lines(&[b"a\nb", b"c\n", b"\nd"]), [&b"a"[..], b"bc", b"", b"d"]);
        assert!(lines(&[b""]).is_empty());
    }

    #[test]
    fn a_long_line_is_cut_into_several() {
        let long = vec![b'x'; 2 * MAX_LINE_BYTES + 1];
        let lengths: Vec<_> = lines(&[&long, b"\n"]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [MAX_LINE_BYTES, MAX_LINE_BYTES, 1]);
    }

    #[test]
    fn records_survive_the_file() {
        for (stream, line) in
            [(Stream::Stdout, &b"hello world"[..]), (Stream::Stderr, b""), (Stream::Stdout, b"\xff \x00")]
        {
            let (mut text, stderr) = (Vec::new(), stream == Stream::Stderr);
            encode(&mut text, 1_700_000_000_000_000_000, stream, line);
            let record = decode(text.strip_suffix(b"\n").unwrap()).unwrap();
            assert_eq!((record.time_ns, record.stderr, &record.line[..]), (1_700_000_000_000_000_000, stderr, line));
        }
        assert_eq!(decode(b"17000"), None);
        assert_eq!(decode(b"x o y"), None);
        assert_eq!(decode(b"1 x y"), None);
    }

    async fn all(dir: &TaskDir, options: LogOptions) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(1024);
        read(dir.clone(), options, sender).await.unwrap();
        let mut out = Vec::new();
        while let Some(record) = receiver.recv().await {
            out.push(String::from_utf8(record.line.to_vec()).unwrap());
        }
        out
    }

    #[tokio::test]
    async fn both_files_are_read_and_the_tail_counts_over_both() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = TaskDir::new(tmp.path());
        let text = |range: std::ops::Range<u64>| {
            let mut out = Vec::new();
            let stream = |n| if n % 2 == 1 { Stream::Stderr } else { Stream::Stdout };
            range.for_each(|n| encode(&mut out, n.into(), stream(n), format!("line {n}").as_bytes()));
            out
        };
        fs::write(dir.join("log.1"), text(0..3)).unwrap();
        fs::write(dir.join("log"), text(3..6)).unwrap();
        let both = LogOptions { stdout: true, stderr: true, ..LogOptions::default() };
        assert_eq!(all(&dir, both.clone()).await.len(), 6);
        assert_eq!(all(&dir, LogOptions { tail: Some(4), ..both.clone() }).await[0], "line 2");
        assert_eq!(all(&dir, LogOptions { stdout: false, ..both }).await, ["line 1", "line 3", "line 5"]);
    }

    #[tokio::test]
    async fn following_crosses_a_rotation_and_ends_with_the_task() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = TaskDir::new(tmp.path());
        fs::write(dir.join("record.json"), b"{}").unwrap();
        let mut writer = Writer::open(&dir).unwrap();
        let mut write = |n: u32, rotate: bool| {
            let mut out = Vec::new();
            encode(&mut out, n.into(), Stream::Stdout, n.to_string().as_bytes());
            writer.len = if rotate { MAX_FILE_BYTES } else { 0 };
            writer.append(&out).unwrap();
        };
        write(0, false);
        let (sender, mut receiver) = mpsc::channel(1);
        let options = LogOptions { follow: true, stdout: true, ..LogOptions::default() };
        let reading = tokio::spawn(read(dir.clone(), options, sender));
        for n in 1..20 {
            assert_eq!(receiver.recv().await.unwrap().line, (n - 1).to_string());
            write(n, n % 7 == 0);
        }
        assert_eq!(receiver.recv().await.unwrap().line, "19");
        fs::write(dir.join("exit.json"), b"{}").unwrap();
        assert!(receiver.recv().await.is_none());
        reading.await.unwrap().unwrap();
    }
}
