//! `check`: what a developer runs before each commit. It needs no root, no container engine and no
//! network, installs nothing, and takes less than two minutes once everything is built.
//!
//! `test` runs the same steps first, so that it finds nothing that `check` could have found.

use std::process::Command;

use anyhow::Result;

use crate::{cargo, outcome::Outcome, tidy, ui::Ui};

pub(crate) fn run() -> Result<()> {
    let ui = Ui::new();
    let mut outcome = Outcome::default();
    static_checks(&ui, &mut outcome);
    outcome.tests(&ui, "unit tests", unit_tests());
    outcome.tests(&ui, "doc tests", doc_tests());
    outcome.report()
}

/// Format, tidy, lints and documentation. The fastest steps come first.
pub(crate) fn static_checks(ui: &Ui, outcome: &mut Outcome) {
    outcome.check(ui, "format", |step| step.run(&mut cargo::command(&["fmt", "--all", "--check"])));
    outcome.check(ui, "tidy", |_| tidy::run());
    outcome.check(ui, "lints", |step| {
        let arguments = ["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"];
        step.run(&mut cargo::command(&arguments))
    });
    outcome.check(ui, "documentation", |step| {
        let arguments = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"];
        step.run(cargo::command(&arguments).env("RUSTDOCFLAGS", "--deny warnings"))
    });
}

pub(crate) fn unit_tests() -> Command {
    // Every target except the end-to-end tests. The programs of `fuzz` have no tests.
    cargo::command(&["test", "--locked", "--workspace", "--exclude", "weft-fuzz", "--lib", "--bins", "--no-fail-fast"])
}

/// The examples in the documentation. They use the libraries that the unit tests built.
pub(crate) fn doc_tests() -> Command {
    cargo::command(&["test", "--locked", "--workspace", "--doc", "--no-fail-fast"])
}
