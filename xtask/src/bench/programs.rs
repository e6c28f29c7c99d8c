//! Runs the programs that generate load and that serve it. Each has a time limit, and an
//! interruption ends them in order, so that the caller can clean up.
//!
//! Threads: one waits for signals, one for the end of the running program.

use std::{
    io::Write,
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use signal_hook::iterator::Signals;
use weft_lab::{netns, process};

use crate::interrupt::SIGNALS;

/// The network namespace of this process.
pub(super) const OWN_NETNS: &str = "/proc/self/ns/net";

/// At most one end and one interruption are in the channel.
const EVENTS: usize = 2;

#[derive(Debug)]
enum Event {
    Exited,
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
    /// Catches signals. A signal to this process ends the running program, and then every later
    /// call of the runner fails.
    pub(super) fn new() -> Result<Self> {
        let (sender, events) = mpsc::sync_channel(EVENTS);
        let interrupted = Arc::new(AtomicBool::new(false));
        let mut signals = Signals::new(SIGNALS).context("cannot catch signals")?;
        let (flag, signal_sender) = (Arc::clone(&interrupted), sender.clone());
        thread::spawn(move || {
            for _ in signals.forever() {
                // Only the first is sent: a second could fill the channel and block this thread.
                if !flag.swap(true, Ordering::SeqCst) {
                    drop(signal_sender.send(Event::Interrupted));
                }
            }
        });
        Ok(Self { events, sender, interrupted })
    }

    /// # Errors
    /// After an interruption.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.interrupted.load(Ordering::SeqCst), "interrupted");
        Ok(())
    }

    /// Waits, between two checks of a condition.
    ///
    /// # Errors
    /// At an interruption.
    pub(super) fn pause(&self, duration: Duration) -> Result<()> {
        match self.events.recv_timeout(duration) {
            Ok(Event::Interrupted) => bail!("interrupted"),
            Ok(Event::Exited) | Err(_) => self.check(),
        }
    }

    /// Runs a program inside of a network namespace until it exits, and returns its standard
    /// output.
    ///
    /// # Errors
    /// When the program fails, takes longer than `limit`, or an interruption comes. In the last two
    /// cases it is killed.
    pub(super) fn run(&self, netns: &Path, mut command: Command, limit: Duration) -> Result<String> {
        self.check()?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let name = command.get_program().to_string_lossy().into_owned();
        let child = netns::within(netns, || command.spawn())?.with_context(|| format!("cannot run {name}"))?;
        let (pid, sender) = (child.id(), self.sender.clone());
        let waiter = thread::spawn(move || {
            let output = child.wait_with_output();
            drop(sender.send(Event::Exited));
            output
        });
        let problem = match self.events.recv_timeout(limit) {
            Ok(Event::Exited) => None,
            Ok(Event::Interrupted) => Some("interrupted".to_owned()),
            Err(RecvTimeoutError::Timeout) => Some(format!("{name} is still running after {limit:?}")),
            Err(RecvTimeoutError::Disconnected) => unreachable!("this value has a sender"),
        };
        if problem.is_some() {
            process::kill(pid)?;
        }
        let output = waiter.join().ok().context("the thread that waits for the program panicked")?;
        if let Some(problem) = problem {
            // The killed program has sent this event.
            let _exited = self.events.try_recv();
            bail!("{problem}");
        }
        let output = output.with_context(|| format!("cannot wait for {name}"))?;
        // Ctrl-C on a terminal ends the program as well.
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

/// Runs a program that configures something in a network namespace. `input` is its standard input.
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
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name} failed: {}\nIts input was:\n{input}", stderr.trim());
    Ok(())
}

/// A running server. Dropping the value kills it.
#[derive(Debug)]
pub(super) struct Server {
    name: String,
    pid: u32,
    /// Its standard input, if that stays open.
    input: Option<ChildStdin>,
}

impl Server {
    /// Starts a server in a network namespace. `input` is its standard input; its errors go to this
    /// process's standard error. Returns before the server listens: the caller waits for an answer.
    pub(super) fn start(netns: &Path, command: Command, input: &str) -> Result<Self> {
        let mut server = Self::start_with_open_input(netns, command)?;
        let mut stdin = server.input.take().context("the standard input of a server is piped")?;
        stdin.write_all(input.as_bytes()).with_context(|| format!("{} does not read its input", server.name))?;
        Ok(server)
    }

    /// Like [`Self::start`], for a program that ends when its standard input does.
    pub(super) fn start_with_open_input(netns: &Path, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = netns::within(netns, || command.spawn())?.with_context(|| format!("cannot run {name}"))?;
        Ok(Self { name, pid: child.id(), input: child.stdin.take() })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = process::kill(self.pid) {
            eprintln!("cannot end {}: {error:#}", self.name);
        }
    }
}
