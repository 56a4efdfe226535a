//! `celslm ls`: what exists, registry by registry.

use celslm::catalogue::Catalogue;
use celslm::config::ConfigSource;
use celslm::exit::ExitCode;
use clap::{Args, ValueEnum};

use super::listing;

/// List what exists: systems, codecs, alignments, links, data sets, models, experiments, …
///
/// The names are those that experiment files use.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  celslm ls
  celslm ls codecs")]
pub(crate) struct LsArgs {
    /// One registry; all of them when left out
    registry: Option<Registry>,
}

/// A registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Registry {
    Systems,
    Alignments,
    Mappings,
    Codecs,
    Presets,
    Schedules,
    Contracts,
    Backends,
    Links,
    Devices,
    Datasets,
    Scorers,
    Workloads,
    Views,
    Models,
    Experiments,
}

/// Runs the command.
pub(crate) fn run(args: &LsArgs) -> anyhow::Result<ExitCode> {
    let catalogue = Catalogue::find();
    match args.registry {
        Some(registry) => listing::print("", &rows(registry, &catalogue)?),
        None => {
            for (index, registry) in Registry::value_variants().iter().enumerate() {
                if index > 0 {
                    listing::show("\n");
                }
                listing::show(&format!("{}\n", name(*registry)));
                listing::print("  ", &rows(*registry, &catalogue)?);
            }
        }
    }
    Ok(ExitCode::Ok)
}

fn name(registry: Registry) -> String {
    registry
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Name and one line for each entry.
fn rows(registry: Registry, catalogue: &Catalogue) -> anyhow::Result<Vec<[String; 2]>> {
    let row = |name: &str, about: &str| [name.to_owned(), about.to_owned()];
    Ok(match registry {
        Registry::Systems => celslm_systems::registry()
            .iter()
            .map(|entry| row(entry.name, entry.summary))
            .collect(),
        Registry::Alignments => celslm_kv::align::registry()
            .iter()
            .map(|entry| row(entry.name, &format!("{} ({})", entry.summary, entry.source)))
            .collect(),
        Registry::Mappings => celslm_kv::align::mappings()
            .iter()
            .map(|entry| row(entry.name, &format!("{} ({})", entry.summary, entry.source)))
            .collect(),
        Registry::Codecs => celslm_kv::codec::registry()
            .iter()
            .map(|entry| row(entry.name, &format!("{} ({})", entry.summary, entry.source)))
            .collect(),
        Registry::Presets => celslm_kv::codec::presets()
            .iter()
            .map(|preset| {
                let about = format!("codec {} ({}): {}", preset.id, preset.source, preset.remark);
                row(preset.name, &about)
            })
            .collect(),
        Registry::Schedules => celslm_systems::schedule::registry()
            .iter()
            .map(|entry| row(entry.name, entry.summary))
            .collect(),
        Registry::Contracts => vec![
            row("cold", "nobody has the context's KV when a request arrives"),
            row("primed", "the cloud has it"),
            row("warm", "the edge has it too"),
        ],
        Registry::Backends => std::iter::once(row(
            "auto",
            "the best that works here, with its reason stated",
        ))
        .chain(
            celslm_link::BACKENDS
                .iter()
                .map(|entry| row(entry.name, entry.summary)),
        )
        .collect(),
        Registry::Links => catalogue
            .links()?
            .values()
            .map(|link| row(&link.name, &link.description))
            .collect(),
        Registry::Devices => catalogue
            .devices()?
            .values()
            .map(|device| row(&device.name, &device.description))
            .collect(),
        Registry::Datasets => celslm_datasets::DATASETS
            .iter()
            .map(|entry| row(entry.name, entry.about))
            .collect(),
        Registry::Scorers => celslm_datasets::SCORERS
            .iter()
            .map(|scorer| row(scorer.name(), scorer.about()))
            .collect(),
        Registry::Workloads => celslm_datasets::WORKLOADS
            .iter()
            .map(|entry| row(entry.name, entry.about))
            .collect(),
        Registry::Views => celslm_reports::VIEWS
            .iter()
            .map(|view| row(view.name(), view.about()))
            .collect(),
        Registry::Models => catalogue
            .models()?
            .iter()
            .map(|spec| row(&spec.name, &spec.description))
            .collect(),
        Registry::Experiments => catalogue
            .experiments()
            .iter()
            .map(|name| row(name, &title(catalogue, name)))
            .collect(),
    })
}

/// Heading of an experiment, or what is wrong with its file.
fn title(catalogue: &Catalogue, name: &str) -> String {
    let path = catalogue.experiments_dir().join(format!("{name}.toml"));
    match ConfigSource::read(&path, Vec::new()).and_then(|source| source.parse()) {
        Ok(config) => config.title().to_owned(),
        Err(error) => format!("cannot be read: {error}"),
    }
}
