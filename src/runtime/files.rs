//! The files of tasks with the data of secrets and configs. They are in memory only: on a file
//! system of the kind tmpfs, in `files/` of the run directory, which only root can enter.
//!
//! Both runtimes create the files of a task when they prepare it, mount them into its container,
//! and remove them when the task has ended. The files outlive the daemon, like the tasks. All calls
//! block, for as long as the kernel copies the data.
//!
//! Invariant: every file belongs to a task that is being prepared, is prepared or runs. A daemon
//! that was killed may leave others, which [`FileStore::remove_unused`] removes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    fs::statfs,
    io::Errno,
    mount::{MountFlags, UnmountFlags, mount, unmount},
};
use tracing::warn;
use weft_model::{Shared, TaskId, error_chain, spec::FileData};

use super::RuntimeError;

/// `f_type` of file systems that are in memory only (statfs(2)).
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// A file of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TaskFile {
    /// The absolute path in the container.
    pub(crate) path: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The permissions.
    pub(crate) mode: u32,
    pub(crate) data: Shared<FileData>,
}

/// A file of this machine that is mounted into a container, read-only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileMount {
    pub(crate) source: PathBuf,
    /// The absolute path in the container.
    pub(crate) target: String,
}

/// The files of all tasks of the node.
#[derive(Debug, Clone)]
pub(crate) struct FileStore {
    root: PathBuf,
    /// The tasks that are being prepared. Locked while files are created and removed.
    preparing: Arc<Mutex<BTreeSet<TaskId>>>,
}

/// Keeps the files of a task while it is being prepared, and the runtime does not show it yet.
#[derive(Debug)]
pub(crate) struct Preparing<'a> {
    store: &'a FileStore,
    task: TaskId,
}

impl Drop for Preparing<'_> {
    fn drop(&mut self) {
        self.store.lock().remove(&self.task);
    }
}

/// The directories of tasks that were complete at some time, by their inodes: another directory of
/// the same task has another one.
#[derive(Debug)]
pub(crate) struct Listed(BTreeMap<TaskId, u64>);

impl FileStore {
    pub(crate) fn new(run_dir: &Path) -> Self {
        Self { root: run_dir.join("files"), preparing: Arc::default() }
    }

