//! Typed tables, rendered to Markdown, terminal text and HTML.

use std::fmt::Write as _;

/// Texts above this length may be broken into lines on a page.
const LONG_CHARS: usize = 48;

/// More decimals than these are read by nobody.
const MAX_DECIMALS: usize = 6;

/// A table as a view makes it, before it is rendered.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    /// Heading.
    pub title: String,
    /// What each column holds.
    pub columns: Vec<Column>,
    /// Rows, each as long as `columns`.
    pub rows: Vec<Vec<Value>>,
    /// Sentences below the table.
    pub notes: Vec<String>,
}

/// Name and unit of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Heading.
    pub name: String,
    /// Unit, empty for none.
    pub unit: &'static str,
    /// Whether it holds text, and is set left; figures are set right.
    pub text: bool,
}

/// One cell of a table.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Words.
    Text(String),
    /// A count.
    Count(u64),
    /// A figure with so many decimals.
    Number(f64, usize),
    /// A mean with its 95% interval, where there is one, and so many decimals.
    Interval(f64, Option<(f64, f64)>, usize),
    /// Figures of one thing, one above the other where there is room for lines.
    Stack(Vec<Value>),
    /// Not defined, or nothing measured.
    Missing,
    /// Defined, but not supported by so few requests.
    Unsupported,
}

impl Column {
    /// A column of words.
    #[must_use]
    pub fn text(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            unit: "",
            text: true,
        }
    }

    /// A column of figures.
    #[must_use]
    pub fn figure(name: &str, unit: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            unit,
            text: false,
        }
    }

    fn heading(&self) -> String {
        if self.unit.is_empty() {
            self.name.clone()
        } else {
            format!("{} ({})", self.name, self.unit)
        }
    }
}

impl Value {
    /// A figure, or missing.
    #[must_use]
    pub fn number(value: Option<f64>, decimals: usize) -> Self {
        value.map_or(Self::Missing, |v| Self::Number(v, decimals))
    }

    /// A figure with so many significant digits, or missing: for what spans orders of
    /// magnitude. What is above 1 keeps its integer digits, and nothing has more than
    /// [`MAX_DECIMALS`].
    #[must_use]
    pub fn significant(value: Option<f64>, digits: usize) -> Self {
        value.map_or(Self::Missing, |v| {
            let magnitude = v.abs().log10().floor();
            let decimals = if v == 0.0 || !magnitude.is_finite() {
                0.0
            } else {
                digits as f64 - 1.0 - magnitude
            };
            Self::Number(v, decimals.clamp(0.0, MAX_DECIMALS as f64) as usize)
        })
    }

    /// The value in words and digits.
    #[must_use]
    pub fn render(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(count) => number(*count as f64, 0),
            Self::Number(value, decimals) => number(*value, *decimals),
            Self::Interval(mean, None, decimals) => number(*mean, *decimals),
            Self::Interval(mean, Some((low, high)), decimals) => {
                format!(
                    "{} [{}, {}]",
                    number(*mean, *decimals),
                    number(*low, *decimals),
                    number(*high, *decimals)
                )
            }
            Self::Stack(values) => lines(values, " · ", |text| text),
            Self::Missing => "–".to_owned(),
            Self::Unsupported => "n < 459".to_owned(),
        }
    }
}

/// Values as lines of one cell, each written as its markup wants it.
fn lines(values: &[Value], between: &str, written: impl Fn(String) -> String) -> String {
    let texts = values.iter().map(|value| written(value.render()));
    texts.collect::<Vec<_>>().join(between)
}

