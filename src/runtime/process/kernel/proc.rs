//! Handles on other processes: identifies a process even after the kernel reused its pid, waits for
//! its end, and sends it signals.
//!
//! The daemon and the shim call it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::sys::signal::Signal;
use procfs::{ProcError, process::Stat};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

/// The identity of a process, unique until the machine reboots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// Start time in clock ticks since boot (proc_pid_stat(5), field 22). A later process with the
    /// same pid has a later start time.
    pub(crate) start: u64,
}

impl ProcessId {
    pub(crate) fn this() -> io::Result<Self> {
        Self::of(std::process::id())?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The process that has this pid now. `None` if there is none, or if it has ended and is not
    /// reaped yet.
    pub(crate) fn of(pid: u32) -> io::Result<Option<Self>> {
        let Ok(signed) = i32::try_from(pid) else { return Ok(None) };
        match procfs::process::Process::new(signed).and_then(|process| process.stat()) {
            Ok(stat) => Ok(start_if_alive(&stat).map(|start| Self { pid, start })),
            Err(ProcError::NotFound(_)) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        }
    }

    pub(crate) fn is_alive(self) -> io::Result<bool> {
        Ok(Self::of(self.pid)? == Some(self))
    }

    /// Opens a handle on the process. `None` if it has ended.
    pub(crate) fn open(self) -> io::Result<Option<Process>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Checked after the open, because an open handle always refers to the same process.
        Ok(self.is_alive()?.then_some(Process(fd)))
    }
}

/// A handle on a process (pidfd_open(2)). It never refers to another process.
#[derive(Debug)]
pub(crate) struct Process(OwnedFd);

impl Process {
    /// Sends a signal. Does nothing if the process has ended.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let signal = rustix::process::Signal::from_named_raw(signal as i32).ok_or(io::ErrorKind::InvalidInput)?;
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Blocks until the process has ended. Returns `false` if it still runs after `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit)))? > 0)
    }

    /// Waits until the process has ended.
    pub(crate) async fn ended(self) -> io::Result<()> {
        readable(self.0)?.readable().await.map(|_| ())
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Registers a descriptor with tokio, so that a caller can await that it becomes readable.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(unsafe_code, reason = "tokio has no safe way to register a descriptor of a type that it does not know")]
    // SAFETY: an `OwnedFd` stays the same open descriptor for as long as the `AsyncFd` owns it.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(fd?)
}

/// The start time of a process. `None` if it has ended and is not reaped yet.
fn start_if_alive(stat: &Stat) -> Option<u64> {
    (!matches!(stat.state, 'Z' | 'X' | 'x')).then_some(stat.starttime)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::{fs::symlink, process::CommandExt as _},
        process::{Command, Stdio},
    };

    use procfs::FromRead as _;

    use super::*;

    /// Longer than any process of these tests takes to end.
    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn finds_the_start_time_after_any_program_name() {
        let start = |text: &str| Stat::from_read(text.as_bytes()).ok().and_then(|stat| start_if_alive(&stat));
        let stat = |name: &str, state: &str| {
            format!(
                "7 ({name}) {state} 1 7 7 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 4242 1000 10 18446744073709551615 \
                 1 1 0 0 0 0 0 4096 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
            )
        };
        assert_eq!(start(&stat("sleep", "S")), Some(4242));
        assert_eq!(start(&stat("a) R 1 (b", "R")), Some(4242));
        assert_eq!(start(&stat("sleep", "Z")), None);
        assert_eq!(start("7 (sleep"), None);
    }

    #[test]
    fn finds_a_process_whose_name_has_spaces_and_parentheses() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let program = tmp.path().join("a) Z 1 (b");
        symlink("/bin/sh", &program).expect("a symbolic link");
        let mut child = Command::new(&program)
            .arg0("sh")
            .args(["-c", "read line"])
            .stdin(Stdio::piped())
            .spawn()
            .expect("a shell starts");
        let id = ProcessId::of(child.id()).expect("/proc is readable").expect("the shell runs");
        let process = id.open().expect("a handle opens").expect("the shell runs");
        process.signal(Signal::SIGKILL).expect("the shell takes a signal");
        assert!(process.wait(LIMIT).expect("poll works"));
        assert_eq!(ProcessId::of(child.id()).expect("/proc is readable"), None, "it has ended and is not reaped");
        child.wait().expect("the shell is reaped");
        assert!(!id.is_alive().expect("/proc is readable"));
    }

    #[test]
    fn another_start_time_is_another_process() {
        let this = ProcessId::this().expect("/proc is readable");
        assert!(this.is_alive().expect("/proc is readable"));
        let other = ProcessId { start: this.start + 1, ..this };
        assert!(!other.is_alive().expect("/proc is readable"));
    }
}
