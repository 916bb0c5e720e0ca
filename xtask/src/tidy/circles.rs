//! Circles of imports between the files of a crate.
//!
//! A file imports another when it names something of it: by a path that starts with `crate`, `super`, `self` or a module declared
//! there. A re-export (`pub use`) is a name for something elsewhere, no import: who uses the name imports the file that it leads to.
//! Tests look at everything and do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The names of a module from the root of its crate.
type Module = Vec<String>;

/// What one file says.
#[derive(Debug, Default)]
struct Said {
    /// Paths that it names, from the root of the crate.
    paths: BTreeSet<Module>,
    /// Modules that only tests have.
    test_modules: BTreeSet<Module>,
    /// Its re-exports: the name in this crate, and what it leads to.
    exports: BTreeMap<Module, Module>,
}

/// One finding for each group of files in `folder`, the sources of a crate, that import each other in a circle.
pub(super) fn check(folder: &Path) -> Result<Vec<String>> {
    let mut files = BTreeMap::new();
    read(folder, folder, &mut files)?;
    circles(&files).with_context(|| folder.display().to_string())
}

/// The texts of all source files below `folder`, by their path from `root`.
fn read(root: &Path, folder: &Path, files: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            read(root, &path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            files.insert(path.strip_prefix(root)?.to_owned(), text);
        }
    }
    Ok(())
}

fn circles(files: &BTreeMap<PathBuf, String>) -> Result<Vec<String>> {
    let modules: BTreeMap<Module, &Path> = files.keys().map(|file| (module_of(file), file.as_path())).collect();
    let mut said = BTreeMap::new();
    for (file, text) in files {
        let tokens: TokenStream =
            text.parse().map_err(|error| anyhow!("{}: no Rust tokens: {error}", file.display()))?;
        let mut of = Said::default();
        walk(tokens, &module_of(file), &modules, &mut of);
        said.insert(module_of(file), of);
    }
    let exports: BTreeMap<Module, Module> = said.values().flat_map(|of| of.exports.clone()).collect();
    let tests: BTreeSet<Module> = said.values().flat_map(|of| of.test_modules.clone()).collect();
    let is_test = |module: &Module| tests.iter().any(|test| module.starts_with(test));
    let imports: BTreeMap<&Module, BTreeSet<Module>> = said
        .iter()
        .filter(|(module, _)| !is_test(module))
        .map(|(module, of)| {
            let imported = of.paths.iter().filter_map(|path| resolve(path, &modules, &exports));
            (module, imported.filter(|other| other != module && !is_test(other)).collect())
        })
        .collect();
    let name = |module: &Module| modules[module].display().to_string();
    Ok(shortest_circles(&imports)
        .iter()
        .map(|circle| circle.iter().map(name).collect::<Vec<_>>().join(" -> "))
        .collect())
}

/// `lib.rs` and `main.rs` are the root; `a/b.rs` and `a/b/mod.rs` are `a::b`.
fn module_of(file: &Path) -> Module {
    let mut names: Module = file.with_extension("").iter().map(|name| name.to_string_lossy().into_owned()).collect();
    let last = names.last().map(String::as_str);
    if last == Some("mod") || names.len() == 1 && matches!(last, Some("lib" | "main")) {
        names.pop();
    }
    names
}

/// The module with a file of its own that `path` leads to.
fn resolve(path: &Module, modules: &BTreeMap<Module, &Path>, exports: &BTreeMap<Module, Module>) -> Option<Module> {
    let mut path = path.clone();
    // Re-exports lead on; a chain of more than ten would be one of them to itself.
    for _ in 0..10 {
        let export = (1..=path.len()).find_map(|len| exports.get(&path[..len]).map(|to| (len, to)));
        let Some((len, to)) = export else { break };
        path = to.iter().chain(&path[len..]).cloned().collect();
    }
    (0..=path.len()).rev().map(|len| path[..len].to_vec()).find(|module| modules.contains_key(module))
}

