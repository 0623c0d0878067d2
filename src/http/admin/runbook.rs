//! The runbook in the status page: the paragraphs on alerts and the table of outages of `docs/operations.md`, as HTML.
//!
//! The page contains them instead of a link to a web site, so that they describe the running version, can be read
//! without access to the internet, and remain in an open page after its node has stopped.
//!
//! Supports the Markdown that those two sections use: paragraphs, fenced code, a table, and inline code, bold text and
//! links. Links to other parts of the document become plain text.

use std::fmt::Write;

const DOCUMENT: &str = include_str!("../../../docs/operations.md");
const ALERTS: &str = "Alerts";
const OUTAGES: &str = "When something is gone";
/// The anchors of the document that the page has too, each with its name in the page.
const ANCHORS: [(&str, &str); 2] = [("#alerts", "#runbook"), ("#when-something-is-gone", "#outages")];

/// Returns the HTML to insert into the page. Each alert is a `<details data-alert="NAME">`.
pub fn html() -> String {
    let mut html = String::from("<div>\n<h3>Alerts</h3>\n");
    for block in section(ALERTS).split("\n\n").map(str::trim) {
        if let Some((name, text)) = block.strip_prefix("**`").and_then(|rest| rest.split_once("`.**")) {
            let _ = writeln!(html, "<details data-alert=\"{name}\">\n<summary>{name}</summary>");
            let _ = writeln!(html, "<p id=\"{name}\">{}</p>\n</details>", inline(text.trim()));
        } else if let Some(code) = block.strip_prefix("```").and_then(|rest| rest.strip_suffix("```")) {
            let code = code.split_once('\n').map_or("", |(_language, code)| code);
            let _ = writeln!(
                html,
                "<pre tabindex=\"0\" role=\"group\" aria-label=\"Commands\"><code>{}</code></pre>",
                escape(code.trim_end())
            );
        }
    }
    html.push_str("</div>\n<div>\n<h3 id=\"outages\">When something is gone</h3>\n");
    let mut rows = section(OUTAGES).lines().filter(|line| line.starts_with('|')).map(cells);
    let head = rows.next().unwrap_or_default();
    // The first row after the head is the `|---|` line.
    for row in rows.skip(1) {
        let Some((what, texts)) = row.split_first() else { continue };
        let _ = writeln!(html, "<details>\n<summary>{}</summary>\n<dl>", inline(what));
        for (name, text) in head.iter().skip(1).zip(texts) {
            let _ = writeln!(html, "<div><dt>{}</dt><dd>{}</dd></div>", inline(name), inline(text));
        }
        html.push_str("</dl>\n</details>\n");
    }
    html.push_str("</div>");
    html
}

/// The text of a section of the document, up to the next heading.
fn section(title: &str) -> &'static str {
    let (_, rest) = DOCUMENT.split_once(&format!("\n## {title}\n")).unwrap_or_default();
    rest.split("\n## ").next().unwrap_or_default().split("\n### ").next().unwrap_or_default()
}

fn cells(row: &'static str) -> Vec<&'static str> {
    row.trim().trim_matches('|').split('|').map(str::trim).collect()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Converts the inline Markdown of a text to HTML: code, bold text and links.
fn inline(text: &str) -> String {
    let Some(start) = text.find(['`', '*', '[']) else { return escape(text) };
    let (before, rest) = text.split_at(start);
    let found = enclosed(rest, "`", "`")
        .map(|(code, after)| (format!("<code>{}</code>", escape(code)), after))
        .or_else(|| {
            enclosed(rest, "**", "**").map(|(bold, after)| (format!("<strong>{}</strong>", inline(bold)), after))
        })
        .or_else(|| link(rest));
    // A character that does not begin markup is plain text.
    let (html, after) = found.unwrap_or_else(|| (rest[..1].to_owned(), &rest[1..]));
    format!("{}{html}{}", escape(before), inline(after))
}

/// Returns the text between `open` and the next `close`, and the text after that; `None` if the text does not begin with
/// `open` or has no `close`.
fn enclosed<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, &'a str)> {
    text.strip_prefix(open)?.split_once(close)
}

fn link(text: &str) -> Option<(String, &str)> {
    let (label, rest) = enclosed(text, "[", "](").filter(|(label, _)| !label.contains(']'))?;
    let (target, after) = rest.split_once(')')?;
    let label = inline(label);
    let anchor = ANCHORS.iter().find(|(document, _)| *document == target);
    Some((anchor.map_or(label.clone(), |(_, page)| format!("<a href=\"{page}\">{label}</a>")), after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inline_markdown_becomes_html() {
        for (markdown, html) in [
            ("plain & <b>", "plain &amp; &lt;b&gt;"),
            (
                "`a < b`, **bold `x`** and 2 * 3",
                "<code>a &lt; b</code>, <strong>bold <code>x</code></strong> and 2 * 3",
            ),
            (
                "see [`Redis` is\ngone](#when-something-is-gone).",
                "see <a href=\"#outages\"><code>Redis</code> is\ngone</a>.",
            ),
            ("see [capacity](#capacity), [codes](protocol.md#error-codes)", "see capacity, codes"),
            (
                "a [bracket], [`x`](#alerts) and a `mark",
                "a [bracket], <a href=\"#runbook\"><code>x</code></a> and a `mark",
            ),
            ("größer — \"so\"", "größer — &quot;so&quot;"),
        ] {
            assert_eq!(inline(markdown), html);
        }
    }

    #[test]
    fn every_alert_and_outage_of_the_document_is_there() {
        let html = html();
        let rules = include_str!("../../../deploy/alerts.yml").lines();
        let alerts: Vec<&str> = rules.filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
        assert!(alerts.len() > 10);
        for name in &alerts {
            let start = format!("<details data-alert=\"{name}\">\n<summary>{name}</summary>\n<p id=\"{name}\">");
            let paragraph = html.split_once(&start).unwrap().1.split("</p>").next().unwrap();
            assert!(paragraph.len() > 80, "{name}: {paragraph}");
        }
        let outages = html.split_once("<h3 id=\"outages\">").unwrap().1;
        assert!(outages.matches("<details>").count() > 5 && outages.contains("<summary>Redis</summary>"), "{outages}");
        assert_eq!(outages.matches("<dt>").count(), 3 * outages.matches("<details>").count());
        assert!(html.contains("curl -s localhost:9090/status"), "{html}");
        assert!(!html.contains("**") && !html.contains("]("), "{html}");
    }
}
