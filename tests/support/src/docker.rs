//! Runs the docker client against an engine, and creates the image with the tools of tests.
//! [`crate::Lab`] and the tests of the docker runtime call it.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::api;

pub(crate) fn is_serving(socket: &Path) -> bool {
    socket.exists() && api::get(socket, "/_ping").is_ok()
}

/// The value of `DOCKER_HOST` for a socket.
pub fn docker_host(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

/// The ids of an engine's containers, running or not.
pub fn containers(socket: &Path) -> Result<Vec<String>> {
    Ok(docker(socket, &["ps", "--all", "--quiet"])?.lines().map(str::to_owned).collect())
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
const TOOLS: &[&str] = &["cat", "curl", "getent", "ping", "sleep", "stat"];

/// Creates [`TOOLS_IMAGE`] from the programs and the libraries that they load.
pub(crate) fn create_tools_image(socket: &Path) -> Result<()> {
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
