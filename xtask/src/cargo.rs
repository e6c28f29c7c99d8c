//! Runs cargo, and finds the programs that it builds.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::ui::Ui;

/// The top folder of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// A cargo command that runs in [`root`]. It is the cargo that runs this program.
pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    command.args(arguments).current_dir(root());
    command
}

/// Builds the `weft` binary in this program's own profile, and returns its path.
pub(crate) fn build_weft(ui: &Ui) -> Result<PathBuf> {
    ui.step("build weft", |step| step.run(&mut command(&["build", "--locked", "--workspace", "--bin", "weft"])))?;
    // One profile and one target: cargo puts both programs into one folder.
    let weft = env::current_exe().context("cannot find the file of this program")?.with_file_name("weft");
    if !weft.exists() {
        bail!("cargo built weft, but there is no {}", weft.display());
    }
    Ok(weft)
}