    /// Must be called before [`Self::create`], and kept until the runtime shows the task.
    pub(crate) fn prepare(&self, task: &TaskId) -> Preparing<'_> {
        self.lock().insert(task.clone());
        Preparing { store: self, task: task.clone() }
    }

    /// Where the files of a task are mounted, in the same order.
    pub(crate) fn mounts(&self, task: &TaskId, files: &[TaskFile]) -> Vec<FileMount> {
        let dir = self.dir(task);
        let mounts = (0..).zip(files);
        mounts.map(|(nth, file)| FileMount { source: file_path(&dir, nth), target: file.path.clone() }).collect()
    }

    /// Creates the files of a task. Replaces those of an earlier attempt.
    ///
    /// # Errors
    /// If the kernel refuses it, or the files would be on a disk. Then no file of the task is left.
    pub(crate) fn create(&self, task: &TaskId, files: &[TaskFile]) -> Result<(), RuntimeError> {
        if files.is_empty() {
            return self.remove(task);
        }
        let _locked = self.lock();
        self.open_root()?;
        let dir = self.dir(task);
        remove_dir(&dir)?;
        let created = create_dir(&dir).and_then(|()| {
            (0..).zip(files).try_for_each(|(nth, file)| {
                let path = file_path(&dir, nth);
                write(&path, file).map_err(RuntimeError::io("create", path))
            })
        });
        created.inspect_err(|_| drop(remove_dir(&dir)))
    }

    /// Removes the files of a task. Idempotent.
    pub(crate) fn remove(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let preparing = self.lock();
        remove_dir(&self.dir(task))?;
        self.close_root(&preparing)
    }

    /// The tasks that have files and are not being prepared. None if they cannot be listed: the
    /// tasks themselves are observed in any case.
    pub(crate) fn list(&self) -> Listed {
        let preparing = self.lock();
        let mut tasks = self.inodes().unwrap_or_else(|error| {
            warn!(error = error_chain(&error), "cannot list the files with secrets and configs");
            BTreeMap::new()
        });
        tasks.retain(|task, _| !preparing.contains(task));
        Listed(tasks)
    }

    /// Removes the files of the tasks in `listed` that are not in `used`, or says in the log why it
    /// cannot. Which tasks are used must have been found out after `listed`: a task that was
    /// prepared before that is then known.
    pub(crate) fn remove_unused(&self, listed: &Listed, used: &BTreeSet<&TaskId>) {
        if listed.0.keys().all(|task| used.contains(task)) {
            return;
        }
        if let Err(error) = self.try_remove_unused(listed, used) {
            warn!(error = error_chain(&error), "cannot remove the secrets and configs of ended tasks, retrying");
        }
    }

    fn try_remove_unused(&self, listed: &Listed, used: &BTreeSet<&TaskId>) -> Result<(), RuntimeError> {
        let preparing = self.lock();
        let now = self.inodes()?;
        for (task, inode) in &listed.0 {
            if !used.contains(task) && !preparing.contains(task) && now.get(task) == Some(inode) {
                remove_dir(&self.dir(task))?;
            }
        }
        self.close_root(&preparing)
    }

    fn dir(&self, task: &TaskId) -> PathBuf {
        self.root.join(task.as_str())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<TaskId>> {
        // Each change of the set is complete before anything can panic.
        self.preparing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The inodes of the directories of all tasks.
    fn inodes(&self) -> Result<BTreeMap<TaskId, u64>, RuntimeError> {
        let list = || -> io::Result<BTreeMap<TaskId, u64>> {
            let mut found = BTreeMap::new();
            for entry in fs::read_dir(&self.root)? {
                let entry = entry?;
                if let Some(task) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                    found.insert(task, entry.metadata()?.ino());
                }
            }
            Ok(found)
        };
        match list() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            listed => listed.map_err(RuntimeError::io("list", &self.root)),
        }
    }

    /// Creates the directory of all files, on a file system in memory: that of the run directory if
    /// it is one, or else a new one.
    fn open_root(&self) -> Result<(), RuntimeError> {
        create_dir(&self.root)?;
        if !self.is_in_memory()? {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            mount("tmpfs", &self.root, "tmpfs", flags, Some(c"mode=700"))
                .map_err(RuntimeError::io("mount a file system in memory on", &self.root))?;
        }
        Ok(())
    }

    fn is_in_memory(&self) -> Result<bool, RuntimeError> {
        let found = statfs(&self.root).map_err(RuntimeError::io("find the file system of", &self.root))?;
        // The type of the field depends on the architecture; its value has 32 bits.
        let magic = found.f_type as u64 & 0xffff_ffff;
        Ok([TMPFS_MAGIC, RAMFS_MAGIC].contains(&magic))
    }

    /// Removes the directory of all files, and the file system that [`Self::open_root`] mounted, if
    /// nothing is in it.
    fn close_root(&self, preparing: &BTreeSet<TaskId>) -> Result<(), RuntimeError> {
        if !preparing.is_empty() {
            return Ok(());
        }
        match fs::remove_dir(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && self.inodes()?.is_empty() => {
                match unmount(&self.root, UnmountFlags::DETACH) {
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(error) => return Err(RuntimeError::io("unmount", &self.root)(error)),
                }
                fs::remove_dir(&self.root).map_err(RuntimeError::io("remove", &self.root))
            }
            // It is not there, or tasks have files in it.
            _ => Ok(()),
        }
    }
}

fn file_path(dir: &Path, nth: u32) -> PathBuf {
    dir.join(nth.to_string())
}

/// Creates a directory that only root can enter.
fn create_dir(path: &Path) -> Result<(), RuntimeError> {
    let created = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    created
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o700)))
        .map_err(RuntimeError::io("create", path))
}

