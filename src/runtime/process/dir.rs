//! A task's directory, `<run dir>/tasks/<task id>/`: the one place where the daemon and the task's shim meet, and where a new
//! daemon finds what an earlier one started.
//!
//! | file | writer | says |
//! |---|---|---|
//! | `record.json` | daemon | prepared; how to start and stop it. Written last, so a directory without it is half made |
//! | `config.json`, `hosts`, `hostname`, `resolv.conf`, `rootfs/` | daemon | the bundle that the container is made from |
//! | `netns` | daemon | the network namespace, bind-mounted |
//! | `shim.json` | shim | this process takes care of the task; written once |
//! | `running.json` | shim | the program runs |
//! | `exit.json` | shim, or the daemon for a dead shim | how it ended |
//! | `log`, `log.1` | shim | what it wrote |
//! | `state/` | shim | libcontainer's own |
//!
//! Each file appears whole or not at all. The directory is root's alone: variables and output of a task are nobody else's.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{image::Image, kernel::proc::ProcessId};
use crate::runtime::{Exit, RuntimeError};

/// What the daemon decided when it prepared the task, for the shim and for daemons to come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) image: Image,
    /// An init of ours stands above the program: it forwards signals and reaps.
    pub(super) init: bool,
    /// The program's working directory.
    pub(super) dir: PathBuf,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) stop_signal: i32,
    pub(super) stop_grace_ms: u64,
    /// Relative to the root of each hierarchy.
    pub(super) cgroup: PathBuf,
    /// Where shims live: the daemon's own group may be killed with the daemon.
    pub(super) shim_cgroup: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Running {
    /// The task's first process.
    pub(super) init: ProcessId,
    pub(super) since_ms: u64,
}

#[derive(Debug, Clone)]
pub(super) struct TaskDir(PathBuf);

impl TaskDir {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the directory, and the empty root in it.
    pub(super) fn make(&self) -> Result<(), RuntimeError> {
        private_dir(&self.0)?;
        fs::create_dir(self.rootfs()).map_err(RuntimeError::io("create", self.rootfs()))
    }

    pub(super) fn write_spec(&self, spec: &Spec) -> Result<(), RuntimeError> {
        write_whole(&self.spec(), spec)
    }

    pub(super) fn netns(&self) -> PathBuf {
        self.join("netns")
    }

    pub(super) fn rootfs(&self) -> PathBuf {
        self.join("rootfs")
    }

    fn spec(&self) -> PathBuf {
        self.join("config.json")
    }

    pub(super) fn record(&self) -> Result<Option<Record>, RuntimeError> {
        self.read("record.json")
    }

    pub(super) fn write_record(&self, record: &Record) -> Result<(), RuntimeError> {
        self.write("record.json", record)
    }

    pub(super) fn shim(&self) -> Result<Option<ProcessId>, RuntimeError> {
        self.read("shim.json")
    }

    /// Says that `shim` takes care of this task. `false`: another one does already.
    pub(super) fn claim(&self, shim: ProcessId) -> Result<bool, RuntimeError> {
        let staged = self.join(&format!("shim.json.{}", shim.pid));
        write_whole(&staged, &shim)?;
        let claimed = match fs::hard_link(&staged, self.join("shim.json")) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(RuntimeError::io("create", self.join("shim.json"))(error)),
        };
        fs::remove_file(&staged).map_err(RuntimeError::io("remove", staged))?;
        Ok(claimed)
    }

    pub(super) fn running(&self) -> Result<Option<Running>, RuntimeError> {
        self.read("running.json")
    }

    pub(super) fn write_running(&self, running: &Running) -> Result<(), RuntimeError> {
        self.write("running.json", running)
    }

    pub(super) fn exit(&self) -> Result<Option<Exit>, RuntimeError> {
        self.read("exit.json")
    }

    pub(super) fn write_exit(&self, exit: &Exit) -> Result<(), RuntimeError> {
        self.write("exit.json", exit)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, RuntimeError> {
        let path = self.join(name);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(RuntimeError::io("understand", path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RuntimeError::io("read", path)(error)),
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), RuntimeError> {
        let path = self.join(name);
        let staged = self.join(&format!("{name}.new"));
        write_whole(&staged, value)?;
        fs::rename(&staged, &path).map_err(RuntimeError::io("write", path))
    }
}

/// Makes a directory that only its owner may enter; one that is there already is made so.
pub(super) fn private_dir(path: &Path) -> Result<(), RuntimeError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
        .map_err(RuntimeError::io("create", path))
}

/// An empty file that only its owner may read.
pub(super) fn private_file(path: &Path) -> io::Result<fs::File> {
    fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(path)
}

fn write_whole<T: Serialize>(path: &Path, value: &T) -> Result<(), RuntimeError> {
    let text = serde_json::to_vec(value).map_err(RuntimeError::io("write", path))?;
    let write = || {
        let mut file = private_file(path)?;
        file.write_all(&text)
    };
    write().map_err(RuntimeError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shim_claims_a_task() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = TaskDir::new(tmp.path());
        let (first, second) = (ProcessId { pid: 10, start: 1 }, ProcessId { pid: 11, start: 2 });
        assert!(dir.claim(first).unwrap());
        assert!(!dir.claim(second).unwrap());
        assert_eq!(dir.shim().unwrap(), Some(first));
        assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1, "no staged file is left");
    }

    #[test]
    fn what_a_task_is_given_is_nobody_elses_to_read() {
        let tmp = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let dir = TaskDir::new(tmp.path().join("task"));
        dir.make().unwrap();
        dir.write_spec(&Spec::default()).unwrap();
        dir.write_exit(&Exit { code: 0, at_ms: 5, error: None }).unwrap();
        assert_eq!(mode(dir.path()), 0o700);
        for file in ["config.json", "exit.json"] {
            assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
        }
        assert_eq!(mode(&dir.rootfs()) & 0o055, 0o055, "a task of another user has to enter its own root");
        fs::set_permissions(tmp.path(), fs::Permissions::from_mode(0o755)).unwrap();
        private_dir(tmp.path()).unwrap();
        assert_eq!(mode(tmp.path()), 0o700, "what an earlier daemon left open is closed");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = TaskDir::new(tmp.path());
        assert_eq!(dir.exit().unwrap(), None);
        let exit = Exit { code: 137, at_ms: 5, error: Some("out of memory".into()) };
        dir.write_exit(&exit).unwrap();
        assert_eq!(dir.exit().unwrap(), Some(exit));
    }
}
