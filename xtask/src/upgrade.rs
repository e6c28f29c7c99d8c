//! `cargo xtask upgrade`: builds the previous release from its commit, and upgrades a cluster of it
//! node by node to this one, under load, with each runtime.
//!
//! It is not part of `cargo xtask test`, because a second build of everything takes minutes. Run it
//! before a release, and after each change of a record (`control/src/codec`).

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{cargo, machine, outcome::Outcome, setup, test, ui::Ui};

/// The commit of the previous release: 0.1.0, the last one without schema versions.
const PREVIOUS: &str = "fa1e2e88b1bf52fb69876801b7cf404a0bbb0e51";

pub(crate) fn run() -> Result<()> {
    let ui = Ui::new();
    setup::lab(&ui)?;
    setup::docker(&ui)?;
    let source = cargo::root().join("target/previous");
    if !source.join("Cargo.toml").exists() {
        ui.step("check out the previous release", |step| {
            let mut git = Command::new("git");
            git.args(["worktree", "add", "--force", "--detach"]).arg(&source).arg(PREVIOUS);
            step.run(git.current_dir(cargo::root()))
        })?;
    }
    ui.step("build the previous release", |step| {
        let mut build = cargo::command(&["build", "--locked", "--workspace", "--bin", "weft", "--target-dir"]);
        step.run(build.arg(source.join("target")).current_dir(&source))
    })?;
    let weft = source.join("target").join(profile_folder()?).join("weft");
    ensure!(weft.exists(), "cargo built the previous release, but there is no {}", weft.display());
    let mut tests = test::end_to_end_tests();
    if !machine::is_root() {
        tests.args(["--config", "target.'cfg(unix)'.runner = ['sudo', '--preserve-env=WEFT_PREVIOUS']"]);
    }
    tests.env("WEFT_PREVIOUS", weft).args(["--", "upgrade::"]);
    let mut outcome = Outcome::default();
    outcome.tests(&ui, "upgrade from the previous release", tests);
    outcome.report()
}

/// The folder of this program's profile, relative to the target folder: `<triple>/debug`.
fn profile_folder() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find the file of this program")?;
    let folder = own.parent().context("the file of this program is in no folder")?;
    let triple = folder.parent().context("the file of this program is in no target folder")?;
    let names = [triple.file_name(), folder.file_name()];
    Ok(names.into_iter().flatten().collect())
}
