//! Rules that no compiler checks: which crate may depend on which (ARCHITECTURE.md says why), and that every source file
//! opens with what it owns.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo;

/// Every crate of ours with the crates of ours that it may name. One direction: nothing below sees what is above it, and
/// overlay, mesh and dns do not see each other.
const EDGES: &[(&str, &[&str])] = &[
    ("weft-model", &[]),
    ("weft-ebpf-common", &[]),
    ("weft-ebpf-programs", &["weft-ebpf-common"]),
    ("weft-control", &["weft-model"]),
    ("weft-overlay", &["weft-model"]),
    ("weft-mesh", &["weft-model", "weft-ebpf-common"]),
    ("weft-dns", &["weft-model"]),
    ("weft", &["weft-model", "weft-control", "weft-overlay", "weft-mesh", "weft-dns", "weft-lab"]),
    ("weft-lab", &[]),
    ("xtask", &["weft-lab"]),
];

/// Folders that hold no source of ours.
const SKIPPED: &[&str] = &["target", ".git"];

pub(crate) fn run() -> Result<()> {
    let mut edges = metadata(&cargo::root().join("Cargo.toml"))?;
    // Built for another target, and no member of the workspace.
    let programs = cargo::root().join("ebpf/programs/Cargo.toml");
    if programs.exists() {
        edges.extend(metadata(&programs)?);
    }
    let mut complaints = wrong_edges(&edges);
    for file in sources(cargo::root())? {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(cargo::root()).unwrap_or(&file).display();
        if !opens_with_docs(&text) {
            complaints.push(format!("{name}: begin with `//!`: what it owns and what it must not do"));
        }
    }
    if !complaints.is_empty() {
        bail!("not tidy:\n  {}", complaints.join("\n  "));
    }
    Ok(())
}

/// Package names with the names of their dependencies, of every kind.
fn metadata(manifest: &Path) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let mut command = cargo::command(&["metadata", "--format-version", "1", "--no-deps", "--manifest-path"]);
    let output = command.arg(manifest).output().context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is no JSON")?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let names = |value: &Value| value.as_array().into_iter().flatten().map(name).collect();
    Ok(packages.iter().map(|package| (name(package), names(&package["dependencies"]))).collect())
}

fn wrong_edges(found: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = EDGES.iter().copied().collect();
    let mut complaints = Vec::new();
    for (package, dependencies) in found {
        let Some(may_name) = allowed.get(package.as_str()) else {
            complaints
                .push(format!("{package}: a crate with no place in the layering: give it one in xtask/src/tidy.rs"));
            continue;
        };
        let ours = dependencies.iter().filter(|name| allowed.contains_key(name.as_str()) || found.contains_key(*name));
        for dependency in ours.filter(|name| !may_name.contains(&name.as_str())) {
            complaints.push(format!("{package} must not depend on {dependency}"));
        }
    }
    complaints
}

fn opens_with_docs(text: &str) -> bool {
    // `#![no_std]` may stand before.
    text.lines().find(|line| !line.is_empty() && !line.starts_with("#![")).is_some_and(|line| line.starts_with("//!"))
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type()?.is_dir() {
                if !SKIPPED.iter().any(|skipped| name == *skipped) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(package: &str, dependencies: &[&str], complaints: usize) {
        let dependencies = dependencies.iter().map(|name| (*name).to_owned()).collect();
        let found = BTreeMap::from([(package.to_owned(), dependencies)]);
        assert_eq!(wrong_edges(&found).len(), complaints, "{found:?}");
    }

    #[test]
    fn edges_point_one_way() {
        check("weft-mesh", &["weft-model", "weft-ebpf-common", "aya"], 0);
        check("weft-mesh", &["weft-overlay"], 1);
        check("weft-dns", &["weft-control", "weft-mesh"], 2);
        check("weft-model", &["serde"], 0);
        check("weft-model", &["weft-control"], 1);
        check("weft-new", &[], 1);
    }

    #[test]
    fn every_crate_named_has_a_place() {
        let names: BTreeSet<&str> = EDGES.iter().map(|(name, _)| *name).collect();
        for (package, dependencies) in EDGES {
            assert!(dependencies.iter().all(|name| names.contains(name)), "{package}");
        }
    }

    #[test]
    fn sources_leave_build_outputs_out() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for path in ["src/lib.rs", "target/out.rs", "src/deep/a.rs", "src/notes.md"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().context("a parent")?)?;
            fs::write(path, "//! A file.\n")?;
        }
        let found = sources(folder.path())?;
        let names: Vec<_> = found.iter().filter_map(|path| path.strip_prefix(folder.path()).ok()).collect();
        assert_eq!(names, [Path::new("src/deep/a.rs"), Path::new("src/lib.rs")]);
        Ok(())
    }
}
