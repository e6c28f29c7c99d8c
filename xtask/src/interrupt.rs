//! Runs a program so that an interruption leaves nothing behind: a signal or a deadline kills the
//! program and all processes of its group, and the caller cleans up after every end.
//!
//! For this reason the demo runs its story in a separate process: when that process is killed, no
//! code changes the lab while it is removed.
//!
//! Threads: one waits for signals, one for the end of the program.

use std::{
    ffi::c_int,
    os::unix::process::CommandExt,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvError, RecvTimeoutError, SyncSender},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use rustix::{
    io::Errno,
    process::{Pid, Signal, kill_process_group},
};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};

/// The signals by which a user, a service manager and a closed terminal end a program.
pub(crate) const SIGNALS: [c_int; 3] = [SIGINT, SIGTERM, SIGHUP];
/// Each thread sends at most one event.
const EVENTS: usize = 2;

#[derive(Debug)]
enum Event {
    Exited(std::io::Result<ExitStatus>),
    Interrupted,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Exited(ExitStatus),
    /// It was killed after a signal to this process.
    Interrupted,
}

/// Catches signals to this process from its creation on, also after it is dropped.
#[derive(Debug)]
pub(crate) struct SignalWatch {
    events: Receiver<Event>,
    sender: SyncSender<Event>,
}

impl SignalWatch {
    pub(crate) fn new(signals: &[c_int]) -> Result<Self> {
        let (sender, events) = mpsc::sync_channel(EVENTS);
        let mut signals = Signals::new(signals).context("cannot catch signals")?;
        let signal_sender = sender.clone();
        thread::spawn(move || {
            // Send only the first signal: the receiver may be dropped after that.
            if signals.forever().next().is_some() {
                drop(signal_sender.send(Event::Interrupted));
            }
        });
        Ok(Self { events, sender })
    }

    /// Runs a program until it exits. A signal to this process kills it, and all processes of its
    /// group.
    pub(crate) fn run(self, command: &mut Command) -> Result<End> {
        self.run_until(command, |events| Ok(Some(events.recv()?)))?.context("there is no deadline")
    }

    /// Like [`Self::run`], but also kills the program if it is still running after `limit`. Then it
    /// returns `None`.
    pub(crate) fn run_for(self, command: &mut Command, limit: Duration) -> Result<Option<End>> {
        self.run_until(command, |events| match events.recv_timeout(limit) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(RecvError),
        })
    }

    /// `wait` returns the first event, or `None` after a deadline.
    fn run_until(
        self,
        command: &mut Command,
        wait: impl FnOnce(&Receiver<Event>) -> Result<Option<Event>, RecvError>,
    ) -> Result<Option<End>> {
        // The terminal's Ctrl-C goes to this process's group only.
        command.stdin(Stdio::null()).process_group(0);
        let mut child =
            command.spawn().with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a child has a process id")?;
        let sender = self.sender;
        let waiter = thread::spawn(move || drop(sender.send(Event::Exited(child.wait()))));
        let end = match wait(&self.events).context("both threads ended without an event")? {
            Some(Event::Exited(status)) => Some(End::Exited(status.context("cannot wait for the program")?)),
            Some(Event::Interrupted) => Some(End::Interrupted),
            None => None,
        };
        if !matches!(end, Some(End::Exited(_))) {
            match kill_process_group(group, Signal::KILL) {
                // If the group does not exist, the program has exited just before.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(error) => return Err(error).context("cannot kill the program"),
            }
        }
        waiter.join().ok().context("the thread that waits for the program panicked")?;
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use signal_hook::{
        consts::{SIGUSR1, SIGUSR2, SIGWINCH},
        low_level::raise,
    };

    use super::*;

    #[test]
    fn an_interruption_kills_the_program_and_its_children() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let pids = folder.path().join("pids");
        let watch = SignalWatch::new(&[SIGUSR1])?;
        let mut shell = Command::new("sh");
        // Interrupts this process once the shell and its child run.
        shell.args(["-c", "sleep 60 & echo $$ $! > \"$0\"; kill -USR1 $PPID; wait"]).arg(&pids);
        assert_eq!(watch.run(&mut shell)?, End::Interrupted);
        let pids = std::fs::read_to_string(&pids)?;
        assert_eq!(pids.split_whitespace().count(), 2, "{pids}");
        for pid in pids.split_whitespace() {
            let pid = pid.parse()?;
            weft_lab::eventually(Duration::from_secs(5), "the process ends", || {
                if weft_lab::process::is_running(pid) { Err(format!("{pid} is running")) } else { Ok(()) }
            });
        }
        Ok(())
    }

    #[test]
    fn a_deadline_kills_the_program() -> Result<()> {
        let watch = SignalWatch::new(&[SIGWINCH])?;
        // If the deadline did not kill it, the program would exit by itself.
        let end = watch.run_for(Command::new("sleep").arg("60"), Duration::from_millis(10))?;
        assert_eq!(end, None);
        Ok(())
    }

    #[test]
    fn an_exit_without_interruption_is_reported() -> Result<()> {
        let watch = SignalWatch::new(&[SIGUSR2])?;
        let end = watch.run(Command::new("sh").args(["-c", "exit 3"]))?;
        assert!(matches!(end, End::Exited(status) if status.code() == Some(3)), "{end:?}");
        // The signal stays caught after the watch is gone.
        raise(SIGUSR2)?;
        Ok(())
    }
}
