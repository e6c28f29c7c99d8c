//! Runs the steps of `check` and `test`, counts those that passed, failed or were skipped, and
//! reports the counts at the end. A step that fails does not stop the steps after it.

use std::process::Command;

use anyhow::{Result, bail};

use crate::ui::{Step, Ui};

#[derive(Debug, Default)]
pub(crate) struct Outcome {
    passed: u64,
    failed: u64,
    /// Steps that failed, each with the first line of its error.
    failures: Vec<(String, String)>,
    /// Steps that this machine cannot run, and why. They count neither as passed nor as failed.
    skipped: Vec<(String, String)>,
}

impl Outcome {
    /// Runs a step that counts as one.
    pub(crate) fn check(&mut self, ui: &Ui, name: &str, action: impl FnOnce(&Step) -> Result<()>) {
        match ui.step(name, action) {
            Ok(()) => self.pass(),
            Err(error) => self.fail(name, &format!("{error:#}"), 1),
        }
    }

    /// Runs a test program. Each of its tests counts.
    pub(crate) fn tests(&mut self, ui: &Ui, name: &str, mut command: Command) {
        let mut counts = (0, 0);
        let result = ui.step(name, |step| {
            let (success, output) = step.capture(&mut command)?;
            counts = test_counts(&output);
            if !success || counts.1 > 0 {
                bail!("{}", without_passed(&output));
            }
            Ok(())
        });
        self.passed += counts.0;
        if let Err(error) = result {
            // A build that fails runs no test, and counts as one failure.
            self.fail(name, &format!("{error:#}"), counts.1.max(1));
        }
    }

    /// Counts the tests of a program whose output was shown while it ran.
    pub(crate) fn finished_tests(&mut self, name: &str, success: bool, output: &str) {
        let (passed, failed) = test_counts(output);
        self.passed += passed;
        if !success || failed > 0 {
            self.fail(name, "the output above shows what failed", failed.max(1));
        }
    }

    pub(crate) fn pass(&mut self) {
        self.passed += 1;
    }

    pub(crate) fn fail(&mut self, name: &str, message: &str, count: u64) {
        eprintln!("{message}");
        self.failed += count;
        self.failures.push((name.to_owned(), message.lines().next().unwrap_or_default().to_owned()));
    }

    pub(crate) fn skip(&mut self, name: &str, reason: String) {
        eprintln!("  - {name}: skipped: {reason}");
        self.skipped.push((name.to_owned(), reason));
    }

    /// Prints failures, skipped steps and counts. The last line is `N passed, N failed`.
    ///
    /// # Errors
    /// When anything failed.
    pub(crate) fn report(self) -> Result<()> {
        for (name, message) in &self.failures {
            eprintln!("failed: {name}: {message}");
        }
        for (name, reason) in &self.skipped {
            eprintln!("skipped: {name}: {reason}");
        }
        println!("{}", self.counts());
        if self.failed > 0 {
            bail!("{} failed", self.failed);
        }
        Ok(())
    }

    fn counts(&self) -> String {
        let skipped = match self.skipped.len() {
            0 => String::new(),
            count => format!(", {count} skipped"),
        };
        format!("{} passed, {} failed{skipped}", self.passed, self.failed)
    }
}

/// Sums the `test result:` lines in the output of test programs: passed and failed.
fn test_counts(output: &str) -> (u64, u64) {
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

/// The output of test programs without the lines about tests that passed and about building.
fn without_passed(output: &str) -> String {
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
    fn test_results_are_summed() {
        let output = "test a ... ok\ntest result: ok. 12 passed; 0 failed; 0 ignored\n\
                      noise\ntest result: FAILED. 3 passed; 2 failed; 1 ignored; finished in 0.1s\n";
        assert_eq!(test_counts(output), (15, 2));
        assert_eq!(test_counts("error: could not compile"), (0, 0));
    }

    #[test]
    fn skipped_steps_are_counted_separately() {
        let mut outcome = Outcome { passed: 7, ..Outcome::default() };
        assert_eq!(outcome.counts(), "7 passed, 0 failed");
        outcome.skip("a step", "no such tool".to_owned());
        assert_eq!(outcome.counts(), "7 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn a_program_that_fails_without_a_failed_test_counts_as_a_failure() {
        let mut outcome = Outcome::default();
        outcome.finished_tests("a", true, "test result: ok. 12 passed; 0 failed; 0 ignored\n");
        outcome.finished_tests("b", false, "");
        outcome.finished_tests("c", false, "test result: FAILED. 3 passed; 2 failed; 0 ignored\n");
        assert_eq!(outcome.counts(), "15 passed, 3 failed");
        assert!(outcome.report().is_err());
    }

    #[test]
    fn passed_tests_are_left_out_of_a_failure() {
        assert_eq!(
            without_passed("test a ... ok\ntest b ... FAILED\n   Compiling x v1\npanicked"),
            "test b ... FAILED\npanicked"
        );
    }
}
