//! Progress: the names of steps with their durations, as a spinner on a terminal and as plain lines elsewhere. What a
//! step's programs print is shown only where they fail.

use std::{
    io::{BufRead, BufReader, IsTerminal, Read},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Between two pictures of the spinner.
const TICK: Duration = Duration::from_millis(100);
/// Characters of a program's last line shown beside the spinner.
const HINT: usize = 60;

#[derive(Debug)]
pub(crate) struct Ui {
    terminal: bool,
}

/// A step that runs.
#[derive(Debug)]
pub(crate) struct Step {
    spinner: ProgressBar,
}

impl Ui {
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    /// Runs one step and says how long it took.
    pub(crate) fn step<T>(&self, name: &str, action: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        if !self.terminal {
            eprintln!("  … {name}");
        }
        let result = self.quiet(name, action);
        let mark = if result.is_ok() { '✓' } else { '✗' };
        eprintln!("  {mark} {name} ({:.1} s)", start.elapsed().as_secs_f64());
        result
    }

    /// As [`Ui::step`], but shown only while it lasts: its result is told otherwise.
    pub(crate) fn quiet<T>(&self, name: &str, action: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
        let spinner = if self.terminal { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        spinner
            .set_style(ProgressStyle::with_template("  {spinner} {prefix} {wide_msg:.dim}").expect("a valid template"));
        spinner.set_prefix(name.to_owned());
        spinner.enable_steady_tick(TICK);
        let result = action(&Step { spinner: spinner.clone() });
        spinner.finish_and_clear();
        result
    }
}

impl Step {
    /// Runs a program to its end. Where it fails, the error holds all that it said.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let (success, output) = self.capture(command)?;
        if !success {
            bail!("{command:?} failed:\n{output}");
        }
        Ok(())
    }

    /// Runs a program to its end: whether it succeeded, and what it said, in the order of saying.
    pub(crate) fn capture(&self, command: &mut Command) -> Result<(bool, String)> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let said = Arc::new(Mutex::new(String::new()));
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
            child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        ];
        let readers: Vec<_> = pipes.into_iter().flatten().map(|pipe| self.follow(pipe, &said)).collect();
        let status = child.wait()?;
        for reader in readers {
            reader.join().ok().context("reading a program's output failed")?;
        }
        let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((status.success(), said))
    }

    fn follow(&self, pipe: Box<dyn Read + Send>, said: &Arc<Mutex<String>>) -> thread::JoinHandle<()> {
        let (spinner, said) = (self.spinner.clone(), Arc::clone(said));
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line);
                spinner.set_message(text.trim().chars().take(HINT).collect::<String>());
                said.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
                line.clear();
            }
        })
    }
}
