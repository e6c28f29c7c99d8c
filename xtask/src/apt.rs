//! Debian's package tool: which versions of a package are installed and available, and installing
//! packages. This is the only module that changes the packages of the machine, and it never removes
//! one.

use std::{
    collections::BTreeMap,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result, bail};

use crate::{
    machine::{find, is_root},
    ui::Step,
};

/// The versions of a package that apt reports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Versions {
    pub(crate) installed: Option<String>,
    /// The version that apt would install now.
    pub(crate) candidate: Option<String>,
}

/// Whether this system has apt.
pub(crate) fn is_available() -> bool {
    find("apt-get").is_some()
}

/// The versions of these packages. Packages that apt does not list are absent.
pub(crate) fn versions(packages: &[&str]) -> Result<BTreeMap<String, Versions>> {
    let output = Command::new("apt-cache")
        .arg("policy")
        .args(packages)
        // Otherwise the output is in the user's language.
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-cache")?;
    Ok(parse_policy(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads the output of `apt-cache policy`: the name of a package at the start of a line, its
/// versions in indented lines below.
fn parse_policy(policy: &str) -> BTreeMap<String, Versions> {
    let mut packages = BTreeMap::new();
    let mut current = None;
    for line in policy.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            current = Some(packages.entry(name.to_owned()).or_insert_with(Versions::default));
            continue;
        }
        let (Some(versions), Some((key, value))) = (&mut current, line.split_once(": ")) else { continue };
        let version = Some(value.trim()).filter(|version| *version != "(none)").map(str::to_owned);
        match key.trim() {
            "Installed" => versions.installed = version,
            "Candidate" => versions.candidate = version,
            _ => {}
        }
    }
    packages
}

/// The upstream part of a Debian version: `1.96.0` of `1:1.96.0+dfsg1-1~deb12u2`.
pub(crate) fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_epoch, rest)| rest);
    version.split(['+', '-', '~']).next().unwrap_or(version)
}

/// The reason why apt cannot install these packages beside the installed ones. `None` when it can.
/// Changes nothing.
pub(crate) fn install_conflict(packages: &[&str]) -> Result<Option<String>> {
    let output = simulate(&["--no-remove"], packages)?;
    if output.status.success() {
        return Ok(None);
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let reason = stderr.lines().find_map(|line| line.strip_prefix("E: ")).unwrap_or("apt-get gives no reason");
    Ok(Some(reason.trim().to_owned()))
}

/// Downloads a package into a folder, with those that it needs and that this system lacks. Installs
/// none.
pub(crate) fn download(step: &Step, package: &str, folder: &Path) -> Result<()> {
    let output = simulate(&[], &[package])?;
    if !output.status.success() {
        bail!("apt-get cannot install {package}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let packages = parse_simulation(&String::from_utf8_lossy(&output.stdout));
    // apt warns that it downloads as root, unless its own user may write to the folder.
    let mut command = Command::new("apt-get");
    command.args(["--quiet", "--option", "APT::Sandbox::User=root", "download"]).args(packages);
    step.run(command.current_dir(folder))
}

/// What apt prints about an installation with these options. Changes nothing.
fn simulate(options: &[&str], packages: &[&str]) -> Result<Output> {
    Command::new("apt-get")
        .args(["--simulate", "--no-install-recommends"])
        .args(options)
        .arg("install")
        .args(packages)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-get")
}

/// The packages that a simulated installation installs, each as `NAME=VERSION`.
fn parse_simulation(output: &str) -> Vec<String> {
    let package = |line: &str| {
        let name = line.strip_prefix("Inst ")?.split(' ').next()?;
        let version = line.split_once('(')?.1.split(' ').next()?;
        Some(format!("{name}={version}"))
    };
    output.lines().filter_map(package).collect()
}

/// Updates the lists of packages.
pub(crate) fn update(step: &Step) -> Result<()> {
    run(step, &["update"])
}

/// Installs packages, as root or through sudo.
///
/// # Errors
/// Without apt or sudo: then the error says what to install.
pub(crate) fn install(step: &Step, packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !is_available() {
        bail!("install {list} (names of Debian packages) with the package tool of this system, then run this again");
    }
    if !is_root() && find("sudo").is_none() {
        bail!("installing packages needs root: run `apt-get install {list}` as root, then run this again");
    }
    update(step)?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    arguments.extend(packages);
    run(step, &arguments)
}

fn run(step: &Step, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(if is_root() { "env" } else { "sudo" });
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--quiet"]).args(arguments);
    step.run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "\
rustc-web:
  Installed: (none)
  Candidate: 1.96.0+dfsg1-1~deb12u2
  Version table:
     1.96.0+dfsg1-1~deb12u2 500
        500 http://deb.example/debian-security bookworm-security/main amd64 Packages
zlib1g-dev:
  Installed: 1:1.2.13.dfsg-1
  Candidate: 1:1.2.13.dfsg-1
  Version table:
 *** 1:1.2.13.dfsg-1 500
        100 /var/lib/dpkg/status
";

    #[test]
    fn versions_are_read_from_a_policy() {
        let version = |text: &str| Some(text.to_owned());
        let packages = parse_policy(POLICY);
        assert_eq!(packages.len(), 2, "{packages:?}");
        let compiler = Versions { installed: None, candidate: version("1.96.0+dfsg1-1~deb12u2") };
        assert_eq!(packages["rustc-web"], compiler);
        let zlib = Versions { installed: version("1:1.2.13.dfsg-1"), candidate: version("1:1.2.13.dfsg-1") };
        assert_eq!(packages["zlib1g-dev"], zlib);
        assert!(parse_policy("").is_empty());
    }

    #[test]
    fn installed_and_upgraded_packages_are_read_from_a_simulation() {
        let output = "\
Remv qemu-utils [1:10.0.2+ds-2]
Inst seabios (1.16.2-1 Debian:12.12/stable [all])
Inst libc6 [2.36-9] (2.36-9+deb12u1 Debian:12.12/stable [amd64])
Conf seabios (1.16.2-1 Debian:12.12/stable [all])
";
        assert_eq!(parse_simulation(output), ["seabios=1.16.2-1", "libc6=2.36-9+deb12u1"]);
    }

    #[test]
    fn the_upstream_version_has_no_debian_parts() {
        for (version, expected) in
            [("1.96.0+dfsg1-1~deb12u2", "1.96.0"), ("1:22.1.8-1~deb12u1", "22.1.8"), ("1.63.0", "1.63.0")]
        {
            assert_eq!(upstream(version), expected);
        }
    }
}
