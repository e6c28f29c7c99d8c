//! Tasks as namespaced processes of this machine, without any engine. Owns the directory of each task and all that hangs
//! on it; libcontainer makes the containers, inside the shims.
//!
//! In reading order: [`dir`] is what daemon and shim share; [`image`], [`user`] and [`bundle`] say what a task is started
//! with; [`kernel`] makes and removes what the kernel keeps of it; [`mod@shim`], [`program`] and [`mod@init`] run beside and
//! inside the task; [`logs`] is what it writes.
//!
//! Tasks (tokio): one for each shim, waiting for its end; one for each reader of a log.

mod dir;
mod image;
mod user;
mod bundle;
mod kernel;
mod shim;
mod program;
mod init;
mod logs;

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::BoxStream};
use nix::sys::signal::Signal;
use tokio::{io::AsyncReadExt, process::Command, sync::watch};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};
use weft_model::{LogError, LogOptions, LogRecord, LogSource};
use weft_model::{NodeName, TaskId, plan::TaskPlan};

use super::{Executor, Exit, ObservedTask, Phase, RuntimeConfig, RuntimeError};
use crate::{clock::now_ms, error_chain::error_chain};
use dir::{Record, TaskDir};
use image::Image;
use kernel::{
    cgroup, netns,
    proc::{Process, ProcessId},
};

pub(super) use init::{COMMAND as INIT_COMMAND, main as init};

