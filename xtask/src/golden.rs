//! Adds the golden files of new schema versions: `cargo xtask golden`.
//!
//! A golden file is a record as a version of weft writes it (`control/src/codec/golden.rs`). The
//! unit tests decode all of them. This task only adds files that are missing, and never changes
//! one.

use anyhow::{Context, Result, ensure};

use crate::cargo;

pub(crate) fn run() -> Result<()> {
    let test = "every_kind_of_every_version_is_read_and_written";
    let arguments = ["test", "--locked", "--workspace", "--lib", test];
    let status = cargo::command(&arguments).env("WEFT_ADD_GOLDEN", "1").status().context("cannot run cargo")?;
    ensure!(status.success(), "the golden files and the types do not match: the test above says which");
    Ok(())
}
