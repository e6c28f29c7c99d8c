//! Finds, starts and stops the container engine of labs with the docker runtime, and runs the
//! docker client. [`crate::Lab`] and the tests of the docker runtime call it.
//!
//! A lab uses the machine's engine if one is running. Otherwise it starts its own engine, which
//! keeps all state below the lab's directories, creates no network, and is stopped with the lab.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    api,
    contract::{self, LAB_DATA, LAB_RUN},
    process, tree, wait,
};

const SYSTEM_SOCKET: &str = "/var/run/docker.sock";
const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

fn own_socket() -> PathBuf {
    Path::new(LAB_RUN).join("docker.sock")
}

/// Directories that an engine always creates, even if its options name other directories.
const EXTRA_DIRS: [&str; 3] = ["/etc/docker", "/run/docker", "/run/containerd"];

/// Lists the directories of [`EXTRA_DIRS`] that did not exist before the lab's engine was started.
fn new_dirs_file() -> PathBuf {
    Path::new(LAB_RUN).join("dockerd.new-dirs")
}

fn own_pid_file() -> PathBuf {
    Path::new(LAB_RUN).join("dockerd.pid")
}

fn is_serving(socket: &Path) -> bool {
    socket.exists() && api::get(socket, "/_ping").is_ok()
}

/// The socket of the running engine that a lab uses: its own, or the machine's.
pub fn socket() -> Option<PathBuf> {
    [own_socket(), SYSTEM_SOCKET.into()].into_iter().find(|socket| is_serving(socket))
}

