//! A container engine for labs of the docker runtime: the machine's own where one runs, else one that the lab starts,
//! with all its state below the lab's directories and no network of its own.

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
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(30);

fn own_socket() -> PathBuf {
    Path::new(LAB_RUN).join("docker.sock")
}

/// What an engine makes outside of the directories that it is told to use.
const MADE: [&str; 3] = ["/etc/docker", "/run/docker", "/run/containerd"];

/// Lists those of [`MADE`] that were not there before the lab's engine.
fn made_file() -> PathBuf {
    Path::new(LAB_RUN).join("dockerd.made")
}

fn own_pid_file() -> PathBuf {
    Path::new(LAB_RUN).join("dockerd.pid")
}

fn answers(socket: &Path) -> bool {
    socket.exists() && api::get(socket, "/_ping").is_ok()
}

/// The socket of the engine that a lab would use now.
pub fn socket() -> Option<PathBuf> {
    [own_socket(), SYSTEM_SOCKET.into()].into_iter().find(|socket| answers(socket))
}

/// For `DOCKER_HOST`.
pub fn host(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// Finds an engine or starts one.
pub(crate) fn ensure() -> Result<PathBuf> {
    if let Some(socket) = socket() {
        return Ok(socket);
    }
    let new: Vec<&str> = MADE.iter().copied().filter(|path| !Path::new(path).exists()).collect();
    fs::write(made_file(), new.join("\n"))?;
    let log = fs::File::create(Path::new(LAB_RUN).join("dockerd.log"))?;
    let child = Command::new("setsid")
        .arg("dockerd")
        .args(["--host", &host(&own_socket())])
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
    match wait::until(START, || (answers(&socket) || !process::runs(child.id())).then(|| answers(&socket))) {
        Some(true) => Ok(socket),
        _ => bail!("dockerd does not answer; see {LAB_RUN}/dockerd.log"),
    }
}

/// Stops the engine that the lab started, if it did.
pub(crate) fn stop() -> Result<()> {
    let Ok(pid) = fs::read_to_string(own_pid_file()) else { return Ok(()) };
    let pid = pid.trim().parse().context("no process id in the engine's pid file")?;
    if process::command_line(pid).first().is_some_and(|program| program.ends_with("dockerd")) {
        process::terminate(pid, STOP)?;
    }
    let made = fs::read_to_string(made_file()).unwrap_or_default();
    for path in made.lines().filter(|path| MADE.contains(path)) {
        tree::remove(Path::new(path))?;
    }
    Ok(())
}

/// Containers of the lab's nodes, running or not, by id.
pub(crate) fn containers(socket: &Path) -> Result<Vec<String>> {
    Ok(labelled(socket)?.into_iter().filter(|(_, node)| contract::is_node(node)).map(|(id, _)| id).collect())
}

/// As [`containers`], of one node.
pub(crate) fn containers_of(socket: &Path, node: &str) -> Result<Vec<String>> {
    Ok(labelled(socket)?.into_iter().filter(|(_, of)| of == node).map(|(id, _)| id).collect())
}

/// Containers of weft, with their nodes.
fn labelled(socket: &Path) -> Result<Vec<(String, String)>> {
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

/// The process id of a container's first process, in the machine's own numbering.
pub(crate) fn pid(socket: &Path, container: &str) -> Result<u32> {
    let pid = docker(socket, &["inspect", "--format", "{{.State.Pid}}", container])?;
    pid.trim().parse().with_context(|| format!("container {container} has no process"))
}

/// The docker client, pointed at a socket and at nothing that a user configured.
pub(crate) fn client(socket: &Path) -> Command {
    let mut command = Command::new("docker");
    command.env_remove("DOCKER_CONTEXT").env_remove("DOCKER_HOST").args(["--host", &host(socket)]);
    command
}

/// Runs the docker client against an engine; its standard output.
pub fn docker(socket: &Path, arguments: &[&str]) -> Result<String> {
    let output = client(socket)
        .args(arguments)
        .output()
        .context("cannot run the docker client: install the package docker.io")?;
    ensure!(output.status.success(), "docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An image with a few programs of this machine, for tests to run inside of containers: no registry is needed.
pub const TOOLS_IMAGE: &str = "weft-lab/tools";
const TOOLS: &[&str] = &["curl", "getent", "ping", "sleep"];

/// Makes [`TOOLS_IMAGE`] from the programs and the libraries that they load.
pub fn make_tools_image(socket: &Path) -> Result<()> {
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
    // What getent and curl load later, to resolve names.
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
    let archive = tar.stdout.take().context("tar has no output")?;
    let imported = client(socket).args(["import", "-", TOOLS_IMAGE]).stdin(archive).output()?;
    ensure!(tar.wait()?.success(), "tar failed");
    ensure!(imported.status.success(), "docker import: {}", String::from_utf8_lossy(&imported.stderr));
    Ok(())
}
