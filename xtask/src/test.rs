//! Everything that CI runs, in the order of what fails fastest. Each step runs even where one before it failed, so that
//! one run tells all; the end counts.

use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use crate::{
    cargo, ebpf, machine, setup, tidy,
    ui::{Step, Ui},
};

/// How long the demo may take where everything is built.
const DEMO: Duration = Duration::from_secs(90);

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only the tests whose names contain this, and no static checks.
    filter: Option<String>,
}

/// What the run found.
#[derive(Debug, Default)]
struct Outcome {
    passed: u64,
    failed: u64,
    /// Steps that failed, with what they said.
    failures: Vec<(String, String)>,
    /// Steps that this machine cannot run, and why. They count as nothing.
    skipped: Vec<(String, String)>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let ui = Ui::new();
    setup::lab(&ui)?;
    setup::docker(&ui)?;
    let mut outcome = Outcome::default();
    match &options.filter {
        None => {
            setup::checks(&ui)?;
            outcome.checks(&ui);
            outcome.object(&ui);
            outcome.tests(&ui, "unit tests", unit_tests());
            outcome.tests(&ui, "end to end", end_to_end(None));
            outcome.demo(&ui);
        }
        Some(filter) => {
            let mut unit = unit_tests();
            unit.arg(filter);
            outcome.tests(&ui, "unit tests", unit);
            outcome.tests(&ui, "end to end", end_to_end(Some(filter)));
        }
    }
    outcome.report()
}

fn unit_tests() -> Command {
    // Every target but the end-to-end tests.
    cargo::command(&["test", "--locked", "--workspace", "--lib", "--bins", "--no-fail-fast"])
}

fn end_to_end(filter: Option<&str>) -> Command {
    // The whole workspace, though one package has them: so its dependencies are those that the unit tests built.
    let mut command = cargo::command(&["test", "--locked", "--workspace", "--test", "e2e"]);
    if !machine::is_root() {
        // Cargo builds as the user and runs what it built through sudo.
        command.args(["--config", "target.'cfg(unix)'.runner = ['sudo']"]);
    }
    command.arg("--").args(filter);
    command
}

impl Outcome {
    fn checks(&mut self, ui: &Ui) {
        self.check(ui, "format", |step| step.run(&mut cargo::command(&["fmt", "--all", "--check"])));
        self.check(ui, "tidy", |_| tidy::run());
        self.check(ui, "lints", |step| {
            let arguments = ["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"];
            step.run(&mut cargo::command(&arguments))
        });
        self.check(ui, "documentation", |step| {
            let arguments = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"];
            step.run(cargo::command(&arguments).env("RUSTDOCFLAGS", "--deny warnings"))
        });
        self.check(ui, "licences, bans and sources of dependencies", |step| {
            step.run(&mut cargo::command(&["deny", "--log-level", "error", "check", "licenses", "bans", "sources"]))
        });
        self.check(ui, "unused dependencies", |step| {
            // By this variable cargo-machete takes itself to be run by hand, and its own name for a folder.
            step.run(cargo::command(&["machete", "--skip-target-dir"]).env_remove("CARGO_PKG_NAME"))
        });
    }

    /// The committed eBPF object against its source: the record everywhere, the bytes where its tools can be had.
    fn object(&mut self, ui: &Ui) {
        self.check(ui, "the eBPF object's source", |_| ebpf::source_is_the_recorded());
        match ebpf::verify(ui) {
            Ok(ebpf::Verdict::Same) => self.passed += 1,
            Ok(ebpf::Verdict::NotCompared(why)) => self.skip("the eBPF object, rebuilt", why),
            Err(error) => self.fail("the eBPF object, rebuilt", &format!("{error:#}"), 1),
        }
    }

    /// The demo, as anybody runs it once it is built: told to its end, in time, with nothing left of it.
    fn demo(&mut self, ui: &Ui) {
        let weft = match cargo::build_weft(ui) {
            Ok(weft) => weft,
            Err(error) => return self.fail("the demo", &format!("{error:#}"), 1),
        };
        let started = Instant::now();
        self.check(ui, "the demo", |step| {
            step.run(Command::new(env::current_exe()?).args(["demo", "--replace", "--weft"]).arg(weft))?;
            ensure!(started.elapsed() < DEMO, "it took {:?}, and should take less than {DEMO:?}", started.elapsed());
            Ok(())
        });
    }

