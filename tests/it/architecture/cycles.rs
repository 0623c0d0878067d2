//! Sibling modules must not import each other in a cycle.
//!
//! A module and the files below it count as one when they are compared with their siblings. Imports between a module
//! and its own submodules are allowed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The parts of the server in which the rule holds.
const PARTS: &[&str] = &["bus", "http", "service", "socket", "store"];

/// The path of a module or an item, from the root of the crate.
type ModulePath = Vec<String>;

#[test]
fn sibling_modules_do_not_import_each_other_in_a_cycle() {
    for part in PARTS {
        let mut modules = BTreeMap::new();
        read_modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), part, &mut modules);
        assert!(modules.len() > 2, "{part} has no modules: the test fails to find them");
        assert_eq!(cycles(&modules), Vec::<String>::new(), "in {part}");
    }
}

/// Reads the modules of a part: `x.rs` or `x/mod.rs`, and all files below `x/`.
fn read_modules(folder: &Path, name: &str, modules: &mut BTreeMap<ModulePath, String>) {
    fn read(at: &Path, path: &ModulePath, modules: &mut BTreeMap<ModulePath, String>) {
        for file in [at.with_extension("rs"), at.join("mod.rs")] {
            if let Ok(text) = fs::read_to_string(file) {
                modules.insert(path.clone(), text);
            }
        }
        for entry in fs::read_dir(at).into_iter().flatten() {
            let entry = entry.unwrap().path();
            let stem = entry.file_stem().unwrap().to_str().unwrap().to_owned();
            if stem != "mod" && (entry.is_dir() || entry.extension().is_some_and(|ending| ending == "rs")) {
                read(&at.join(&stem), &[path.clone(), vec![stem]].concat(), modules);
            }
        }
    }
    read(&folder.join(name), &vec![name.to_owned()], modules);
}

/// Returns the cycles between siblings, each as `parent: a → b → a`.
fn cycles(modules: &BTreeMap<ModulePath, String>) -> Vec<String> {
    // For each parent: which of its children import which others.
    let mut imports: BTreeMap<ModulePath, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for (module, text) in modules {
        for item in imported_items(module, text) {
            let imported = defining_module(&item, modules);
            let common = module.iter().zip(&imported).take_while(|(one, other)| one == other).count();
            if let (Some(from), Some(to)) = (module.get(common), imported.get(common)) {
                let siblings = imports.entry(module[..common].to_vec()).or_default();
                siblings.entry(from.clone()).or_default().insert(to.clone());
            }
        }
    }
    let mut found = Vec::new();
    for (parent, siblings) in &imports {
        let mut reported = BTreeSet::new();
        for child in siblings.keys() {
            if let Some(cycle) = shortest_cycle(child, siblings)
                && reported.insert(cycle.iter().cloned().collect::<BTreeSet<_>>())
            {
                found.push(format!("{}: {} → {child}", parent.join("::"), cycle.join(" → ")));
            }
        }
    }
    found
}

/// Returns the shortest cycle of imports that starts at a module, without its repetition at the end.
fn shortest_cycle(start: &str, siblings: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut paths = vec![vec![start.to_owned()]];
    let mut seen = BTreeSet::new();
    while !paths.is_empty() {
        let mut longer = Vec::new();
        for path in paths {
            for next in siblings.get(&path[path.len() - 1]).into_iter().flatten() {
                if next == start {
                    return Some(path);
                }
                if seen.insert(next.clone()) {
                    longer.push([path.clone(), vec![next.clone()]].concat());
                }
            }
        }
        paths = longer;
    }
    None
}

/// Returns the module that defines an item. An item that a module re-exports from a submodule belongs to the submodule.
fn defining_module(item: &ModulePath, modules: &BTreeMap<ModulePath, String>) -> ModulePath {
    let length = (0..=item.len()).rev().find(|length| modules.contains_key(&item[..*length])).unwrap_or_default();
    let (module, rest) = item.split_at(length);
    if let (Some(text), Some(name)) = (modules.get(module), rest.first()) {
        let is_reexported =
            |other: &ModulePath| other.len() > module.len() && other.starts_with(module) && other.last() == Some(name);
        if let Some(origin) = imported_items(&module.to_vec(), text).into_iter().find(is_reexported)
            && origin != *item
        {
            return defining_module(&origin, modules);
        }
    }
    module.to_vec()
}

