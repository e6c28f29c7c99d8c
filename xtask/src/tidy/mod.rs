//! `tidy`: checks the rules of this repository that neither the compiler nor clippy checks.
//!
//! `cargo xtask tidy`, `check` and `test` call it. It only reads files and `cargo metadata`: it
//! builds nothing, changes nothing and needs no network. Every rule returns complaints, and each
//! complaint says where the rule is broken and what to do.
//!
//! - [`edges`]: which crates of this workspace may depend on each other.
//! - [`docs`]: every source file begins with module docs.
//! - [`imports`]: folders that may import only some crates, and the order of the layers in
//!   weft-control.
//! - [`cycles`]: modules of one folder must not import each other in a cycle.
//! - [`prose`]: the width of comments, and words that must not be identifiers.

mod edges;
mod modules;
mod docs;
mod imports;
mod cycles;
mod prose;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use self::modules::Crate;
use crate::cargo;

/// Folders that contain no source of this project.
const SKIPPED: &[&str] = &["target", ".git"];

/// A broken rule: where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Complaint {
    /// Relative to the top of the repository.
    file: PathBuf,
    /// Counted from 1; 0 for the whole file.
    line: usize,
    advice: String,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file.display())?;
        if self.line > 0 {
            write!(f, "{}:", self.line)?;
        }
        write!(f, " {}", self.advice)
    }
}

/// Checks the whole repository. Fails with all complaints, sorted by file and line.
pub(crate) fn run() -> Result<()> {
    let mut packages = edges::packages(Path::new("Cargo.toml"))?;
    // The eBPF programs are built for another target, and are not members of the workspace.
    packages.extend(edges::packages(Path::new("ebpf/programs/Cargo.toml"))?);
    let mut complaints = edges::check(&packages);
    for root in packages.iter().flat_map(|package| &package.roots) {
        let krate = Crate::read(cargo::root(), root)?;
        complaints.extend(imports::check(&krate));
        complaints.extend(cycles::check(&krate));
    }
    for file in sources(cargo::root())? {
        let text =
            fs::read_to_string(cargo::root().join(&file)).with_context(|| format!("cannot read {}", file.display()))?;
        complaints.extend(docs::check(&file, &text));
        complaints.extend(prose::check(&file, &text)?);
    }
    if complaints.is_empty() {
        return Ok(());
    }
    // A file that two crates share is read twice.
    complaints.sort();
    complaints.dedup();
    let lines: Vec<String> = complaints.iter().map(ToString::to_string).collect();
    bail!("{} complaints:\n  {}", lines.len(), lines.join("\n  "));
}

/// All Rust files below a folder, sorted, relative to it.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            let (path, name) = (entry.path(), entry.file_name());
            if entry.file_type()?.is_dir() {
                if !SKIPPED.iter().any(|skipped| name == *skipped) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(root)?.to_owned());
            }
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_leave_build_outputs_out() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for path in ["src/lib.rs", "target/out.rs", "src/deep/a.rs", "src/notes.md"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().context("a parent")?)?;
            fs::write(path, "//! A file.\n")?;
        }
        assert_eq!(sources(folder.path())?, [Path::new("src/deep/a.rs"), Path::new("src/lib.rs")]);
        Ok(())
    }

    #[test]
    fn a_complaint_begins_with_its_place() {
        let complaint =
            |line| Complaint { file: "src/main.rs".into(), line, advice: "do something".to_owned() }.to_string();
        assert_eq!(complaint(7), "src/main.rs:7: do something");
        assert_eq!(complaint(0), "src/main.rs: do something");
    }
}
