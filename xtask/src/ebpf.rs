//! Rebuilding the eBPF object, and proving that the committed one is what its source makes.
//!
//! The object is built with Debian's compiler, from packages of Debian alone, so that any machine gets the same bytes.
//! Owns `ebpf/weft.bpf.o` and the record beside it; nothing else writes them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    cargo, machine,
    ui::{Step, Ui},
};

#[path = "../../ebpf/source_hash.rs"]
mod source_hash;

/// What the build needs: a file of each Debian package.
const PACKAGES: &[(&str, &str)] = &[
    (RUSTC, "rustc-web"),
    (CARGO, "cargo-web"),
    ("/usr/lib/rustlib/src/rust/library/core/Cargo.toml", "rust-web-src"),
    ("/usr/lib/llvm-22/bin/llvm-config", "llvm-22-dev"),
    ("/usr/lib/llvm-22/lib/libPolly.a", "libpolly-22-dev"),
    ("/usr/include/zlib.h", "zlib1g-dev"),
    ("/usr/include/zstd.h", "libzstd-dev"),
];
const RUSTC: &str = "/usr/bin/rustc";
const CARGO: &str = "/usr/bin/cargo";
const LLVM: &str = "/usr/lib/llvm-22";
/// rustup does not install this one, and its LLVM must be the compiler's.
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";
const TARGET: &str = "bpfel-unknown-none";

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
    /// This machine's tools are others than the record names, so bytes prove nothing; they are named here.
    OtherTools(String),
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
    match verify(&ui)? {
        Verdict::Same => eprintln!("The committed object is what its source makes."),
        Verdict::OtherTools(tools) => {
            eprintln!("warning: the committed object was built with other tools than these, not compared: {tools}");
        }
    }
    Ok(())
}

/// Rebuilds the object and compares it with the committed one. An error where the same tools make other bytes.
pub(crate) fn verify(ui: &Ui) -> Result<Verdict> {
    let built = build(ui)?;
    let committed = fs::read_to_string(record()).context("cannot read the record beside the object")?;
    let value = |record: &str, name| source_hash::recorded(record, name).map(str::to_owned);
    if value(&committed, "source") != value(&built.record, "source") {
        bail!("{} is older than its source: run `cargo xtask ebpf`", object().display());
    }
    if ["rustc", "linker"].into_iter().any(|tool| value(&committed, tool) != value(&built.record, tool)) {
        return Ok(Verdict::OtherTools(built.record));
    }
    if fs::read(object())? != fs::read(&built.object)? {
        bail!("{} is not what its source makes: run `cargo xtask ebpf`", object().display());
    }
    Ok(Verdict::Same)
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

/// Installs what is missing and builds. The hash is taken before: a source that changes meanwhile stays stale.
fn build(ui: &Ui) -> Result<Built> {
    let packages: Vec<&str> =
        PACKAGES.iter().filter(|(file, _)| !Path::new(file).exists()).map(|(_, package)| *package).collect();
    if !packages.is_empty() {
        ui.step(&format!("install {}", packages.join(" ")), |step| machine::install(step, &packages))?;
    }
    let linker = match linker() {
        Some(found) => found,
        None => ui.step(&format!("install {LINKER} {LINKER_VERSION}"), install_linker)?,
    };
    let source = source_hash::source_hash(&folder()).context("cannot read the source of the object")?;
    let object = ui.step("build the eBPF object", |step| compile(step, &linker))?;
    let record = format!(
        "# What weft.bpf.o was made of and with. Written by `cargo xtask ebpf`.\nsource = {source}\nrustc = {}\nlinker = {}\n",
        version(Path::new(RUSTC))?,
        version(&linker)?,
    );
    Ok(Built { object, record })
}

/// The linker, where it is installed in the right version.
fn linker() -> Option<PathBuf> {
    let installed = cargo_home().join("bin").join(LINKER);
    let found = machine::find(LINKER).into_iter().chain([installed]).find(|file| file.is_file())?;
    version(&found).ok().filter(|version| version.split(' ').any(|word| word == LINKER_VERSION)).map(|_| found)
}

fn install_linker(step: &Step) -> Result<PathBuf> {
    let version = format!("={LINKER_VERSION}");
    let arguments = [
        "install",
        "--locked",
        "--quiet",
        "--force",
        LINKER,
        "--version",
        &version,
        "--no-default-features",
        "--features",
        "llvm-22",
    ];
    // Outside of the workspace's folder: its build flags are not for tools. The first variable is for the linker's own
    // build script, which else takes the directory above the first llvm-config in PATH; the second for llvm-sys.
    step.run(cargo::command(&arguments).current_dir("/").env("LLVM_PREFIX", LLVM).env("LLVM_SYS_221_PREFIX", LLVM))?;
    linker().with_context(|| {
        format!("cargo installed {LINKER}, but it is neither in PATH nor in {}", cargo_home().display())
    })
}

fn compile(step: &Step, linker: &Path) -> Result<PathBuf> {
    let target = cargo::root().join("target/ebpf");
    // Panic locations name files: the same ones everywhere.
    let flags = [
        format!("--remap-path-prefix={}=/weft", cargo::root().display()),
        format!("--remap-path-prefix={}=/cargo", cargo_home().display()),
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

fn version(program: &Path) -> Result<String> {
    let output =
        Command::new(program).arg("--version").output().with_context(|| format!("cannot run {}", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

fn cargo_home() -> PathBuf {
    let default = || Path::new(&env::var_os("HOME").unwrap_or_default()).join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from)
}
