//! The import rule of `lib.rs`, read off the sources.

mod cycles;

use std::{fs, path::Path};

/// Who may import whom. `clock`, `log_throttle` and `tasks` are leaves that all may use; `metrics` is for all above `protocol` and `domain`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("main", &["app", "clock", "config", "probe", "seed", "shutdown", "telemetry"]),
    (
        "app",
        &[
            "bus", "clock", "config", "domain", "http", "metrics", "protocol", "service", "shutdown", "socket",
            "store", "tasks",
        ],
    ),
    ("shutdown", &["socket", "tasks"]),
    ("probe", &[]),
    ("seed", &["clock", "domain", "service", "store"]),
    ("http", &["domain", "log_throttle", "metrics", "protocol", "service", "tasks"]),
    ("socket", &["domain", "log_throttle", "metrics", "protocol", "service", "tasks"]),
    ("service", &["bus", "clock", "domain", "log_throttle", "metrics", "store", "tasks"]),
    ("store", &["clock", "domain", "log_throttle", "metrics", "tasks"]),
    ("bus", &["domain", "log_throttle", "metrics", "tasks"]),
    ("protocol", &["domain"]),
    ("config", &["domain", "service"]),
    ("clock", &["domain"]),
    ("log_throttle", &[]),
    ("metrics", &["protocol"]),
    ("domain", &[]),
    ("tasks", &[]),
    ("telemetry", &[]),
    ("lib", &[]),
];

#[test]
fn modules_import_only_what_they_may() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut checked = 0;
    let mut folders = vec![source.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let relative = path.strip_prefix(&source).unwrap();
            let module = relative.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
            let (_, allowed) = ALLOWED
                .iter()
                .find(|(name, _)| *name == module)
                .unwrap_or_else(|| panic!("{module} is not in the rule"));
            for imported in imports(&fs::read_to_string(&path).unwrap()) {
                assert!(
                    imported == module || allowed.contains(&imported.as_str()),
                    "{} imports {imported}",
                    relative.display()
                );
                checked += 1;
            }
        }
    }
    assert!(checked > 30, "only {checked} imports were found: the test no longer reads them");
}

/// The top-level modules that a file names as `crate::x` (or `sealwire::x`, in the binary), also inside `{…}`.
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
fn imports_are_found_in_groups_too() {
    let text = "use crate::{\n    app::{self, X},\n    bus::Bus,\n};\nuse crate::domain::{A, B};";
    assert_eq!(imports(text), ["app", "bus", "domain"]);
}
