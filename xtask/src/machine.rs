//! Finds out whether this process is root and which programs are installed, and restarts the
//! process as root. It never installs a program: `setup` and `apt` do.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, bail};

/// A program, and the Debian package that contains it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The path of a program. Searches the system's folders too, which a user's PATH may leave out.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

pub(crate) fn missing(tools: &[Tool]) -> Vec<Tool> {
    tools.iter().filter(|tool| find(tool.program).is_none()).copied().collect()
}

/// Like [`become_root`], with this process's own arguments, and with the paths of what it has built
/// as options: root builds nothing.
pub(crate) fn become_root_with(paths: &[(&str, &Path)]) -> Result<()> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let mut arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
    arguments.extend(paths.iter().flat_map(|(option, path)| [OsStr::new(option), path.as_os_str()]));
    become_root(&arguments)
}

/// Restarts this program under sudo, with these arguments, in place of this process. Returns `Ok`
/// when this process is root already.
///
/// # Errors
/// When the machine has no sudo, or sudo cannot be run.
pub(crate) fn become_root(arguments: &[&OsStr]) -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let reason = "network namespaces and eBPF need root";
    if find("sudo").is_none() {
        bail!("{reason}, and this machine has no sudo: run this command as root");
    }
    eprintln!("  {reason}: running through sudo");
    let error = Command::new("sudo").arg(env::current_exe()?).args(arguments).exec();
    bail!("{reason}, but sudo cannot be run: {error}");
}
