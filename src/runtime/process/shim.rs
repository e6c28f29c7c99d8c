//! The shim: one small process for each task, and the parent of the task's first process. It starts
//! the container, copies the task's output to its log, stops the task on SIGTERM, and writes how
//! the task ended to `exit.json`. It outlives the daemon.
//!
//! The daemon starts it as a hidden subcommand and waits until its standard output is closed. The
//! task then runs, or has failed to start. The shim must stay single-threaded, because libcontainer
//! forks.
//!
//! Invariants that the daemon relies on: `exit.json` is written after the last record of the log.
//! If a shim ends without writing `exit.json`, it was killed or it failed, and the daemon kills the
//! task.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use libcontainer::{
    container::{Container, builder::ContainerBuilder},
    syscall::syscall::SyscallType,
};
use nix::{
    errno::Errno,
    fcntl::OFlag,
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitStatus, waitpid},
    },
    unistd::{Pid, dup2_stdout, pipe2, setsid},
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Resource, getrlimit, setrlimit},
};

use super::{
    dir::{Record, Running, TaskDir},
    kernel::{
        cgroup,
        proc::{Process, ProcessId},
    },
    logs::{LineSplitter, Stream, Writer, encode},
    program::Program,
};
use crate::{
    clock::{now, now_ms},
    runtime::{Exit, RuntimeError},
};
use weft_model::error_chain;

/// Bytes that are read from a pipe in one call: the default capacity of a pipe (pipe(7)).
const CHUNK_BYTES: usize = 64 << 10;
/// Exit code of a task that was ended by SIGKILL.
const EXIT_CODE_KILLED: i32 = 128 + Signal::SIGKILL as i32;

