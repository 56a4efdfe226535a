//! `celslm link`: link profiles.

use celslm::catalogue::Catalogue;
use celslm::exit::ExitCode;
use celslm_link::Impairments;
use clap::{Args, Subcommand};

use super::listing;

/// Look at link profiles
#[derive(Debug, Args)]
pub(crate) struct LinkArgs {
    #[command(subcommand)]
    command: LinkCommand,
}

#[derive(Debug, Subcommand)]
enum LinkCommand {
    /// List the profiles in configs/links, with their figures and sources
    Profiles,
}

/// Runs the command.
pub(crate) fn run(args: &LinkArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        LinkCommand::Profiles => profiles(),
    }
}

fn profiles() -> anyhow::Result<ExitCode> {
    let catalogue = Catalogue::find();
    listing::show(&format!("{}\n", catalogue.links_dir().display()));
    let links = catalogue.links()?;
    let mut rows =
        vec![["name", "down", "up", "RTT", "jitter", "loss", "source"].map(str::to_owned)];
    for (name, link) in &links {
        let ends = [&link.downlink, &link.uplink];
        let sum = |of: fn(&Impairments) -> f64| ends.iter().map(|end| of(end)).sum::<f64>();
        let loss = ends.iter().map(|end| end.loss).fold(0.0, f64::max);
        rows.push([
            name.clone(),
            rate(&link.downlink),
            rate(&link.uplink),
            format!("{} ms", sum(|end| end.delay_ms)),
            format!("±{} ms", sum(|end| end.jitter_ms)),
            format!("{} %", loss * 100.0),
            link.source.clone(),
        ]);
    }
    listing::print("  ", &rows);
    Ok(ExitCode::Ok)
}

fn rate(end: &Impairments) -> String {
    match end.rate_mbit {
        Some(mbit) => format!("{mbit} Mbit/s"),
        None => "unlimited".to_owned(),
    }
}
