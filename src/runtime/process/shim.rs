//! The shim: one small process beside each task, its parent in the machine's process tree. It makes the container, writes
//! the task's log, stops it when told, and writes down how it ended; daemons come and go meanwhile.
//!
//! Single-threaded, as libcontainer forks. Its standard output is the daemon's to wait on: closed as soon as the task runs or has
//! failed to. SIGTERM means: stop the task.

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
    logs::{Lines, Stream, Writer, encode},
    program::Program,
};
use crate::{
    clock::{now, now_ms},
    error_chain::error_chain,
    runtime::{Exit, RuntimeError},
};

/// Read from a pipe at a time: what a pipe holds by default.
const CHUNK_BYTES: usize = 64 << 10;
/// Exit code of what SIGKILL ended.
const KILLED: i32 = 128 + Signal::SIGKILL as i32;

/// Takes care of the task in `dir` from its start to its end.
pub(super) fn run(dir: &TaskDir, run_dir: &Path) -> Result<(), RuntimeError> {
    // Before anything: a signal from now on waits for its turn.
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
            tell_daemon()?;
            let code = task.supervise(&signals, log).map_err(RuntimeError::kernel("watch the task"))?;
            let starved = code == KILLED && cgroup::ran_out_of_memory(&task.cgroup)?;
            dir.write_exit(&Exit { code, at_ms: now_ms(), error: starved.then(|| "out of memory".to_owned()) })
        }
        Err(error) => {
            // A container that was made, but does not run its program, must not outlive this.
            if let Some(record) = dir.record()? {
                cgroup::remove(&record.cgroup)?;
            }
            dir.write_exit(&Exit { code: 127, at_ms: now_ms(), error: Some(error_chain(&error)) })?;
            Err(error)
        }
    }
}

/// Lets go of the pipe that the daemon waits on.
fn tell_daemon() -> Result<(), RuntimeError> {
    let null = File::options().write(true).open("/dev/null").map_err(RuntimeError::io("open", "/dev/null"))?;
    dup2_stdout(&null).map_err(RuntimeError::kernel("close standard output"))
}

/// A task whose program runs.
struct Task {
    running: Running,
    init: Process,
    stdout: Output,
    stderr: Output,
    cgroup: PathBuf,
    stop_signal: Signal,
    stop_grace: Duration,
}

fn start(dir: &TaskDir, run_dir: &Path) -> Result<Task, RuntimeError> {
    let record = dir.record()?.ok_or(RuntimeError::NotPrepared)?;
    let failed = |reason: String| RuntimeError::Start { reason };
    // A session of its own, so that no terminal's signals reach it; and not one of the daemon's processes.
    setsid().map_err(RuntimeError::kernel("make a session"))?;
    raise_open_files();
    cgroup::join(&record.shim_cgroup)?;
    record.image.mount(&dir.rootfs(), run_dir)?;

    let pipe = || pipe2(OFlag::O_CLOEXEC).map_err(RuntimeError::kernel("make a pipe"));
    let (stdout, stderr, report) = (pipe()?, pipe()?, pipe()?);
    for write in [&stdout.1, &stderr.1] {
        // So that a program of another user can open /dev/stdout.
        rustix::fs::fchown(
            write,
            Some(rustix::fs::Uid::from_raw(record.uid)),
            Some(rustix::fs::Gid::from_raw(record.gid)),
        )
        .map_err(RuntimeError::kernel("give away a pipe"))?;
    }
    let stdin = File::open("/dev/null").map_err(RuntimeError::io("open", "/dev/null"))?;
    let created = create(dir, &record, stdin, (stdout.1, stderr.1, report.1));
    // What our own part inside the container says is plainer than what libcontainer makes of it.
    let mut container = created.map_err(|error| failed(running(&report.0).err().unwrap_or(error)))?;
    let pid = container.pid().map_or(0, |pid| pid.as_raw().unsigned_abs());
    let gone = || failed("the container ended at once".to_owned());
    let id = ProcessId::of(pid).map_err(RuntimeError::kernel("find the container"))?.ok_or_else(gone)?;
    let init = id.open().map_err(RuntimeError::kernel("hold the container"))?.ok_or_else(gone)?;
    container.start().map_err(|error| failed(error_chain(&error)))?;
    running(&report.0).map_err(failed)?;
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

/// A task may hold as many descriptors as this machine lets it: what it inherits is often made for shells.
fn raise_open_files() {
    let mut limits = getrlimit(Resource::Nofile);
    limits.current = limits.maximum;
    // Lowering it, or raising it to what is allowed, never fails; and the task can live with less.
    let _ = setrlimit(Resource::Nofile, limits);
}

/// Makes the container, all but its program. The write ends are closed here when this returns: they are the task's then.
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

/// Waits until the program runs, or says why it does not.
fn running(report: &OwnedFd) -> Result<(), String> {
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
    /// Until the task has ended: its exit code.
    fn supervise(&mut self, signals: &SignalFd, mut log: Writer) -> io::Result<i32> {
        let mut stop = Stop::Never;
        loop {
            let [signalled, ended, out, err] = self.wait(signals, stop)?;
            if out {
                self.stdout.copy(&mut log)?;
            }
            if err {
                self.stderr.copy(&mut log)?;
            }
            if signalled && signals.read_signal()?.is_some() && stop == Stop::Never {
                self.init.signal(self.stop_signal)?;
                stop = Stop::KillAt(Instant::now() + self.stop_grace);
            }
            if matches!(stop, Stop::KillAt(at) if at <= Instant::now()) {
                // The first process of a PID namespace takes all others with it.
                self.init.signal(Signal::SIGKILL)?;
                stop = Stop::Killed;
            }
            if ended {
                break;
            }
        }
        let code = self.reap()?;
        // Its last words. Nobody else can hold the other ends, but a descriptor may have been passed out of the container.
        for output in [&mut self.stdout, &mut self.stderr] {
            while output.copy(&mut log)? {}
            output.finish(&mut log);
        }
        Ok(code)
    }

    /// Which of the signal, the end, and the two outputs is there.
    fn wait(&self, signals: &SignalFd, stop: Stop) -> io::Result<[bool; 4]> {
        let limit = match stop {
            Stop::Never | Stop::Killed => None,
            Stop::KillAt(at) => {
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

/// How far stopping has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Never,
    KillAt(Instant),
    Killed,
}

/// One of the task's outputs, on its way into the log.
struct Output {
    /// `None` once the task has closed it.
    pipe: Option<OwnedFd>,
    stream: Stream,
    lines: Lines,
}

impl Output {
    fn new(pipe: OwnedFd, stream: Stream) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self { pipe: Some(pipe), stream, lines: Lines::default() })
    }

    fn pipe(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Copies some of what is in the pipe; `false` where nothing is.
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
        write(log, &records);
        Ok(len > 0)
    }

    fn finish(&mut self, log: &mut Writer) {
        let (time_ns, stream, mut records) = (now().as_nanos(), self.stream, Vec::new());
        self.lines.finish(|line| encode(&mut records, time_ns, stream, line));
        write(log, &records);
    }
}

/// A task is not held up, let alone ended, because its log has no room: then a part of the log is missing.
fn write(log: &mut Writer, records: &[u8]) {
    if !records.is_empty() {
        let _ = log.append(records);
    }
}
