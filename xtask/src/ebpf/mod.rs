//! Rebuilding the eBPF object, and proving that the committed one is what its source makes.
//!
//! Owns `ebpf/weft.bpf.o` and the record beside it; nothing else writes them.

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
/// Those of the record that decide on the object's bytes.
const TOOLS: [&str; 2] = ["rustc", "linker"];

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Write nothing: rebuild, and compare with what is committed.
    #[arg(long)]
    check: bool,
}

/// What a rebuild says of the committed object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The same bytes.
    Same,
    /// Bytes of this machine would prove nothing, and why.
    NotCompared(String),
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let ui = Ui::new();
    if !options.check {
        let built = build(&ui)?;
        fs::copy(&built.object, object()).context("cannot write the object")?;
        fs::write(record(), built.record).context("cannot write the record")?;
        eprintln!("wrote {}", object().display());
        return Ok(());
    }
    source_is_the_recorded()?;
    match rebuild(&ui)? {
        Verdict::Same => eprintln!("The committed object is what its source makes."),
        Verdict::NotCompared(why) => bail!("the committed object cannot be compared here: {why}"),
    }
    Ok(())
}

/// Fails where the source is not the one that the committed object was made of. Needs no tools.
pub(crate) fn source_is_the_recorded() -> Result<()> {
    let source = source_hash::source_hash(&folder()).context("cannot read the source of the object")?;
    if source_hash::recorded(&committed()?, "source") != Some(source.as_str()) {
        bail!("{} is older than its source: run `cargo xtask ebpf`", object().display());
    }
    Ok(())
}

/// Gets the tools that the record names, for [`verify`]. Where this machine cannot have them, says why.
pub(crate) fn prepare(ui: &Ui) -> Result<Option<String>> {
    let committed = committed()?;
    let rustc = source_hash::recorded(&committed, "rustc").context("the record names no compiler")?;
    toolchain::prepare(ui, rustc)
}

/// Rebuilds the object and compares it with the committed one, where this machine can have the same tools. An error where
/// they make other bytes.
pub(crate) fn verify(ui: &Ui) -> Result<Verdict> {
    match prepare(ui)? {
        Some(why) => Ok(Verdict::NotCompared(why)),
        None => rebuild(ui),
    }
}

fn rebuild(ui: &Ui) -> Result<Verdict> {
    let built = build(ui)?;
    if let Some(difference) = other_tools(&committed()?, &built.record) {
        return Ok(Verdict::NotCompared(difference));
    }
    if fs::read(object())? != fs::read(&built.object)? {
        bail!("{} is not what its source makes: run `cargo xtask ebpf`", object().display());
    }
    Ok(Verdict::Same)
}

/// The first tool that is not the same in two records, in one line.
fn other_tools(committed: &str, built: &str) -> Option<String> {
    let tool = |record, name| source_hash::recorded(record, name).unwrap_or("an unknown one").to_owned();
    let mut pairs = TOOLS.into_iter().map(|name| (tool(committed, name), tool(built, name)));
    let (was, is) = pairs.find(|(was, is)| was != is)?;
    Some(format!("it was built with {was}, and here is {is}"))
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

/// Installs what is missing and builds. The hash is taken before: a source that changes meanwhile stays stale.
fn build(ui: &Ui) -> Result<Built> {
    let linker = toolchain::install(ui)?;
    let source = source_hash::source_hash(&folder()).context("cannot read the source of the object")?;
    let object = ui.step("build the eBPF object", |step| compile(step, &linker))?;
    let record = format!(
        "# What weft.bpf.o was made of and with. Written by `cargo xtask ebpf`.\nsource = {source}\nrustc = {}\nlinker = {}\n",
        version(Path::new(RUSTC))?,
        version(&linker)?,
    );
    Ok(Built { object, record })
}

fn compile(step: &Step, linker: &Path) -> Result<PathBuf> {
    let target = cargo::root().join("target/ebpf");
    // Panic locations name files: the same ones everywhere.
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
        // Debian's compiler is a release, which would not build `core` for a new target.
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
    fn other_tools_are_told_in_one_line() {
        let record =
            |rustc: &str, linker: &str| format!("# By hand.\nsource = 1\nrustc = {rustc}\nlinker = {linker}\n");
        let committed = record("rustc 1.96.0 (a)", "bpf-linker 0.13.0");
        assert_eq!(other_tools(&committed, &committed), None);
        assert_eq!(
            other_tools(&committed, &record("rustc 1.97.0 (b)", "bpf-linker 0.13.0")).as_deref(),
            Some("it was built with rustc 1.96.0 (a), and here is rustc 1.97.0 (b)")
        );
        assert_eq!(
            other_tools(&committed, &record("rustc 1.96.0 (a)", "bpf-linker 0.14.0")).as_deref(),
            Some("it was built with bpf-linker 0.13.0, and here is bpf-linker 0.14.0")
        );
    }
}
