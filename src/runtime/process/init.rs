//! A small init, first in its PID namespace: runs one program below, passes on every signal, reaps what is orphaned, and
//! ends as the program ends. Single-threaded.

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

/// The hidden subcommand: `__init PROGRAM ARG0 [ARG…]`, with the shim's report as standard input.
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

/// The program's exit code.
fn run(command: &mut Command) -> io::Result<u8> {
    let child = command.stdin(Stdio::null()).spawn()?;
    let child = Pid::from_raw(child.id().cast_signed());
    // Only now: the program must start with none blocked. Blocked, a signal waits until it is looked at.
    let signals: SigSet = Signal::iterator().collect();
    signals.thread_block()?;
    report("");
    dup2_stdin(File::open("/dev/null")?)?;
    loop {
        // Looked for before waiting: what ended before signals were blocked has told nobody.
        if let Some(code) = reap(child)? {
            return Ok(code);
        }
        match signals.wait() {
            Ok(Signal::SIGCHLD) | Err(Errno::EINTR) => {}
            // It may have ended meanwhile: then SIGCHLD is next.
            Ok(signal) => drop(kill(child, signal)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Reaps all that has ended; the exit code of `child` if it is among it.
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

/// The shim waits for this line.
fn report(line: &str) {
    let _ = rustix::io::write(io::stdin(), format!("{line}\n").as_bytes());
}
