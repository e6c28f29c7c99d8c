//! One task's directory, `<run dir>/tasks/<task id>/`. The daemon and the task's shim share it. A
//! new daemon reads it to adopt a task that an earlier daemon started.
//!
//! | file | writer | content |
//! |---|---|---|
//! | `record.json` | daemon | how to start and stop the task. Written last |
//! | `config.json`, `rootfs/` | daemon | the container's specification and root directory |
//! | `hosts`, `hostname`, `resolv.conf` | daemon | files that are mounted into the container |
//! | `netns` | daemon | the network namespace, bind-mounted |
//! | `shim.json` | shim | the process id of the task's shim. Written once |
//! | `running.json` | shim | the process id and the start time of the running program |
//! | `exit.json` | shim; the daemon, if the shim is dead | how the task ended |
//! | `log`, `log.1` | shim | the task's output |
//! | `state/` | shim | libcontainer's own files |
//! | `shim.err` | shim | why the shim could not start the task |
//!
//! Invariants that daemon and shim rely on: a JSON file, except `config.json`, is complete or
//! missing, never partly written; `config.json` is complete once `record.json` exists. A directory
//! without `record.json` is incomplete. Only root can read the directory, because it holds the
//! variables and the output of the task.

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

/// How to start and stop a task. The daemon writes it when it prepares the task; the shim and later
/// daemons read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) image: Image,
    /// Whether [`mod@super::init`] starts the program as its child.
    pub(super) init: bool,
    /// The program's working directory.
    pub(super) dir: PathBuf,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) stop_signal: i32,
    pub(super) stop_grace_ms: u64,
    /// The task's control group, relative to the root of each hierarchy.
    pub(super) cgroup: PathBuf,
    /// The control group of the shims. A shim leaves the daemon's group, because a supervisor may
    /// kill all processes of that group when it stops the daemon.
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

    /// Creates the directory, and in it the empty directory for the root file system.
    pub(super) fn create(&self) -> Result<(), RuntimeError> {
        create_private_dir(&self.0)?;
        fs::create_dir(self.rootfs()).map_err(RuntimeError::io("create", self.rootfs()))
    }

    pub(super) fn write_spec(&self, spec: &Spec) -> Result<(), RuntimeError> {
        write_json(&self.spec(), spec)
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

    /// Makes `shim` the shim of this task. Returns `false` if the task already has a shim.
    pub(super) fn claim(&self, shim: ProcessId) -> Result<bool, RuntimeError> {
        let staged = self.join(&format!("shim.json.{}", shim.pid));
        write_json(&staged, &shim)?;
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
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(RuntimeError::io("parse", path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RuntimeError::io("read", path)(error)),
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), RuntimeError> {
        let path = self.join(name);
        let staged = self.join(&format!("{name}.new"));
        write_json(&staged, value)?;
        fs::rename(&staged, &path).map_err(RuntimeError::io("write", path))
    }
}

/// Creates a directory that only its owner may enter. If the directory exists, its mode is changed.
pub(super) fn create_private_dir(path: &Path) -> Result<(), RuntimeError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))
        .map_err(RuntimeError::io("create", path))
}

/// Creates an empty file that only its owner may read.
pub(super) fn create_private_file(path: &Path) -> io::Result<fs::File> {
    fs::File::options().create(true).write(true).truncate(true).mode(0o600).open(path)
}

fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), RuntimeError> {
    let text = serde_json::to_vec(value).map_err(RuntimeError::io("write", path))?;
    let write = || {
        let mut file = create_private_file(path)?;
        file.write_all(&text)
    };
    write().map_err(RuntimeError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_shim_can_claim_a_task() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dir = TaskDir::new(tmp.path());
        let (first, second) = (ProcessId { pid: 10, start: 1 }, ProcessId { pid: 11, start: 2 });
        assert!(dir.claim(first).expect("a writable directory"));
        assert!(!dir.claim(second).expect("a writable directory"));
        assert_eq!(dir.shim().expect("a readable file"), Some(first));
        assert_eq!(fs::read_dir(tmp.path()).expect("a readable directory").count(), 1, "no staged file is left");
    }

    #[test]
    fn only_the_owner_can_read_a_task_directory() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let mode = |path: &Path| fs::metadata(path).expect("the file exists").permissions().mode() & 0o777;
        let dir = TaskDir::new(tmp.path().join("task"));
        dir.create().expect("a new directory");
        dir.write_spec(&Spec::default()).expect("a writable directory");
        dir.write_exit(&Exit { code: 0, at_ms: 5, error: None }).expect("a writable directory");
        assert_eq!(mode(dir.path()), 0o700);
        for file in ["config.json", "exit.json"] {
            assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
        }
        assert_eq!(mode(&dir.rootfs()) & 0o055, 0o055, "a task of another user must enter its own root");
        fs::set_permissions(tmp.path(), fs::Permissions::from_mode(0o755)).expect("the mode can be changed");
        create_private_dir(tmp.path()).expect("the mode can be changed");
        assert_eq!(mode(tmp.path()), 0o700, "the mode of an existing directory is corrected");
    }

    #[test]
    fn reads_what_was_written() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dir = TaskDir::new(tmp.path());
        assert_eq!(dir.exit().expect("a readable file, or none"), None);
        let exit = Exit { code: 137, at_ms: 5, error: Some("out of memory".into()) };
        dir.write_exit(&exit).expect("a writable directory");
        assert_eq!(dir.exit().expect("a readable file, or none"), Some(exit));
    }

    /// As release 0.1.0 has written them. A shim lives as long as its task, so daemon and shim may
    /// be of different releases.
    #[test]
    fn the_files_of_the_first_release_are_read_and_written() {
        let record = concat!(
            r#"{"name":"web.1","image":"Whoami","init":true,"dir":"/","uid":7,"gid":8,"stop_signal":15,"#,
            r#""stop_grace_ms":10000,"cgroup":"/weft/t","shim_cgroup":"/weft/shims"}"#,
        );
        let exit = r#"{"code":137,"at_ms":5,"error":null}"#;
        let running = r#"{"init":{"pid":11,"start":2},"since_ms":3}"#;
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dir = TaskDir::new(tmp.path());
        let files = [("record.json", record), ("exit.json", exit), ("running.json", running)];
        for (name, text) in files {
            fs::write(dir.join(name), text).expect("a writable directory");
        }
        fs::write(dir.join("shim.json"), r#"{"pid":10,"start":1}"#).expect("a writable directory");
        let readable = "a readable file";
        assert_eq!(dir.shim().expect(readable), Some(ProcessId { pid: 10, start: 1 }));
        dir.write_record(&dir.record().expect(readable).expect(readable)).expect("a writable directory");
        dir.write_exit(&dir.exit().expect(readable).expect(readable)).expect("a writable directory");
        dir.write_running(&dir.running().expect(readable).expect(readable)).expect("a writable directory");
        for (name, text) in files {
            assert_eq!(fs::read_to_string(dir.join(name)).expect(readable), text);
        }
    }
}