/// Reads the tokens of a module.
fn walk(tokens: TokenStream, module: &Module, modules: &BTreeMap<Module, &Path>, said: &mut Said) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let child = |name: &str| [&module[..], &[name.to_owned()]].concat();
    let mut at = 0;
    while at < tokens.len() {
        if is_punct(tokens.get(at), '#') && tokens.get(at + 1).is_some_and(is_cfg_test) {
            let end = item_end(&tokens, at + 2);
            let names =
                tokens[at..end].windows(2).find(|pair| is_ident(&pair[0], "mod")).map(|pair| pair[1].to_string());
            said.test_modules.extend(names.map(|name| child(&name)));
            at = end;
            continue;
        }
        match &tokens[at] {
            TokenTree::Ident(word) if word == "use" => {
                let end = (at..tokens.len()).find(|&i| is_punct(tokens.get(i), ';')).unwrap_or(tokens.len());
                let is_export =
                    at > 0 && (is_ident(&tokens[at - 1], "pub") || at > 1 && is_ident(&tokens[at - 2], "pub"));
                let mut uses = Vec::new();
                use_tree(&tokens[at + 1..end], &[], &mut uses);
                for (path, name) in uses {
                    let Some(path) = from_root(&path, module, modules) else { continue };
                    match name {
                        Some(name) if is_export => {
                            said.exports.insert(child(&name), path);
                        }
                        _ => {
                            said.paths.insert(path);
                        }
                    }
                }
                at = end;
            }
            TokenTree::Ident(word) if word == "mod" => match (tokens.get(at + 1), tokens.get(at + 2)) {
                (Some(name), Some(TokenTree::Group(body))) => {
                    walk(body.stream(), &child(&name.to_string()), modules, said);
                    at += 2;
                }
                _ => at += 1,
            },
            TokenTree::Ident(_) => {
                let path = path_at(&tokens, at);
                // A name alone is none of another file.
                if path.len() > 1 && !is_punct(at.checked_sub(1).and_then(|before| tokens.get(before)), ':') {
                    said.paths.extend(from_root(&path, module, modules));
                }
                at += 3 * (path.len() - 1);
            }
            TokenTree::Group(group) => walk(group.stream(), module, modules, said),
            _ => {}
        }
        at += 1;
    }
}

/// `path` from the root of the crate, or `None` when it leads out of it.
fn from_root(path: &[String], module: &Module, modules: &BTreeMap<Module, &Path>) -> Option<Module> {
    let mut from = module.clone();
    let mut rest = path;
    while let [first, more @ ..] = rest {
        match first.as_str() {
            "crate" => from.clear(),
            "super" => drop(from.pop()),
            "self" => {}
            _ => break,
        }
        rest = more;
    }
    let relative = rest.len() == path.len();
    let whole = [&from[..], rest].concat();
    // Without such a start it is of another crate, if no module of that name is declared here.
    (!relative || modules.contains_key(&whole[..=from.len()])).then_some(whole)
}

/// The names of `a::b::c` from `at` on.
fn path_at(tokens: &[TokenTree], at: usize) -> Module {
    let mut names = vec![tokens[at].to_string()];
    let mut next = at + 1;
    while is_punct(tokens.get(next), ':')
        && is_punct(tokens.get(next + 1), ':')
        && let Some(TokenTree::Ident(name)) = tokens.get(next + 2)
    {
        names.push(name.to_string());
        next += 3;
    }
    names
}

/// The paths of a `use`, and the name that each gets; none for a glob.
fn use_tree(tokens: &[TokenTree], prefix: &[String], uses: &mut Vec<(Module, Option<String>)>) {
    for tree in tokens.split(|token| is_punct(Some(token), ',')) {
        let mut path = prefix.to_vec();
        let mut name = None;
        let mut is_list = false;
        for token in tree {
            match token {
                TokenTree::Ident(word) if word == "as" => name = Some(String::new()),
                TokenTree::Ident(word) if name.is_some() => name = Some(word.to_string()),
                TokenTree::Ident(word) if word == "self" && !path.is_empty() => {}
                TokenTree::Ident(word) => path.push(word.to_string()),
                TokenTree::Group(list) => {
                    use_tree(&list.stream().into_iter().collect::<Vec<_>>(), &path, uses);
                    is_list = true;
                }
                _ => {}
            }
        }
        if !is_list && path.len() > prefix.len().min(1) {
            let is_glob = tree.last().is_some_and(|token| is_punct(Some(token), '*'));
            let name = name.or_else(|| path.last().cloned()).filter(|_| !is_glob);
            uses.push((path, name));
        }
    }
}

/// One past the item that starts at `at`: behind its attributes, up to its body or its semicolon.
fn item_end(tokens: &[TokenTree], at: usize) -> usize {
    let is_end = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        other => is_punct(Some(other), ';'),
    };
    tokens[at..].iter().position(is_end).map_or(tokens.len(), |len| at + len + 1)
}

/// Whether an attribute's brackets hold `cfg(test)`, or `cfg(all(test, ..))`.
fn is_cfg_test(token: &TokenTree) -> bool {
    let text: String = token.to_string().chars().filter(|c| !c.is_whitespace()).collect();
    text.starts_with("[cfg(test)") || text.starts_with("[cfg(all(test,")
}

fn is_punct(token: Option<&TokenTree>, sign: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == sign)
}

