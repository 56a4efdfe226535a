//! `celslm report`: the report again, from the samples on disk.

use std::path::PathBuf;

use celslm::exit::ExitCode;
use celslm_reports::ReportInput;
use celslm_reports::evaluation::EvaluationInput;
use clap::Args;

use super::listing;

/// Build the report of a results folder again
///
/// Reads the samples in the folder and writes summary.parquet, summary.csv, report.md, report.html
/// and figures/. Nothing is measured, and the same samples give the same report. An unfinished run
/// has a report too, which says so.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  celslm report results/quick")]
pub(crate) struct ReportArgs {
    /// Folder that `celslm run` wrote
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<ExitCode> {
    let report = match EvaluationInput::read(&args.dir)? {
        Some(input) => celslm_reports::evaluation::build(&input)?,
        None => celslm_reports::build(&ReportInput::read(&args.dir)?)?,
    };
    listing::show(&report.terminal());
    listing::show(&format!("\n{}\n", args.dir.join("report.md").display()));
    Ok(ExitCode::Ok)
}
