//! Running the programs that make and that carry load: each bounded in time, and all ended in order when the user
//! interrupts.
//!
//! Threads: one waits for signals, one for the end of the program that runs.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
};
use weft_lab::{netns, process};

/// This process's own network namespace.
pub(super) const HERE: &str = "/proc/self/ns/net";

/// At most one end and one interruption wait to be read.
const EVENTS: usize = 2;

#[derive(Debug)]
enum Event {
    Ended,
    Interrupted,
}

/// Runs programs one after the other.
#[derive(Debug)]
pub(super) struct Runner {
    events: Receiver<Event>,
    sender: SyncSender<Event>,
    interrupted: Arc<AtomicBool>,
}

impl Runner {
    /// From here on, SIGINT, SIGTERM and SIGHUP end what runs and make every later call fail, so that the caller cleans up.
    pub(super) fn new() -> Result<Self> {
        let (sender, events) = mpsc::sync_channel(EVENTS);
        let interrupted = Arc::new(AtomicBool::new(false));
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot watch for signals")?;
        let (flag, bell) = (Arc::clone(&interrupted), sender.clone());
        thread::spawn(move || {
            for _ in signals.forever() {
                // Told once: nobody may be left to read a second event.
                if !flag.swap(true, Ordering::SeqCst) {
                    drop(bell.send(Event::Interrupted));
                }
            }
        });
        Ok(Self { events, sender, interrupted })
    }

    /// Fails once the user has interrupted.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.interrupted.load(Ordering::SeqCst), "interrupted");
        Ok(())
    }

    /// Lets the machine go on for a moment, between two looks at a condition.
    pub(super) fn pause(&self, moment: Duration) -> Result<()> {
        match self.events.recv_timeout(moment) {
            Ok(Event::Interrupted) => bail!("interrupted"),
            Ok(Event::Ended) | Err(_) => self.check(),
        }
    }

    /// Runs a program inside a network namespace to its end, and returns its standard output. One that takes longer than
    /// `limit` is killed.
    pub(super) fn run(&self, netns: &Path, mut command: Command, limit: Duration) -> Result<String> {
        self.check()?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = command.get_program().to_string_lossy().into_owned();
        let child = netns::within(netns, || command.spawn())?.with_context(|| format!("cannot run {name}"))?;
        let (pid, bell) = (child.id(), self.sender.clone());
        let waiter = thread::spawn(move || {
            let output = child.wait_with_output();
            drop(bell.send(Event::Ended));
            output
        });
        let cut_short = match self.events.recv_timeout(limit) {
            Ok(Event::Ended) => None,
            Ok(Event::Interrupted) => Some("interrupted".to_owned()),
            Err(RecvTimeoutError::Timeout) => Some(format!("{name} did not end within {limit:?}")),
            Err(RecvTimeoutError::Disconnected) => unreachable!("a sender is kept"),
        };
        if cut_short.is_some() {
            process::kill(pid)?;
        }
        let output = waiter.join().ok().context("waiting for a program failed")?;
        if let Some(reason) = cut_short {
            // The program's end has rung, too.
            let _ended = self.events.try_recv();
            bail!("{reason}");
        }
        let output = output.with_context(|| format!("cannot wait for {name}"))?;
        // Ctrl-C on a terminal reaches the program as well.
        self.check()?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{name}: {}\n{}{stdout}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(stdout)
    }
}

/// Runs a short program that configures something in a network namespace, with `input` as its standard input.
pub(super) fn configure(netns: &Path, command: &mut Command, input: &str) -> Result<()> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let name = command.get_program().to_string_lossy().into_owned();
    let output = netns::within(netns, || {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    })?;
    let output = output.with_context(|| format!("cannot run {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} refused: {}\n{input}", said.trim());
    Ok(())
}

/// A server that runs until this value is dropped.
#[derive(Debug)]
pub(super) struct Server {
    name: String,
    pid: u32,
}

impl Server {
    /// Starts a server in a network namespace, with `input` as its standard input. Whether it serves, the first request
    /// tells; what it complains of is shown.
    pub(super) fn start(netns: &Path, mut command: Command, input: &str) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = netns::within(netns, || command.spawn())?.with_context(|| format!("cannot run {name}"))?;
        let server = Self { name, pid: child.id() };
        let mut stdin = child.stdin.take().context("a server without standard input")?;
        stdin.write_all(input.as_bytes()).with_context(|| format!("{} does not read its input", server.name))?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = process::kill(self.pid) {
            eprintln!("{}: {error:#}", self.name);
        }
    }
}
