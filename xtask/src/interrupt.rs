//! Being interrupted without leaving anything behind. What must be cleaned up after runs in a process of its own: an
//! interruption ends that process for certain, whatever it is at, and the cleaning has nobody to race with.
//!
//! Threads: one waits for signals, one for the end of the process that runs.

use std::{
    ffi::c_int,
    os::unix::process::CommandExt,
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, SyncSender},
    thread,
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

/// How a user, a service manager and a closed terminal end a program.
pub(crate) const SIGNALS: [c_int; 3] = [SIGINT, SIGTERM, SIGHUP];
/// At most one end and one interruption wait to be read.
const EVENTS: usize = 2;

#[derive(Debug)]
enum Event {
    Ended(std::io::Result<ExitStatus>),
    Interrupted,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Itself(ExitStatus),
    Interrupted,
}

/// Waits for signals, which end nothing else from here on.
#[derive(Debug)]
pub(crate) struct Watch {
    events: Receiver<Event>,
    sender: SyncSender<Event>,
}

impl Watch {
    pub(crate) fn new(signals: &[c_int]) -> Result<Self> {
        let (sender, events) = mpsc::sync_channel(EVENTS);
        let mut signals = Signals::new(signals).context("cannot watch for signals")?;
        let bell = sender.clone();
        thread::spawn(move || {
            // Told once: nobody may be left to read a second time.
            if signals.forever().next().is_some() {
                drop(bell.send(Event::Interrupted));
            }
        });
        Ok(Self { events, sender })
    }

    /// Runs a program to its end, or to an interruption: then it and all that it started in its process group are killed.
    pub(crate) fn run(self, command: &mut Command) -> Result<End> {
        // A group of its own, which the terminal does not interrupt.
        command.stdin(Stdio::null()).process_group(0);
        let mut child =
            command.spawn().with_context(|| format!("cannot run {}", command.get_program().to_string_lossy()))?;
        let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        let bell = self.sender;
        let waiter = thread::spawn(move || drop(bell.send(Event::Ended(child.wait()))));
        let end = match self.events.recv().context("nobody waits")? {
            Event::Ended(status) => End::Itself(status.context("cannot wait for a program")?),
            Event::Interrupted => {
                match kill_process_group(group, Signal::KILL) {
                    // It ended just before.
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => return Err(error).context("cannot end what was interrupted"),
                }
                End::Interrupted
            }
        };
        waiter.join().ok().context("waiting for a program failed")?;
        Ok(end)
    }
}

#[cfg(test)]
mod tests {
    use signal_hook::{
        consts::{SIGUSR1, SIGUSR2},
        low_level::raise,
    };

    use super::*;

    #[test]
    fn an_interruption_ends_the_program_and_what_it_started() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let pids = folder.path().join("pids");
        let watch = Watch::new(&[SIGUSR1])?;
        let mut shell = Command::new("sh");
        // Interrupts this process once both are up.
        shell.args(["-c", "sleep 60 & echo $$ $! > \"$0\"; kill -USR1 $PPID; wait"]).arg(&pids);
        assert_eq!(watch.run(&mut shell)?, End::Interrupted);
        let pids = std::fs::read_to_string(&pids)?;
        assert_eq!(pids.split_whitespace().count(), 2, "{pids}");
        for pid in pids.split_whitespace() {
            let pid = pid.parse()?;
            weft_lab::eventually(std::time::Duration::from_secs(5), "it ends", || {
                if weft_lab::process::runs(pid) { Err(format!("{pid} runs")) } else { Ok(()) }
            });
        }
        Ok(())
    }

    #[test]
    fn an_end_without_interruption_is_told() -> Result<()> {
        let watch = Watch::new(&[SIGUSR2])?;
        let end = watch.run(Command::new("sh").args(["-c", "exit 3"]))?;
        assert!(matches!(end, End::Itself(status) if status.code() == Some(3)), "{end:?}");
        // The signal ends nobody, even though nobody waits for it any more.
        raise(SIGUSR2)?;
        Ok(())
    }
}
