//! This machine: who runs us, which programs it has, and installing those that it lacks.

use std::{env, ffi::OsStr, os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::ui::Step;

/// A program of the machine and the Debian package that holds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Where a program stands. System folders count even where a user's PATH leaves them out.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

pub(crate) fn missing(tools: &[Tool]) -> Vec<Tool> {
    tools.iter().filter(|tool| find(tool.program).is_none()).copied().collect()
}

/// Installs packages with apt, as root or through sudo. Elsewhere says what to install.
pub(crate) fn install(step: &Step, packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if find("apt-get").is_none() {
        bail!("please install {list} (the names are Debian's) with this system's package tool, then run this again");
    }
    if !is_root() && find("sudo").is_none() {
        bail!("this needs root: run `apt-get install {list}` as root, then run this again");
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new(if is_root() { "env" } else { "sudo" });
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]).args(arguments);
        step.run(&mut command)
    };
    apt(&["update"])?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(packages);
    apt(&arguments)
}

/// Becomes root by running this program again through sudo, with these arguments. Returns at once where it is root, and
/// otherwise only with an error.
pub(crate) fn become_root(arguments: &[&OsStr]) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let what = "network namespaces and eBPF need root";
    if find("sudo").is_none() {
        bail!("{what}, and this machine has no sudo: run it as root");
    }
    eprintln!("  {what}: asking sudo");
    let error = Command::new("sudo").arg(env::current_exe()?).args(arguments).exec();
    bail!("{what}, and sudo does not run: {error}");
}