fn remove_dir(path: &Path) -> Result<(), RuntimeError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(RuntimeError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn write(path: &Path, file: &TaskFile) -> io::Result<()> {
    let mut created = File::options().create_new(true).write(true).mode(0o600).open(path)?;
    created.write_all(&file.data.0)?;
    fchown(&created, Some(file.uid), Some(file.gid))?;
    created.set_permissions(Permissions::from_mode(file.mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, mode: u32, data: &str) -> TaskFile {
        let data = FileData(data.as_bytes().to_vec()).into();
        TaskFile { path: path.to_owned(), uid: 0, gid: 0, mode, data }
    }

    /// A store in `/dev/shm`, which is in memory, so that nothing is mounted.
    fn store() -> (tempfile::TempDir, FileStore) {
        let run_dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let store = FileStore::new(run_dir.path());
        (run_dir, store)
    }

    #[test]
    fn files_have_their_data_and_permissions_and_only_root_enters_their_directory() {
        let (_dir, store) = store();
        let task = TaskId::from_random(1);
        let mut files = vec![file("/run/secrets/a", 0o440, "one"), file("/b", 0o604, "two")];
        // Only root may give a file to another user.
        if rustix::process::geteuid().is_root() {
            (files[1].uid, files[1].gid) = (1_000, 1_001);
        }
        let _preparing = store.prepare(&task);
        store.create(&task, &files).expect("created");
        let mounts = store.mounts(&task, &files);
        for (mount, file) in mounts.iter().zip(&files) {
            assert_eq!(mount.target, file.path);
            assert_eq!(fs::read(&mount.source).expect("the file"), file.data.0);
            let found = fs::metadata(&mount.source).expect("the file");
            assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (file.mode, file.uid, file.gid));
        }
        for dir in [store.dir(&task), store.root.clone()] {
            assert_eq!(fs::metadata(&dir).expect("a directory").mode() & 0o7777, 0o700, "{dir:?}");
        }
        // Another attempt to prepare the task replaces them.
        store.create(&task, &files[1..]).expect("created");
        assert_eq!(fs::read_dir(store.dir(&task)).expect("the directory").count(), 1);
    }

    #[test]
    fn the_files_of_tasks_that_are_gone_are_removed_and_at_last_their_directory() {
        let (_dir, store) = store();
        let [running, ended, next] = [1, 2, 3].map(TaskId::from_random);
        for task in [&running, &ended] {
            let _preparing = store.prepare(task);
            store.create(task, &[file("/a", 0o444, "x")]).expect("created");
        }
        // Another daemon knows nothing of them.
        let store = FileStore::new(store.root.parent().expect("the run directory"));
        let preparing = store.prepare(&next);
        store.create(&next, &[file("/a", 0o444, "x")]).expect("created");
        let listed = store.list();
        drop(preparing);
        store.remove_unused(&listed, &BTreeSet::from([&running]));
        let left = || store.inodes().expect("listed").into_keys().collect::<Vec<_>>();
        assert_eq!(left(), [running.clone(), next.clone()], "a task that was prepared meanwhile keeps its files");

        // Also one of the same id.
        let listed = store.list();
        let kept_inode = File::open(store.dir(&next)).expect("keeps the inode from being used again");
        let preparing = store.prepare(&next);
        store.create(&next, &[file("/a", 0o444, "y")]).expect("created");
        drop(preparing);
        store.remove_unused(&listed, &BTreeSet::from([&running]));
        assert_eq!(left(), [running.clone(), next.clone()]);
        drop(kept_inode);
        store.remove(&next).expect("removed");
        store.remove(&next).expect("removed already");
        assert_eq!(left(), [running]);
        store.remove_unused(&store.list(), &BTreeSet::new());
        assert!(!store.root.exists());
    }

    #[test]
    fn a_task_without_files_has_no_directory() {
        let (_dir, store) = store();
        let task = TaskId::from_random(1);
        store.create(&task, &[]).expect("nothing to create");
        assert!(!store.root.exists());
        assert!(store.list().0.is_empty());
    }
}
