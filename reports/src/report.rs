//! From a results folder to its report.

use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cell::{Cell, CellIdentity};
use crate::error::ReportError;
use crate::figures::{Figure, figures};
use crate::findings::{Finding, Topic, findings};
use crate::labels::Labels;
use crate::load::Slo;
use crate::sample::SCHEMA_VERSION;
use crate::series::rate;
use crate::table::{Column, Table, Value, number};
use crate::views::{Data, VIEWS};
use crate::{files, frame, html};

/// What `build` needs beside the samples, in the results folder.
pub const INPUT_FILE: &str = "report-input.json";

/// Width that [`Report::terminal`] keeps to.
const TERMINAL_WIDTH: usize = 120;

/// How the figures are defined, at the end of the report of a run.
const DEFINITIONS: &[&str] = &[
    "TTFT: first token at the edge − scheduled arrival, so that a late start counts.",
    "TPOT: (last token − first token) / (output tokens − 1); not defined for one token. End to end: last token − scheduled arrival.",
    "Wire ratio: fp16 bytes of the KV served / downlink bytes at the link, headers, scales and retransmissions included. Nominal ratio: the same fp16 bytes / encoded bytes.",
    "Private uplink: bytes of the user's question, or of anything computed from it, that left the edge.",
    "Token-layers: prefilled tokens × layers that the edge computed itself.",
    "EM and F1: SQuAD-normalised exact match and word F1; for a question that the document does not answer, whether the answer is a refusal.",
    "Percentiles interpolate linearly between ranks. Intervals are 95% percentile bootstrap intervals from 2,000 resamples of whole documents, with a fixed seed.",
    "Offered rate: planned arrivals per second. Throughput: answered requests / (last response − first send). Goodput: the same of requests within every limit of the SLO; a failed or refused request is within none, and an answer of one token has no TPOT and is judged by its TTFT.",
    "Warm-up and cool-down requests count in no figure. Failed requests are counted, and have no latency or score.",
];

/// Everything that a report states and the samples do not. It is stored as
/// `report-input.json`, so that a report can be built again from the folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportInput {
    /// Version of this shape, [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The results folder; not stored, as the folder may be moved.
    #[serde(skip)]
    pub dir: PathBuf,
    /// Heading of the report.
    pub title: String,
    /// What was run and why; an empty line ends a paragraph.
    pub description: String,
    /// Sentences that a reader must know, such as what was left out.
    pub notes: Vec<String>,
    /// Measured link figures.
    pub calibration: Vec<CalibrationRow>,
    /// Facts about the machine and the build, in display order.
    pub environment: Vec<(String, String)>,
    /// The planned cells in plan order, whether they ran or not.
    pub cells: Vec<CellIdentity>,
    /// Ids of cells whose link turned out to be off, also after they had run.
    #[serde(default)]
    pub degraded_cells: Vec<String>,
    /// What a request must meet to be good; without one, goodput and the point
    /// of saturation are not defined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<Slo>,
}

/// One figure of one link, against its target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationRow {
    /// Link profile.
    pub link: String,
    /// What was measured, for example "downlink rate".
    pub figure: String,
    /// What the profile asks for.
    pub target: Option<f64>,
    /// Measured before the first cell.
    pub before: Option<f64>,
    /// Measured after the last cell.
    pub after: Option<f64>,
    /// Unit of the three.
    pub unit: String,
    /// Whether the target was met, in words.
    pub verdict: String,
}

