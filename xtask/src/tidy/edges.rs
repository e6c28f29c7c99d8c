//! Checks the dependencies between the crates of this workspace. ARCHITECTURE.md gives the reasons.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Complaint;
use crate::cargo;

/// Every crate of this workspace, with the workspace crates that it may depend on. Dependencies
/// point one way: no crate depends on one that is built on it, and overlay, mesh and dns do not
/// depend on each other.
const EDGES: &[(&str, &[&str])] = &[
    ("weft-model", &[]),
    ("weft-ebpf-common", &[]),
    ("weft-ebpf-programs", &["weft-ebpf-common"]),
    ("weft-control", &["weft-model"]),
    ("weft-overlay", &["weft-model", "weft-wireguard"]),
    // The lab for its tests only.
    ("weft-wireguard", &["weft-lab"]),
    ("weft-mesh", &["weft-model", "weft-ebpf-common"]),
    ("weft-dns", &["weft-model"]),
    ("weft", &["weft-model", "weft-control", "weft-overlay", "weft-mesh", "weft-dns", "weft-ebpf-common", "weft-lab"]),
    ("weft-lab", &[]),
    ("weft-fuzz", &["weft-control"]),
    ("xtask", &["weft-lab"]),
];

/// A package of this workspace, as `cargo metadata` describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Package {
    name: String,
    manifest: PathBuf,
    /// Names of dependencies of every kind, normal, dev and build.
    dependencies: BTreeSet<String>,
    /// The root files of its crates: libraries, programs and tests, without build scripts.
    pub(super) roots: Vec<PathBuf>,
}

/// The packages of a manifest's workspace. All paths are relative to the top of the repository.
///
/// # Errors
/// When cargo cannot be run, or cannot read the manifest.
pub(super) fn packages(manifest: &Path) -> Result<Vec<Package>> {
    let mut command = cargo::command(&["metadata", "--format-version", "1", "--no-deps", "--manifest-path"]);
    let output = command.arg(manifest).output().context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    Ok(packages.iter().map(package).collect())
}

fn package(value: &Value) -> Package {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let relative = |value: &Value| {
        let path = PathBuf::from(text(value));
        path.strip_prefix(cargo::root()).map_or_else(|_| path.clone(), Path::to_owned)
    };
    let is_build_script = |target: &Value| list(&target["kind"]).iter().any(|kind| kind == "custom-build");
    Package {
        name: text(&value["name"]),
        manifest: relative(&value["manifest_path"]),
        dependencies: list(&value["dependencies"]).iter().map(|dependency| text(&dependency["name"])).collect(),
        roots: list(&value["targets"])
            .iter()
            .filter(|target| !is_build_script(target))
            .map(|target| relative(&target["src_path"]))
            .collect(),
    }
}

pub(super) fn check(packages: &[Package]) -> Vec<Complaint> {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let ours = |name: &str| allowed.contains_key(name) || packages.iter().any(|package| package.name == name);
    let mut complaints = Vec::new();
    for Package { name, manifest, dependencies, .. } in packages {
        let mut complain = |advice| complaints.push(Complaint { file: manifest.clone(), line: 0, advice });
        let Some(may_use) = allowed.get(name.as_str()) else {
            complain(format!("{name} is not in the list of crates: add it to EDGES in xtask/src/tidy/edges.rs"));
            continue;
        };
        for dependency in dependencies.iter().filter(|name| ours(name) && !may_use.contains(&name.as_str())) {
            complain(format!("{name} must not depend on {dependency}: remove the dependency"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(name: &str, dependencies: &[&str], complaints: usize) {
        let dependencies = dependencies.iter().map(|name| (*name).to_owned()).collect();
        let package = Package { name: name.to_owned(), dependencies, ..Package::default() };
        assert_eq!(check(std::slice::from_ref(&package)).len(), complaints, "{package:?}");
    }

    #[test]
    fn edges_point_one_way() {
        check_one("weft-mesh", &["weft-model", "weft-ebpf-common", "aya"], 0);
        check_one("weft-mesh", &["weft-overlay"], 1);
        check_one("weft-dns", &["weft-control", "weft-mesh"], 2);
        check_one("weft-model", &["serde"], 0);
        check_one("weft-model", &["weft-control"], 1);
        check_one("weft-new", &[], 1);
    }

    #[test]
    fn every_crate_in_the_list_has_an_entry() {
        let names: BTreeSet<&str> = EDGES.iter().map(|(name, _)| *name).collect();
        for (package, dependencies) in EDGES {
            assert!(dependencies.iter().all(|name| names.contains(name)), "{package}");
        }
    }

    #[test]
    fn the_packages_of_the_workspace_are_read() -> Result<()> {
        let packages = packages(Path::new("Cargo.toml"))?;
        let xtask = packages.iter().find(|package| package.name == "xtask").context("this package")?;
        assert_eq!(xtask.manifest, Path::new("xtask/Cargo.toml"));
        assert_eq!(xtask.roots, [Path::new("xtask/src/main.rs")]);
        assert!(xtask.dependencies.contains("weft-lab"), "{xtask:?}");
        Ok(())
    }
}