/// The hidden subcommand: `__shim TASK-DIR RUN-DIR`.
pub(super) const SHIM_COMMAND: &str = "__shim";
/// How long a shim may take to start its task. A machine that is this slow has other troubles.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a shim may take to write down the end of a task that was killed.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Runs the shim of a task. To be called before any thread exists.
pub(super) fn shim(args: &[OsString]) -> ExitCode {
    let [dir, run_dir] = args else {
        eprintln!("{SHIM_COMMAND} is weft's own: it takes a task's directory and the node's");
        return ExitCode::FAILURE;
    };
    match shim::run(&TaskDir::new(dir), Path::new(run_dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error_chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The process runtime of one node.
#[derive(Debug, Clone)]
pub(crate) struct ProcessRuntime {
    run_dir: PathBuf,
    tasks_dir: PathBuf,
    hostname: NodeName,
    changed: watch::Sender<u64>,
}

impl ProcessRuntime {
    /// Adopts the tasks found in the run directory.
    pub(crate) async fn open(config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let tasks_dir = config.run_dir.join("tasks");
        dir::private_dir(&tasks_dir)?;
        // Mounts are listed by their true paths.
        let tasks_dir = tasks_dir.canonicalize().map_err(RuntimeError::io("find", &tasks_dir))?;
        let runtime = Self {
            run_dir: config.run_dir.clone(),
            tasks_dir,
            hostname: config.hostname.clone(),
            changed: watch::channel(0).0,
        };
        for (task, dir) in runtime.dirs()? {
            match dir.record()? {
                // Preparing it was cut short.
                None => runtime.erase(&task)?,
                Some(_) => {
                    let shim = dir.shim()?.map(ProcessId::open).transpose();
                    let shim = shim.map_err(RuntimeError::io("find the shim of", dir.path()))?.flatten();
                    debug!(%task, running = shim.is_some(), "adopted");
                    if let Some(shim) = shim {
                        runtime.watch(task, shim);
                    }
                }
            }
        }
        Ok(runtime)
    }

    /// Rings when the shim of an adopted task ends.
    fn watch(&self, task: TaskId, shim: Process) {
        let changed = self.changed.clone();
        tokio::spawn(async move {
            if let Err(error) = shim.ended().await {
                warn!(%task, %error, "cannot watch the task's shim");
            }
            bump(&changed);
        });
    }

    fn dir(&self, task: &TaskId) -> TaskDir {
        TaskDir::new(self.tasks_dir.join(task.as_str()))
    }

    /// Every task's directory, in the order of their ids.
    fn dirs(&self) -> Result<Vec<(TaskId, TaskDir)>, RuntimeError> {
        let listed = fs::read_dir(&self.tasks_dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut dirs: Vec<_> = listed
            .map_err(RuntimeError::io("list", &self.tasks_dir))?
            .into_iter()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, TaskDir::new(entry.path()))))
            .collect();
        dirs.sort_by(|(a, _): &(TaskId, _), (b, _)| a.cmp(b));
        Ok(dirs)
    }

    /// Makes the directory and the namespace, the record last.
    fn lay_out(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        let dir = self.dir(&task.id);
        if dir.record()?.is_some() && netns::is_there(&dir.netns())? {
            return Ok(());
        }
        let (cgroup, shim_cgroup) = bundle::cgroups(&self.hostname, &task.id);
        let image = Image::find(&task.container.image)?;
        let bundle = bundle::Bundle::new(task, image, &self.hostname, dir.path(), &cgroup)?;
        // What an earlier attempt, or a machine that went down, left.
        self.erase(&task.id)?;
        let made = || {
            let write = |name: &str, text: &[u8]| {
                let path = dir.join(name);
                fs::write(&path, text).map_err(RuntimeError::io("write", path))
            };
            dir.make()?;
            netns::create(&dir.netns())?;
            write("hosts", bundle.hosts.as_bytes())?;
            write("hostname", format!("{}\n", bundle.hostname).as_bytes())?;
            write("resolv.conf", bundle.resolv_conf.as_bytes())?;
            dir.write_spec(&bundle.spec)?;
            dir.write_record(&Record {
                name: task.name.clone(),
                image,
                init: bundle.init,
                dir: Path::new("/").join(task.container.dir.as_deref().unwrap_or_default()),
                uid: bundle.ids.uid,
                gid: bundle.ids.gid,
                stop_signal: bundle.stop_signal as i32,
                stop_grace_ms: task.container.stop_grace_ms,
                cgroup,
                shim_cgroup,
            })
        };
        made().inspect_err(|_| {
            if let Err(error) = self.erase(&task.id) {
                warn!(task = %task.id, error = error_chain(&error), "cannot clear up after a failure");
            }
        })
    }

    /// Kills what runs, and removes all there is.
    fn erase(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let dir = self.dir(task);
        if !dir.path().exists() {
            return Ok(());
        }
        let ends = RuntimeError::io("end the task in", dir.path());
        end(&dir).map_err(ends)?;
        let (cgroup, shim_cgroup) = bundle::cgroups(&self.hostname, task);
        cgroup::remove(&cgroup)?;
        netns::remove(&dir.netns())?;
        fs::remove_dir_all(dir.path()).map_err(RuntimeError::io("remove", dir.path()))?;
        if self.dirs()?.is_empty() {
            cgroup::tidy(&shim_cgroup)?;
        }
        Ok(())
    }

    /// Does something that waits for the kernel where it holds up nobody else.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, RuntimeError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let this = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&this)).await;
        done.map_err(RuntimeError::kernel("work aside"))?
    }

    fn observe_all(&self) -> Result<Vec<ObservedTask>, RuntimeError> {
        let mut observed = Vec::new();
        for (task, dir) in self.dirs()? {
            if dir.record()?.is_none() {
                continue;
            }
            observed.push(ObservedTask {
                phase: phase(&dir, cgroup::remove)?,
                netns: Some(dir.netns()).filter(|path| path.exists()),
                container: task.to_string(),
                task,
            });
        }
        Ok(observed)
    }

    async fn launch(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let dir = self.dir(task);
        let errors = dir.join("shim.err");
        let errors = dir::private_file(&errors).map_err(RuntimeError::io("create", &errors))?;
        let mut shim = Command::new("/proc/self/exe")
            .arg(SHIM_COMMAND)
            .args([dir.path(), &self.run_dir])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(RuntimeError::kernel("start a shim"))?;
        let started = shim.stdout.take();
        let (changed, id) = (self.changed.clone(), task.clone());
        tokio::spawn(async move {
            if let Err(error) = shim.wait().await {
                warn!(task = %id, %error, "cannot watch the task's shim");
            }
            bump(&changed);
        });
        if let Some(mut started) = started {
            // The shim says nothing: it closes the pipe.
            let closed = tokio::time::timeout(START_LIMIT, started.read_to_end(&mut Vec::new())).await;
            closed
                .map_err(|_| RuntimeError::Start { reason: format!("it took longer than {START_LIMIT:?}") })?
                .map_err(RuntimeError::kernel("wait for a shim"))?;
        }
        Ok(())
    }
}

/// Ends a task that runs, and waits until its shim has ended too.
fn end(dir: &TaskDir) -> io::Result<()> {
    let other = io::Error::other;
    let init = dir.running().map_err(other)?.map(|running| running.init.open()).transpose()?.flatten();
    let shim = dir.shim().map_err(other)?.map(ProcessId::open).transpose()?.flatten();
    if let Some(init) = &init {
        init.signal(Signal::SIGKILL)?;
    }
    let Some(shim) = shim else { return Ok(()) };
    // One that is still starting its task has none to be the end of: it is killed, and its control group after it.
    if init.is_none() || !shim.wait(END_LIMIT)? {
        shim.signal(Signal::SIGKILL)?;
        if !shim.wait(END_LIMIT)? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "its killed shim does not end"));
        }
    }
    Ok(())
}

