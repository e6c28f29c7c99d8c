//! The tools that build the eBPF object: a compiler and an LLVM from packages of Debian alone, so that any machine that
//! has them makes the same bytes, and a linker from cargo. Says whether this machine can have the ones that a record
//! names, and gets them.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    apt::{self, Offer},
    cargo, machine,
    ui::{Step, Ui},
};

/// What the build needs of Debian. Its compiler decides on the bytes.
const PACKAGES: [&str; 7] =
    [COMPILER, "cargo-web", "rust-web-src", "llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"];
const COMPILER: &str = "rustc-web";
/// Where [`COMPILER`] and its cargo are: beside rustup's, and never first in its users' PATH.
pub(super) const RUSTC: &str = "/usr/bin/rustc";
pub(super) const CARGO: &str = "/usr/bin/cargo";
const LLVM: &str = "/usr/lib/llvm-22";
/// rustup does not install this one, and its LLVM must be the compiler's.
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";

/// What to do to have the packages.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Install(Vec<&'static str>),
    /// Why they cannot be had.
    Impossible(String),
}

/// Installs what is missing, whatever version Debian has of it. The path of the linker.
pub(super) fn install(ui: &Ui) -> Result<PathBuf> {
    if !apt::is_there() {
        bail!("the eBPF object is built with packages of Debian 12, and this system has no apt: run this there");
    }
    match look(ui, None)? {
        Plan::Install(packages) => get(ui, &packages)?,
        Plan::Impossible(why) => {
            bail!("the eBPF object is built with packages of Debian 12, but {why}: run this there")
        }
    }
    match linker() {
        Some(found) => Ok(found),
        None => ui.step(&format!("install {LINKER} {LINKER_VERSION}"), install_linker),
    }
}

/// Gets the packages with the compiler that made the object, `rustc` being its recorded version. Where this machine cannot
/// have them, says why and changes nothing.
pub(super) fn prepare(ui: &Ui, rustc: &str) -> Result<Option<String>> {
    let release = release(rustc).with_context(|| format!("the record names no version of the compiler: {rustc}"))?;
    if !apt::is_there() {
        return Ok(Some("this system has no apt, and the object was built with Debian's packages".to_owned()));
    }
    let packages = match look(ui, Some(release))? {
        Plan::Install(packages) if packages.is_empty() => return Ok(None),
        Plan::Install(packages) => packages,
        Plan::Impossible(why) => return Ok(Some(why)),
    };
    // A compiler of another package, say, which it would replace.
    if let Some(objection) = apt::objection(&packages)? {
        return Ok(Some(format!("apt would not install {}: {objection}", packages.join(" "))));
    }
    get(ui, &packages)?;
    Ok(None)
}

fn get(ui: &Ui, packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    ui.step(&format!("install {}", packages.join(" ")), |step| apt::install(step, packages))
}

/// What is to be installed. Lists that are old or absent are fetched before anything is called impossible.
fn look(ui: &Ui, release: Option<&str>) -> Result<Plan> {
    let known = plan(&apt::offers(&PACKAGES)?, release);
    if let Plan::Install(_) = known {
        return Ok(known);
    }
    // Without a network the old lists are all there is, and the plan says what they lack.
    let _step_says_why = ui.step("fetch the lists of packages", apt::refresh);
    Ok(plan(&apt::offers(&PACKAGES)?, release))
}

/// With a `release`, the compiler must be that one.
fn plan(offers: &BTreeMap<String, Offer>, release: Option<&str>) -> Plan {
    let mut missing = Vec::new();
    for package in PACKAGES {
        let fits = |version: &&String| {
            package != COMPILER || release.is_none_or(|release| apt::upstream(version.as_str()) == release)
        };
        let offer = offers.get(package).cloned().unwrap_or_default();
        if offer.installed.as_ref().filter(fits).is_some() {
            continue;
        }
        if offer.candidate.as_ref().filter(fits).is_some() {
            missing.push(package);
            continue;
        }
        return Plan::Impossible(match (offer.installed.or(offer.candidate), release) {
            (Some(version), Some(release)) => {
                format!("it was built with rustc {release}, and {package} is {version} here")
            }
            _ => format!("this system has no package {package}"),
        });
    }
    Plan::Install(missing)
}

/// `1.96.0` of `rustc 1.96.0 (ac68faa20 2026-05-25)`.
fn release(rustc: &str) -> Option<&str> {
    rustc.strip_prefix("rustc ")?.split(' ').next()
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

/// The first line of what a program says of its version.
pub(super) fn version(program: &Path) -> Result<String> {
    let output =
        Command::new(program).arg("--version").output().with_context(|| format!("cannot run {}", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
}

pub(super) fn cargo_home() -> PathBuf {
    let default = || Path::new(&env::var_os("HOME").unwrap_or_default()).join(".cargo");
    env::var_os("CARGO_HOME").map_or_else(default, PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plans with everything installed but the compiler, which is as given.
    fn check(installed: Option<&str>, candidate: Option<&str>, release: Option<&str>, expected: &Plan) {
        let text = |version: Option<&str>| version.map(str::to_owned);
        let there = Offer { installed: text(Some("1.0-1")), candidate: text(Some("1.0-1")) };
        let mut offers: BTreeMap<String, Offer> =
            PACKAGES.iter().map(|package| ((*package).to_owned(), there.clone())).collect();
        offers.insert(COMPILER.to_owned(), Offer { installed: text(installed), candidate: text(candidate) });
        assert_eq!(plan(&offers, release), *expected, "{installed:?} {candidate:?} {release:?}");
    }

    #[test]
    fn the_recorded_compiler_is_had_or_nothing_is_installed() {
        let (old, recorded, new) = ("1.85.0+dfsg3-1", "1.96.0+dfsg1-1~deb12u2", "1.97.0+dfsg1-1");
        let release = Some("1.96.0");
        let nothing = Plan::Install(Vec::new());
        let compiler = Plan::Install(vec![COMPILER]);
        check(Some(recorded), Some(new), release, &nothing);
        check(None, Some(recorded), release, &compiler);
        check(Some(old), Some(recorded), release, &compiler);
        let other =
            |version| Plan::Impossible(format!("it was built with rustc 1.96.0, and rustc-web is {version} here"));
        check(None, Some(old), release, &other(old));
        check(Some(new), Some(new), release, &other(new));
        check(None, None, release, &Plan::Impossible("this system has no package rustc-web".to_owned()));
        // To build a new object, any will do.
        check(Some(new), Some(new), None, &nothing);
        check(None, Some(old), None, &compiler);
        check(None, None, None, &Plan::Impossible("this system has no package rustc-web".to_owned()));
    }

    #[test]
    fn the_release_is_read_from_the_record() {
        assert_eq!(release("rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"), Some("1.96.0"));
        assert_eq!(release("gcc 12"), None);
    }
}
