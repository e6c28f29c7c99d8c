//! A small init: the first process of a task's PID namespace, if the image or the user asks for
//! one.
//!
//! [`super::program`] starts it in place of the task's program. It starts that program as its
//! child, forwards every signal to it, reaps orphaned processes, and exits with the child's exit
//! code. It must stay single-threaded, because it blocks signals for its thread.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::unix::process::CommandExt,
    process::{Command, ExitCode, Stdio},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, dup2_stdin},
};

/// The hidden subcommand: `__init PROGRAM ARG0 [ARG…]`. Standard input is the pipe that the shim
/// reads the start report from.
pub(in crate::runtime) const COMMAND: &str = "__init";

pub(in crate::runtime) fn main(args: &[OsString]) -> ExitCode {
    let code = match args {
        [program, name, rest @ ..] => run(Command::new(program).arg0(name).args(rest)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    match code {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let name = args.get(1).map(|name| name.to_string_lossy()).unwrap_or_default();
            match error.kind() {
                io::ErrorKind::NotFound => report(&format!("{name}: its interpreter or loader is missing")),
                _ => report(&format!("{name}: {error}")),
            }
            ExitCode::from(126)
        }
    }
}

/// Runs the program until it exits, and returns its exit code.
fn run(command: &mut Command) -> io::Result<u8> {
    let child = command.stdin(Stdio::null()).spawn()?;
    let child = Pid::from_raw(child.id().cast_signed());
    // Signals are blocked only after the program was started, because a child inherits blocked
    // signals. A blocked signal stays pending until `SigSet::wait` takes it.
    let signals: SigSet = Signal::iterator().collect();
    signals.thread_block()?;
    report("");
    dup2_stdin(File::open("/dev/null")?)?;
    loop {
        // Reaps before it waits for a signal: if the child ended before signals were blocked, its
        // SIGCHLD was discarded.
        if let Some(code) = reap(child)? {
            return Ok(code);
        }
        match signals.wait() {
            Ok(Signal::SIGCHLD) | Err(Errno::EINTR) => {}
            // The error is ignored: if the child has ended meanwhile, the next signal is SIGCHLD.
            Ok(signal) => drop(kill(child, signal)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reaps all processes that have ended. Returns the exit code of `child` if it is one of them.
fn reap(child: Pid) -> io::Result<Option<u8>> {
    let mut code = None;
    loop {
        let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) => (pid, status),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(code),
            Ok(_) => continue,
            Err(error) => return Err(error.into()),
        };
        if pid == child {
            code = Some(u8::try_from(status).unwrap_or(u8::MAX));
        }
    }
}

/// Sends the line that the shim waits for: the reason why the program does not run, or an empty
/// line if it runs.
fn report(line: &str) {
    let _ = rustix::io::write(io::stdin(), format!("{line}\n").as_bytes());
}
