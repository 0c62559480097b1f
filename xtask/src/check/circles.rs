//! Modules that import one another: each can only be read, and changed, together with all others of its circle. A path
//! to the parent itself counts for nothing, whatever module the item behind it comes from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result};

use crate::sh;

/// Directories whose modules are looked at, and how these name one another.
const SOURCES: &[(&str, &str)] = &[
    ("control/core/src", "crate::"),
    ("control/core/src/docker_api", "super::"),
    ("control/src/cli", "super::"),
    ("control/src/netlink", "super::"),
    ("control/src/nft", "super::"),
    ("dataplane/src", "crate::"),
    ("dataplane-common/src", "crate::"),
    ("dataplane-ebpf/core/src", "crate::"),
    ("dataplane-ebpf/src", "crate::"),
    ("dataplane-ebpf/src/xdp", "super::"),
    ("xtask/src", "crate::"),
];

/// Each module's text; after the search for names, the modules that it imports.
type Modules<T> = BTreeMap<String, T>;

pub(crate) fn check() -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for (source, parent) in SOURCES {
        let modules = read(&sh::root().join(source)).with_context(|| format!("reading {source}"))?;
        problems.extend(circles(&modules, parent).into_iter().map(|circle| format!("{source}: {circle}")));
    }
    Ok(problems)
}

/// The modules in a crate's root: a file, or a directory with all its files.
fn read(source: &Path) -> Result<Modules<String>> {
    let mut modules = Modules::new();
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // The roots, which name all modules, and other programs.
        if !matches!(&*name, "main" | "lib" | "mod" | "bin") {
            modules.entry(name).or_insert_with(String::new).push_str(&text(&path)?);
        }
    }
    Ok(modules)
}

fn text(path: &Path) -> Result<String> {
    if !path.is_dir() {
        return Ok(without_tests(&fs::read_to_string(path)?));
    }
    fs::read_dir(path)?.map(|entry| text(&entry?.path())).collect()
}

/// A file without its module of tests, which stands last.
fn without_tests(text: &str) -> String {
    text.split_once("\n#[cfg(test)]\nmod ").map_or(text, |(code, _)| code).to_owned() + "\n"
}

/// One line for each set of modules of which every one leads to every other.
fn circles(modules: &Modules<String>, parent: &str) -> BTreeSet<String> {
    let imports: Modules<BTreeSet<String>> =
        modules.iter().map(|(name, text)| (name.clone(), imported(name, text, modules, parent))).collect();
    let reached: Modules<BTreeSet<String>> =
        imports.keys().map(|name| (name.clone(), reachable(name, &imports))).collect();
    let in_one = reached.iter().filter(|(name, reached)| reached.contains(*name));
    in_one
        .map(|(name, all)| all.iter().filter(|other| reached[*other].contains(name)).cloned().collect::<Vec<_>>())
        .map(|circle| format!("modules import one another: {}", circle.join(", ")))
        .collect()
}

/// The modules that the code of `name` imports by paths that begin with `parent`.
fn imported(name: &str, text: &str, modules: &Modules<String>, parent: &str) -> BTreeSet<String> {
    let code: String = text.lines().map(|line| code_of(line) + "\n").collect();
    let paths = code.split(parent).skip(1);
    paths.flat_map(first_names).filter(|used| used != name && modules.contains_key(used)).collect()
}

fn code_of(line: &str) -> String {
    line.split("//").next().unwrap_or_default().to_owned()
}

/// The names that the path behind `crate::` or `super::` begins with: one, or those of a list.
fn first_names(path: &str) -> Vec<String> {
    let name = |path: &str| path.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let Some(list) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut depth, mut items) = (1, vec![String::new()]);
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => break,
            '}' => depth -= 1,
            ',' if depth == 1 => items.push(String::new()),
            c if depth == 1 => items.last_mut().expect("the first is there").push(c),
            _ => {}
        }
    }
    items.iter().map(|item| name(item)).collect()
}

fn reachable(from: &str, imports: &Modules<BTreeSet<String>>) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(module) = next.pop() {
        next.extend(imports[module].iter().filter(|name| reached.insert((*name).clone())).map(String::as_str));
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules(texts: &[(&str, &str)]) -> Modules<String> {
        texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn names_every_circle() {
        let found = circles(
            &modules(&[
                ("a", "use crate::{\n    b::{self, d},\n    x,\n};\n"),
                ("b", "fn f() { crate::c::g() }\n"),
                ("c", "use crate::a;\nuse crate::d::e;\n"),
                ("d", "use crate::e;\n"),
                ("e", "fn f() {}\n"),
                ("x", "use crate::y;\n"),
                ("y", "use crate::{e, x as z};\n"),
            ]),
            "crate::",
        );
        let line = |names| format!("modules import one another: {names}");
        assert_eq!(found, [line("a, b, c"), line("x, y")].into());
    }

    #[test]
    fn leaves_comments_tests_and_other_crates_alone() {
        let b = without_tests(
            "/// See [`crate::a`].\nuse other::a;\nfn f() {} // crate::a\n#[cfg(test)]\nmod tests { use crate::a; }\n",
        );
        assert!(circles(&modules(&[("a", "use crate::{View, b};\n"), ("b", &b)]), "crate::").is_empty());
        let hidden = without_tests("#[cfg(test)]\nuse x::y;\nuse crate::a;\n");
        let found = circles(&modules(&[("a", "use crate::b;\n"), ("b", &hidden)]), "crate::");
        assert_eq!(found.len(), 1, "a line is no module");
    }

    #[test]
    fn modules_of_a_folder_name_one_another_by_their_parent() {
        let folder = modules(&[("a", "use super::{b, own};\nuse crate::b;\n"), ("b", "use super::a::f;\n")]);
        assert_eq!(circles(&folder, "super::").len(), 1);
        assert_eq!(circles(&folder, "crate::").len(), 0);
    }
}
