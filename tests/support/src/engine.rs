//! The container engines of a lab with the docker runtime: one dockerd for each node.
//!
//! [`crate::Lab`] creates, starts and kills them. `cleanup` ends their processes like all others of
//! a node, and calls [`remove_config_dir`].
//!
//! An engine runs in its node's network namespace and in a mount namespace of its own. There,
//! `/run` and `/etc/docker` are empty file systems in memory, and two directories of the machine
//! are visible in `/run`:
//!
//! | In the engine's mount namespace | On the machine |
//! |---|---|
//! | `/run/weft` | the same |
//! | `/run/docker/plugins` | [`contract::engine_plugins`] |
//!
//! The run directory of each node, `/run/weft/NODE`, is a file system in memory, as on a machine
//! whose `/run` is one. It is mounted before the engines start: a file system that a daemon mounts
//! later would not be visible to them on a machine whose mounts are private.
//!
//! So an engine shares no socket, lock, key or setting with the other engines, with the machine's
//! engine, or with the machine's service manager and firewall. Its mounts are not visible on the
//! machine, and the kernel removes them with the namespace.
//!
//! Invariant: the mount namespace exists as long as its [`Engine`]. An engine that is killed and
//! started again finds the mounts of its containers, as on a real machine.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::fd::{AsFd, AsRawFd},
    panic,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, unshare};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind_recursive, mount_change},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{
    contract::{self, LAB_DATA, LAB_RUN, RUN},
    docker, netns, process, wait,
};

const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How many bytes of an engine's log an error contains, at most.
const LOG_BYTES: usize = 2000;
/// The directory with the engine's settings, and with its key up to Docker 24. No option names
/// another directory for the key.
const CONFIG_DIR: &str = "/etc/docker";

/// This file exists when the lab has created [`CONFIG_DIR`].
fn config_dir_mark() -> PathBuf {
    Path::new(LAB_RUN).join("etc-docker-is-new")
}

/// The directory with the state of a node's running containers. Each process of the engine has an
/// argument that names it.
pub(crate) fn exec_root(node: &str) -> PathBuf {
    contract::engine_dir(node).join("docker")
}

/// The engine of one node. Dropping the value does not stop the engine.
#[derive(Debug)]
pub(crate) struct Engine {
    node: String,
    socket: PathBuf,
    mount_namespace: File,
    /// How many times it was started.
    starts: AtomicU32,
}

/// Creates and starts the engines of these nodes, all at the same time. Returns when all serve.
pub(crate) fn start_all(nodes: impl Iterator<Item = String>) -> Result<BTreeMap<String, Engine>> {
    let nodes: Vec<String> = nodes.collect();
    nodes.iter().try_for_each(|node| mount_run_dir(&contract::run_dir(node)))?;
    if !Path::new(CONFIG_DIR).exists() {
        fs::write(config_dir_mark(), "")?;
        fs::create_dir(CONFIG_DIR).with_context(|| format!("cannot create {CONFIG_DIR}"))?;
    }
    let start = |node: String| {
        let engine = Engine::create(&node)?;
        engine.start(&[])?;
        Ok((node, engine))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = nodes.into_iter().map(|node| scope.spawn(move || start(node))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))).collect()
    })
}

fn mount_run_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path)?;
    mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755"))
        .with_context(|| format!("cannot mount {}", path.display()))
}

/// Removes the directory that [`start_all`] has created on the machine. Engines write nothing to
/// it, because another file system covers it in their mount namespaces.
pub(crate) fn remove_config_dir() -> Result<()> {
    if !config_dir_mark().exists() {
        return Ok(());
    }
    match fs::remove_dir(CONFIG_DIR) {
        // The user has removed the directory, or has written settings to it.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => Ok(()),
        removed => removed.with_context(|| format!("cannot remove {CONFIG_DIR}")),
    }
}

