//! Reads parts of `docs/protocol.md`: sections, tables and examples.

use super::json::Json;
use crate::docs::fences;

/// Returns the text below a heading, up to the next heading of the same or a higher level.
pub fn section<'a>(document: &'a str, heading: &str) -> &'a str {
    let (_, rest) = document.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no section {heading}"));
    let level = heading.chars().take_while(|c| *c == '#').count();
    let mut length = 0;
    for line in rest.split_inclusive('\n') {
        let hashes = line.chars().take_while(|c| *c == '#').count();
        if hashes > 0 && hashes <= level && line[hashes..].starts_with(' ') {
            break;
        }
        length += line.len();
    }
    &rest[..length]
}

/// Returns the rows of all tables, without their header rows.
pub fn rows(section: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    let mut table_line = 0;
    for line in section.lines() {
        table_line = if line.starts_with("| ") { table_line + 1 } else { 0 };
        if table_line > 2 {
            rows.push(line.trim_matches('|').split('|').map(|cell| plain(cell.trim())).collect());
        }
    }
    rows
}

/// Replaces the links in a text by their link texts.
pub fn plain(text: &str) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        shown.push_str(before);
        if let Some((name, after)) = link.split_once("](").and_then(|(name, to)| Some((name, to.split_once(')')?.1))) {
            shown.push_str(name);
            rest = after;
        } else {
            shown.push('[');
            rest = link;
        }
    }
    shown + rest
}

/// Returns the JSON examples.
pub fn examples(section: &str) -> Vec<Json> {
    fences(section).into_iter().filter(|(name, _)| *name == "json").map(|(_, body)| Json::parse(body)).collect()
}
