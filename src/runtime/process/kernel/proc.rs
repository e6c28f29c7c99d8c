//! Other processes: naming one so that a reused pid is never taken for it, waiting for its end, signalling it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::sys::signal::Signal;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal},
};
use serde::{Deserialize, Serialize};
use tokio::io::{Interest, unix::AsyncFd};

/// A process, for as long as the machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// When it started, in clock ticks since boot (proc(5), `/proc/pid/stat` field 22): together with the pid, unique.
    pub(crate) start: u64,
}

impl ProcessId {
    pub(crate) fn this() -> io::Result<Self> {
        Self::of(std::process::id())?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The process that has this pid now; `None` where there is none, or only its corpse.
    pub(crate) fn of(pid: u32) -> io::Result<Option<Self>> {
        match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => Ok(start_of_live(&stat).map(|start| Self { pid, start })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            // ESRCH: it ended between open and read.
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn is_alive(self) -> io::Result<bool> {
        Ok(Self::of(self.pid)? == Some(self))
    }

    /// A handle on it; `None` once it has ended.
    pub(crate) fn open(self) -> io::Result<Option<Process>> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let fd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Only now is the pid held: what it names may have changed before.
        Ok(self.is_alive()?.then_some(Process(fd)))
    }
}

/// A handle on a process (pidfd_open(2)): it never comes to mean another one.
#[derive(Debug)]
pub(crate) struct Process(OwnedFd);

impl Process {
    /// Nothing happens where it has ended.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        let signal = rustix::process::Signal::from_named_raw(signal as i32).ok_or(io::ErrorKind::InvalidInput)?;
        match pidfd_send_signal(&self.0, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Blocks until it has ended; `false` where it has not within `limit`.
    pub(crate) fn wait(&self, limit: Duration) -> io::Result<bool> {
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        Ok(rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit)))? > 0)
    }

    pub(crate) async fn ended(self) -> io::Result<()> {
        readable(self.0)?.readable().await.map(|_| ())
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The descriptor, to be awaited until there is something to read.
pub(crate) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(unsafe_code, reason = "tokio offers no safe way for a descriptor of a kind that it does not know")]
    // SAFETY: an `OwnedFd` stays the same open descriptor for as long as the `AsyncFd` owns it.
    let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(fd?)
}

/// Start time from the text of `/proc/pid/stat`; `None` for a process that has ended and is not reaped yet.
fn start_of_live(stat: &str) -> Option<u64> {
    // The second field is the program's name in parentheses, and may itself hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    // The state is field 3, so field 22 is 18 further on.
    let start = fields.nth(18)?.parse().ok()?;
    (!matches!(state, "Z" | "X" | "x")).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_any_name() {
        let stat = |name: &str, state: &str| {
            format!(
                "7 ({name}) {state} 1 7 7 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 4242 1000 10 18446744073709551615"
            )
        };
        assert_eq!(start_of_live(&stat("sleep", "S")), Some(4242));
        assert_eq!(start_of_live(&stat("a) R 1 (b", "R")), Some(4242));
        assert_eq!(start_of_live(&stat("sleep", "Z")), None);
        assert_eq!(start_of_live("7 (sleep"), None);
    }

    #[test]
    fn this_process_lives_and_another_start_is_another_process() {
        let this = ProcessId::this().unwrap();
        assert!(this.is_alive().unwrap());
        assert!(!ProcessId { start: this.start + 1, ..this }.is_alive().unwrap());
    }
}
