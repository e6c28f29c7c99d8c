//! Modules of one folder must not import each other in a cycle, neither directly nor through other
//! modules.
//!
//! The modules of a folder are the nodes of a graph. `a` has an edge to `b` if any module inside of
//! `a` imports any module inside of `b`. The folder's own `mod.rs` is not a node: it may import all
//! of its modules, and they may import it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    Complaint,
    modules::{Crate, Import, ModulePath},
};

/// The modules of a folder, each with those that it imports, and where.
type Graph<'a> = BTreeMap<String, BTreeMap<String, Vec<&'a Import>>>;

/// One complaint for each import that is part of a cycle.
pub(super) fn check(krate: &Crate) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (folder, graph) in graphs(krate) {
        for (from, targets) in &graph {
            for (to, imports) in targets {
                let Some(back) = path(&graph, to, from) else { continue };
                let folder = if folder.is_empty() { "the crate".to_owned() } else { folder.join("::") };
                let cycle = [&[from.as_str()], &back[..]].concat().join(" → ");
                complaints.extend(imports.iter().map(|import| {
                    import.complaint(format!(
                        "the modules of {folder} import each other in a cycle ({cycle}): move what {from} needs of \
                         {to} into a module that both may import"
                    ))
                }));
            }
        }
    }
    complaints
}

fn graphs(krate: &Crate) -> BTreeMap<ModulePath, Graph<'_>> {
    let mut graphs: BTreeMap<ModulePath, Graph<'_>> = BTreeMap::new();
    for import in &krate.imports {
        let Some(target) = krate.target(import) else { continue };
        let common = import.module.iter().zip(&target).take_while(|(a, b)| a == b).count();
        // None where one of the two is inside of the other.
        let (Some(from), Some(to)) = (import.module.get(common), target.get(common)) else { continue };
        let graph = graphs.entry(target[..common].to_owned()).or_default();
        graph.entry(from.clone()).or_default().entry(to.clone()).or_default().push(import);
    }
    graphs
}

/// The shortest chain of imports from one module to another, with both at its ends.
fn path<'a>(graph: &'a Graph<'_>, from: &'a str, to: &str) -> Option<Vec<&'a str>> {
    let mut seen = BTreeSet::from([from]);
    let mut queue = VecDeque::from([vec![from]]);
    while let Some(path) = queue.pop_front() {
        let last = *path.last()?;
        if last == to {
            return Some(path);
        }
        for next in graph.get(last).into_iter().flat_map(BTreeMap::keys) {
            if seen.insert(next) {
                queue.push_back([&path[..], &[next.as_str()]].concat());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::modules::krate;

    /// Modules `a`, `b`, `c` of the crate, and `a::x`, with these texts.
    #[track_caller]
    fn check_modules(a: &str, x: &str, b: &str, c: &str, expected: &[&str]) {
        let a = format!("mod x; {a}");
        let files = [
            ("src/main.rs", "mod a; mod b; mod c; use a::A; use b::B;"),
            ("src/a/mod.rs", &a),
            ("src/a/x.rs", x),
            ("src/b.rs", b),
            ("src/c.rs", c),
        ];
        let found: Vec<String> = check(&krate(&files).expect("a crate")).iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.contains(expected), "no {expected:?} in {found}");
        }
    }

    #[test]
    fn one_direction_is_no_cycle() {
        check_modules("use crate::b::B;", "use super::A;", "use crate::c::C;", "", &[]);
        // From a folder's module to its mod.rs and back.
        check_modules("use x::X;", "use super::A;", "", "", &[]);
        check_modules("use crate::Thing;", "", "", "", &[]);
    }

    #[test]
    fn two_modules_that_import_each_other_are_a_cycle() {
        let cycle = ["src/a/x.rs:1: the modules of the crate", "src/b.rs:1:"];
        check_modules("", "use crate::b::B;", "use crate::a::A;", "", &cycle);
        let (to_b, to_a) = ("a → b → a", "b → a → b");
        check_modules("fn f() { crate::b::g(); }", "", "fn f() { super::a::g(); }", "", &[to_b, to_a]);
    }

    #[test]
    fn three_modules_that_import_each_other_are_a_cycle() {
        let cycle = ["a → b → c → a", "b → c → a → b", "c → a → b → c"];
        check_modules("use crate::b::B;", "", "use crate::c::C;", "use crate::a::A;", &cycle);
    }

    #[test]
    fn test_code_makes_no_cycle() {
        check_modules("use crate::b::B;", "", "#[cfg(test)] mod tests { use crate::a::A; }", "", &[]);
    }

    #[test]
    fn cycles_inside_of_a_folder_are_found() -> anyhow::Result<()> {
        let files = [
            ("src/main.rs", "mod outer;"),
            ("src/outer/mod.rs", "mod a; mod b;"),
            ("src/outer/a.rs", "use super::b::B;"),
            ("src/outer/b.rs", "use crate::outer::a::A;"),
        ];
        let found = check(&krate(&files)?);
        assert!(found.iter().all(|complaint| complaint.advice.contains("the modules of outer")), "{found:?}");
        assert_eq!(found.len(), 2, "{found:?}");
        Ok(())
    }
}
