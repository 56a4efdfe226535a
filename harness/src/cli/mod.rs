//! The command line: one file per command, each a thin shell around the library.

mod align;
mod calibration;
mod cloud;
mod codec;
mod device;
mod doctor;
mod edge;
mod evaluate;
mod link;
mod listing;
mod ls;
mod models;
mod prepare;
mod relay;
mod report;
mod run;

use celslm::exit::ExitCode;
use clap::{Parser, Subcommand};

/// What `celslm --help` shows after the commands.
const EXAMPLES: &str = "\
Start here:
  celslm doctor                                  what this machine can run
  celslm run configs/experiments/quick.toml      three systems over three links, about 7 minutes
  celslm report results/quick                    the report again, from the samples on disk

Look around:
  celslm ls                                      every system, codec, alignment, link, model, …
  celslm run quick --dry-run                     the cells, their requests and the order
  celslm run quick --set generation.max_tokens=8 --set 'grid.links=[\"none\"]'

Exit codes:
  0  done
  2  the configuration or the command line is wrong
  3  a regression, or a claim that does not hold
  4  this machine cannot do it as it is (`celslm doctor` says what is missing)
  5  a measurement failed, or its result is not valid";

/// Compares ways of answering private questions about shared documents with a large model in the
/// cloud and a small one at the edge.
///
/// An experiment file names systems, links, codecs and data sets. `celslm run` starts an edge node
/// and a cloud node joined by an emulated link, makes the same requests to every system in
/// interleaved order, and writes samples and a report to results/<experiment>/. Both nodes run
/// real models; bytes are counted on the link.
#[derive(Debug, Parser)]
#[command(name = "celslm", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(prepare::RunArgs),
    Models(models::ModelsArgs),
    Link(link::LinkArgs),
    Device(device::DeviceArgs),
    Report(report::ReportArgs),
    Doctor(doctor::DoctorArgs),
    Ls(ls::LsArgs),
    Align(align::AlignArgs),
    Codec(codec::CodecArgs),
    Edge(edge::EdgeArgs),
    Cloud(cloud::CloudArgs),
    /// The link process, which `run` starts; it speaks to its controller only
    #[command(hide = true)]
    LinkHost,
    #[command(hide = true)]
    Relay(relay::RelayArgs),
}

/// Parses the command line, runs the command, and turns the outcome into an exit code.
pub(crate) fn main() -> ExitCode {
    // clap itself ends with code 2 on a wrong command line, and with 0 after --help.
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Run(args) => run::run(&args),
        Command::Models(args) => models::run(&args),
        Command::Link(args) => link::run(&args),
        Command::Device(args) => device::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Align(args) => align::run(&args),
        Command::Codec(args) => codec::run(&args),
        Command::Edge(args) => edge::run(&args),
        Command::Cloud(args) => cloud::run(&args),
        Command::Relay(args) => relay::run(&args),
        // The link host is one thread until here, which its namespaces need.
        Command::LinkHost => std::process::exit(celslm_link::host_main()),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            print_error(&error);
            ExitCode::of(error.as_ref())
        }
    }
}

/// The error with its causes. A cause that its outer error already shows is not repeated.
fn print_error(error: &anyhow::Error) {
    let mut shown = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !shown.contains(&cause) {
            shown.push_str(": ");
            shown.push_str(&cause);
        }
    }
    eprintln!("error: {}", shown.trim_end());
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