/// Returns what the `use` statements of a module import from its part, those of its test module left out.
fn imported_items(module: &ModulePath, text: &str) -> Vec<ModulePath> {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let submodules: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    let mut items = Vec::new();
    for tree in use_trees(text) {
        for path in expand(tree) {
            let absolute = match path[0].as_str() {
                "crate" => path[1..].to_vec(),
                "self" => [module.clone(), path[1..].to_vec()].concat(),
                "super" => {
                    let up = path.iter().take_while(|segment| *segment == "super").count();
                    [module[..module.len().saturating_sub(up)].to_vec(), path[up..].to_vec()].concat()
                }
                first if submodules.contains(first) => [module.clone(), path].concat(),
                _ => continue,
            };
            if absolute.first() == module.first() {
                items.push(absolute);
            }
        }
    }
    items
}

/// Returns the text between `use` and the semicolon of each statement at the beginning of a line.
fn use_trees(text: &str) -> Vec<&str> {
    let mut trees = Vec::new();
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if let Some((before, _)) = line.split_once("use ")
            && (before.is_empty() || before == "pub " || (before.starts_with("pub(") && before.ends_with(") ")))
        {
            trees.extend(text[at + before.len() + "use ".len()..].split(';').next());
        }
        at += line.len();
    }
    trees
}

/// Returns the paths that a use tree names, with groups expanded.
fn expand(tree: &str) -> Vec<ModulePath> {
    let tree = tree.trim();
    let Some((prefix, group)) = tree.split_once('{') else {
        let name = tree.split(" as ").next().unwrap_or_default();
        let path: ModulePath = name.split("::").map(|segment| segment.trim().to_owned()).collect();
        return if name.is_empty() { Vec::new() } else { vec![path] };
    };
    let prefix: ModulePath = prefix.split("::").map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect();
    let group = group.trim_end().strip_suffix('}').unwrap_or(group);
    let mut depth = 0;
    let members = group.split(|c: char| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    let nested = members.flat_map(expand).map(|path| if path == ["self"] { Vec::new() } else { path });
    nested.map(|path| [prefix.clone(), path].concat()).collect()
}

fn modules(texts: &[(&str, &str)]) -> BTreeMap<ModulePath, String> {
    let path = |path: &str| path.split("::").map(str::to_owned).collect();
    texts.iter().map(|(name, text)| (path(name), (*text).to_owned())).collect()
}

#[test]
fn a_cycle_in_example_modules_is_found() {
    let planted = modules(&[
        ("socket", "mod a;\nmod b;\nmod c;\n\npub use a::A;\n"),
        ("socket::a", "use std::fmt;\n\nuse super::{\n    b::{self, B},\n    d::D as Other,\n};\n"),
        ("socket::b", "pub(super) use crate::socket::c::{C, Also};\n"),
        ("socket::c", "mod below;\n"),
        ("socket::c::below", "//! It has a head.\n\nuse super::super::A;\n"),
        ("socket::d", "use crate::store::Store;\n"),
    ]);
    assert_eq!(cycles(&planted), ["socket: a → b → c → a"]);
}

#[test]
fn imports_of_parents_in_tests_and_from_other_parts_are_not_cycles() {
    let valid = modules(&[
        ("socket", "mod a;\nmod b;\n\nuse a::A;\npub struct Node;\n"),
        ("socket::a", "use super::Node;\nuse super::b::B;\n"),
        ("socket::b", "use crate::domain::a::A;\n\n#[cfg(test)]\nmod tests {\n    use super::super::a::A;\n}\n"),
    ]);
    assert_eq!(cycles(&valid), Vec::<String>::new());
}
