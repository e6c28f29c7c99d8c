//! Debian's package tool: what it has installed, what it offers, and installing. Nothing else changes the machine's
//! packages, and nothing here removes one.

use std::{collections::BTreeMap, process::Command};

use anyhow::{Context, Result, bail};

use crate::{
    machine::{find, is_root},
    ui::Step,
};

/// The versions that apt knows of a package.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Offer {
    pub(crate) installed: Option<String>,
    /// What it would install now.
    pub(crate) candidate: Option<String>,
}

/// Whether this system has apt.
pub(crate) fn is_there() -> bool {
    find("apt-get").is_some()
}

/// What apt says of these packages. Those that it never heard of are absent.
pub(crate) fn offers(packages: &[&str]) -> Result<BTreeMap<String, Offer>> {
    let output = Command::new("apt-cache")
        .arg("policy")
        .args(packages)
        // The words are translated elsewhere.
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-cache")?;
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads the answer of `apt-cache policy`: a package's name at the start of a line, what is known of it indented below.
fn parse(policy: &str) -> BTreeMap<String, Offer> {
    let mut offers = BTreeMap::new();
    let mut current = None;
    for line in policy.lines() {
        if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            current = Some(offers.entry(name.to_owned()).or_insert_with(Offer::default));
            continue;
        }
        let (Some(offer), Some((key, value))) = (&mut current, line.split_once(": ")) else { continue };
        let version = Some(value.trim()).filter(|version| *version != "(none)").map(str::to_owned);
        match key.trim() {
            "Installed" => offer.installed = version,
            "Candidate" => offer.candidate = version,
            _ => {}
        }
    }
    offers
}

/// The upstream part of a package's version, without Debian's: `1.96.0` of `1:1.96.0+dfsg1-1~deb12u2`.
pub(crate) fn upstream(version: &str) -> &str {
    let version = version.split_once(':').map_or(version, |(_epoch, rest)| rest);
    version.split(['+', '-', '~']).next().unwrap_or(version)
}

/// Why apt would not install these packages beside what is installed, if it would not. Changes nothing.
pub(crate) fn objection(packages: &[&str]) -> Result<Option<String>> {
    let output = Command::new("apt-get")
        .args(["--simulate", "--no-remove", "--no-install-recommends", "install"])
        .args(packages)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run apt-get")?;
    if output.status.success() {
        return Ok(None);
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let reason = said.lines().find_map(|line| line.strip_prefix("E: ")).unwrap_or("no reason given");
    Ok(Some(reason.trim().to_owned()))
}

/// Fetches the lists of packages.
pub(crate) fn refresh(step: &Step) -> Result<()> {
    run(step, &["update"])
}

/// Installs packages, as root or through sudo. Elsewhere says what to install.
pub(crate) fn install(step: &Step, packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !is_there() {
        bail!("please install {list} (the names are Debian's) with this system's package tool, then run this again");
    }
    if !is_root() && find("sudo").is_none() {
        bail!("this needs root: run `apt-get install {list}` as root, then run this again");
    }
    refresh(step)?;
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
    fn policies_are_read() {
        let version = |text: &str| Some(text.to_owned());
        let offers = parse(POLICY);
        assert_eq!(offers.len(), 2, "{offers:?}");
        let compiler = Offer { installed: None, candidate: version("1.96.0+dfsg1-1~deb12u2") };
        assert_eq!(offers["rustc-web"], compiler);
        let zlib = Offer { installed: version("1:1.2.13.dfsg-1"), candidate: version("1:1.2.13.dfsg-1") };
        assert_eq!(offers["zlib1g-dev"], zlib);
        assert!(parse("").is_empty());
    }

    #[test]
    fn versions_lose_what_debian_added() {
        for (version, expected) in
            [("1.96.0+dfsg1-1~deb12u2", "1.96.0"), ("1:22.1.8-1~deb12u1", "22.1.8"), ("1.63.0", "1.63.0")]
        {
            assert_eq!(upstream(version), expected);
        }
    }
}
