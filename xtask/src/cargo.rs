//! Where cargo puts things, and running it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::ui::Ui;

/// The workspace's top directory.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// The cargo that runs this.
pub(crate) fn program() -> String {
    env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).current_dir(root());
    command
}

/// Builds the `weft` binary; its path.
pub(crate) fn build_weft(ui: &Ui) -> Result<PathBuf> {
    ui.step("build weft", |step| step.run(&mut command(&["build", "--locked", "--workspace", "--bin", "weft"])))?;
    // Beside this program: one profile and one target serve both.
    let weft = env::current_exe().context("cannot find this program's file")?.with_file_name("weft");
    if !weft.exists() {
        bail!("cargo built weft, but not at {}", weft.display());
    }
    Ok(weft)
}
