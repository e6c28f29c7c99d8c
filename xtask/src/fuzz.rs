//! `fuzz`: runs the targets in `fuzz/` for a bounded time each.
//!
//! A target is a program of libFuzzer that looks for octets which make a reader of weft panic. The
//! folder has the layout of cargo-fuzz. This task needs neither that nor a nightly compiler: it
//! compiles weft's own crates with the counters of libFuzzer (`fuzz/rustc.sh`), and takes their
//! dependencies as the tests built them. It has no address sanitizer, which safe code does not
//! need.
//!
//! Inputs that reach new code stay in `target/fuzz/corpus`, so that the next run continues there.
//! libFuzzer writes the input of a failure to `target/fuzz/failures` and prints it.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{cargo, outcome::Outcome, ui::Ui};

/// Each target, with the folder of its first inputs.
const TARGETS: &[(&str, &str)] = &[
    ("log", "control/golden"),
    ("snapshot", "control/golden"),
    ("plan", "control/golden"),
    ("command", "control/golden"),
    ("message", "control/golden"),
    ("token", "fuzz/seeds/token"),
    ("request", "fuzz/seeds/request"),
    ("service", "fuzz/seeds/service"),
    ("credentials", "fuzz/seeds/credentials"),
    ("constraint", "fuzz/seeds/constraint"),
    ("filter", "fuzz/seeds/filter"),
];
/// The time for each target in `cargo xtask test`.
const TEST_SECONDS: u32 = 3;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Run only this target.
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TARGETS.iter().map(|(name, _)| *name)))]
    target: Option<String>,
    /// How long to run each target, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut outcome = Outcome::default();
    run_targets(&Ui::new(), &mut outcome, options.seconds, |name| {
        options.target.as_ref().is_none_or(|target| target == name)
    });
    outcome.report()
}

/// Runs all targets, each for a short time.
pub(crate) fn run_short(ui: &Ui, outcome: &mut Outcome) {
    run_targets(ui, outcome, TEST_SECONDS, |_| true);
}

fn run_targets(ui: &Ui, outcome: &mut Outcome, seconds: u32, is_selected: impl Fn(&str) -> bool) {
    let programs = match build(ui) {
        Ok(programs) => programs,
        Err(error) => return outcome.fail("build the fuzz targets", &format!("{error:#}"), 1),
    };
    for (name, seeds) in TARGETS.iter().filter(|(name, _)| is_selected(name)) {
        outcome.check(ui, &format!("fuzz {name} for {seconds} s"), |step| {
            let folder = |kind: &str| -> Result<PathBuf> {
                let folder = cargo::root().join("target/fuzz").join(kind).join(name);
                fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
                Ok(folder)
            };
            let mut fuzzer = Command::new(programs.join(name));
            fuzzer.arg(folder("corpus")?).arg(cargo::root().join(seeds));
            fuzzer.arg(format!("-artifact_prefix={}/", folder("failures")?.display()));
            fuzzer.args([&format!("-max_total_time={seconds}"), "-timeout=10", "-rss_limit_mb=2048"]);
            step.run(&mut fuzzer)
        });
    }
}

/// Builds all targets. Returns the folder of their programs.
fn build(ui: &Ui) -> Result<PathBuf> {
    ui.step("build the fuzz targets", |step| {
        let mut build = cargo::command(&["build", "--locked", "--workspace"]);
        for (name, _) in TARGETS {
            build.args(["--bin", name]);
        }
        step.run(build.env("RUSTC_WORKSPACE_WRAPPER", cargo::root().join("fuzz/rustc.sh")))
    })?;
    // One profile and one target: cargo puts them beside this program.
    let own = env::current_exe().context("cannot find the file of this program")?;
    let programs = own.parent().map(Path::to_owned).context("the file of this program is in no folder")?;
    ensure!(programs.join(TARGETS[0].0).exists(), "cargo built the fuzz targets, but {} has none", programs.display());
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_has_a_source_and_first_inputs_and_every_source_is_a_target() -> Result<()> {
        let folder = cargo::root().join("fuzz/targets");
        let mut sources: Vec<String> = fs::read_dir(folder)?
            .map(|entry| Ok(entry?.path().file_stem().context("a name")?.to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        sources.sort();
        let mut names: Vec<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        names.sort();
        assert_eq!(sources, names);
        for (name, seeds) in TARGETS {
            assert!(fs::read_dir(cargo::root().join(seeds))?.next().is_some(), "{name} has no first input");
        }
        Ok(())
    }
}