    /// A step that passes or fails as one.
    fn check(&mut self, ui: &Ui, name: &str, action: impl FnOnce(&Step) -> Result<()>) {
        match ui.step(name, action) {
            Ok(()) => self.passed += 1,
            Err(error) => self.fail(name, &format!("{error:#}"), 1),
        }
    }

    /// A step whose program counts its tests.
    fn tests(&mut self, ui: &Ui, name: &str, mut command: Command) {
        let mut counted = (0, 0);
        let result = ui.step(name, |step| {
            let (success, output) = step.capture(&mut command)?;
            counted = counts(&output);
            if !success || counted.1 > 0 {
                bail!("{}", failing_part(&output));
            }
            Ok(())
        });
        self.passed += counted.0;
        if let Err(error) = result {
            // A build that fails counts as one failure.
            self.fail(name, &format!("{error:#}"), counted.1.max(1));
        }
    }

    fn fail(&mut self, name: &str, message: &str, count: u64) {
        eprintln!("{message}");
        self.failed += count;
        self.failures.push((name.to_owned(), message.lines().next().unwrap_or_default().to_owned()));
    }

    fn skip(&mut self, name: &str, why: String) {
        eprintln!("  - {name}: skipped: {why}");
        self.skipped.push((name.to_owned(), why));
    }

    fn report(self) -> Result<()> {
        for (name, message) in &self.failures {
            eprintln!("failed: {name}: {message}");
        }
        for (name, why) in &self.skipped {
            eprintln!("skipped: {name}: {why}");
        }
        println!("{}", self.counts());
        if self.failed > 0 {
            bail!("not everything passed");
        }
        Ok(())
    }

    /// The last line of a run.
    fn counts(&self) -> String {
        let skipped = match self.skipped.len() {
            0 => String::new(),
            count => format!(", {count} skipped"),
        };
        format!("{} passed, {} failed{skipped}", self.passed, self.failed)
    }
}

/// Sums the `test result:` lines of a test program's output: passed and failed.
fn counts(output: &str) -> (u64, u64) {
    let mut total = (0, 0);
    for line in output.lines().filter(|line| line.trim_start().starts_with("test result:")) {
        let count = |word: &str| {
            let before = line.split(word).next().filter(|before| before.len() < line.len())?;
            before.split_whitespace().last()?.parse::<u64>().ok()
        };
        total.0 += count(" passed").unwrap_or_default();
        total.1 += count(" failed").unwrap_or_default();
    }
    total
}

/// Without the lines of what passed.
fn failing_part(output: &str) -> String {
    let is_noise = |line: &str| {
        let line = line.trim();
        let passed = line.starts_with("test ") && line.ends_with("ok");
        passed || line.starts_with("Compiling ") || line.starts_with("Running ")
    };
    output.lines().filter(|line| !is_noise(line)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_summed() {
        let output = "test a ... ok\ntest result: ok. 12 passed; 0 failed; 0 ignored\n\
                      noise\ntest result: FAILED. 3 passed; 2 failed; 1 ignored; finished in 0.1s\n";
        assert_eq!(counts(output), (15, 2));
        assert_eq!(counts("error: could not compile"), (0, 0));
    }

    #[test]
    fn what_is_skipped_is_counted_as_such() {
        let mut outcome = Outcome { passed: 7, ..Outcome::default() };
        assert_eq!(outcome.counts(), "7 passed, 0 failed");
        outcome.skip("a step", "no such tool".to_owned());
        assert_eq!(outcome.counts(), "7 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn what_passed_is_left_out() {
        assert_eq!(
            failing_part("test a ... ok\ntest b ... FAILED\n   Compiling x v1\npanicked"),
            "test b ... FAILED\npanicked"
        );
    }
}
