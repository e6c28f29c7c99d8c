//! Control groups of tasks and shims, in all mounted hierarchies of version 1 and 2.
//!
//! The shim calls it to join its group. The daemon and the shim call it to remove groups with all
//! processes in them. libcontainer creates a task's group and sets its limits. This module
//! must not change limits.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;

use super::{mounts, proc::ProcessId};
use crate::runtime::RuntimeError;

/// How long killed processes may take to end. A process that takes longer hangs in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

fn hierarchies() -> Result<Vec<PathBuf>, RuntimeError> {
    Ok(mounts::cgroups(&mounts::list()?))
}

/// Moves this process into `group` in each hierarchy. Creates the group if it is missing.
pub(crate) fn join(group: &Path) -> Result<(), RuntimeError> {
    for hierarchy in hierarchies()? {
        let dir = hierarchy.join(group);
        let join = || {
            fs::create_dir_all(&dir)?;
            inherit_cpuset(&hierarchy, group)?;
            fs::write(dir.join("cgroup.procs"), "0")
        };
        // Retried once: the daemon removes empty groups, and may remove this one after it was
        // created and before this process has joined it.
        let joined = match join() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => join(),
            result => result,
        };
        joined.map_err(RuntimeError::io("join control group", dir))?;
    }
    Ok(())
}

/// Gives a new group of version 1 the processors and the memory nodes of its parent (cpuset(7)). A
/// new group has neither, and the kernel refuses to add a process to such a group.
fn inherit_cpuset(hierarchy: &Path, group: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let mut dir = hierarchy.to_owned();
        if !dir.join(file).exists() {
            continue;
        }
        for part in group {
            let inherited = fs::read_to_string(dir.join(file))?;
            dir.push(part);
            if dir.join(file).exists() && fs::read_to_string(dir.join(file))?.trim().is_empty() {
                fs::write(dir.join(file), inherited.trim())?;
            }
        }
    }
    Ok(())
}

/// Whether the kernel killed a process of `group` because its memory limit was reached.
pub(crate) fn ran_out_of_memory(group: &Path) -> Result<bool, RuntimeError> {
    // Version 2 has the first file, version 1 the second.
    let files = ["memory.events", "memory.oom_control"];
    Ok(hierarchies()?.iter().flat_map(|hierarchy| files.map(|file| hierarchy.join(group).join(file))).any(|file| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|count| count != "0"))
    }))
}

/// Kills all processes in `group` and removes the group from each hierarchy.
pub(crate) fn remove(group: &Path) -> Result<(), RuntimeError> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    for hierarchy in hierarchies()? {
        let dir = hierarchy.join(group);
        remove_from_hierarchy(&dir, deadline).map_err(RuntimeError::io("remove control group", dir))?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "the kernel does not report when a control group can be removed")]
fn remove_from_hierarchy(dir: &Path, deadline: Instant) -> io::Result<()> {
    loop {
        kill_all(dir, deadline)?;
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // A process in the group was forked meanwhile, or the kernel still counts a process
            // that has ended.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// Kills every process in the group and waits until all have ended.
fn kill_all(dir: &Path, deadline: Instant) -> io::Result<()> {
    let listed = match fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(listed) => listed,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut killed = Vec::new();
    for pid in listed.lines().filter_map(|line| line.parse().ok()) {
        if let Some(process) = ProcessId::of(pid)?.map(ProcessId::open).transpose()?.flatten() {
            process.signal(Signal::SIGKILL)?;
            killed.push(process);
        }
    }
    for process in killed {
        if !process.wait(deadline.saturating_duration_since(Instant::now()))? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a killed process does not end"));
        }
    }
    Ok(())
}

/// Removes `group` and its parents, up to the first parent that is not empty.
pub(crate) fn remove_empty(group: &Path) -> Result<(), RuntimeError> {
    for hierarchy in hierarchies()? {
        for group in group.ancestors().filter(|group| !group.as_os_str().is_empty()) {
            if fs::remove_dir(hierarchy.join(group)).is_err() {
                break;
            }
        }
    }
    Ok(())
}
