//! The documents match the code: tables are complete, examples are valid, no link is broken.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic fails the test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use sealwire_protocol::{CloseCode, Code, Codec, events::Event, frame::Op};
use serde_json::Value;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the fenced blocks of a document, each with the text after its opening backticks.
pub fn fences(text: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find("\n```") {
        let (name, body) = rest[start + 4..].split_once('\n').unwrap();
        let end = if body.starts_with("```") { 0 } else { body.find("\n```").expect("every fence is closed") + 1 };
        found.push((name.trim(), &body[..end]));
        rest = &body[end + 3..];
    }
    found
}

/// Returns the cells of the table rows in the section with this heading, without the table's head.
fn rows<'a>(text: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, section) = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(2);
    rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect()).collect()
}

#[test]
fn the_error_codes_in_protocol_md_match_the_code() {
    let document = read("docs/protocol.md");
    let listed: Vec<(String, String, String)> = rows(&document, "## Error codes")
        .into_iter()
        .map(|cells| (cells[0].to_owned(), cells[1].to_owned(), cells[2].to_owned()))
        .collect();
    let yes_no = |yes| if yes { "yes" } else { "no" };
    let real: Vec<(String, String, String)> = Code::ALL
        .iter()
        .map(|code| (code.name().to_owned(), code.http_status().to_string(), yes_no(code.retryable()).to_owned()))
        .collect();
    assert_eq!(listed, real);
}

#[test]
fn the_close_codes_in_protocol_md_match_the_code() {
    let document = read("docs/protocol.md");
    let listed: Vec<(String, String)> =
        rows(&document, "## Close codes").into_iter().map(|cells| (cells[0].to_owned(), cells[1].to_owned())).collect();
    let real: Vec<(String, String)> =
        CloseCode::ALL.iter().map(|code| (code.number().to_string(), code.reason().to_owned())).collect();
    assert_eq!(listed, real);
}

#[test]
fn protocol_md_has_a_section_for_every_op_and_event_and_no_other() {
    let document = read("docs/protocol.md");
    let sections = |heading: &str| -> BTreeSet<String> {
        let (_, part) = document.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
        let part = part.split("\n## ").next().unwrap();
        part.lines().filter_map(|line| Some(line.strip_prefix("### `")?.strip_suffix('`')?.to_owned())).collect()
    };
    let ops: BTreeSet<String> = Op::ALL.iter().map(|op| op.name().to_owned()).collect();
    assert_eq!(sections("## Ops"), ops);

    assert_eq!(sections("## Events"), Event::NAMES.map(str::to_owned).into());
}

#[test]
fn examples_in_the_documents_can_be_decoded() {
    for path in ["docs/protocol.md", "README.md"] {
        let document = read(path);
        let mut last_json = Value::Null;
        let mut checked = 0;
        for (name, body) in fences(&document) {
            match name {
                "json" => {
                    last_json = serde_json::from_str(body).unwrap_or_else(|error| panic!("{path}: {error} in\n{body}"));
                    checked += 1;
                }
                "hex" => {
                    let packed: Value = Codec::MsgPack.decode(&hex(body)).unwrap();
                    assert_eq!(packed, last_json, "the MessagePack under a JSON example is the same frame");
                    checked += 1;
                }
                _ => {}
            }
        }
        assert!(path == "README.md" || checked > 20, "{path}: only {checked} examples were found");
    }
}

#[test]
fn protocol_md_has_the_test_vectors_of_the_tests() {
    let vectors = read("tests/vectors/libsignal.json") + &read("tests/vectors/device_proofs.json");
    let document = read("docs/protocol.md");
    let mut checked = 0;
    for (_, body) in fences(&document).into_iter().filter(|(name, _)| *name == "vector") {
        for line in body.lines() {
            let value = line.split_whitespace().last().unwrap();
            assert!(vectors.contains(&format!("\"{value}\"")), "{line}");
            checked += 1;
        }
    }
    assert!(checked >= 21, "only {checked} values were found");
}

#[test]
fn architecture_md_names_every_table_and_module() {
    let document = read("docs/architecture.md");
    for entry in fs::read_dir(root().join("migrations/sqlite")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("CREATE TABLE ")) {
            // A table that is rebuilt gets its final name at the end.
            let table = line.split_whitespace().next().unwrap().trim_start_matches("new_");
            assert!(document.contains(&format!("| `{table}` |")), "the table {table} is missing");
        }
    }
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs");
        assert!(document.contains(&format!("`{module}`")), "the module {module} is missing");
    }
}

#[test]
fn the_rust_example_in_the_readme_is_part_of_one_that_is_run() {
    let example = read("examples/first_message.rs");
    let readme = read("README.md");
    let quoted: Vec<&str> =
        fences(&readme).into_iter().filter(|(name, _)| *name == "rust").map(|(_, body)| body).collect();
    assert_eq!(quoted.len(), 1);
    let lines = example.lines().map(|line| line.strip_prefix("    ").unwrap_or(line)).collect::<Vec<_>>().join("\n");
    assert!(lines.contains(quoted[0].trim_end()), "{}", quoted[0]);
}

#[test]
fn architecture_md_names_every_module_of_the_client_library() {
    let document = read("docs/architecture.md");
    let (_, section) = document.split_once("\n## Client library\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    for entry in fs::read_dir(root().join("crates/client/src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs");
        assert!(
            matches!(module, "lib" | "recipes.md") || section.contains(&format!("`{module}`")),
            "the module {module} is missing"
        );
    }
}

/// If one of these background tasks ends, the server stops.
#[tokio::test(flavor = "multi_thread")]
async fn operations_md_lists_the_background_tasks_of_a_server() {
    let document = read("docs/operations.md");
    let (_, list) = document.split_once("A background task (").unwrap();
    let (list, _) = list.split_once(')').unwrap();
    let names = list.split(',').map(|name| name.trim().trim_matches('`').to_owned());
    let mut listed: BTreeSet<String> = names.collect();
    // Redis does not have to run.
    let app = crate::support::TestApp::start(&[("BUS__URL", "redis://127.0.0.1:1")]);
    let mut started: BTreeSet<String> = app.tasks.names().into_iter().map(str::to_owned).collect();
    // The two listeners are not started as tasks, but their end has the same effect.
    started.extend(["listener", "admin listener"].map(str::to_owned));
    listed.retain(|name| !name.is_empty());
    assert_eq!(listed, started);
}

#[test]
fn links_in_the_documents_are_not_broken() {
    let mut checked = 0;
    let documents = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    for path in documents
        .chain([root().join("README.md"), root().join("crates/client/README.md")])
        .filter(|path| path.extension().is_some_and(|e| e == "md"))
    {
        let text = fs::read_to_string(&path).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{}: {link}", path.display());
            assert!(anchor.is_empty() || has_heading(&target, anchor), "{}: {link}", path.display());
            checked += 1;
        }
    }
    assert!(checked > 5, "only {checked} links were found");
}

/// Returns whether a document has a heading with this anchor, by the rule of the usual renderers.
fn has_heading(document: &Path, anchor: &str) -> bool {
    let text = fs::read_to_string(document).unwrap();
    text.lines().filter(|line| line.starts_with('#')).any(|line| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>() == anchor
    })
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let value = |digit: u8| u8::try_from(char::from(digit).to_digit(16).unwrap()).unwrap();
    digits.chunks(2).map(|pair| value(pair[0]) << 4 | value(pair[1])).collect()
}