/// Runs the task in `dir` until it ends. Returns at once if the task already has a shim.
pub(super) fn run(dir: &TaskDir, run_dir: &Path) -> Result<(), RuntimeError> {
    // This must come first: a blocked signal stays pending until `Task::supervise` reads it.
    let terminate: SigSet = [Signal::SIGTERM].into_iter().collect();
    terminate.thread_block().map_err(RuntimeError::kernel("block signals"))?;
    if !dir.claim(ProcessId::this().map_err(RuntimeError::kernel("find this process in /proc"))?)? {
        return Ok(());
    }
    match start(dir, run_dir) {
        Ok(mut task) => {
            dir.write_running(&task.running)?;
            let signals = SignalFd::with_flags(&terminate, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
                .map_err(RuntimeError::kernel("listen for signals"))?;
            let log = Writer::open(dir).map_err(RuntimeError::io("open the log in", dir.path()))?;
            close_stdout()?;
            let code = task.supervise(&signals, log).map_err(RuntimeError::kernel("watch the task"))?;
            let out_of_memory = code == EXIT_CODE_KILLED && cgroup::ran_out_of_memory(&task.cgroup)?;
            dir.write_exit(&Exit { code, at_ms: now_ms(), error: out_of_memory.then(|| "out of memory".to_owned()) })
        }
        Err(error) => {
            // The container may exist although its program does not run. It must not outlive the
            // shim.
            if let Some(record) = dir.record()? {
                cgroup::remove(&record.cgroup)?;
            }
            dir.write_exit(&Exit { code: 127, at_ms: now_ms(), error: Some(error_chain(&error)) })?;
            Err(error)
        }
    }
}

/// Closes the pipe at whose other end the daemon waits.
fn close_stdout() -> Result<(), RuntimeError> {
    let null = File::options().write(true).open("/dev/null").map_err(RuntimeError::io("open", "/dev/null"))?;
    dup2_stdout(&null).map_err(RuntimeError::kernel("close standard output"))
}

/// A task with a running program.
struct Task {
    running: Running,
    init: Process,
    stdout: Output,
    stderr: Output,
    cgroup: PathBuf,
    stop_signal: Signal,
    stop_grace: Duration,
}

/// Creates the container and starts the task's program.
fn start(dir: &TaskDir, run_dir: &Path) -> Result<Task, RuntimeError> {
    let record = dir.record()?.ok_or(RuntimeError::NotPrepared)?;
    let failed = |reason: String| RuntimeError::Start { reason };
    // With a session of its own, the shim does not receive the signals of a terminal, or those for
    // the daemon's process group.
    setsid().map_err(RuntimeError::kernel("create a session"))?;
    raise_open_files_limit();
    cgroup::join(&record.shim_cgroup)?;
    record.image.mount(&dir.rootfs(), run_dir)?;

    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(RuntimeError::kernel("create a pipe"));
    let (stdout, stderr, report) = (pipe()?, pipe()?, pipe()?);
    for write in [&stdout.1, &stderr.1] {
        // A program of another user can open /dev/stdout only if it owns the pipe.
        rustix::fs::fchown(
            write,
            Some(rustix::fs::Uid::from_raw(record.uid)),
            Some(rustix::fs::Gid::from_raw(record.gid)),
        )
        .map_err(RuntimeError::kernel("change the owner of a pipe"))?;
    }
    let stdin = File::open("/dev/null").map_err(RuntimeError::io("open", "/dev/null"))?;
    let created = create(dir, &record, stdin, (stdout.1, stderr.1, report.1));
    // The report of `program` inside the container is clearer than libcontainer's error, so the
    // report is preferred.
    let mut container = created.map_err(|error| failed(read_report(&report.0).err().unwrap_or(error)))?;
    let pid = container.pid().map_or(0, |pid| pid.as_raw().unsigned_abs());
    let gone = || failed("the container ended immediately".to_owned());
    let id = ProcessId::of(pid).map_err(RuntimeError::kernel("find the container's process"))?.ok_or_else(gone)?;
    let init = id.open().map_err(RuntimeError::kernel("open the container's process"))?.ok_or_else(gone)?;
    container.start().map_err(|error| failed(error_chain(&error)))?;
    read_report(&report.0).map_err(failed)?;
    Ok(Task {
        running: Running { init: id, since_ms: now_ms() },
        init,
        stdout: Output::new(stdout.0, Stream::Stdout).map_err(RuntimeError::kernel("read a pipe"))?,
        stderr: Output::new(stderr.0, Stream::Stderr).map_err(RuntimeError::kernel("read a pipe"))?,
        cgroup: record.cgroup,
        stop_signal: Signal::try_from(record.stop_signal).unwrap_or(Signal::SIGTERM),
        stop_grace: Duration::from_millis(record.stop_grace_ms),
    })
}

/// Raises the soft limit of open files to the hard limit. The inherited limit is often too low
/// for servers.
fn raise_open_files_limit() {
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = limits.maximum;
    // An error is ignored: the task can also run with the inherited limit.
    let _ = setrlimit(Resource::Nofile, limits);
}

/// Creates the container up to its program. The write ends of the pipes are closed in this process
/// when it returns, and stay open in the container only.
fn create(
    dir: &TaskDir,
    record: &Record,
    stdin: File,
    (stdout, stderr, report): (OwnedFd, OwnedFd, OwnedFd),
) -> Result<Container, String> {
    let program = Program { report: Arc::new(report), init: record.init, dir: record.dir.clone() };
    ContainerBuilder::new("task".to_owned(), SyscallType::default())
        .with_executor(program)
        .with_root_path(dir.join("state"))
        .map_err(|error| error_chain(&error))?
        .with_stdin(stdin)
        .with_stdout(stdout)
        .with_stderr(stderr)
        .as_init(dir.path())
        .with_systemd(false)
        .with_detach(true)
        .build()
        .map_err(|error| error_chain(&error))
}

/// Waits for the report of `program`.
///
/// # Errors
/// The reason why the program does not run.
fn read_report(report: &OwnedFd) -> Result<(), String> {
    let mut line = Vec::new();
    let mut chunk = [0; 512];
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::read(report, &mut chunk)) {
            Ok(0) => break,
            Ok(len) => line.extend_from_slice(&chunk[..len]),
            Err(error) => return Err(error.to_string()),
        }
        if line.contains(&b'\n') {
            break;
        }
    }
    match line.split(|&byte| byte == b'\n').next() {
        None | Some([]) => Ok(()),
        Some(reason) => Err(String::from_utf8_lossy(reason).into_owned()),
    }
}