impl ReportInput {
    /// An input with nothing but a title.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, title: impl Into<String>) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            dir: dir.into(),
            title: title.into(),
            description: String::new(),
            notes: Vec::new(),
            calibration: Vec::new(),
            environment: Vec::new(),
            cells: Vec::new(),
            degraded_cells: Vec::new(),
            slo: None,
        }
    }

    /// Reads the input that [`build`] stored in `dir`.
    ///
    /// # Errors
    /// A folder that no run wrote, or a file of another version or shape.
    pub fn read(dir: impl Into<PathBuf>) -> Result<Self, ReportError> {
        let dir = dir.into();
        let path = dir.join(INPUT_FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ReportError::NotResults { path });
            }
            Err(source) => return Err(ReportError::Read { path, source }),
        };
        let mut input: Self = serde_json::from_slice(&bytes).map_err(|source| {
            // Another version is the likely reason for another shape.
            #[derive(Deserialize)]
            struct Version {
                schema_version: u32,
            }
            match serde_json::from_slice::<Version>(&bytes) {
                Ok(v) if v.schema_version != SCHEMA_VERSION => ReportError::Schema {
                    path: path.clone(),
                    found: v.schema_version,
                    expected: SCHEMA_VERSION,
                },
                _ => ReportError::Json {
                    path: path.clone(),
                    source,
                },
            }
        })?;
        if input.schema_version != SCHEMA_VERSION {
            return Err(ReportError::Schema {
                path,
                found: input.schema_version,
                expected: SCHEMA_VERSION,
            });
        }
        input.dir = dir;
        Ok(input)
    }

    /// Stores the input in its folder, as [`build`] does. A run may do so before
    /// its first request, so that the report of a killed run can be built.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self) -> Result<(), ReportError> {
        let path = self.dir.join(INPUT_FILE);
        let mut text = serde_json::to_string_pretty(self).map_err(|source| ReportError::Json {
            path: path.clone(),
            source,
        })?;
        text.push('\n');
        files::write(&path, text.as_bytes())
    }
}

/// A finished report.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Heading.
    pub title: String,
    /// What was run and why.
    pub description: String,
    /// Sentences computed from the figures.
    pub findings: Vec<Finding>,
    /// One table per view that applies, in the order of the registry.
    pub tables: Vec<Table>,
    /// The drawn figures.
    pub figures: Vec<Figure>,
    /// Notes of the run and of the report.
    pub notes: Vec<String>,
    /// Facts about the machine and the build.
    pub environment: Vec<(String, String)>,
    /// Every file that was written, relative to the results folder.
    pub files: Vec<PathBuf>,
    /// Tables of [`Report::terminal`].
    pub(crate) compact: Vec<Table>,
    /// How many of `tables` stand before the figures.
    pub(crate) leading_tables: usize,
    /// How the figures are defined, at the end.
    pub(crate) definitions: Vec<&'static str>,
}

/// Builds the report of a results folder and writes it there:
/// `cells/*/samples.parquet`, `summary.parquet`, `summary.csv`, for a load
/// `levels.parquet` and `levels.csv`, `report.md`,
/// `report.html`, `figures/*.svg` and `report-input.json`. The same samples and
/// input give the same files.
///
/// # Errors
/// A sample that is not valid, with its file and line, and files that cannot be
/// read or written. Failed requests and cells that did not run are no errors:
/// they are rows.
pub fn build(input: &ReportInput) -> Result<Report, ReportError> {
    let mut notes = input.notes.clone();
    let data = read_cells(input, &mut notes)?;
    input.write()?;

    let tables = VIEWS
        .iter()
        .filter(|v| v.applies(&data))
        .map(|v| v.table(&data))
        .collect();
    let mut report = Report {
        title: input.title.clone(),
        description: input.description.clone(),
        findings: findings(&data),
        tables,
        figures: figures(&data),
        notes,
        environment: input.environment.clone(),
        files: vec![PathBuf::from(INPUT_FILE)],
        compact: compact_tables(&data),
        leading_tables: 1,
        definitions: DEFINITIONS.to_vec(),
    };
    report.files.extend(
        data.cells
            .iter()
            .filter(|c| !c.samples.is_empty())
            .map(|c| {
                Path::new("cells")
                    .join(&c.identity.cell_id)
                    .join("samples.parquet")
            }),
    );

    let rows: Vec<_> = data
        .cells
        .iter()
        .map(|c| (&c.identity, &c.summary))
        .collect();
    let summary = frame::summary_frame(&rows)?;
    frame::write_parquet(
        summary.clone(),
        &input.dir.join("summary.parquet"),
        "summary",
    )?;
    frame::write_csv(summary, &input.dir.join("summary.csv"))?;
    report.files.push("summary.parquet".into());
    report.files.push("summary.csv".into());
    if data.loaded() {
        let rows: Vec<_> = data
            .cells
            .iter()
            .flat_map(|c| c.levels.iter().map(|level| (&c.identity, level)))
            .collect();
        let levels = frame::levels_frame(&rows)?;
        frame::write_parquet(levels.clone(), &input.dir.join("levels.parquet"), "levels")?;
        frame::write_csv(levels, &input.dir.join("levels.csv"))?;
        report.files.push("levels.parquet".into());
        report.files.push("levels.csv".into());
    }
    report.write(&input.dir)?;
    Ok(report)
}

