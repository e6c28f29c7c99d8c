//! Finds, pauses and ends processes by their ids.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use procfs::process::{Process, Stat};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, pidfd_open, pidfd_send_signal, waitid},
};

use crate::{speed::scaled, wait};

/// The time that a killed process may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// The time that a process may take to stop.
const PAUSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Kills a process, and returns when it has ended. A child of this process is reaped. A process
/// that does not exist is not an error.
pub fn kill(pid: u32) -> Result<()> {
    end(pid, Signal::KILL, KILL_TIMEOUT)
}

/// Sends SIGTERM to a process, and returns when it has ended. Otherwise like [`kill`].
///
/// # Errors
/// When the process is still running after the timeout.
pub fn terminate(pid: u32, timeout: Duration) -> Result<()> {
    end(pid, Signal::TERM, timeout)
}

/// Stops all threads of a process with SIGSTOP, and returns when they are stopped.
pub fn pause(pid: u32) -> Result<()> {
    kill_process(raw(pid)?, Signal::STOP).with_context(|| format!("cannot pause process {pid}"))?;
    wait::poll(PAUSE_TIMEOUT, || is_paused(pid).then_some(())).with_context(|| format!("process {pid} is not paused"))
}

/// Lets a process continue after [`pause`].
pub fn resume(pid: u32) -> Result<()> {
    kill_process(raw(pid)?, Signal::CONT).with_context(|| format!("cannot resume process {pid}"))
}

/// Whether a process is stopped by a signal.
pub fn is_paused(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state == 'T')
}

fn raw(pid: u32) -> Result<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw).with_context(|| format!("{pid} is not a process id"))
}

fn end(pid: u32, signal: Signal, timeout: Duration) -> Result<()> {
    let process = match pidfd_open(raw(pid)?, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot open process {pid}")),
    };
    match pidfd_send_signal(&process, signal) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot send a signal to process {pid}")),
    }
    let timeout = scaled(timeout);
    let poll_timeout = Timespec::try_from(timeout).context("the timeout is too long")?;
    if poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&poll_timeout))? == 0 {
        bail!("process {pid} is still running {timeout:?} after {signal:?}");
    }
    // ECHILD: it is the child of another process, which reaps it.
    match waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(&process)), WaitIdOptions::EXITED) {
        Ok(_) | Err(Errno::CHILD) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot reap process {pid}")),
    }
}

/// Whether a process exists and is not a zombie.
pub fn is_running(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z' && stat.state != 'X')
}

/// `None` when there is no such process.
fn stat(pid: u32) -> Option<Stat> {
    Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()
}

/// All running processes, without this process and its ancestors.
pub(crate) fn others() -> Vec<u32> {
    let mut own = vec![std::process::id()];
    while let Some(parent) = own.last().and_then(|pid| parent(*pid)) {
        own.push(parent);
    }
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| !own.contains(pid) && is_running(*pid))
        .collect()
}

fn parent(pid: u32) -> Option<u32> {
    u32::try_from(stat(pid)?.ppid).ok().filter(|parent| *parent != 0)
}

/// The program and its arguments. Empty when there is no such process, and for a zombie.
pub(crate) fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|b| *b == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

pub(crate) fn network_namespace(pid: u32) -> Option<u64> {
    crate::netns::inode(Path::new(&format!("/proc/{pid}/ns/net")))
}

/// The paths of the process's control groups, one for each hierarchy.
pub(crate) fn cgroups(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2).map(str::to_owned)).collect()
}
