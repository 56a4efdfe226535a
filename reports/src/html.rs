//! The report as one HTML page without outside resources.

use std::fmt::Write as _;

use crate::findings::Topic;
use crate::report::Report;
use crate::sample::SCHEMA_VERSION;
use crate::table::escape;

const STYLE: &str = "
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7fa; color: #1f2933; font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1320px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.15rem; margin: 0 0 .75rem; }
section { background: #fff; border: 1px solid #e1e6ec; border-radius: 8px; padding: 1.25rem; margin-top: 1.25rem; }
ul { margin: 0; padding-left: 1.2rem; }
li + li { margin-top: .4rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8125rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .35rem .5rem; text-align: right; border-bottom: 1px solid #e1e6ec; white-space: nowrap; }
th { color: #3e4c59; font-weight: 600; vertical-align: bottom; white-space: normal; }
th.text, td.text { text-align: left; }
td.long { white-space: normal; min-width: 16rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
td.none { color: #7b8794; }
tbody tr:hover td { background: #f5f7fa; }
.unit { display: block; color: #7b8794; font-weight: 400; }
.note, figcaption { color: #52606d; font-size: .875rem; margin: .75rem 0 0; }
figure { margin: 0; }
figure svg { width: 100%; max-width: 1120px; height: auto; display: block; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 0; font-size: .875rem; }
dt { color: #52606d; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 640px) { td:first-child { white-space: normal; min-width: 8.5rem; } dl { display: block; } dd { margin-bottom: .4rem; } main { padding: 1.25rem .75rem 3rem; } section { padding: 1rem; } figure { overflow-x: auto; } figure svg { width: 960px; max-width: none; } }
@media print { body { background: #fff; } section { break-inside: avoid; border: 0; padding: 0; } }
";

/// Renders the whole page.
pub(crate) fn page(report: &Report) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"celslm-schema-version\" content=\"{SCHEMA_VERSION}\">\n<title>{0}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n<header>\n<h1>{0}</h1>\n",
        escape(&report.title)
    );
    for paragraph in paragraphs(&report.description) {
        let _ = writeln!(out, "<p>{}</p>", escape(paragraph));
    }
    out.push_str("</header>\n");
    list(
        &mut out,
        "Can the figures be relied on?",
        report.texts(Topic::Validity),
    );
    list(
        &mut out,
        "What the figures say",
        report.texts(Topic::Result),
    );
    for (index, table) in report.tables.iter().enumerate() {
        out.push_str(&table.html());
        // Figures follow the summary, where a reader looks first.
        if index + 1 == report.leading_tables {
            for figure in &report.figures {
                let _ = write!(
                    out,
                    "<section>\n<h2>{}</h2>\n<figure>\n{}<figcaption>{}</figcaption>\n</figure>\n</section>\n",
                    escape(&figure.title),
                    figure.svg,
                    escape(&figure.caption)
                );
            }
        }
    }
    list(&mut out, "Notes", report.notes.iter().map(String::as_str));
    if !report.environment.is_empty() {
        out.push_str("<section>\n<h2>Environment</h2>\n<dl>\n");
        for (name, value) in &report.environment {
            let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(value));
        }
        out.push_str("</dl>\n</section>\n");
    }
    list(&mut out, "Definitions", report.definitions.iter().copied());
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

pub(crate) fn paragraphs(text: &str) -> impl Iterator<Item = &str> {
    text.split("\n\n").map(str::trim).filter(|p| !p.is_empty())
}

fn list<'a>(out: &mut String, title: &str, items: impl Iterator<Item = &'a str>) {
    let mut items = items.peekable();
    if items.peek().is_none() {
        return;
    }
    let _ = write!(out, "<section>\n<h2>{}</h2>\n<ul>\n", escape(title));
    for item in items {
        let _ = writeln!(out, "<li>{}</li>", escape(item));
    }
    out.push_str("</ul>\n</section>\n");
}
