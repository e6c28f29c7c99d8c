//! Processes by pid: whether they live, and ending them for certain.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail};
use procfs::process::{Process, Stat};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid},
};

/// How long a killed process may take to vanish.
const END: Duration = Duration::from_secs(10);

/// Kills a process and returns when it is gone; one that is gone already is fine. Reaps it if it was a child.
pub fn kill(pid: u32) -> Result<()> {
    end(pid, Signal::KILL, END)
}

/// Asks a process to end and waits as long as `grace` for it.
pub fn terminate(pid: u32, grace: Duration) -> Result<()> {
    end(pid, Signal::TERM, grace)
}

fn end(pid: u32, signal: Signal, within: Duration) -> Result<()> {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).with_context(|| format!("{pid} is no process id"))?;
    let process = match pidfd_open(raw, PidfdFlags::empty()) {
        Ok(process) => process,
        Err(Errno::SRCH) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot open process {pid}")),
    };
    match pidfd_send_signal(&process, signal) {
        Ok(()) | Err(Errno::SRCH) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot signal process {pid}")),
    }
    let timeout = Timespec::try_from(within).context("too long to wait")?;
    if poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout))? == 0 {
        bail!("process {pid} did not end within {within:?} of {signal:?}");
    }
    // ECHILD: somebody else's child, who reaps it.
    match waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(&process)), WaitIdOptions::EXITED) {
        Ok(_) | Err(Errno::CHILD) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot reap process {pid}")),
    }
}

/// Whether the process runs: exists and is no zombie.
pub fn runs(pid: u32) -> bool {
    stat(pid).is_some_and(|stat| stat.state != 'Z' && stat.state != 'X')
}

/// `None` when there is no such process.
fn stat(pid: u32) -> Option<Stat> {
    Process::new(i32::try_from(pid).ok()?).ok()?.stat().ok()
}

/// Every process but this one and those that it descends from.
pub(crate) fn others() -> Vec<u32> {
    let mut own = vec![std::process::id()];
    while let Some(parent) = own.last().and_then(|pid| parent(*pid)) {
        own.push(parent);
    }
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| !own.contains(pid) && runs(*pid))
        .collect()
}

fn parent(pid: u32) -> Option<u32> {
    u32::try_from(stat(pid)?.ppid).ok().filter(|parent| *parent != 0)
}

pub(crate) fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes.split(|b| *b == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

pub(crate) fn network_namespace(pid: u32) -> Option<u64> {
    crate::netns::inode(Path::new(&format!("/proc/{pid}/ns/net")))
}

/// The process's control groups in every hierarchy.
pub(crate) fn cgroups(pid: u32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.lines().filter_map(|line| line.splitn(3, ':').nth(2).map(str::to_owned)).collect()
}
