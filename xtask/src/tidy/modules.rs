//! The modules of a crate and what they import, read from its source with `syn`.
//!
//! Modules are found by following `mod` lines from the crate's root file. An import is a `use` of a
//! name, or a path in code that begins with `crate`, `super`, `self`, a module beside the code, or
//! another crate. Paths inside of macro calls count too.
//!
//! Test code is ignored: items under `#[cfg(test)]`, and modules with a name of [`TEST_MODULES`].
//! Modules with a `#[path]` are left out as well, since another package owns their files.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use proc_macro2::{TokenStream, TokenTree};
use syn::{
    Attribute, Ident, ImplItemFn, Item, ItemMod, ItemUse, Macro, Meta, UseTree, Visibility,
    visit::{self, Visit},
};

use super::Complaint;

const TEST_MODULES: [&str; 2] = ["tests", "fixture"];

/// The names from the crate's root down to a module. Empty for the root.
pub(super) type ModulePath = Vec<String>;

#[derive(Debug)]
pub(super) struct Crate {
    /// The root file, relative to the top of the repository.
    pub(super) root: PathBuf,
    pub(super) modules: BTreeSet<ModulePath>,
    pub(super) imports: Vec<Import>,
}

/// A path that a module uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Import {
    /// The module with the code.
    pub(super) module: ModulePath,
    /// As written: `crate`, `raft`, `Node`. A glob import ends with its module.
    pub(super) segments: Vec<String>,
    pub(super) file: PathBuf,
    pub(super) line: usize,
}

impl Import {
    pub(super) fn complaint(&self, advice: String) -> Complaint {
        Complaint { file: self.file.clone(), line: self.line, advice }
    }
}

impl Crate {
    /// Reads the crate with this root file. `top` is the folder that all paths are relative to.
    ///
    /// # Errors
    /// When a file of the crate cannot be read, or is not Rust.
    pub(super) fn read(top: &Path, root: &Path) -> Result<Self> {
        let mut krate =
            Self { root: root.to_owned(), modules: BTreeSet::from([ModulePath::new()]), imports: Vec::new() };
        let folder = root.parent().unwrap_or(Path::new("")).to_owned();
        krate.read_file(top, root, folder, ModulePath::new())?;
        Ok(krate)
    }

    fn read_file(&mut self, top: &Path, file: &Path, folder: PathBuf, module: ModulePath) -> Result<()> {
        let text = fs::read_to_string(top.join(file)).with_context(|| format!("cannot read {}", file.display()))?;
        let syntax = syn::parse_file(&text).map_err(|error| anyhow!("{}: {error}", file.display()))?;
        let mut reader = Reader { krate: self, file, folder, module, children: Vec::new() };
        reader.visit_file(&syntax);
        for (module, folder) in reader.children {
            let name = module.last().context("a child has a name")?;
            let own_folder = folder.join(name);
            let (plain, with_folder) = (folder.join(format!("{name}.rs")), own_folder.join("mod.rs"));
            let child = if top.join(&plain).exists() { plain } else { with_folder };
            self.read_file(top, &child, own_folder, module)?;
        }
        Ok(())
    }

    /// The module that an import leads to: the deepest one that its path names. `None` for a path
    /// into another crate, and for one that begins with a name that is no module.
    pub(super) fn target(&self, import: &Import) -> Option<ModulePath> {
        let mut segments = import.segments.iter().peekable();
        let mut found = match segments.peek()?.as_str() {
            "crate" => {
                segments.next();
                ModulePath::new()
            }
            _ => import.module.clone(),
        };
        let mut is_relative = import.segments[0] == "crate";
        while let Some(step) = segments.next_if(|segment| *segment == "self" || *segment == "super") {
            is_relative = true;
            if step == "super" {
                found.pop()?;
            }
        }
        for segment in segments {
            let deeper = [&found[..], std::slice::from_ref(segment)].concat();
            if !self.modules.contains(&deeper) {
                break;
            }
            is_relative = true;
            found = deeper;
        }
        is_relative.then_some(found)
    }
}

