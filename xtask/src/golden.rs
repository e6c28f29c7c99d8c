//! Adds the golden files of new schema versions: `cargo xtask golden`.
//!
//! A golden file is a record or a JSON file as a version of weft writes it
//! (`control/src/codec/golden.rs`, `control/src/json.rs`). The unit tests decode all of them. This
//! task only adds files that are missing, and never changes one.

use anyhow::{Context, Result, ensure};

use crate::cargo;

pub(crate) fn run() -> Result<()> {
    // The names of all tests of golden files contain this word: those of records and of JSON files.
    let arguments = ["test", "--locked", "--workspace", "--lib", "golden"];
    let status = cargo::command(&arguments).env("WEFT_ADD_GOLDEN", "1").status().context("cannot run cargo")?;
    ensure!(status.success(), "the golden files and the types do not match: the test above says which");
    Ok(())
}
