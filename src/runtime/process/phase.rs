//! Reads the phase of a task from its directory, and kills tasks.
//!
//! [`super::task_dirs`] and the executor call it in the daemon. If a shim was killed, no process is
//! left that would write the task's `exit.json`. [`read_phase`] then kills the other processes of
//! the task and writes `exit.json` instead of the shim.
//!
//! Invariant: a task that is reported as exited has no process any more.

use std::{fs, io, path::Path, time::Duration};

use nix::sys::signal::Signal;
use tracing::warn;

use super::{dir::TaskDir, kernel::proc::ProcessId};
use crate::{
    clock::now_ms,
    runtime::{Exit, Phase, RuntimeError},
};
use weft_model::error_chain;

/// How long a shim may take to write `exit.json` after its task was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Reads the phase of a task. If its shim is dead and has not written `exit.json`, this function
/// kills the task, then all processes of its control group with `kill_group`, and writes
/// `exit.json`. The phase does not change until all of this succeeded.
pub(super) fn read_phase(
    dir: &TaskDir,
    kill_group: impl FnOnce(&Path) -> Result<(), RuntimeError>,
) -> Result<Phase, RuntimeError> {
    let Some(shim) = dir.shim()? else { return Ok(Phase::Prepared) };
    let shim_is_alive = shim.is_alive().map_err(RuntimeError::kernel("look up the shim's process"))?;
    // Read after the check of the shim, because a shim writes this file before it ends.
    if let Some(exit) = dir.exit()? {
        return Ok(Phase::Exited(exit));
    }
    let running = dir.running()?;
    let current =
        running.map_or(Phase::Prepared, |running| Phase::Running { pid: running.init.pid, since_ms: running.since_ms });
    if shim_is_alive {
        return Ok(current);
    }
    let group = dir.record()?.ok_or(RuntimeError::NotPrepared)?.cgroup;
    let killed =
        kill_task(dir).map_err(RuntimeError::io("kill the task in", dir.path())).and_then(|()| kill_group(&group));
    if let Err(error) = killed {
        warn!(error = error_chain(&error), "cannot kill a task without shim, retrying");
        return Ok(current);
    }
    let stderr = fs::read_to_string(dir.join("shim.err")).unwrap_or_default();
    let last_line = stderr.lines().last().map_or(String::new(), |last| format!(": {last}"));
    let exit = Exit { code: 137, at_ms: now_ms(), error: Some(format!("the task's shim was killed{last_line}")) };
    dir.write_exit(&exit)?;
    Ok(Phase::Exited(exit))
}

/// Kills a task if it runs, and waits until its shim has ended.
pub(super) fn kill_task(dir: &TaskDir) -> io::Result<()> {
    let other = io::Error::other;
    let init = dir.running().map_err(other)?.map(|running| running.init.open()).transpose()?.flatten();
    let shim = dir.shim().map_err(other)?.map(ProcessId::open).transpose()?.flatten();
    if let Some(init) = &init {
        init.signal(Signal::SIGKILL)?;
    }
    let Some(shim) = shim else { return Ok(()) };
    // A shim that has not started its task yet does not watch for the task's end, so the shim is
    // killed too. The caller then kills the remaining processes of the task's control group.
    if init.is_none() || !shim.wait(KILL_TIMEOUT)? {
        shim.signal(Signal::SIGKILL)?;
        if !shim.wait(KILL_TIMEOUT)? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its shim does not end after SIGKILL"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::process::{
        dir::{Record, Running},
        image::Image,
    };

    /// A task without an exit, whose shim does not exist.
    fn task_with_dead_shim(path: &Path) -> TaskDir {
        let dir = TaskDir::new(path);
        dir.write_record(&Record {
            name: "web.1.x".to_owned(),
            image: Image::Whoami,
            init: false,
            dir: "/".into(),
            uid: 0,
            gid: 0,
            stop_signal: Signal::SIGTERM as i32,
            stop_grace_ms: 0,
            cgroup: "weft/n1/x".into(),
            shim_cgroup: "weft/n1/shims".into(),
        })
        .expect("a writable directory");
        // No process has this pid: it is above the kernel's limit.
        let dead = ProcessId { pid: u32::MAX, start: 1 };
        assert!(dir.claim(dead).expect("a writable directory"));
        dir.write_running(&Running { init: dead, since_ms: 5 }).expect("a writable directory");
        dir
    }

    #[test]
    fn all_processes_of_a_task_without_shim_are_killed_before_its_exit_is_written() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dir = task_with_dead_shim(tmp.path());
        let mut killed = None;
        let phase = read_phase(&dir, |group| {
            assert_eq!(dir.exit().expect("a readable directory"), None);
            killed = Some(group.to_owned());
            Ok(())
        });
        let phase = phase.expect("the group was killed");
        assert!(matches!(phase, Phase::Exited(Exit { code: 137, error: Some(_), .. })));
        assert_eq!(killed, Some("weft/n1/x".into()));
        let again = read_phase(&dir, |_| panic!("there is nothing left to kill"));
        assert!(matches!(again.expect("the exit is readable"), Phase::Exited(_)));
    }

    #[test]
    fn a_task_that_cannot_be_killed_has_not_exited() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dir = task_with_dead_shim(tmp.path());
        let hangs = |_: &Path| Err(RuntimeError::kernel("kill it")(io::Error::from(io::ErrorKind::TimedOut)));
        let phase = read_phase(&dir, hangs).expect("a failed kill is not an error");
        assert_eq!(phase, Phase::Running { pid: u32::MAX, since_ms: 5 });
        assert_eq!(dir.exit().expect("a readable directory"), None);
    }
}
