//! Finds imports that the compiler allows and that the structure of the code forbids. It checks
//! folders that may import only some workspace crates, and the order of the layers in weft-control.

use std::path::Path;

use super::{
    Complaint,
    modules::{Crate, Import},
};

/// Folders that may import only these workspace crates, although the crate of the folder depends on
/// more.
const FOLDERS: &[(&str, &[&str])] = &[("src/cli", &[]), ("src/runtime", &["weft_model"])];
/// The prefix of the names of the workspace crates.
const OURS: &str = "weft_";

/// The root file of the crate that [`LAYERS`] are in.
const CONTROL: &str = "control/src/lib.rs";
/// Modules of weft-control in the order of their layers: each may import only those before it.
/// A module that is not in the list may import every module, and every module may import it.
const LAYERS: &[&str] = &[
    "codec",
    "files",
    "pki",
    "rpc",
    "raft",
    "swarm::clock",
    "swarm::error",
    "swarm::types",
    "swarm::tasks",
    "swarm::liveness",
    "swarm::manager",
    "swarm::context",
    "swarm::dispatch",
    "swarm::link",
    "swarm::membership",
];

pub(super) fn check(krate: &Crate) -> Vec<Complaint> {
    let mut complaints: Vec<Complaint> = krate.imports.iter().filter_map(forbidden_crate).collect();
    if krate.root == Path::new(CONTROL) {
        complaints.extend(check_layers(krate, LAYERS));
    }
    complaints
}

fn forbidden_crate(import: &Import) -> Option<Complaint> {
    let (folder, may_import) = FOLDERS.iter().find(|(folder, _)| import.file.starts_with(folder))?;
    let name = import.segments.first()?.as_str();
    if !name.starts_with(OURS) || may_import.contains(&name) {
        return None;
    }
    let allowed = if may_import.is_empty() { "no crate of ours".to_owned() } else { may_import.join(", ") };
    Some(import.complaint(format!(
        "{folder} must not import {name} (it may import {allowed}): move this code out of {folder}, or pass it the value"
    )))
}

fn check_layers(krate: &Crate, layers: &[&str]) -> Vec<Complaint> {
    let layers: Vec<Vec<String>> = layers.iter().map(|layer| layer.split("::").map(str::to_owned).collect()).collect();
    let layer_of = |module: &[String]| layers.iter().position(|layer| module.starts_with(layer));
    let missing = layers.iter().filter(|layer| !krate.modules.contains(*layer)).map(|layer| Complaint {
        file: krate.root.clone(),
        line: 0,
        advice: format!("there is no module {}: correct LAYERS in xtask/src/tidy/imports.rs", layer.join("::")),
    });
    let out_of_order = krate.imports.iter().filter_map(|import| {
        let (from, to) = (layer_of(&import.module)?, layer_of(&krate.target(import)?)?);
        let (from_name, to_name) = (layers[from].join("::"), layers[to].join("::"));
        (to > from).then(|| {
            import.complaint(format!(
                "{from_name} must not import {to_name}, which comes after it in LAYERS of xtask/src/tidy/imports.rs: \
                 move what {from_name} needs into an earlier layer"
            ))
        })
    });
    missing.chain(out_of_order).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::modules::krate;

    #[track_caller]
    fn check_folder(file: &str, text: &str, complaints: usize) {
        let files = [("src/main.rs", "mod cli; mod runtime; mod agent;"), ("src/agent.rs", ""), (file, text)];
        let rest = ["src/cli/mod.rs", "src/runtime/mod.rs"].into_iter().filter(|other| *other != file);
        let files: Vec<_> = files.into_iter().chain(rest.map(|file| (file, ""))).collect();
        let krate = krate(&files).expect("a crate");
        assert_eq!(check(&krate).len(), complaints, "{file}: {text}");
    }

    #[test]
    fn folders_import_only_the_crates_that_they_may() {
        check_folder("src/cli/mod.rs", "use std::fs; use clap::Parser;", 0);
        check_folder("src/cli/mod.rs", "use weft_model::TaskId;", 1);
        check_folder("src/cli/mod.rs", "fn f() { weft_control::start(); }", 1);
        check_folder("src/runtime/mod.rs", "use weft_model::TaskId;", 0);
        check_folder("src/runtime/mod.rs", "use weft_control::{A, B};", 2);
    }

    #[track_caller]
    fn check_order(module: &str, text: &str, complaints: &[&str]) {
        let mut files = vec![("src/main.rs", "mod low; mod middle; mod free;")];
        let modules = [("src/low.rs", "low"), ("src/middle/mod.rs", "middle"), ("src/free.rs", "free")];
        files.extend(modules.map(|(file, name)| {
            let text = if name == module { text } else { "" };
            (file, if name == "middle" { "mod high; mod other;" } else { text })
        }));
        files.push(("src/middle/high.rs", if module == "high" { text } else { "" }));
        files.push(("src/middle/other.rs", ""));
        let krate = krate(&files).expect("a crate");
        let found = check_layers(&krate, &["low", "middle::other", "middle::high"]);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), complaints.len(), "{found:?}");
        for (found, expected) in found.iter().zip(complaints) {
            assert!(found.contains(expected), "no {expected:?} in {found}");
        }
    }

    #[test]
    fn layers_import_only_layers_before_them() {
        check_order("high", "use crate::low::X; use super::other::Y;", &[]);
        check_order("low", "use crate::middle::high::X;", &["src/low.rs:1: low must not import middle::high"]);
        check_order("low", "use crate::free::X;", &[]);
        check_order("free", "use crate::{low::X, middle::high::Y};", &[]);
    }

    #[test]
    fn a_layer_that_does_not_exist_is_a_complaint() -> anyhow::Result<()> {
        let krate = krate(&[("src/main.rs", "mod low;"), ("src/low.rs", "")])?;
        assert!(check_layers(&krate, &["low"]).is_empty());
        assert_eq!(check_layers(&krate, &["low", "gone"]).len(), 1);
        Ok(())
    }
}
