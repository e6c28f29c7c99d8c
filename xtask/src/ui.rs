//! Shows the progress of every task: the name of each step and how long it took. On a terminal a
//! running step has a spinner; elsewhere each step is two lines. The output of a step's programs is
//! shown only when one fails.

use std::{
    io::{BufRead, BufReader, IsTerminal, Read},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// The time between two frames of the spinner.
const TICK: Duration = Duration::from_millis(100);
/// How many characters of a program's last line are shown beside the spinner.
const LAST_LINE_CHARS: usize = 60;

#[derive(Debug)]
pub(crate) struct Ui {
    terminal: bool,
}

/// A running step.
#[derive(Debug)]
pub(crate) struct Step {
    spinner: ProgressBar,
}

impl Ui {
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    /// Runs a step, and prints its result and duration.
    pub(crate) fn step<T>(&self, name: &str, action: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        if !self.terminal {
            eprintln!("  … {name}");
        }
        let result = self.step_without_result(name, action);
        let mark = if result.is_ok() { '✓' } else { '✗' };
        eprintln!("  {mark} {name} ({:.1} s)", start.elapsed().as_secs_f64());
        result
    }

    /// Runs a step, and shows it only while it runs: the caller prints the result.
    pub(crate) fn step_without_result<T>(&self, name: &str, action: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
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
    /// Runs a program until it exits.
    ///
    /// # Errors
    /// When it cannot be run or fails: then the error contains all of its output.
    pub(crate) fn run(&self, command: &mut Command) -> Result<()> {
        let (success, output) = self.capture(command)?;
        if !success {
            bail!("{command:?} failed:\n{output}");
        }
        Ok(())
    }

    /// Runs a program until it exits. Returns whether it succeeded, and the lines of its standard
    /// output and standard error in the order in which they were printed.
    pub(crate) fn capture(&self, command: &mut Command) -> Result<(bool, String)> {
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        let output = Arc::new(Mutex::new(String::new()));
        let pipes: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
            child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>),
        ];
        let readers: Vec<_> = pipes.into_iter().flatten().map(|pipe| self.read_lines(pipe, &output)).collect();
        let status = child.wait()?;
        for reader in readers {
            reader.join().ok().with_context(|| format!("cannot read the output of {program}"))?;
        }
        let output = output.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok((status.success(), output))
    }

    /// Starts a thread that appends the lines of a pipe to `output`, and shows the last one.
    fn read_lines(&self, pipe: Box<dyn Read + Send>, output: &Arc<Mutex<String>>) -> thread::JoinHandle<()> {
        let (spinner, output) = (self.spinner.clone(), Arc::clone(output));
        thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = Vec::new();
            while pipe.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                let text = String::from_utf8_lossy(&line);
                spinner.set_message(text.trim().chars().take(LAST_LINE_CHARS).collect::<String>());
                output.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
                line.clear();
            }
        })
    }
}