fn is_ident(token: &TokenTree, name: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == name)
}

/// A shortest circle through the first file of each group of files that import each other, its start named again at its end.
fn shortest_circles(imports: &BTreeMap<&Module, BTreeSet<Module>>) -> Vec<Vec<Module>> {
    let mut found = Vec::new();
    let mut told: BTreeSet<Module> = BTreeSet::new();
    for &start in imports.keys() {
        if told.contains(start) {
            continue;
        }
        // Breadth first from what the file imports until the file itself is met.
        let mut came_from: BTreeMap<Module, Module> = BTreeMap::new();
        let mut queue = std::collections::VecDeque::from([start.clone()]);
        while let Some(module) = queue.pop_front() {
            for next in imports.get(&module).into_iter().flatten() {
                if !came_from.contains_key(next) {
                    came_from.insert(next.clone(), module.clone());
                    queue.push_back(next.clone());
                }
            }
        }
        if !came_from.contains_key(start) {
            continue;
        }
        let mut circle = vec![start.clone()];
        loop {
            let before = came_from[&circle[0]].clone();
            let done = before == *start;
            circle.insert(0, before);
            if done {
                break;
            }
        }
        told.extend(circle.iter().cloned());
        found.push(circle);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Vec<String> {
        let files = files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        circles(&files).unwrap()
    }

    #[test]
    fn a_circle_of_uses_is_found_and_told_once() {
        let files = [
            ("lib.rs", "mod a; mod b; mod c; pub use a::A;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            ("b.rs", "use std::fmt; use crate::{c::{self, C}}; pub struct B;"),
            ("c.rs", "use super::a::*; pub struct C;"),
        ];
        assert_eq!(of(&files), ["a.rs -> b.rs -> c.rs -> a.rs"]);
        let mut open = files;
        open[3].1 = "pub struct C;";
        assert!(of(&open).is_empty());
    }

    #[test]
    fn paths_in_code_and_macros_count() {
        let circle = ["a.rs -> b.rs -> a.rs"];
        let a = ("a.rs", "pub fn f() { let x = crate::b::g(1); }");
        for b in [
            "fn g() -> super::a::T {}",
            "macro_rules! m { () => { $crate::a::f() }; }",
            "impl Tr<crate::a::X> for B {}",
        ] {
            assert_eq!(of(&[("lib.rs", "mod a; mod b;"), a, ("b.rs", b)]), circle, "{b}");
        }
        for b in ["// crate::a::f\n", "const S: &str = \"crate::a::f\";", "use other::a::f;", "fn a() { a::<u32>(); }"]
        {
            assert!(of(&[("lib.rs", "mod a; mod b;"), a, ("b.rs", b)]).is_empty(), "{b}");
        }
    }

    /// `room.rs` names what is in its files. Its own names are used by one of them, which is no circle; that it uses what it does not
    /// only re-export is one.
    #[test]
    fn a_re_export_is_a_name_and_no_import() {
        let lib = ("lib.rs", "mod room; mod user; pub use room::{Thing, Other};");
        let thing = ("room/thing.rs", "use super::Other; pub struct Thing(Other);");
        let user = ("user.rs", "use crate::room::Thing; use crate::Other as O;");
        let room = |text| ("room.rs", text);
        let fine = "mod thing; pub use thing::Thing; pub struct Other;";
        assert!(of(&[lib, thing, user, room(fine)]).is_empty());
        let circle = "mod thing; pub use thing::Thing; pub struct Other; fn f() { thing::make() }";
        assert_eq!(of(&[lib, thing, user, room(circle)]), ["room.rs -> room/thing.rs -> room.rs"]);
        // The name leads to the file that holds it.
        let back = ("room/thing.rs", "use crate::user::U; pub struct Thing;");
        assert_eq!(of(&[lib, back, user, room(fine)]), ["room/thing.rs -> user.rs -> room/thing.rs"]);
    }

    #[test]
    fn tests_do_not_count() {
        let a = ("a.rs", "use crate::b::B; #[cfg(test)] mod tests { use crate::c::C; }");
        let b = ("b.rs", "#[cfg(test)] #[allow(unused)] use crate::a::A; pub struct B;");
        let files =
            [("lib.rs", "mod a; mod b; #[cfg(test)] mod c;"), a, b, ("c.rs", "use crate::a::A; use crate::b::B;")];
        assert!(of(&files).is_empty());
        let nested =
            [("lib.rs", "mod a; mod b;"), ("a.rs", "mod inner { use super::super::b::B; }"), ("b.rs", "use crate::a;")];
        assert_eq!(of(&nested), ["a.rs -> b.rs -> a.rs"]);
    }
}
