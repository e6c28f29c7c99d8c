//! The last code of weft inside a task's container: finds the task's program and replaces this
//! process with it, or with the init that starts it.
//!
//! libcontainer calls [`Program`] in the container's first process. If the program cannot run, this
//! module sends the reason to the shim through a pipe, as a text for the user.

use std::{
    collections::HashMap,
    convert::Infallible,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::sys::signal::SigSet;
use oci_spec::runtime::{Process, Spec};

use super::init;

/// Starts the program. The shim reads the other end of `report`: a line with text is the reason why
/// the program does not run. An empty line, or the end of the pipe, means that the program runs.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) report: Arc<OwnedFd>,
    pub(super) init: bool,
    pub(super) dir: PathBuf,
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        // `exec` runs the same check again. Here the check fails before the container is complete.
        std::env::set_current_dir(&self.dir)
            .map_err(|error| format!("working directory {}: {error}", self.dir.display()))
            .and_then(|()| find_program(spec, &self.dir).map(|_| ()))
            .map_err(|reason| ExecutorValidationError::ArgValidationError(self.report(reason)))
    }

    /// Sets nothing: `exec` passes the environment to the program directly.
    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    /// Returns only on failure.
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let Err(reason) = self.exec_program(spec);
        Err(ExecutorError::Other(self.report(reason)))
    }
}

impl Program {
    /// Sends the reason to the shim, and returns it.
    fn report(&self, reason: String) -> String {
        let _ = rustix::io::write(&self.report, format!("{reason}\n").as_bytes());
        reason
    }

    /// Replaces this process with the program. Returns only on failure, with the reason.
    fn exec_program(&self, spec: &Spec) -> Result<Infallible, String> {
        let (process, args) = process(spec)?;
        let program = find_program(spec, &self.dir)?;
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => format!("{}: its interpreter or loader is missing", args[0]),
            _ => format!("{}: {error}", args[0]),
        };
        let mut command = if self.init {
            let mut command = Command::new("/proc/self/exe");
            command.arg0("weft-init").arg(init::COMMAND).arg(&program).args(args);
            command.stdin(Stdio::from(self.report.try_clone().map_err(failed)?));
            command
        } else {
            let mut command = Command::new(&program);
            command.arg0(&args[0]).args(&args[1..]);
            command
        };
        command.env_clear().envs(environment(process));
        // This process inherited the shim's blocked signals. The standard library resets the
        // ignored SIGPIPE.
        SigSet::empty().thread_set_mask().map_err(|error| failed(error.into()))?;
        Err(failed(command.exec()))
    }
}

fn process(spec: &Spec) -> Result<(&Process, &[String]), String> {
    let process = spec.process().as_ref().ok_or("the container has no process")?;
    match process.args().as_deref() {
        Some(args @ [_, ..]) => Ok((process, args)),
        _ => Err("the container has no command".to_owned()),
    }
}

/// The variables of the program. A later entry replaces an earlier one of the same name.
fn environment(process: &Process) -> HashMap<&str, &str> {
    process.env().iter().flatten().filter_map(|entry| entry.split_once('=')).collect()
}

/// Finds the file to execute: a name with a slash is a path, any other name is searched for in
/// PATH.
fn find_program(spec: &Spec, dir: &Path) -> Result<PathBuf, String> {
    let (process, args) = process(spec)?;
    let name = &args[0];
    if name.contains('/') {
        let path = dir.join(name);
        return match check_executable(&path) {
            Ok(()) => Ok(path),
            Err(reason) => Err(format!("{name}: {reason}")),
        };
    }
    let env = environment(process);
    let path = env.get("PATH").copied().unwrap_or_default();
    let mut refused = None;
    for dir in path.split(':').filter(|dir| !dir.is_empty()) {
        let path = Path::new(dir).join(name);
        match check_executable(&path) {
            Ok(()) => return Ok(path),
            Err("no such file") => {}
            Err(reason) => refused = Some(format!("{}: {reason}", path.display())),
        }
    }
    Err(refused.unwrap_or_else(|| format!("{name}: no such program in PATH")))
}

fn check_executable(path: &Path) -> Result<(), &'static str> {
    match fs::metadata(path) {
        Ok(file) if file.is_dir() => Err("is a directory"),
        Ok(file) if file.permissions().mode() & 0o111 == 0 => Err("is not executable"),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err("permission denied"),
        Err(_) => Err("no such file"),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{ProcessBuilder, SpecBuilder};

    use super::*;

    fn spec(args: &[&str], env: &[&str]) -> Spec {
        let process = ProcessBuilder::default()
            .args(args.iter().map(|&a| a.to_owned()).collect::<Vec<_>>())
            .env(env.iter().map(|&e| e.to_owned()).collect::<Vec<_>>())
            .cwd("/")
            .build()
            .expect("a complete process");
        SpecBuilder::default().process(process).build().expect("a complete spec")
    }

    #[test]
    fn finds_a_program_or_says_why_it_cannot_run() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let dir = tmp.path().to_str().expect("a path in UTF-8");
        fs::write(tmp.path().join("text"), "").expect("a writable directory");
        let check = |name: &str, want: Result<&str, &str>| {
            let got = find_program(&spec(&[name], &[&format!("PATH={dir}:/bin")]), Path::new("/"));
            assert_eq!(got, want.map(PathBuf::from).map_err(str::to_owned), "{name}");
        };
        check("sh", Ok("/bin/sh"));
        check("/bin/sh", Ok("/bin/sh"));
        check("bin/sh", Ok("/bin/sh"));
        check("nosuch", Err("nosuch: no such program in PATH"));
        check("/nosuch", Err("/nosuch: no such file"));
        check("/bin/", Err("/bin/: is a directory"));
        check("text", Err(&format!("{dir}/text: is not executable")));
    }

    #[test]
    fn a_later_variable_replaces_an_earlier_one() {
        let spec = spec(&["x"], &["A=1", "B=x=y", "A=2"]);
        let env = environment(spec.process().as_ref().expect("the spec has a process"));
        assert_eq!((env["A"], env["B"]), ("2", "x=y"));
    }
}