/// Ids become paths, and the file that states them may have been edited.
pub(crate) fn check_cell_id(results: &Path, cell_id: &str) -> Result<(), ReportError> {
    let mut components = Path::new(cell_id).components();
    if matches!(
        (components.next(), components.next()),
        (Some(Component::Normal(_)), None)
    ) {
        return Ok(());
    }
    Err(ReportError::Read {
        path: results.join("cells").join(cell_id),
        source: std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "a cell id must be one folder name",
        ),
    })
}

/// Names of the folders of cells in `results` for which `planned` does not hold, sorted.
pub(crate) fn unplanned_cells(
    results: &Path,
    planned: impl Fn(&str) -> bool,
) -> Result<Vec<String>, ReportError> {
    let folder = results.join("cells");
    let read_error = |source| ReportError::Read {
        path: folder.clone(),
        source,
    };
    let mut unplanned = Vec::new();
    match std::fs::read_dir(&folder) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(read_error)?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.path().is_dir() && !planned(&name) {
                    unplanned.push(name);
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(read_error(error)),
    }
    unplanned.sort_unstable();
    Ok(unplanned)
}

/// The planned cells in plan order, then cells on disk that no plan names.
fn read_cells(input: &ReportInput, notes: &mut Vec<String>) -> Result<Data, ReportError> {
    let mut cells = Vec::with_capacity(input.cells.len());
    for identity in &input.cells {
        check_cell_id(&input.dir, &identity.cell_id)?;
        let degraded = input.degraded_cells.contains(&identity.cell_id);
        cells.push(Cell::read(
            &input.dir,
            &identity.cell_id,
            Some(identity),
            degraded,
            input.slo,
        )?);
    }
    let unplanned = unplanned_cells(&input.dir, |name| {
        input.cells.iter().any(|c| c.cell_id == name)
    })?;
    for cell_id in &unplanned {
        cells.push(Cell::read(&input.dir, cell_id, None, false, input.slo)?);
    }
    if !unplanned.is_empty() && !input.cells.is_empty() {
        notes.push(format!(
            "Cells in the folder that the plan does not name are listed last: {}.",
            unplanned.join(", ")
        ));
    }
    let labels = Labels::new(cells.iter().map(|c| &c.identity));
    Ok(Data {
        input: input.clone(),
        cells,
        labels,
    })
}

/// What fits a terminal; a run that was only loaded has no summary of requests.
fn compact_tables(data: &Data) -> Vec<Table> {
    let summary = compact(data);
    let load = data.loaded().then(|| compact_load(data));
    let stated = !summary.rows.is_empty() || load.is_none();
    stated.then_some(summary).into_iter().chain(load).collect()
}