/// Collects the imports and the child modules of one file.
struct Reader<'a> {
    krate: &'a mut Crate,
    file: &'a Path,
    /// Where the files of the current module's children are.
    folder: PathBuf,
    /// The current module: the file's own, or one that is written inside of it.
    module: ModulePath,
    /// Modules that have their own file, each with the folder of that file.
    children: Vec<(ModulePath, PathBuf)>,
}

impl Reader<'_> {
    fn record(&mut self, segments: Vec<String>, line: usize) {
        let (module, file) = (self.module.clone(), self.file.to_owned());
        self.krate.imports.push(Import { module, segments, file, line });
    }

    fn record_use(&mut self, prefix: &[String], tree: &UseTree) {
        let mut record = |ident: &Ident| {
            self.record([prefix, &[ident.to_string()]].concat(), ident.span().start().line);
        };
        match tree {
            UseTree::Path(path) => {
                let prefix = [prefix, &[path.ident.to_string()]].concat();
                if matches!(*path.tree, UseTree::Glob(_)) {
                    self.record(prefix, path.ident.span().start().line);
                } else {
                    self.record_use(&prefix, &path.tree);
                }
            }
            UseTree::Name(name) => record(&name.ident),
            UseTree::Rename(rename) => record(&rename.ident),
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.record_use(prefix, tree)),
            // Recorded with the path before it.
            UseTree::Glob(_) => {}
        }
    }

    /// Records the paths in a macro's tokens: two or more names with `::` between them.
    fn record_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let is_colon =
            |index: usize| matches!(tokens.get(index), Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
        let mut index = 0;
        while let Some(token) = tokens.get(index) {
            index += 1;
            match token {
                TokenTree::Group(group) => self.record_tokens(group.stream()),
                TokenTree::Ident(first) => {
                    let mut segments = vec![first.to_string()];
                    while is_colon(index)
                        && is_colon(index + 1)
                        && let Some(TokenTree::Ident(next)) = tokens.get(index + 2)
                    {
                        segments.push(next.to_string());
                        index += 3;
                    }
                    if segments.len() > 1 {
                        self.record(segments, first.span().start().line);
                    }
                }
                _ => {}
            }
        }
    }
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        if !is_test(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if !is_test(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_mod(&mut self, item: &'ast ItemMod) {
        let name = item.ident.to_string();
        let has_path = item.attrs.iter().any(|attribute| attribute.path().is_ident("path"));
        if has_path || TEST_MODULES.contains(&name.as_str()) {
            return;
        }
        self.module.push(name.clone());
        self.krate.modules.insert(self.module.clone());
        if let Some((_, items)) = &item.content {
            self.folder.push(&name);
            items.iter().for_each(|item| self.visit_item(item));
            self.folder.pop();
        } else {
            self.children.push((self.module.clone(), self.folder.clone()));
        }
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        self.record_use(&[], &item.tree);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let (Some(first), true) = (path.segments.first(), path.segments.len() > 1) {
            let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.record(segments, first.ident.span().start().line);
        }
        // Generic arguments hold paths too.
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast Macro) {
        self.visit_path(&call.path);
        self.record_tokens(call.tokens.clone());
    }

    /// `pub(in crate::swarm)` restricts who may import, and is not an import itself.
    fn visit_visibility(&mut self, _: &'ast Visibility) {}
}

/// Whether `#[cfg(test)]`, or a condition with `test` among others, is on an item.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        let Meta::List(condition) = &attribute.meta else { return false };
        has_ident(&condition.tokens, "test") && !has_ident(&condition.tokens, "not")
    })
}

