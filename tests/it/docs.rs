//! The documents say what the code does: tables are complete, examples are real, links lead somewhere.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

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

/// The fenced blocks of a document, each with what stands behind its opening backticks.
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

/// The cells of the table rows that start with a code or number in backticks, or with a bare number.
fn rows<'a>(text: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (_, section) = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| ")).skip(2);
    rows.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect()).collect()
}

#[test]
fn the_table_of_codes_is_the_one_in_the_code() {
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
fn the_table_of_close_codes_is_the_one_in_the_code() {
    let document = read("docs/protocol.md");
    let listed: Vec<(String, String)> =
        rows(&document, "## Close codes").into_iter().map(|cells| (cells[0].to_owned(), cells[1].to_owned())).collect();
    let real: Vec<(String, String)> =
        CloseCode::ALL.iter().map(|code| (code.number().to_string(), code.reason().to_owned())).collect();
    assert_eq!(listed, real);
}

#[test]
fn every_op_and_event_has_a_section_and_no_other_does() {
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
fn examples_are_real() {
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
fn the_test_vectors_are_those_of_the_tests() {
    let vectors = read("tests/vectors/libsignal.json");
    let document = read("docs/protocol.md");
    let mut checked = 0;
    for (_, body) in fences(&document).into_iter().filter(|(name, _)| *name == "vector") {
        for line in body.lines() {
            let value = line.split_whitespace().last().unwrap();
            assert!(vectors.contains(&format!("\"{value}\"")), "{line}");
            checked += 1;
        }
    }
    assert!(checked >= 6, "only {checked} values were found");
}

#[test]
fn the_architecture_names_every_table_and_module() {
    let document = read("docs/architecture.md");
    for entry in fs::read_dir(root().join("migrations/sqlite")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("CREATE TABLE ")) {
            // A table that is made anew gets its name in the end.
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

/// The background tasks whose end is an alarm.
#[tokio::test(flavor = "multi_thread")]
async fn the_background_tasks_are_those_that_a_server_starts() {
    let document = read("docs/operations.md");
    let (_, list) = document.split_once("A background task (").unwrap();
    let (list, _) = list.split_once(')').unwrap();
    let names = list.split(',').map(|name| name.trim().trim_matches('`').to_owned());
    let mut listed: BTreeSet<String> = names.collect();
    // Redis need not be there.
    let app = crate::support::TestApp::start(&[("BUS__URL", "redis://127.0.0.1:1")]);
    let mut started: BTreeSet<String> = app.tasks.names().into_iter().map(str::to_owned).collect();
    // Both listeners are watched in another way.
    started.extend(["listener", "admin listener"].map(str::to_owned));
    listed.retain(|name| !name.is_empty());
    assert_eq!(listed, started);
}

#[test]
fn links_lead_somewhere() {
    let mut checked = 0;
    let documents = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    for path in documents.chain([root().join("README.md")]).filter(|path| path.extension().is_some_and(|e| e == "md")) {
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

/// Whether a document has a heading to which this anchor leads, by the rule of the usual renderers.
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