/// The summary that fits a terminal. Headings are short and F1 is rounded, so
/// that the names of the systems have room.
fn compact(data: &Data) -> Table {
    Table {
        title: data.input.title.clone(),
        columns: vec![
            Column::text("system"),
            Column::text("link"),
            Column::figure("ok/n", ""),
            Column::figure("TTFT ms", ""),
            Column::figure("p95 ms", ""),
            Column::figure("TPOT ms", ""),
            Column::figure("down kB", ""),
            Column::figure("F1 %", ""),
            Column::text("state"),
        ],
        rows: data
            .cells
            .iter()
            .filter(|cell| !cell.loaded())
            .map(|cell| {
                let s = &cell.summary;
                let f1 = s.f1.map_or(Value::Missing, |f1| {
                    let mean = number(100.0 * f1.mean, 0);
                    Value::Text(match f1.interval {
                        Some((low, high)) => format!(
                            "{mean} [{}, {}]",
                            number(100.0 * low, 0),
                            number(100.0 * high, 0)
                        ),
                        None => mean,
                    })
                });
                vec![
                    Value::Text(data.variant(cell)),
                    Value::Text(cell.identity.link.clone()),
                    Value::Text(format!("{}/{}", s.ok, s.requests)),
                    Value::number(s.ttft_ms.p50, 0),
                    Value::number(s.ttft_ms.p95, 0),
                    Value::number(s.tpot_ms.p50, 1),
                    Value::number(s.downlink_bytes.map(|b| b / 1e3), 0),
                    f1,
                    Value::Text(crate::views::state(cell)),
                ]
            })
            .collect(),
        notes: Vec::new(),
    }
}

/// The load levels, as far as they fit a terminal.
fn compact_load(data: &Data) -> Table {
    let mut rows = Vec::new();
    for cell in &data.cells {
        for level in &cell.levels {
            rows.push(vec![
                Value::Text(data.labels.unloaded(&cell.identity)),
                Value::Text(cell.identity.link.clone()),
                Value::Text(level.offered_rps.map_or_else(
                    || cell.identity.load.clone(),
                    |r| format!("{} req/s", rate(r)),
                )),
                Value::Text(format!("{}/{}", level.ok, level.requests)),
                Value::number(level.throughput_rps(), 2),
                Value::number(level.goodput_rps(), 2),
                Value::number(level.ttft_ms.p50, 0),
                Value::number(level.ttft_ms.p95, 0),
                Value::number(level.tpot_ms.p50, 1),
                Value::Text(level.state.word().to_owned()),
            ]);
        }
    }
    let only = data.cells.iter().all(Cell::loaded);
    let title = if only { &data.input.title } else { "Load" };
    Table {
        title: title.to_owned(),
        columns: vec![
            Column::text("system"),
            Column::text("link"),
            Column::text("load"),
            Column::figure("ok/n", ""),
            Column::figure("req/s", ""),
            Column::figure("good/s", ""),
            Column::figure("TTFT ms", ""),
            Column::figure("p95 ms", ""),
            Column::figure("TPOT ms", ""),
            Column::text("state"),
        ],
        rows,
        notes: Vec::new(),
    }
}

impl Report {
    /// A compact summary with the findings, at most 120 columns wide.
    #[must_use]
    pub fn terminal(&self) -> String {
        let mut out = String::new();
        for table in &self.compact {
            out.push_str(&table.terminal(TERMINAL_WIDTH));
            out.push('\n');
        }
        for finding in &self.findings {
            wrap(&mut out, &finding.text);
        }
        out
    }

