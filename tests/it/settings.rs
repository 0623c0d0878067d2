//! docs/settings.md has every setting, with its right default, variable and valid values.

use std::fs;

use sealwire::config::Config;
use toml::{Table, Value};

/// Values that settings refuse, except those that accept any text.
const NONSENSE: &[&str] = &["-1", "no such thing/ at all"];

struct Row {
    name: String,
    environment: String,
    default: String,
    takes: String,
    meaning: String,
}

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Returns the rows of all tables in order, each of which must be under the heading of its section.
fn documented() -> Vec<Row> {
    let document = read("docs/settings.md");
    let mut rows = Vec::new();
    let mut section = "";
    for line in document.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.trim_matches(['`', '[', ']']);
        }
        let Some(row) = line.strip_prefix("| `") else { continue };
        let cells: Vec<&str> = row.trim_end_matches(" |").split(" | ").collect();
        let [names, default, takes, meaning] = cells[..] else { panic!("four cells: {line}") };
        let (name, environment) = names.trim_end_matches('`').split_once("`<br>`").unwrap();
        assert!(name.starts_with(&format!("{section}.")), "{name} is under [{section}]");
        rows.push(Row {
            name: name.to_owned(),
            environment: environment.to_owned(),
            default: default.trim_matches('`').to_owned(),
            takes: takes.to_owned(),
            meaning: meaning.to_owned(),
        });
    }
    rows
}

/// Returns the settings of `config/default.toml` with their values, in the order of the file.
fn real() -> Vec<(String, Value)> {
    let text = read("config/default.toml");
    let values: Table = text.parse().unwrap();
    let mut section = "";
    let mut settings = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((key, _)) = line.split_once(" = ") {
            settings.push((format!("{section}.{key}"), values[section][key].clone()));
        }
    }
    let count: usize = values.values().map(|section| section.as_table().unwrap().len()).sum();
    assert_eq!(settings.len(), count, "the test has not read every setting of the file");
    settings
}

/// Returns the valid values of a setting as the server reports them for an invalid one. `None` if it accepts any text.
fn takes(environment: &str, name: &str) -> Option<String> {
    NONSENSE.iter().find_map(|value| {
        let refusal = Config::load(None, [(environment.to_owned(), (*value).to_owned())].into_iter()).err()?;
        let refusal = refusal.to_string();
        let takes = refusal.strip_prefix(&format!("{name} takes "));
        Some(takes.unwrap_or_else(|| panic!("{name}: {refusal}")).to_owned())
    })
}

#[test]
fn settings_md_documents_every_setting_and_no_other() {
    let documented: Vec<String> = documented().into_iter().map(|row| row.name).collect();
    let real: Vec<String> = real().into_iter().map(|(name, _)| name).collect();
    assert_eq!(documented, real, "names and order of docs/settings.md and config/default.toml");
}

#[test]
fn settings_md_has_the_right_variables_defaults_and_valid_values() {
    for (row, (name, value)) in documented().into_iter().zip(real()) {
        assert_eq!(row.environment, format!("SEALWIRE__{}", name.to_uppercase().replace('.', "__")));
        let default: Table = format!("default = {}", row.default).parse().unwrap_or_else(|_| panic!("{name}"));
        assert_eq!(default["default"], value, "{name}");
        assert_eq!(row.takes, takes(&row.environment, &name).unwrap_or_else(|| "a text".to_owned()), "{name}");
        assert!(row.meaning.len() > 15 && row.meaning.ends_with('.'), "{name}: {}", row.meaning);
    }
}
