//! All task directories of the node: prepares a task, observes the tasks, and removes a task.
//!
//! [`super::ProcessRuntime`] calls it. All calls block, so the caller runs them on threads that may
//! block.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tokio::sync::watch;
use tracing::warn;
use weft_model::{NodeName, TaskId, error_chain, plan::TaskPlan};

use super::{
    bundle::{Bundle, cgroups},
    dir::{Record, TaskDir, create_private_dir},
    image::Image,
    kernel::{cgroup, netns},
    phase::{kill_task, read_phase},
};
use crate::runtime::{ObservedTask, Phase, RuntimeError, TaskFile, TaskNetns, files::FileStore, identity};

#[derive(Debug, Clone)]
pub(super) struct TaskDirs {
    root: PathBuf,
    hostname: NodeName,
    search: watch::Receiver<Vec<String>>,
    files: FileStore,
}

impl TaskDirs {
    /// Creates `tasks/` in the run directory if it is missing.
    pub(super) fn open(
        run_dir: &Path,
        hostname: NodeName,
        search: watch::Receiver<Vec<String>>,
    ) -> Result<Self, RuntimeError> {
        let root = run_dir.join("tasks");
        create_private_dir(&root)?;
        // The kernel lists mounts by their canonical paths, and `netns::exists` compares with them.
        let root = root.canonicalize().map_err(RuntimeError::io("find", &root))?;
        let files = FileStore::new(root.parent().unwrap_or(run_dir));
        Ok(Self { root, hostname, search, files })
    }

    pub(super) fn dir(&self, task: &TaskId) -> TaskDir {
        TaskDir::new(self.root.join(task.as_str()))
    }

    /// The directories of all tasks, in the order of their ids.
    pub(super) fn list(&self) -> Result<Vec<(TaskId, TaskDir)>, RuntimeError> {
        let listed = fs::read_dir(&self.root).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut dirs: Vec<_> = listed
            .map_err(RuntimeError::io("list", &self.root))?
            .into_iter()
            .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, TaskDir::new(entry.path()))))
            .collect();
        dirs.sort_by(|(a, _): &(TaskId, _), (b, _)| a.cmp(b));
        Ok(dirs)
    }

    pub(super) fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError> {
        let with_files = self.files.list();
        let mut observed = Vec::new();
        for (task, dir) in self.list()? {
            if dir.record()?.is_none() {
                continue;
            }
            observed.push(ObservedTask {
                phase: read_phase(&dir, cgroup::remove)?,
                netns: Some(dir.netns()).filter(|path| path.exists()).map_or(TaskNetns::Missing, TaskNetns::At),
                resolver: identity::RESOLVER,
                container: task.to_string(),
                task,
            });
        }
        let lasting = observed.iter().filter(|task| !matches!(task.phase, Phase::Exited(_)));
        self.files.remove_unused(&with_files, &lasting.map(|observed| &observed.task).collect());
        Ok(observed)
    }

    /// Creates a task's directory, and its network namespace if it has one of its own. Idempotent.
    /// If a part fails, all parts are removed again.
    pub(super) fn prepare(&self, task: &TaskPlan, files: &[TaskFile]) -> Result<(), RuntimeError> {
        let dir = self.dir(&task.id);
        let own_netns = task.node_network.is_none();
        if dir.record()?.is_some() && (!own_netns || netns::exists(&dir.netns())?) {
            return Ok(());
        }
        let (cgroup, shim_cgroup) = cgroups(&self.hostname, &task.id);
        let image = Image::find(&task.container.image)?;
        let mounts = self.files.mounts(&task.id, files);
        let bundle = Bundle::new(task, image, &self.hostname, dir.path(), &cgroup, &self.search.borrow(), &mounts)?;
        let preparing = self.files.prepare(&task.id);
        // Files may exist of an interrupted attempt, or of a time before a reboot.
        self.remove(&task.id)?;
        let record = Record {
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
        };
        let created = self.files.create(&task.id, files).and_then(|()| create(&dir, &bundle, &record, own_netns));
        drop(preparing);
        created.inspect_err(|_| {
            if let Err(error) = self.remove(&task.id) {
                warn!(task = %task.id, error = error_chain(&error), "cannot remove a task after its preparation failed");
            }
        })
    }

    /// Kills the task if it runs, and removes its control group, its network namespace, its
    /// directory and its files. Idempotent.
    pub(super) fn remove(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let dir = self.dir(task);
        if !dir.path().exists() {
            return self.files.remove(task);
        }
        kill_task(&dir).map_err(RuntimeError::io("kill the task in", dir.path()))?;
        let (cgroup, shim_cgroup) = cgroups(&self.hostname, task);
        cgroup::remove(&cgroup)?;
        netns::remove(&dir.netns())?;
        remove_dir(dir.path()).map_err(RuntimeError::io("remove", dir.path()))?;
        if self.list()?.is_empty() {
            cgroup::remove_empty(&shim_cgroup)?;
        }
        self.files.remove(task)
    }
}

/// Removes a task's directory, and tries again if it is not empty: [`read_phase`] may write
/// `exit.json` during the removal. A directory that is left without its record is never removed,
/// because it is not observed.
fn remove_dir(path: &Path) -> io::Result<()> {
    const ATTEMPTS: usize = 8;
    for _ in 1..ATTEMPTS {
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
            removed => return removed,
        }
    }
    fs::remove_dir_all(path)
}

/// Creates the task's directory. Writes the record last, because it marks the directory as
/// complete.
fn create(dir: &TaskDir, bundle: &Bundle, record: &Record, own_netns: bool) -> Result<(), RuntimeError> {
    let write = |name: &str, text: &[u8]| {
        let path = dir.join(name);
        fs::write(&path, text).map_err(RuntimeError::io("write", path))
    };
    dir.create()?;
    if own_netns {
        netns::create(&dir.netns())?;
    }
    write("hosts", bundle.hosts.as_bytes())?;
    write("hostname", format!("{}\n", bundle.hostname).as_bytes())?;
    write("resolv.conf", bundle.resolv_conf.as_bytes())?;
    dir.write_spec(&bundle.spec)?;
    dir.write_record(record)
}
