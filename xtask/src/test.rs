//! `test`: everything that CI runs, or the tests that a filter selects.
//!
//! It installs only missing programs that the selected tests need: the lab's programs only
//! for end-to-end tests, and a container engine only for docker tests. Unit tests need no root.

use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use crate::{
    cargo,
    check::{doc_tests, static_checks, unit_tests},
    ebpf, fuzz, machine,
    outcome::Outcome,
    setup,
    ui::{Step, Ui},
};

/// The time that the demo may take once everything is built.
const DEMO_TIME: Duration = Duration::from_secs(90);
/// Names of end-to-end tests that use the engine or the docker client begin with this. Their
/// harness (`tests/e2e/harness.rs`) checks that.
pub(crate) const DOCKER_TESTS: &str = "docker_";

/// Names of end-to-end tests that use unbound contain this.
const UNBOUND_TESTS: &str = "unbound";
/// Names of end-to-end tests that use docker-registry begin with this.
const REGISTRY_TESTS: &str = "docker_registry";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Run only the tests whose names contain this, and no static checks.
    filter: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let ui = Ui::new();
    match &options.filter {
        None => run_all(&ui),
        Some(filter) => run_selected(&ui, filter),
    }
}

fn run_all(ui: &Ui) -> Result<()> {
    setup::lab(ui)?;
    setup::docker(ui)?;
    setup::resolver(ui)?;
    setup::registry(ui)?;
    setup::checks(ui)?;
    let mut outcome = Outcome::default();
    static_checks(ui, &mut outcome);
    check_dependencies(ui, &mut outcome);
    check_object(ui, &mut outcome);
    outcome.tests(ui, "unit tests", unit_tests());
    outcome.tests(ui, "doc tests", doc_tests());
    fuzz::run_short(ui, &mut outcome);
    outcome.tests(ui, "end-to-end tests", as_root(end_to_end_tests()));
    run_demo(ui, &mut outcome);
    outcome.report()
}

fn run_selected(ui: &Ui, filter: &str) -> Result<()> {
    let unit = ui.step("build and list the unit tests", |step| list(step, unit_tests(), filter))?;
    let end_to_end = ui.step("build and list the end-to-end tests", |step| list(step, end_to_end_tests(), filter))?;
    if unit.is_empty() && end_to_end.is_empty() {
        bail!("no test has {filter:?} in its name: `cargo test --workspace -- --list` lists all tests");
    }
    let mut outcome = Outcome::default();
    if !unit.is_empty() {
        let mut command = unit_tests();
        command.args(["--", filter]);
        outcome.tests(ui, "unit tests", command);
    }
    if !end_to_end.is_empty() {
        setup::lab(ui)?;
        if end_to_end.iter().any(|name| name.starts_with(DOCKER_TESTS)) {
            setup::docker(ui)?;
        }
        if end_to_end.iter().any(|name| name.contains(UNBOUND_TESTS)) {
            setup::resolver(ui)?;
        }
        if end_to_end.iter().any(|name| name.starts_with(REGISTRY_TESTS)) {
            setup::registry(ui)?;
        }
        let mut command = as_root(end_to_end_tests());
        command.args(["--", filter]);
        outcome.tests(ui, "end-to-end tests", command);
    }
    outcome.report()
}

/// The names of the tests that a filter selects. Builds them, and runs none.
fn list(step: &Step, mut command: Command, filter: &str) -> Result<Vec<String>> {
    let (success, output) = step.capture(command.args(["--", "--list", filter]))?;
    ensure!(success, "cannot list the tests:\n{output}");
    Ok(cargo::listed_tests(&output))
}

/// The command names the whole workspace, so that cargo uses the dependencies that it built for the
/// unit tests.
pub(crate) fn end_to_end_tests() -> Command {
    cargo::command(&["test", "--locked", "--workspace", "--test", "e2e"])
}

/// Makes cargo build as this user, and run what it built through sudo.
fn as_root(mut command: Command) -> Command {
    if !machine::is_root() {
        command.args(["--config", "target.'cfg(unix)'.runner = ['sudo']"]);
    }
    command
}

fn check_dependencies(ui: &Ui, outcome: &mut Outcome) {
    outcome.check(ui, "licences, bans and sources of dependencies", |step| {
        step.run(&mut cargo::command(&["deny", "--log-level", "error", "check", "licenses", "bans", "sources"]))
    });
    outcome.check(ui, "unused dependencies", |step| {
        // If this variable is set, cargo-machete searches a folder with its own name.
        step.run(cargo::command(&["machete", "--skip-target-dir"]).env_remove("CARGO_PKG_NAME"))
    });
}

/// Compares the hash of the eBPF object's source on every machine, and the object's bytes where the
/// tools that built it can be installed.
fn check_object(ui: &Ui, outcome: &mut Outcome) {
    outcome.check(ui, "source of the eBPF object", |_| ebpf::check_source_hash());
    let name = "rebuilt eBPF object";
    match ebpf::verify(ui) {
        Ok(ebpf::Verdict::Same) => outcome.pass(),
        Ok(ebpf::Verdict::NotCompared(reason)) => outcome.skip(name, reason),
        Err(error) => outcome.fail(name, &format!("{error:#}"), 1),
    }
}

/// Runs the demo as a user does. It must succeed, in time, and leave nothing behind.
fn run_demo(ui: &Ui, outcome: &mut Outcome) {
    let weft = match cargo::build_weft(ui) {
        Ok(weft) => weft,
        Err(error) => return outcome.fail("demo", &format!("{error:#}"), 1),
    };
    let started = Instant::now();
    outcome.check(ui, "demo", |step| {
        step.run(Command::new(env::current_exe()?).args(["demo", "--replace", "--weft"]).arg(weft))?;
        let elapsed = started.elapsed();
        ensure!(elapsed < DEMO_TIME, "the demo took {elapsed:?}, and must take less than {DEMO_TIME:?}");
        Ok(())
    });
}
