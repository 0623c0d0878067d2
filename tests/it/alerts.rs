//! The alerts use metrics that a running server exposes, and the runbook has a paragraph for each alert.

use std::{collections::BTreeSet, fs};

use yaml_rust2::{Yaml, YamlLoader};

use crate::{metrics::Scrape, support::TestApp};

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Returns name and expression of each alert.
fn alerts() -> Vec<(String, String)> {
    let Yaml::Array(rules) =
        YamlLoader::load_from_str(&read("deploy/alerts.yml")).unwrap()[0]["groups"][0]["rules"].clone()
    else {
        panic!("no rules")
    };
    let text = |value: &Yaml| value.as_str().unwrap().to_owned();
    rules.iter().map(|rule| (text(&rule["alert"]), text(&rule["expr"]))).collect()
}

/// Returns the words of a text: letters, digits and underscores.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Returns the metric name and the text in the braces of each selector `name{label="value"}`.
fn matchers(expression: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for (before, rest) in expression.match_indices('{').map(|(at, _)| expression.split_at(at)) {
        let inside = rest[1..].split_once('}').expect("braces are closed").0;
        found.push((words(before).last().unwrap(), inside));
    }
    found
}

/// Returns the labels that a matcher `label=~"one|other"` allows, as samples show them.
fn shown(matcher: &str) -> Vec<String> {
    let (label, values) = matcher.split_once('=').unwrap();
    let values = values.trim_start_matches('~').trim_matches('"');
    values.split('|').map(|value| format!("{}=\"{value}\"", label.trim_end_matches('!'))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn alerts_use_only_metrics_and_labels_that_a_running_server_exposes() {
    let scrape = Scrape::of(TestApp::start(&[]).admin()).await;
    let samples: Vec<&String> = scrape.samples.keys().collect();
    let alerts = alerts();
    assert!(alerts.len() > 10, "only {} alerts were found", alerts.len());
    for (name, expression) in &alerts {
        for (open, close) in [('(', ')'), ('{', '}'), ('[', ']')] {
            assert_eq!(expression.matches(open).count(), expression.matches(close).count(), "{name}: {expression}");
        }
        assert!(expression.matches('"').count() % 2 == 0 && !expression.contains('\\'), "{name}: {expression}");
        let metrics: Vec<&str> = words(expression)
            .filter(|word| ["sealwire_", "process_"].iter().any(|start| word.starts_with(start)))
            .collect();
        assert!(!metrics.is_empty() || name == "NodeAway", "{name}");
        for metric in metrics {
            let shown = samples.iter().any(|sample| sample.split('{').next() == Some(metric));
            assert!(shown, "{name}: no {metric}");
        }
        for (metric, matcher) in matchers(expression).into_iter().filter(|(metric, _)| *metric != "up") {
            // The texts that a sample has one of, for each label.
            let labels: Vec<Vec<String>> = matcher.split(',').map(shown).collect();
            for one in labels.iter().flatten() {
                let known = samples.iter().any(|sample| sample.starts_with(metric) && sample.contains(one));
                assert!(known, "{name}: no {metric} has {one}");
            }
            let has_all = |sample: &str| labels.iter().all(|texts| texts.iter().any(|text| sample.contains(text)));
            let known = samples.iter().any(|sample| sample.starts_with(metric) && has_all(sample));
            assert!(known, "{name}: no {metric} has {labels:?}");
        }
    }
}

#[test]
fn the_runbook_has_a_paragraph_for_every_alert_and_no_other() {
    let document = read("docs/operations.md");
    let section = document.split_once("\n## Alerts\n").unwrap().1.split("\n## ").next().unwrap();
    let paragraphs: BTreeSet<String> = section
        .split("\n\n")
        .filter_map(|paragraph| paragraph.trim_start().strip_prefix("**`")?.split_once("`.**"))
        .inspect(|(name, text)| assert!(text.len() > 80, "{name}: {text}"))
        .map(|(name, _)| name.to_owned())
        .collect();
    let real: BTreeSet<String> = alerts().into_iter().map(|(name, _)| name).collect();
    assert_eq!(paragraphs, real);
}