impl Engine {
    fn create(node: &str) -> Result<Self> {
        let plugins = contract::engine_plugins(node);
        fs::create_dir_all(&plugins).with_context(|| format!("cannot create {}", plugins.display()))?;
        // Only a thread of its own may leave the mount namespace of this process.
        let mount_namespace = netns::within(&contract::namespace_path(node), || new_mount_namespace(&plugins))?;
        let mount_namespace =
            mount_namespace.with_context(|| format!("cannot create the mount namespace of {node}'s engine"))?;
        Ok(Self {
            node: node.to_owned(),
            socket: contract::engine_socket(node),
            mount_namespace,
            starts: AtomicU32::default(),
        })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Starts the engine, with these options of dockerd besides the lab's own. Returns when it
    /// serves its socket.
    ///
    /// # Errors
    /// When dockerd is not installed, is already running, or does not serve within a minute.
    pub(crate) fn start(&self, options: &[&str]) -> Result<()> {
        ensure!(self.running().is_empty(), "the engine of {} is already running", self.node);
        // The processes of a killed engine have left their ids. The kernel may have given such an
        // id to another process, and the engine would then take that for a running engine.
        for file in self.pid_files() {
            match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {}", file.display()));
                }
                _ => {}
            }
        }
        let pid = self.spawn(options)?.id();
        let is_done = || docker::is_serving(&self.socket) || !process::is_running(pid);
        match wait::poll(START_TIMEOUT, || is_done().then(|| docker::is_serving(&self.socket))) {
            Some(true) => Ok(()),
            _ => bail!(
                "the engine of {} does not serve {} (is the package docker.io installed? `cargo xtask setup --docker` \
                 does that). The end of its log:\n{}",
                self.node,
                self.socket.display(),
                self.log_tail()
            ),
        }
    }

    fn spawn(&self, options: &[&str]) -> Result<Child> {
        let path = self.log();
        let log = File::options().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("cannot open {}", path.display()))?;
        let [pid_file, _] = self.pid_files();
        let mut command = Command::new("setsid");
        command
            .arg("dockerd")
            .args(["--host", &docker::docker_host(&self.socket)])
            .arg("--data-root")
            .arg(Path::new(LAB_DATA).join("docker").join(&self.node))
            .arg("--exec-root")
            .arg(exec_root(&self.node))
            .arg("--pidfile")
            .arg(pid_file)
            // The name of the group is the same with each service manager.
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .args(["--cgroup-parent", &contract::cgroup(&self.node)])
            .args(["--label", &format!("lab-engine={}", self.node)])
            .args(["--label", &format!("lab-start={}", self.starts.fetch_add(1, Ordering::Relaxed) + 1)])
            // The engine's default network is IPv4 only.
            .arg("--ip6tables=false")
            .args(options)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let spawned = netns::within(&contract::namespace_path(&self.node), || -> io::Result<Child> {
            // A thread that shares its root directory with others cannot move to a mount namespace.
            unshare(CloneFlags::CLONE_FS)?;
            move_into_link_name_space(self.mount_namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
            command.spawn()
        })?;
        spawned.with_context(|| format!("cannot start the engine of {}", self.node))
    }

    /// Kills the engine with SIGKILL: dockerd and its containerd. Containers continue to run.
    ///
    /// # Errors
    /// When the engine is not running.
    pub(crate) fn kill(&self) -> Result<()> {
        let running = self.running();
        ensure!(!running.is_empty(), "the engine of {} is not running", self.node);
        running.into_iter().try_for_each(process::kill)
    }

    /// The ids of the running processes of the engine.
    fn running(&self) -> Vec<u32> {
        let exec_root = exec_root(&self.node);
        let pids = self.pid_files().into_iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
        // The kernel may have given the id to another process since.
        pids.filter(|pid| process::command_line(*pid).iter().any(|word| Path::new(word).starts_with(&exec_root)))
            .collect()
    }

    /// The files in which dockerd and its containerd write their ids.
    fn pid_files(&self) -> [PathBuf; 2] {
        [contract::engine_pid_file(&self.node), exec_root(&self.node).join("containerd/containerd.pid")]
    }

    fn log(&self) -> PathBuf {
        contract::engine_dir(&self.node).join("dockerd.log")
    }

    fn log_tail(&self) -> String {
        let text = fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_BYTES)..]).into_owned()
    }
}

/// Moves the calling thread into a new mount namespace, and prepares that for an engine.
fn new_mount_namespace(plugins: &Path) -> Result<File> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // The engine sees what the machine mounts and unmounts, and not the other way round.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    // Open the directory before the new file system covers it.
    let weft = File::open(RUN).with_context(|| format!("cannot open {RUN}"))?;
    for path in ["/run", CONFIG_DIR] {
        mount("tmpfs", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755"))
            .with_context(|| format!("cannot mount {path}"))?;
    }
    bind(Path::new(&format!("/proc/thread-self/fd/{}", weft.as_raw_fd())), Path::new(RUN))?;
    bind(plugins, Path::new("/run/docker/plugins"))?;
    File::open("/proc/thread-self/ns/mnt").context("cannot open the new mount namespace")
}

/// Makes a directory visible at another path, which it creates.
fn bind(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    // The run directories of nodes are file systems of their own.
    mount_bind_recursive(from, to).with_context(|| format!("cannot mount {}", to.display()))
}