    /// The Markdown report, which refers to the figures' files.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "<!-- celslm report, schema_version {SCHEMA_VERSION} -->\n# {}\n",
            self.title
        );
        for paragraph in html::paragraphs(&self.description) {
            let _ = write!(out, "\n{paragraph}\n");
        }
        bullets(
            &mut out,
            "Can the figures be relied on?",
            self.texts(Topic::Validity),
        );
        bullets(&mut out, "What the figures say", self.texts(Topic::Result));
        for (index, table) in self.tables.iter().enumerate() {
            out.push('\n');
            out.push_str(&table.markdown());
            if index + 1 == self.leading_tables {
                for figure in &self.figures {
                    let _ = write!(
                        out,
                        "\n![{}](figures/{}.svg)\n\n{}\n",
                        figure.title, figure.name, figure.caption
                    );
                }
            }
        }
        bullets(&mut out, "Notes", self.notes.iter().map(String::as_str));
        if !self.environment.is_empty() {
            out.push_str("\n## Environment\n\n| | |\n|---|---|\n");
            for (name, value) in &self.environment {
                let cell = |text: &str| text.replace('|', "\\|").replace(['\n', '\r'], " ");
                let _ = writeln!(out, "| {} | {} |", cell(name), cell(value));
            }
        }
        bullets(&mut out, "Definitions", self.definitions.iter().copied());
        out
    }

    /// Writes the figures and both forms of the report to `dir`, and adds them to `files`.
    pub(crate) fn write(&mut self, dir: &Path) -> Result<(), ReportError> {
        for figure in &self.figures {
            let file = Path::new("figures").join(format!("{}.svg", figure.name));
            files::write(&dir.join(&file), figure.svg.as_bytes())?;
            self.files.push(file);
        }
        files::write(&dir.join("report.md"), self.markdown().as_bytes())?;
        files::write(&dir.join("report.html"), html::page(self).as_bytes())?;
        self.files.push("report.md".into());
        self.files.push("report.html".into());
        Ok(())
    }

    /// The findings on one topic.
    pub fn texts(&self, topic: Topic) -> impl Iterator<Item = &str> {
        self.findings
            .iter()
            .filter(move |f| f.topic == topic)
            .map(|f| f.text.as_str())
    }
}

fn bullets<'a>(out: &mut String, title: &str, items: impl Iterator<Item = &'a str>) {
    let mut items = items.peekable();
    if items.peek().is_none() {
        return;
    }
    let _ = write!(out, "\n## {title}\n\n");
    for item in items {
        let _ = writeln!(out, "- {}", item.replace('\n', " "));
    }
}

