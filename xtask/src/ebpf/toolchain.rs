//! The tools that build the eBPF object: a compiler and an LLVM from packages of Debian, and a
//! linker from cargo. With the same packages every machine builds the same bytes. This module
//! installs them. It reports whether the compiler that a record names can be installed on this
//! machine.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    apt::{self, Versions},
    cargo, machine,
    ui::{Step, Ui},
};

/// The packages of Debian that the build needs. The compiler among them determines the bytes.
const PACKAGES: [&str; 7] =
    [COMPILER, "cargo-web", "rust-web-src", "llvm-22-dev", "libpolly-22-dev", "zlib1g-dev", "libzstd-dev"];
const COMPILER: &str = "rustc-web";
/// The programs of [`COMPILER`]. Where rustup is installed too, they are not first in PATH.
pub(super) const RUSTC: &str = "/usr/bin/rustc";
pub(super) const CARGO: &str = "/usr/bin/cargo";
const LLVM: &str = "/usr/lib/llvm-22";
/// It must use the same LLVM as the compiler, and rustup does not install it.
const LINKER: &str = "bpf-linker";
const LINKER_VERSION: &str = "0.13.0";

/// What must be installed.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Install(Vec<&'static str>),
    /// The packages cannot be installed, for this reason.
    Impossible(String),
}

/// Installs what is missing, in any version that Debian has. Returns the path of the linker.
pub(super) fn install(ui: &Ui) -> Result<PathBuf> {
    if !apt::is_available() {
        bail!("the eBPF object is built with packages of Debian 12, and this system has no apt: run this on Debian 12");
    }
    match make_plan(ui, None)? {
        Plan::Install(packages) => install_packages(ui, &packages)?,
        Plan::Impossible(reason) => {
            bail!("the eBPF object is built with packages of Debian 12, but {reason}: run this on Debian 12")
        }
    }
    match find_linker() {
        Some(found) => Ok(found),
        None => ui.step(&format!("install {LINKER} {LINKER_VERSION}"), install_linker),
    }
}

/// Installs the packages, with the compiler that built the object. `rustc` is its recorded version.
/// Returns the reason when this machine cannot have them, and then installs nothing.
pub(super) fn prepare(ui: &Ui, rustc: &str) -> Result<Option<String>> {
    let release = release(rustc).with_context(|| format!("the record has no version of rustc: {rustc}"))?;
    if !apt::is_available() {
        return Ok(Some("this system has no apt, and the object was built with Debian's packages".to_owned()));
    }
    let packages = match make_plan(ui, Some(release))? {
        Plan::Install(packages) if packages.is_empty() => return Ok(None),
        Plan::Install(packages) => packages,
        Plan::Impossible(reason) => return Ok(Some(reason)),
    };
    // For example, apt would have to remove the compiler of another package.
    if let Some(conflict) = apt::install_conflict(&packages)? {
        return Ok(Some(format!("apt cannot install {}: {conflict}", packages.join(" "))));
    }
    install_packages(ui, &packages)?;
    Ok(None)
}

fn install_packages(ui: &Ui, packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    ui.step(&format!("install {}", packages.join(" ")), |step| apt::install(step, packages))
}

/// Plans with the lists of packages that this machine has. If they do not offer everything, updates
/// them and plans again.
fn make_plan(ui: &Ui, release: Option<&str>) -> Result<Plan> {
    let first = plan(&apt::versions(&PACKAGES)?, release);
    if let Plan::Install(_) = first {
        return Ok(first);
    }
    // Without a network the update fails. Then the plan reports which package the old lists do not
    // have.
    let _update = ui.step("update the lists of packages", apt::update);
    Ok(plan(&apt::versions(&PACKAGES)?, release))
}

/// With a `release`, the compiler must have that version.
fn plan(versions: &BTreeMap<String, Versions>, release: Option<&str>) -> Plan {
    let mut missing = Vec::new();
    for package in PACKAGES {
        let fits = |version: &&String| {
            package != COMPILER || release.is_none_or(|release| apt::upstream(version.as_str()) == release)
        };
        let found = versions.get(package).cloned().unwrap_or_default();
        if found.installed.as_ref().filter(fits).is_some() {
            continue;
        }
        if found.candidate.as_ref().filter(fits).is_some() {
            missing.push(package);
            continue;
        }
        return Plan::Impossible(match (found.installed.or(found.candidate), release) {
            (Some(version), Some(release)) => {
                format!("it was built with rustc {release}, and this system has {package} {version}")
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

/// The path of the linker, if it is installed in the right version.
fn find_linker() -> Option<PathBuf> {
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
    // Not in the workspace's folder: its build flags are not for these tools. The first variable is
    // for the linker's build script, which would otherwise use the first llvm-config in PATH. The
    // second is for llvm-sys.
    step.run(cargo::command(&arguments).current_dir("/").env("LLVM_PREFIX", LLVM).env("LLVM_SYS_221_PREFIX", LLVM))?;
    find_linker().with_context(|| {
        format!("cargo installed {LINKER}, but it is neither in PATH nor in {}", cargo_home().display())
    })
}

/// The first line that a program prints about its version.
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

    /// Plans with all packages installed, except for the compiler, which has these versions.
    fn check(installed: Option<&str>, candidate: Option<&str>, release: Option<&str>, expected: &Plan) {
        let text = |version: Option<&str>| version.map(str::to_owned);
        let other = Versions { installed: text(Some("1.0-1")), candidate: text(Some("1.0-1")) };
        let mut versions: BTreeMap<String, Versions> =
            PACKAGES.iter().map(|package| ((*package).to_owned(), other.clone())).collect();
        versions.insert(COMPILER.to_owned(), Versions { installed: text(installed), candidate: text(candidate) });
        assert_eq!(plan(&versions, release), *expected, "{installed:?} {candidate:?} {release:?}");
    }

    #[test]
    fn nothing_is_installed_without_the_recorded_compiler() {
        let (old, recorded, new) = ("1.85.0+dfsg3-1", "1.96.0+dfsg1-1~deb12u2", "1.97.0+dfsg1-1");
        let release = Some("1.96.0");
        let nothing = Plan::Install(Vec::new());
        let compiler = Plan::Install(vec![COMPILER]);
        check(Some(recorded), Some(new), release, &nothing);
        check(None, Some(recorded), release, &compiler);
        check(Some(old), Some(recorded), release, &compiler);
        let other = |version| {
            Plan::Impossible(format!("it was built with rustc 1.96.0, and this system has rustc-web {version}"))
        };
        check(None, Some(old), release, &other(old));
        check(Some(new), Some(new), release, &other(new));
        check(None, None, release, &Plan::Impossible("this system has no package rustc-web".to_owned()));
        // For a new object the compiler may have any version.
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
