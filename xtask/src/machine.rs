//! This machine: who runs us, and which programs it has.

use std::{env, ffi::OsStr, os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Result, bail};

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
