//! `celslm link profiles`: what is in configs/links.

use celslm::catalogue::Catalogue;
use celslm::exit::ExitCode;
use celslm_link::Impairments;

use crate::cli::listing;

/// Prints every profile.
pub(super) fn run() -> anyhow::Result<ExitCode> {
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