impl Task {
    /// Runs until the task has ended, and returns its exit code.
    fn supervise(&mut self, signals: &SignalFd, mut log: Writer) -> io::Result<i32> {
        let mut stop = StopState::NotRequested;
        loop {
            let [signalled, ended, out, err] = self.wait(signals, stop)?;
            if out {
                self.stdout.copy(&mut log)?;
            }
            if err {
                self.stderr.copy(&mut log)?;
            }
            if signalled && signals.read_signal()?.is_some() && stop == StopState::NotRequested {
                self.init.signal(self.stop_signal)?;
                stop = StopState::KillAt(Instant::now() + self.stop_grace);
            }
            if matches!(stop, StopState::KillAt(at) if at <= Instant::now()) {
                // When the first process of a PID namespace ends, the kernel kills all other
                // processes in the namespace.
                self.init.signal(Signal::SIGKILL)?;
                stop = StopState::Killed;
            }
            if ended {
                break;
            }
        }
        let code = self.reap()?;
        // Copies the remaining data of the pipes, but does not wait until they are closed: the task
        // may have passed a write end to a process outside of the container, which keeps it open.
        for output in [&mut self.stdout, &mut self.stderr] {
            while output.copy(&mut log)? {}
            output.finish(&mut log);
        }
        Ok(code)
    }

    /// Waits for the next event. Returns whether there is a signal, whether the task has ended, and
    /// whether its standard output and its standard error can be read.
    fn wait(&self, signals: &SignalFd, stop: StopState) -> io::Result<[bool; 4]> {
        let limit = match stop {
            StopState::NotRequested | StopState::Killed => None,
            StopState::KillAt(at) => {
                let left = at.saturating_duration_since(Instant::now());
                Some(Timespec::try_from(left).map_err(io::Error::other)?)
            }
        };
        let sources = [Some(signals.as_fd()), Some(self.init.as_fd()), self.stdout.pipe(), self.stderr.pipe()];
        let mut fds: Vec<_> = sources.iter().flatten().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        rustix::io::retry_on_intr(|| poll(&mut fds, limit.as_ref()))?;
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        Ok(sources.map(|source| source.is_some() && ready.next() == Some(true)))
    }

    fn reap(&self) -> io::Result<i32> {
        let pid = Pid::from_raw(self.running.init.pid.cast_signed());
        loop {
            match waitpid(pid, None) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(code),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(128 + signal as i32),
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// How far the shim has stopped its task: `NotRequested`, then `KillAt` after the stop signal, then
/// `Killed` after the grace period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StopState {
    NotRequested,
    KillAt(Instant),
    Killed,
}

/// Copies one of the task's outputs to the log.
struct Output {
    /// `None` once the task has closed it.
    pipe: Option<OwnedFd>,
    stream: Stream,
    lines: LineSplitter,
}

impl Output {
    fn new(pipe: OwnedFd, stream: Stream) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self { pipe: Some(pipe), stream, lines: LineSplitter::default() })
    }

    fn pipe(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Copies one chunk from the pipe. Returns `false` if the pipe is empty or closed.
    fn copy(&mut self, log: &mut Writer) -> io::Result<bool> {
        let mut chunk = [0; CHUNK_BYTES];
        let len = match self.pipe.as_ref().map(|pipe| rustix::io::read(pipe, &mut chunk)) {
            None | Some(Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)) => return Ok(false),
            Some(Ok(len)) => len,
            Some(Err(error)) => return Err(error.into()),
        };
        if len == 0 {
            self.pipe = None;
        }
        let (time_ns, stream, mut records) = (now().as_nanos(), self.stream, Vec::new());
        self.lines.feed(&chunk[..len], |line| encode(&mut records, time_ns, stream, line));
        append(log, &records);
        Ok(len > 0)
    }

    /// Writes the last line if it has no newline.
    fn finish(&mut self, log: &mut Writer) {
        let (time_ns, stream, mut records) = (now().as_nanos(), self.stream, Vec::new());
        self.lines.finish(|line| encode(&mut records, time_ns, stream, line));
        append(log, &records);
    }
}

/// Appends to the log. Errors are ignored: if the disk is full, records are missing from the log,
/// but the task continues to run.
fn append(log: &mut Writer, records: &[u8]) {
    if !records.is_empty() {
        let _ = log.append(records);
    }
}