/// Writes `text` as a bullet of at most [`TERMINAL_WIDTH`] columns.
fn wrap(out: &mut String, text: &str) {
    let mut column = 1;
    out.push('-');
    for word in text.split_whitespace() {
        let width = word.chars().count();
        if column + 1 + width > TERMINAL_WIDTH && column > 2 {
            out.push_str("\n ");
            column = 1;
        }
        out.push(' ');
        out.push_str(word);
        column += 1 + width;
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;
    use crate::sample::Sample;

    fn fixture_run() -> (tempfile::TempDir, ReportInput) {
        let dir = tempfile::tempdir().unwrap();
        let input = fixture::run(dir.path());
        (dir, input)
    }

    /// Writes `samples` as the only cell of a run and builds its report.
    fn one_cell(samples: &[Sample]) -> Result<Report, ReportError> {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cells/fixture-cell");
        std::fs::create_dir_all(&folder).unwrap();
        let lines: Vec<_> = samples
            .iter()
            .map(|s| serde_json::to_string(s).unwrap())
            .collect();
        std::fs::write(folder.join("samples.jsonl"), lines.join("\n")).unwrap();
        let mut input = ReportInput::new(dir.path(), "One cell");
        input.cells = vec![CellIdentity::of(&fixture::sample())];
        build(&input)
    }

    #[test]
    fn the_markdown_report() {
        let (_dir, input) = fixture_run();
        insta::assert_snapshot!(build(&input).unwrap().markdown());
    }

    #[test]
    fn the_terminal_report() {
        let (_dir, input) = fixture_run();
        let text = build(&input).unwrap().terminal();
        assert!(text.lines().all(|l| l.chars().count() <= TERMINAL_WIDTH));
        insta::assert_snapshot!(text);
    }

    #[test]
    fn every_file_is_there_and_can_be_built_again_from_the_folder() {
        let (dir, input) = fixture_run();
        let report = build(&input).unwrap();
        let read = || -> Vec<Vec<u8>> {
            report
                .files
                .iter()
                .map(|f| std::fs::read(dir.path().join(f)).unwrap())
                .collect()
        };
        let first = read();
        for name in ["summary.parquet", "summary.csv", "report.md", "report.html"] {
            assert!(report.files.contains(&name.into()), "{name}");
        }
        let svgs = report.files.iter().filter(|f| f.starts_with("figures"));
        assert_eq!(svgs.count(), 3);
        let again = build(&ReportInput::read(dir.path()).unwrap()).unwrap();
        assert_eq!(again, report);
        assert_eq!(read(), first);
    }

    #[test]
    fn the_page_is_self_contained_and_versioned() {
        let (dir, input) = fixture_run();
        let report = build(&input).unwrap();
        let page = std::fs::read_to_string(dir.path().join("report.html")).unwrap();
        for outside in ["<script", "<link", "<img", "url(", "@import", " src="] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert!(page.contains("name=\"celslm-schema-version\" content=\"2\""));
        for figure in &report.figures {
            assert!(page.contains(&figure.svg));
            assert!(figure.svg.contains("data-schema-version=\"2\""));
            assert!(!figure.svg.contains("NaN") && !figure.svg.contains("inf"));
        }
        if let Some(copy) = std::env::var_os("CELSLM_KEEP_FIXTURE_REPORT") {
            std::fs::copy(dir.path().join("report.html"), copy).unwrap();
        }
    }

    #[test]
    fn the_markdown_report_of_a_load() {
        let dir = tempfile::tempdir().unwrap();
        let report = build(&fixture::load_run(dir.path())).unwrap();
        insta::assert_snapshot!(report.markdown());
        let text = report.terminal();
        assert!(text.lines().all(|l| l.chars().count() <= TERMINAL_WIDTH));
        insta::assert_snapshot!("the_terminal_report_of_a_load", text);
        for name in ["levels.parquet", "levels.csv"] {
            assert!(dir.path().join(name).exists() && report.files.contains(&name.into()));
        }
        let csv = std::fs::read_to_string(dir.path().join("levels.csv")).unwrap();
        for column in ["offered_rps", "throughput_rps", "goodput_rps", "meets_slo"] {
            assert!(csv.lines().next().unwrap().contains(column), "{column}");
        }
        if let Some(copy) = std::env::var_os("CELSLM_KEEP_FIXTURE_LOAD_REPORT") {
            std::fs::copy(dir.path().join("report.html"), copy).unwrap();
        }
    }

    #[test]
    fn invalid_levels_are_listed_and_not_drawn() {
        let dir = tempfile::tempdir().unwrap();
        let report = build(&fixture::load_run(dir.path())).unwrap();
        for name in ["throughput_by_rate", "ttft_by_rate"] {
            let figure = report.figures.iter().find(|f| f.name == name).unwrap();
            assert!(figure.svg.contains("cloud_only at 1 req/s"), "{name}");
            assert!(!figure.svg.contains("cloud_only at 2 req/s"), "{name}");
            // A level that was stopped is drawn as such.
            assert!(figure.svg.contains(", stopped<"), "{name}");
            assert!(!figure.svg.contains("NaN") && !figure.svg.contains("inf"));
        }
        assert!(
            report
                .markdown()
                .contains("INVALID: send delay p99 of 14 ms")
        );
        let texts: Vec<_> = report.texts(Topic::Validity).collect();
        assert!(
            texts
                .iter()
                .any(|t| t.contains("1 load level is INVALID") && t.contains("cloud_only")),
            "{texts:#?}"
        );
    }

    #[test]
    fn several_levels_of_a_cell_are_never_pooled() {
        let sample = |rate: f64, ttft: u64| {
            let mut s = fixture::sample();
            s.load = "saturation-poisson".into();
            s.offered_rps = Some(rate);
            s.round = rate as u32;
            s.token_ns = vec![s.scheduled_ns + ttft * fixture::MS];
            s.output_tokens = 1;
            s
        };
        let samples = [sample(1.0, 100), sample(2.0, 900)];
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cells/fixture-cell");
        std::fs::create_dir_all(&folder).unwrap();
        let lines: Vec<_> = samples
            .iter()
            .map(|s| serde_json::to_string(s).unwrap())
            .collect();
        std::fs::write(folder.join("samples.jsonl"), lines.join("\n")).unwrap();
        let mut facts = crate::LoadFacts::new("fixture-cell");
        facts.rounds = vec![fixture::round(1, Some(1.0)), fixture::round(2, Some(2.0))];
        let path = folder.join(crate::LOAD_FILE);
        std::fs::write(&path, serde_json::to_string(&facts).unwrap()).unwrap();
        let mut input = ReportInput::new(dir.path(), "Search");
        input.cells = vec![CellIdentity::of(&samples[0])];
        let report = build(&input).unwrap();
        let table = |title: &str| report.tables.iter().find(|t| t.title == title).unwrap();
        let column =
            |table: &Table, name: &str| table.columns.iter().position(|c| c.name == name).unwrap();
        let summary = table("Summary");
        assert_eq!(
            summary.rows[0][column(summary, "TTFT p50")],
            Value::Missing,
            "the median over both levels is of neither"
        );
        let load = table("Load");
        let p50: Vec<_> = load
            .rows
            .iter()
            .map(|row| row[column(load, "TTFT p50")].clone())
            .collect();
        assert_eq!(p50, [Value::Number(100.0, 1), Value::Number(900.0, 1)]);
        // Without an SLO nothing is said about saturation.
        assert!(table("Saturation").rows.is_empty());

        // The link's bytes are shared by what was made under them.
        let uplink = &summary.rows[0][column(summary, "uplink")];
        assert_eq!(*uplink, Value::Number(4.0, 1));

        std::fs::write(&path, "{\"schema_version\": 2}").unwrap();
        let error = build(&input).unwrap_err().to_string();
        assert!(error.contains("load.json"), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(build(&input).unwrap().markdown().contains("incomplete"));
    }

    #[test]
    fn degraded_cells_are_listed_and_not_drawn() {
        let (_dir, input) = fixture_run();
        let report = build(&input).unwrap();
        let drawn = report
            .figures
            .iter()
            .find(|f| f.name == "ttft_by_link")
            .unwrap();
        assert!(
            drawn
                .svg
                .contains("ce_lslm depth/ridge + fp16 on 20mbit-60ms")
        );
        assert!(
            !drawn
                .svg
                .contains("ce_lslm depth/ridge + fp16 on 1gbit-5ms")
        );
        let texts: Vec<_> = report.texts(Topic::Validity).collect();
        assert!(
            texts
                .iter()
                .any(|t| t.contains("missed its target") && t.contains("depth/ridge"))
        );
    }

    #[test]
    fn an_empty_run_is_reported() {
        let dir = tempfile::tempdir().unwrap();
        let report = build(&ReportInput::new(dir.path(), "Nothing")).unwrap();
        assert_eq!(report.figures, []);
        assert_eq!(
            report.findings[0].text,
            "No request was measured.".to_owned()
        );
        assert!(dir.path().join("summary.parquet").exists());
        assert!(!report.terminal().is_empty());
        // Planned and not run.
        let report = one_cell(&[]).unwrap();
        assert!(report.markdown().contains("cell not run"));
        assert!(report.terminal().contains("not run"));
        // Run, and too short for anything to count.
        let warmup = Sample {
            warmup: true,
            excluded: Some("warmup".into()),
            ..fixture::sample()
        };
        let report = one_cell(&[warmup]).unwrap();
        assert!(!report.markdown().contains("not run"));
        assert!(report.terminal().contains("none counted"));
        let said = |text: &str| report.findings.iter().any(|f| f.text.contains(text));
        assert!(said("1 cell made requests of which none counts"));
    }

    #[test]
    fn a_run_that_failed_altogether_is_reported() {
        let failed = Sample {
            outcome: "failed".into(),
            error_kind: Some("timeout".into()),
            error: Some("no answer | after\n5 s".into()),
            token_ns: Vec::new(),
            output_tokens: 0,
            parts: Vec::new(),
            em: None,
            f1: None,
            token_exact: None,
            ..fixture::sample()
        };
        let report = one_cell(&[failed.clone(), failed]).unwrap();
        assert_eq!(report.figures, []);
        assert!(
            report.findings[0]
                .text
                .starts_with("2 of 2 requests failed"),
            "{}",
            report.findings[0].text
        );
        assert!(
            report
                .markdown()
                .contains("| timeout | 2 | 2 | no answer \\| after 5 s |")
        );
    }

    #[test]
    fn answers_without_tokens_do_not_panic() {
        let silent = Sample {
            token_ns: Vec::new(),
            output_tokens: 0,
            ..fixture::sample()
        };
        let report = one_cell(&[silent]).unwrap();
        assert!(report.markdown().contains("ce_lslm identity + fp16"));
    }

    #[test]
    fn broken_promises_are_findings() {
        let says = |change: fn(&mut Sample), expected: &str| {
            let mut sample = fixture::sample();
            change(&mut sample);
            let report = one_cell(&[sample]).unwrap();
            let texts: Vec<_> = report.texts(Topic::Validity).collect();
            assert!(
                texts.iter().any(|t| t.contains(expected)),
                "{expected} in {texts:#?}"
            );
        };
        says(
            |s| s.parts[0].exposed_ns += 5 * fixture::MS,
            "TTFT parts do not add up: the largest gap is 5.0%",
        );
        says(
            |s| s.token_exact = Some(false),
            "equal edge_only in 0 of 1 request, where all of them should",
        );
        says(
            |s| s.cloud_store_hit = false,
            "broke the cache contract `primed`",
        );
        says(
            |s| s.edge_cache_hit = true,
            "broke the cache contract `primed`",
        );
        says(|s| s.degraded = true, "missed its target");
    }

    #[test]
    fn what_contradicts_the_plan_is_an_error() {
        let mut stray = fixture::sample();
        stray.link = "elsewhere".into();
        let error = one_cell(&[fixture::sample(), stray])
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("samples.jsonl` line 2") && error.contains("`link` is `elsewhere`"),
            "{error}"
        );

        let (_dir, mut input) = fixture_run();
        for id in ["../cell-00", "a/b", "", "/etc"] {
            input.cells[0].cell_id = id.into();
            let error = build(&input).unwrap_err().to_string();
            assert!(error.contains("one folder name"), "{error}");
        }
    }

    #[test]
    fn cells_without_a_plan_are_listed() {
        let (_dir, mut input) = fixture_run();
        let last = input.cells.len() - 2;
        let dropped = input.cells.remove(last);
        let report = build(&input).unwrap();
        assert!(
            report.notes.iter().any(|n| n.contains(&dropped.cell_id)),
            "{:?}",
            report.notes
        );
        assert_eq!(report.tables[0].rows.len(), input.cells.len() + 1);
    }

    #[test]
    fn a_broken_off_cell_says_why() {
        let (dir, input) = fixture_run();
        let failure = crate::CellFailure {
            schema_version: SCHEMA_VERSION,
            cell_id: "cell-absent".into(),
            error_kind: "link_lost".into(),
            error: "the link process ended".into(),
        };
        let folder = dir.path().join("cells/cell-absent");
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("failure.json");
        std::fs::write(&path, serde_json::to_string(&failure).unwrap()).unwrap();
        let text = build(&input).unwrap().markdown();
        assert!(text.contains("link_lost: the link process ended"), "{text}");
        std::fs::write(&path, "{\"another\": \"shape\"}").unwrap();
        assert!(build(&input).unwrap().markdown().contains("another"));
    }

    #[test]
    fn other_folders_and_versions_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let error = ReportInput::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("not a results folder"), "{error}");
        let path = dir.path().join(INPUT_FILE);
        for text in [
            r#"{"schema_version": 1, "title": "x", "new_field": 1}"#,
            r#"{"schema_version": 1, "title": "x", "description": "", "notes": [], "calibration": [], "environment": [], "cells": []}"#,
        ] {
            std::fs::write(&path, text).unwrap();
            let error = ReportInput::read(dir.path()).unwrap_err().to_string();
            assert!(error.contains("schema version 1"), "{error}");
        }
        std::fs::write(&path, "{").unwrap();
        let error = ReportInput::read(dir.path()).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}