/// A figure with thousands separated by commas.
pub(crate) fn number(value: f64, decimals: usize) -> String {
    let plain = format!("{value:.decimals$}");
    let (sign, digits) = plain
        .strip_prefix('-')
        .map_or(("", plain.as_str()), |rest| ("-", rest));
    let (whole, fraction) = digits
        .split_once('.')
        .map_or((digits, None), |(w, f)| (w, Some(f)));
    if !whole.bytes().all(|b| b.is_ascii_digit()) {
        return plain;
    }
    let mut grouped = String::from(sign);
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if let Some(fraction) = fraction {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    // A rounded-away minus is noise.
    if grouped.starts_with('-') && grouped.bytes().all(|b| matches!(b, b'-' | b'0' | b'.')) {
        grouped.remove(0);
    }
    grouped
}

/// Escapes text for HTML and SVG.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters are not allowed in XML.
            c if c.is_control() && c != '\n' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

impl Table {
    /// GitHub-flavoured Markdown, with a heading of level 2.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!("## {}\n", self.title);
        if !self.rows.is_empty() {
            let cell = |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ");
            let headings: Vec<_> = self.columns.iter().map(|c| cell(&c.heading())).collect();
            let rules: Vec<_> = self
                .columns
                .iter()
                .map(|c| if c.text { "---" } else { "---:" })
                .collect();
            let _ = write!(
                out,
                "\n| {} |\n|{}|\n",
                headings.join(" | "),
                rules.join("|")
            );
            for row in &self.rows {
                let of = |value: &Value| match value {
                    Value::Stack(values) => lines(values, "<br>", |text| cell(&text)),
                    value => cell(&value.render()),
                };
                let cells: Vec<_> = row.iter().map(of).collect();
                let _ = writeln!(out, "| {} |", cells.join(" | "));
            }
        }
        for note in &self.notes {
            let _ = write!(out, "\n{note}\n");
        }
        out
    }

    /// Aligned plain text of at most `width` characters a line. The widest text
    /// columns are shortened where it would not fit; figures never are.
    #[must_use]
    pub fn terminal(&self, width: usize) -> String {
        let clean = |text: String| text.replace(['\n', '\r', '\t', '\u{1b}'], " ");
        let mut grid: Vec<Vec<String>> =
            vec![self.columns.iter().map(|c| clean(c.heading())).collect()];
        for row in &self.rows {
            grid.push(row.iter().map(|v| clean(v.render())).collect());
        }
        let mut widths: Vec<usize> = (0..self.columns.len())
            .map(|i| {
                grid.iter()
                    .map(|row| row[i].chars().count())
                    .max()
                    .unwrap_or(0)
            })
            .collect();
        let total =
            |widths: &[usize]| widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        while total(&widths) > width {
            let widest = (0..widths.len())
                .filter(|&i| self.columns[i].text && widths[i] > 8)
                .max_by_key(|&i| widths[i]);
            let Some(widest) = widest else { break };
            widths[widest] -= 1;
        }
        let mut out = format!("{}\n", self.title);
        for row in &grid {
            let mut line = String::new();
            for (i, cell) in row.iter().enumerate() {
                if i > 0 {
                    line.push_str("  ");
                }
                let cell = squeeze(cell, widths[i]);
                let pad = " ".repeat(widths[i].saturating_sub(cell.chars().count()));
                if self.columns[i].text {
                    line.push_str(&cell);
                    line.push_str(&pad);
                } else {
                    line.push_str(&pad);
                    line.push_str(&cell);
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }

    /// A section of HTML with a heading of level 2.
    #[must_use]
    pub fn html(&self) -> String {
        let mut out = format!("<section>\n<h2>{}</h2>\n", escape(&self.title));
        if !self.rows.is_empty() {
            out.push_str("<div class=\"scroll\"><table>\n<thead><tr>");
            for column in &self.columns {
                let class = if column.text { " class=\"text\"" } else { "" };
                let _ = write!(out, "<th{class}>{}", escape(&column.name));
                if !column.unit.is_empty() {
                    let _ = write!(out, " <span class=\"unit\">{}</span>", escape(column.unit));
                }
                out.push_str("</th>");
            }
            out.push_str("</tr></thead>\n<tbody>\n");
            for row in &self.rows {
                out.push_str("<tr>");
                for (column, value) in self.columns.iter().zip(row) {
                    let class = match (column.text, value) {
                        (true, Value::Text(text)) if text.chars().count() > LONG_CHARS => {
                            " class=\"text long\""
                        }
                        (true, _) => " class=\"text\"",
                        (_, Value::Missing | Value::Unsupported) => " class=\"none\"",
                        _ => "",
                    };
                    let text = match value {
                        Value::Stack(values) => lines(values, "<br>", |text| escape(&text)),
                        value => escape(&value.render()),
                    };
                    let _ = write!(out, "<td{class}>{text}</td>");
                }
                out.push_str("</tr>\n");
            }
            out.push_str("</tbody>\n</table></div>\n");
        }
        for note in &self.notes {
            let _ = writeln!(out, "<p class=\"note\">{}</p>", escape(note));
        }
        out.push_str("</section>\n");
        out
    }
}

/// At most `width` characters, the last one "…" when something was cut.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(width.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// At most `width` characters, cut in the middle: names that begin alike differ
/// at their end.
fn squeeze(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_owned();
    }
    let tail = width.saturating_sub(1) * 2 / 3;
    let head = width.saturating_sub(1) - tail;
    let mut short: String = text.chars().take(head).collect();
    short.push('…');
    short.extend(text.chars().skip(length - tail));
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            title: "Lamps <1>".into(),
            columns: vec![Column::text("lamp"), Column::figure("time", "ms")],
            rows: vec![
                vec![
                    Value::Text("amber | steady & long enough to be cut".into()),
                    Value::Number(12_345.67, 1),
                ],
                vec![Value::Text("red".into()), Value::Missing],
            ],
            notes: vec!["A note.".into()],
        }
    }

    #[test]
    fn numbers_are_grouped() {
        for (value, decimals, expected) in [
            (0.0, 0, "0"),
            (999.0, 0, "999"),
            (1000.0, 0, "1,000"),
            (-1_234_567.891, 2, "-1,234,567.89"),
            (-0.001, 1, "0.0"),
            (f64::NAN, 1, "NaN"),
            (f64::INFINITY, 1, "inf"),
        ] {
            assert_eq!(number(value, decimals), expected);
        }
    }

    #[test]
    fn significant_digits_by_hand() {
        for (value, expected) in [
            (Some(0.001_234), "0.00123"),
            (Some(0.000_000_12), "0.000000"),
            (Some(0.999_6), "1.000"),
            (Some(12.34), "12.3"),
            (Some(-4321.0), "-4,321"),
            (Some(0.0), "0"),
            (Some(f64::NAN), "NaN"),
            (None, "–"),
        ] {
            assert_eq!(Value::significant(value, 3).render(), expected);
        }
    }

    #[test]
    fn intervals_have_their_decimals() {
        let value = |interval| Value::Interval(-0.012_34, interval, 3).render();
        assert_eq!(value(Some((-0.02, 0.0049))), "-0.012 [-0.020, 0.005]");
        assert_eq!(value(None), "-0.012");
    }

    #[test]
    fn stacked_figures_are_lines_where_there_is_room() {
        let mut table = table();
        table.rows[1][1] = Value::Stack(vec![Value::Number(1.0, 1), Value::Text("a|b <c>".into())]);
        assert!(table.markdown().contains("| 1.0<br>a\\|b <c> |"));
        assert!(table.html().contains("<td>1.0<br>a|b &lt;c&gt;</td>"));
        assert!(table.terminal(80).contains("1.0 · a|b <c>"));
    }

    #[test]
    fn markup_is_escaped() {
        let html = table().html();
        assert!(html.contains("Lamps &lt;1&gt;") && html.contains("steady &amp; long"));
        assert!(table().markdown().contains("amber \\| steady"));
    }

    #[test]
    fn terminal_lines_keep_to_the_width() {
        let text = table().terminal(30);
        assert!(text.lines().all(|l| l.chars().count() <= 30), "{text}");
        assert!(text.contains('…') && text.contains("12,345.7"), "{text}");
    }

    #[test]
    fn a_table_without_rows_has_its_notes() {
        let mut table = table();
        table.rows.clear();
        assert_eq!(table.markdown(), "## Lamps <1>\n\nA note.\n");
        assert!(!table.html().contains("<table"));
    }
}