/// The value of `DOCKER_HOST` for a socket.
pub fn docker_host(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// Returns the socket of a running engine, and starts one when there is none.
///
/// # Errors
/// When dockerd is not installed, or does not serve within a minute.
pub(crate) fn find_or_start() -> Result<PathBuf> {
    if let Some(socket) = socket() {
        return Ok(socket);
    }
    let new: Vec<&str> = EXTRA_DIRS.iter().copied().filter(|path| !Path::new(path).exists()).collect();
    fs::write(new_dirs_file(), new.join("\n"))?;
    let log = fs::File::create(Path::new(LAB_RUN).join("dockerd.log"))?;
    let child = Command::new("setsid")
        .arg("dockerd")
        .args(["--host", &docker_host(&own_socket())])
        .args(["--data-root", &format!("{LAB_DATA}/docker")])
        .args(["--exec-root", &format!("{LAB_RUN}/docker")])
        .args(["--pidfile", &format!("{LAB_RUN}/docker/dockerd.pid")])
        .args(["--cgroup-parent", "/weft/lab"])
        .args(["--bridge", "none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot run dockerd: install the package docker.io, or run `cargo xtask setup --docker`")?;
    fs::write(own_pid_file(), child.id().to_string())?;
    let socket = own_socket();
    let is_done = || is_serving(&socket) || !process::is_running(child.id());
    match wait::poll(START_TIMEOUT, || is_done().then(|| is_serving(&socket))) {
        Some(true) => Ok(socket),
        _ => bail!("dockerd does not serve its socket: see {LAB_RUN}/dockerd.log"),
    }
}

/// Stops the engine that the lab started, and removes its directories. Does nothing when the lab
/// uses the machine's engine.
pub(crate) fn stop() -> Result<()> {
    let Ok(pid) = fs::read_to_string(own_pid_file()) else { return Ok(()) };
    let pid = pid.trim().parse().with_context(|| format!("no process id in {}", own_pid_file().display()))?;
    if process::command_line(pid).first().is_some_and(|program| program.ends_with("dockerd")) {
        process::terminate(pid, STOP_TIMEOUT)?;
    }
    let new = fs::read_to_string(new_dirs_file()).unwrap_or_default();
    for path in new.lines().filter(|path| EXTRA_DIRS.contains(path)) {
        tree::remove(Path::new(path))?;
    }
    Ok(())
}

/// The ids of the containers of all nodes of the lab, running or not.
pub(crate) fn containers(socket: &Path) -> Result<Vec<String>> {
    Ok(weft_containers(socket)?.into_iter().filter(|(_, node)| contract::is_node(node)).map(|(id, _)| id).collect())
}

/// Like [`containers`], for one node.
pub(crate) fn containers_of(socket: &Path, node: &str) -> Result<Vec<String>> {
    Ok(weft_containers(socket)?.into_iter().filter(|(_, owner)| owner == node).map(|(id, _)| id).collect())
}

/// The ids of weft's containers, each with its node.
fn weft_containers(socket: &Path) -> Result<Vec<(String, String)>> {
    let format = "{{.ID}} {{.Label \"weft.node\"}}";
    let output = docker(socket, &["ps", "--all", "--filter", "label=weft.node", "--format", format])?;
    let pairs = output.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.map(|(id, node)| (id.to_owned(), node.to_owned())).collect())
}

pub(crate) fn remove(socket: &Path, containers: &[String]) -> Result<()> {
    if containers.is_empty() {
        return Ok(());
    }
    let mut arguments = vec!["rm", "--force", "--volumes"];
    arguments.extend(containers.iter().map(String::as_str));
    docker(socket, &arguments).map(|_| ())
}

/// The process id of a container's first process, in the machine's own PID namespace.
pub(crate) fn pid(socket: &Path, container: &str) -> Result<u32> {
    let pid = docker(socket, &["inspect", "--format", "{{.State.Pid}}", container])?;
    pid.trim().parse().with_context(|| format!("container {container} has no process"))
}

/// The docker client with a socket. It ignores the context and the host that the user has set.
pub(crate) fn client(socket: &Path) -> Command {
    let mut command = Command::new("docker");
    command.env_remove("DOCKER_CONTEXT").env_remove("DOCKER_HOST").args(["--host", &docker_host(socket)]);
    command
}

/// Runs the docker client against an engine, and returns its standard output.
///
/// # Errors
/// When the client fails, with its standard error.
pub fn docker(socket: &Path, arguments: &[&str]) -> Result<String> {
    let output = client(socket)
        .args(arguments)
        .output()
        .context("cannot run the docker client: install the package docker.io")?;
    ensure!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An image with some programs of this machine, which tests run in containers. It is created from
/// local files, so that no registry is needed.
pub const TOOLS_IMAGE: &str = "weft-lab/tools";
const TOOLS: &[&str] = &["curl", "getent", "ping", "sleep"];

/// Creates [`TOOLS_IMAGE`] from the programs and the libraries that they load.
pub fn create_tools_image(socket: &Path) -> Result<()> {
    let mut files: Vec<String> = Vec::new();
    for tool in TOOLS {
        let found = Command::new("sh").args(["-c", &format!("command -v {tool}")]).output()?;
        let path = String::from_utf8_lossy(&found.stdout).trim().to_owned();
        ensure!(!path.is_empty(), "this machine has no {tool}: run `cargo xtask setup --test`");
        let libraries = Command::new("ldd").arg(&path).output().context("cannot run ldd")?;
        let libraries = String::from_utf8_lossy(&libraries.stdout).into_owned();
        files.extend(libraries.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned));
        files.push(path);
    }
    // getent and curl read this file to resolve names.
    files.push("/etc/nsswitch.conf".to_owned());
    files.sort();
    files.dedup();
    let files: Vec<String> = files.into_iter().filter(|file| Path::new(file).exists()).collect();
    let mut tar = Command::new("tar")
        .args(["--create", "--dereference", "--file", "-", "--absolute-names"])
        .args(&files)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run tar")?;
    let archive = tar.stdout.take().context("the standard output of tar is piped")?;
    let imported = client(socket).args(["import", "-", TOOLS_IMAGE]).stdin(archive).output()?;
    ensure!(tar.wait()?.success(), "tar failed");
    ensure!(imported.status.success(), "docker import: {}", String::from_utf8_lossy(&imported.stderr));
    Ok(())
}