/// Where a task stands, by its directory. Where its shim was killed, it ends what is left of the task, all of its control
/// group, by `kill`, and only then writes down that it ended: until that is done the task goes on.
fn phase(dir: &TaskDir, kill: impl FnOnce(&Path) -> Result<(), RuntimeError>) -> Result<Phase, RuntimeError> {
    let lives = |id: ProcessId| id.is_alive().map_err(RuntimeError::kernel("look for a process"));
    let Some(shim) = dir.shim()? else { return Ok(Phase::Prepared) };
    let alive = lives(shim)?;
    // Read after looking for the shim: it writes this before it ends.
    if let Some(exit) = dir.exit()? {
        return Ok(Phase::Exited(exit));
    }
    let running = dir.running()?;
    let unended =
        running.map_or(Phase::Prepared, |running| Phase::Running { pid: running.init.pid, since_ms: running.since_ms });
    if alive {
        return Ok(unended);
    }
    let group = dir.record()?.ok_or(RuntimeError::NotPrepared)?.cgroup;
    let ended = end(dir).map_err(RuntimeError::io("end the task in", dir.path())).and_then(|()| kill(&group));
    if let Err(error) = ended {
        warn!(error = error_chain(&error), "a task without its shim does not end; trying again");
        return Ok(unended);
    }
    let words = fs::read_to_string(dir.join("shim.err")).unwrap_or_default();
    let words = words.lines().last().map_or(String::new(), |last| format!(": {last}"));
    let exit =
        Exit { code: 137, at_ms: now_ms(), error: Some(format!("the process that kept the task was killed{words}")) };
    dir.write_exit(&exit)?;
    Ok(Phase::Exited(exit))
}

fn bump(changed: &watch::Sender<u64>) {
    changed.send_modify(|count| *count += 1);
}

#[async_trait]
impl Executor for ProcessRuntime {
    async fn fetch(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        Image::find(&task.container.image).map(drop)
    }

    async fn prepare(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        let task = task.clone();
        self.aside(move |this| this.lay_out(&task)).await?;
        bump(&self.changed);
        Ok(())
    }

    async fn start(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        let dir = self.dir(&task.id);
        if dir.record()?.is_none() {
            return Err(RuntimeError::NotPrepared);
        }
        if dir.shim()?.is_none() {
            self.launch(&task.id).await?;
            bump(&self.changed);
        }
        match self.aside(move |_| phase(&dir, cgroup::remove)).await? {
            Phase::Exited(Exit { error: Some(reason), .. }) => Err(RuntimeError::Start { reason }),
            _ => Ok(()),
        }
    }

    async fn stop(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let dir = self.dir(task);
        let shim = dir.shim()?.map(ProcessId::open).transpose();
        if let Some(shim) = shim.map_err(RuntimeError::kernel("find a shim"))?.flatten() {
            shim.signal(Signal::SIGTERM).map_err(RuntimeError::kernel("signal a shim"))?;
        }
        Ok(())
    }

    async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let task = task.clone();
        self.aside(move |this| this.erase(&task)).await?;
        bump(&self.changed);
        Ok(())
    }

    async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError> {
        self.aside(Self::observe_all).await
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl LogSource for ProcessRuntime {
    fn logs(&self, task: &TaskId, options: &LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError> {
        let dir = self.dir(task);
        match dir.record() {
            Ok(Some(_)) => {}
            Ok(None) => return Err(LogError::NoSuchTask(task.clone())),
            Err(error) => return Err(LogError::Unreadable { task: task.clone(), reason: error_chain(&error) }),
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(super::logs::STREAM_DEPTH);
        let (task, options) = (task.clone(), options.clone());
        tokio::spawn(async move {
            if let Err(error) = logs::read(dir, options, sender).await {
                warn!(%task, %error, "cannot read the log");
            }
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A task whose shim is no more, and which nobody has ended.
    fn orphan(path: &Path) -> TaskDir {
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
        .unwrap();
        // Greater than any pid can be.
        let dead = ProcessId { pid: u32::MAX, start: 1 };
        assert!(dir.claim(dead).unwrap());
        dir.write_running(&dir::Running { init: dead, since_ms: 5 }).unwrap();
        dir
    }

    #[test]
    fn all_of_a_task_without_its_shim_is_killed_before_it_has_ended() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = orphan(tmp.path());
        let mut killed = None;
        let ended = phase(&dir, |group| {
            assert_eq!(dir.exit().unwrap(), None);
            killed = Some(group.to_owned());
            Ok(())
        });
        assert!(matches!(ended.unwrap(), Phase::Exited(Exit { code: 137, error: Some(_), .. })));
        assert_eq!(killed, Some("weft/n1/x".into()));
        let again = phase(&dir, |_| panic!("there is nothing left to kill"));
        assert!(matches!(again.unwrap(), Phase::Exited(_)));
    }

    #[test]
    fn a_task_that_cannot_be_killed_has_not_ended() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = orphan(tmp.path());
        let hangs = |_: &Path| Err(RuntimeError::kernel("kill it")(io::Error::from(io::ErrorKind::TimedOut)));
        assert_eq!(phase(&dir, hangs).unwrap(), Phase::Running { pid: u32::MAX, since_ms: 5 });
        assert_eq!(dir.exit().unwrap(), None);
    }
}
