//! `ebpf`: rebuilds the eBPF object, and checks that the committed one is built from its source.
//!
//! This module owns `ebpf/weft.bpf.o` and the record beside it: nothing else writes them. The
//! record names the hash of the source and the tools of the build.

mod toolchain;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use self::toolchain::{CARGO, RUSTC, version};
use crate::{
    cargo,
    ui::{Step, Ui},
};

#[path = "../../../ebpf/source_hash.rs"]
mod source_hash;

const TARGET: &str = "bpfel-unknown-none";
/// The entries of the record that determine the bytes of the object.
const TOOLS: [&str; 2] = ["rustc", "linker"];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Write nothing: rebuild the object and compare it with the committed one.
    #[arg(long)]
    check: bool,
}

/// The result of comparing a rebuilt object with the committed one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The bytes are the same.
    Same,
    /// This machine has other tools, so its bytes cannot be compared. The text names the different
    /// tool.
    NotCompared(String),
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let ui = Ui::new();
    if !options.check {
        let built = build(&ui)?;
        fs::copy(&built.object, object()).with_context(|| format!("cannot write {}", object().display()))?;
        fs::write(record(), built.record).with_context(|| format!("cannot write {}", record().display()))?;
        eprintln!("wrote {}", object().display());
        return Ok(());
    }
    check_source_hash()?;
    match rebuild(&ui)? {
        Verdict::Same => eprintln!("The committed object is built from its source."),
        Verdict::NotCompared(reason) => bail!("the committed object cannot be checked on this machine: {reason}"),
    }
    Ok(())
}

/// Compares the hash of the source with the record. Needs no tools.
///
/// # Errors
/// When the committed object was built from another source.
pub(crate) fn check_source_hash() -> Result<()> {
    let source = source_hash::source_hash(&folder()).context("cannot read the source of the object")?;
    if source_hash::recorded(&committed()?, "source") != Some(source.as_str()) {
        bail!("{} was built from another source: run `cargo xtask ebpf`", object().display());
    }
    Ok(())
}

/// Installs the tools that the record names, for [`verify`]. Returns the reason when this machine
/// cannot have them.
pub(crate) fn prepare(ui: &Ui) -> Result<Option<String>> {
    let committed = committed()?;
    let rustc = source_hash::recorded(&committed, "rustc").context("the record beside the object names no compiler")?;
    toolchain::prepare(ui, rustc)
}

/// Rebuilds the object and compares it with the committed one, if this machine can have the same
/// tools.
///
/// # Errors
/// When the same tools build other bytes.
pub(crate) fn verify(ui: &Ui) -> Result<Verdict> {
    match prepare(ui)? {
        Some(reason) => Ok(Verdict::NotCompared(reason)),
        None => rebuild(ui),
    }
}

fn rebuild(ui: &Ui) -> Result<Verdict> {
    let built = build(ui)?;
    if let Some(difference) = tool_difference(&committed()?, &built.record) {
        return Ok(Verdict::NotCompared(difference));
    }
    if fs::read(object())? != fs::read(&built.object)? {
        bail!("{} is not built from its source: run `cargo xtask ebpf`", object().display());
    }
    Ok(Verdict::Same)
}

/// The first tool that differs between two records, in one line.
fn tool_difference(committed: &str, built: &str) -> Option<String> {
    let tool = |record, name| source_hash::recorded(record, name).unwrap_or("an unknown tool").to_owned();
    let mut pairs = TOOLS.into_iter().map(|name| (tool(committed, name), tool(built, name)));
    let (then, now) = pairs.find(|(then, now)| then != now)?;
    Some(format!("it was built with {then}, and this machine has {now}"))
}

struct Built {
    object: PathBuf,
    record: String,
}

fn folder() -> PathBuf {
    cargo::root().join("ebpf")
}

fn object() -> PathBuf {
    folder().join("weft.bpf.o")
}

fn record() -> PathBuf {
    folder().join("weft.bpf.txt")
}

fn committed() -> Result<String> {
    fs::read_to_string(record()).context("cannot read the record beside the object")
}

/// Installs what is missing, and builds. Computes the hash before the build: if the source changes
/// during the build, the record does not match it.
fn build(ui: &Ui) -> Result<Built> {
    let linker = toolchain::install(ui)?;
    let source = source_hash::source_hash(&folder()).context("cannot read the source of the object")?;
    let object = ui.step("build the eBPF object", |step| compile(step, &linker))?;
    let record = format!(
        "# The source and the tools of weft.bpf.o. Written by `cargo xtask ebpf`.\nsource = {source}\nrustc = {}\nlinker = {}\n",
        version(Path::new(RUSTC))?,
        version(&linker)?,
    );
    Ok(Built { object, record })
}

fn compile(step: &Step, linker: &Path) -> Result<PathBuf> {
    let target = cargo::root().join("target/ebpf");
    // Panic locations contain the names of files, which must be the same on every machine.
    let flags = [
        format!("--remap-path-prefix={}=/weft", cargo::root().display()),
        format!("--remap-path-prefix={}=/cargo", toolchain::cargo_home().display()),
        format!("-Clinker={}", linker.display()),
    ];
    let mut command = Command::new(CARGO);
    command
        .args(["build", "--release", "--locked", "-Zbuild-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target)
        .current_dir(folder().join("programs"))
        // Debian's compiler is a stable release: without this it refuses to build `core`.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC", RUSTC)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    step.run(&mut command)?;
    Ok(target.join(TARGET).join("release/weft"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_different_tool_is_described_in_one_line() {
        let record =
            |rustc: &str, linker: &str| format!("# A comment.\nsource = 1\nrustc = {rustc}\nlinker = {linker}\n");
        let committed = record("rustc 1.96.0 (a)", "bpf-linker 0.13.0");
        assert_eq!(tool_difference(&committed, &committed), None);
        assert_eq!(
            tool_difference(&committed, &record("rustc 1.97.0 (b)", "bpf-linker 0.13.0")).as_deref(),
            Some("it was built with rustc 1.96.0 (a), and this machine has rustc 1.97.0 (b)")
        );
        assert_eq!(
            tool_difference(&committed, &record("rustc 1.96.0 (a)", "bpf-linker 0.14.0")).as_deref(),
            Some("it was built with bpf-linker 0.13.0, and this machine has bpf-linker 0.14.0")
        );
    }
}
