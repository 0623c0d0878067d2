//! The import rules of `lib.rs`, checked on the source files.

mod cycles;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Which module may import which others. `clock`, `log_throttle` and `tasks` are leaves that all may use; all modules
/// above `domain` may use `metrics`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("main", &["app", "clock", "config", "probe", "seed", "shutdown", "telemetry"]),
    (
        "app",
        &[
            "bus",
            "clock",
            "config",
            "domain",
            "edge",
            "http",
            "metrics",
            "service",
            "shutdown",
            "socket",
            "sqlite_file",
            "store",
            "tasks",
            "usage_limits",
        ],
    ),
    ("shutdown", &["socket", "tasks"]),
    ("probe", &[]),
    ("seed", &["clock", "domain", "service", "store"]),
    ("http", &["domain", "edge", "log_throttle", "metrics", "service", "tasks"]),
    ("socket", &["domain", "edge", "log_throttle", "metrics", "service", "tasks"]),
    ("edge", &["domain", "service"]),
    ("service", &["bus", "clock", "domain", "log_throttle", "metrics", "store", "tasks", "usage_limits"]),
    ("store", &["clock", "domain", "log_throttle", "metrics", "sqlite_file", "tasks"]),
    ("bus", &["domain", "log_throttle", "metrics", "tasks"]),
    ("config", &["domain", "sqlite_file", "usage_limits"]),
    ("clock", &["domain"]),
    ("log_throttle", &[]),
    ("metrics", &[]),
    ("domain", &[]),
    ("sqlite_file", &[]),
    ("tasks", &[]),
    ("telemetry", &[]),
    ("usage_limits", &[]),
    ("lib", &[]),
];

/// The modules that may use the protocol crate.
const MAY_USE_PROTOCOL: &[&str] = &["app", "domain", "edge", "http", "metrics", "socket"];

/// Returns each file below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

/// Returns each text file below `src`: its path there, its top-level module and its text.
fn sources() -> Vec<(String, String, String)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let read = |path: PathBuf| {
        let relative = path.strip_prefix(&source).unwrap();
        let module = relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        let text = fs::read_to_string(&path).ok()?;
        Some((relative.to_str().unwrap().to_owned(), module.to_owned(), text))
    };
    files_below(&source).into_iter().filter_map(read).collect()
}

#[test]
fn modules_import_only_allowed_modules() {
    let mut checked = 0;
    for (path, module, text) in sources() {
        let (_, allowed) =
            ALLOWED.iter().find(|(name, _)| *name == module).unwrap_or_else(|| panic!("{module} is not in the list"));
        // The tests of a module may read the default configuration.
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        for imported in imports(code) {
            assert!(imported == module || allowed.contains(&imported.as_str()), "{path} imports {imported}");
            checked += 1;
        }
    }
    assert!(checked > 30, "only {checked} imports were found: the test fails to read them");
}

#[test]
fn only_modules_at_the_edges_use_the_protocol_crate() {
    let mut using = 0;
    for (path, module, text) in sources() {
        if text.contains("sealwire_protocol::") {
            assert!(MAY_USE_PROTOCOL.contains(&module.as_str()) || module == "lib", "{path} uses the protocol crate");
            using += 1;
        }
        assert!(module != "metrics" || !text.contains("actix_web"), "{path}: metrics must not depend on HTTP");
    }
    assert!(using > 10, "only {using} files were found: the test fails to read them");
}

/// So renaming a column or a field of the store or the domain cannot change the protocol. `store/tx.rs` only reads rows with it
/// that SQLite returns as JSON, into tuples.
#[test]
fn modules_below_the_edges_do_not_use_serde() {
    let mut checked = 0;
    for (path, module, text) in sources() {
        if !["domain", "store", "service"].contains(&module.as_str()) {
            continue;
        }
        checked += 1;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let only_reads = path == "store/tx.rs";
        let names: &[_] = if only_reads { &["#[serde", "Serialize"] } else { &["use serde", "serde::", "#[serde"] };
        for name in names {
            assert!(!code.contains(*name), "{path} uses {name}");
        }
    }
    assert!(checked > 40, "only {checked} files were found: the test fails to read them");
}

/// Apps link the client library, so it brings no part of the server. Their devices' clocks may be wrong by months.
#[test]
fn the_client_library_uses_neither_the_server_nor_the_clock_of_the_device() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/client");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("[dependencies]").unwrap();
    let names =
        dependencies.lines().take_while(|line| !line.starts_with('[')).filter_map(|line| line.split(' ').next());
    let ours: Vec<&str> = names.filter(|name| name.starts_with("sealwire") || name.starts_with("actix")).collect();
    assert_eq!(ours, ["sealwire-protocol"]);
    for path in files_below(&folder.join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        for clock in ["SystemTime", "Utc::now", "Local::now"] {
            assert!(!text.contains(clock), "{} uses {clock}", path.display());
        }
    }
}

/// Returns the top-level modules that a file names as `crate::x` (or `sealwire::x`, in the binary), also inside `{…}`.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for marker in ["crate::", "sealwire::"] {
        for (at, _) in text.match_indices(marker) {
            if text[..at].ends_with(['$', '_']) || text[..at].ends_with(char::is_alphanumeric) {
                continue;
            }
            let rest = &text[at + marker.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                let mut depth = 0;
                let mut name = String::new();
                let mut at_start = true;
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => at_start = true,
                        c if depth == 0 && at_start && (c.is_alphanumeric() || c == '_') => name.push(c),
                        _ if depth == 0 && at_start && !name.is_empty() => {
                            found.push(std::mem::take(&mut name));
                            at_start = false;
                        }
                        _ => {}
                    }
                }
            } else {
                found.push(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect());
            }
        }
    }
    found.retain(|name: &String| name.chars().next().is_some_and(char::is_lowercase));
    found
}

#[test]
fn imports_in_groups_are_found() {
    let text = "use crate::{\n    app::{self, X},\n    bus::Bus,\n};\nuse crate::domain::{A, B};";
    assert_eq!(imports(text), ["app", "bus", "domain"]);
}