fn has_ident(tokens: &TokenStream, name: &str) -> bool {
    tokens.clone().into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == name,
        TokenTree::Group(group) => has_ident(&group.stream(), name),
        TokenTree::Punct(_) | TokenTree::Literal(_) => false,
    })
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// A crate of these files, `src/main.rs` being its root.
#[cfg(test)]
pub(super) fn krate(files: &[(&str, &str)]) -> Result<Crate> {
    let top = tempfile::tempdir()?;
    for (name, text) in files {
        let path = top.path().join(name);
        fs::create_dir_all(path.parent().context("a parent")?)?;
        fs::write(path, text)?;
    }
    Crate::read(top.path(), Path::new("src/main.rs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(path: &[String]) -> String {
        path.join("::")
    }

    #[test]
    fn modules_are_found_by_their_mod_lines() -> Result<()> {
        let krate = krate(&[
            ("src/main.rs", "mod a; mod b; mod inline { mod deep; }"),
            ("src/a.rs", ""),
            ("src/b/mod.rs", "mod c; #[cfg(test)] mod tests; #[path = \"../x.rs\"] mod other;"),
            ("src/b/c.rs", ""),
            ("src/inline/deep.rs", ""),
            ("src/orphan.rs", "mod nowhere;"),
        ])?;
        let found: Vec<String> = krate.modules.iter().map(|path| names(path)).collect();
        assert_eq!(found, ["", "a", "b", "b::c", "inline", "inline::deep"]);
        Ok(())
    }

    #[test]
    fn a_missing_file_is_an_error() {
        assert!(krate(&[("src/main.rs", "mod missing;")]).is_err());
    }

    /// The modules that `src/a/mod.rs` imports, with this text and `b`, `a::inner` beside it.
    #[track_caller]
    fn check(text: &str, expected: &[&str]) {
        let text = format!("mod inner;\n{text}");
        let files = [("src/main.rs", "mod a; mod b;"), ("src/a/mod.rs", &text), ("src/a/inner.rs", "")];
        let krate = krate(&[&files[..], &[("src/b.rs", "")]].concat()).expect("a crate");
        let found: Vec<String> = krate
            .imports
            .iter()
            .filter(|import| import.module == ["a"])
            .filter_map(|import| krate.target(import))
            .map(|path| names(&path))
            .collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn imports_lead_to_the_deepest_module() {
        check("use crate::b;", &["b"]);
        check("use crate::b::{self, Thing};", &["b", "b"]);
        check("pub(crate) use super::b::Thing as Other;", &["b"]);
        check("use crate::b::*;", &["b"]);
        check("use crate::{a::inner::X, b::Y};", &["a::inner", "b"]);
        check("use inner::X;", &["a::inner"]);
        check("use self::inner;", &["a::inner"]);
        check("use crate::Thing;", &[""]);
        check("use std::fs; use weft_model::Plan;", &[]);
    }

    #[test]
    fn paths_in_code_are_imports() {
        check("fn f() { crate::b::g(); }", &["b"]);
        check("fn f(x: Vec<super::b::X>) {}", &["b"]);
        check("fn f() { format!(\"{}\", crate::b::X); }", &["b"]);
        check("fn f() { outer!({ [super::b::X::new()] }) }", &["b"]);
        check("fn f() { use crate::b::X; }", &["b"]);
        check("pub(in crate::b) fn f() { g(); }", &[]);
        check("mod deep { use super::super::b::X; }", &[]);
    }

    #[test]
    fn test_code_imports_nothing() {
        check("#[cfg(test)] use crate::b;", &[]);
        check("#[cfg(test)] mod tests { use crate::b; }", &[]);
        check("#[cfg(any(test, feature = \"x\"))] fn f() { crate::b::g(); }", &[]);
        check("struct S; impl S { #[cfg(test)] fn f() { crate::b::g(); } }", &[]);
        check("#[cfg(not(test))] use crate::b;", &["b"]);
    }

    #[test]
    fn lines_are_those_of_the_names() -> Result<()> {
        let krate = krate(&[("src/main.rs", "use std::{\n    fs,\n    io,\n};\nfn f() {\n    x!(a::b);\n}\n")])?;
        let lines: Vec<usize> = krate.imports.iter().map(|import| import.line).collect();
        assert_eq!(lines, [2, 3, 6]);
        Ok(())
    }
}
