//! Where the files of `configs/` are found, and what a configuration reads from them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use celslm_datasets::{DatasetConfig, DatasetError, Workload, WorkloadConfig};
use celslm_link::{LinkProfile, ProfileError};
use celslm_model::store::{ModelSpec, StoreError, find_spec, load_specs};

use crate::config::{CloudCompute, Config, ConfigError, ConfigSource, EvaluationFile};
use crate::device::{DeviceProfile, HOST};
use crate::evaluation::EvaluationInputs;
use crate::plan::{DatasetDraw, Devices, Inputs, Seeds};

/// Environment variable that names the folder of data files when `data_dir` is absent.
pub const DATA_DIR_VARIABLE: &str = "CELSLM_DATA";

/// Why something that a configuration names could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CatalogueError {
    /// The configuration names something that does not exist.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A model file of `configs/models` is not valid.
    #[error("read the model descriptions")]
    Models(#[source] StoreError),
    /// A file of `configs/links` is not valid.
    #[error("read the link profiles")]
    Links(#[source] ProfileError),
    /// A workload's file could not be read.
    #[error("load the workload {name}")]
    Workload {
        /// Registry name.
        name: &'static str,
        /// The loader's reason.
        #[source]
        source: DatasetError,
    },
    /// A data set could not be drawn.
    #[error("load the data set {name}")]
    Dataset {
        /// Registry name.
        name: &'static str,
        /// The loader's reason.
        #[source]
        source: DatasetError,
    },
}

/// A `configs/` folder: experiments, links and models by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    root: PathBuf,
}

impl Catalogue {
    /// The catalogue in the folder `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The catalogue of the working directory, or else of the repository that this binary was
    /// built from, so that commands work from anywhere on the machine that built it.
    #[must_use]
    pub fn find() -> Self {
        let local = PathBuf::from("configs");
        if local.is_dir() {
            return Self { root: local };
        }
        Self {
            root: build_root().join("configs"),
        }
    }

    /// The catalogue that an experiment file belongs to: `configs/` for
    /// `configs/experiments/NAME.toml`, and [`Catalogue::find`] for a file that lies elsewhere.
    #[must_use]
    pub fn of(experiment: &Path) -> Self {
        let folder = experiment.parent();
        match folder.and_then(Path::parent) {
            Some(root)
                if folder.is_some_and(|f| f.ends_with("experiments"))
                    && root.join("links").is_dir() =>
            {
                Self::new(root)
            }
            _ => Self::find(),
        }
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of link profiles.
    #[must_use]
    pub fn links_dir(&self) -> PathBuf {
        self.root.join("links")
    }

    /// The folder of device profiles.
    #[must_use]
    pub fn devices_dir(&self) -> PathBuf {
        self.root.join("devices")
    }

    /// Every device profile, by name; [`HOST`] is always among them.
    ///
    /// # Errors
    /// [`CatalogueError::Config`] for a file that is not a profile, with line and column.
    pub fn devices(&self) -> Result<BTreeMap<String, DeviceProfile>, CatalogueError> {
        let mut devices = BTreeMap::from([(HOST.to_owned(), DeviceProfile::host())]);
        let files = std::fs::read_dir(self.devices_dir())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "toml"));
        for path in files {
            let profile = DeviceProfile::load(&path)?;
            devices.insert(profile.name.clone(), profile);
        }
        Ok(devices)
    }

    /// The folder of experiments.
    #[must_use]
    pub fn experiments_dir(&self) -> PathBuf {
        self.root.join("experiments")
    }

    /// Every link profile, by name.
    ///
    /// # Errors
    /// [`CatalogueError::Links`] for a file that is not a profile.
    pub fn links(&self) -> Result<BTreeMap<String, LinkProfile>, CatalogueError> {
        match LinkProfile::load_dir(&self.links_dir()) {
            Ok(links) => Ok(links),
            Err(ProfileError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(BTreeMap::new())
            }
            Err(error) => Err(CatalogueError::Links(error)),
        }
    }

    /// Every known model, those that the binary carries included.
    ///
    /// # Errors
    /// [`CatalogueError::Models`] for a file that does not describe a model.
    pub fn models(&self) -> Result<Vec<ModelSpec>, CatalogueError> {
        load_specs(&self.root.join("models")).map_err(CatalogueError::Models)
    }

    /// Names of the experiments, sorted.
    #[must_use]
    pub fn experiments(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.experiments_dir())
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|e| e == "toml"))
            .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
            .collect();
        names.sort();
        names
    }

    /// The file that the user means by `config`: a path from the working directory, a path from
    /// the repository of the build, or the name of an experiment.
    ///
    /// # Errors
    /// [`ConfigError::NotFound`], which lists the places and the known experiments.
    pub fn experiment(config: &Path) -> Result<PathBuf, ConfigError> {
        let catalogue = Self::find();
        let named = catalogue
            .experiments_dir()
            .join(config)
            .with_extension("toml");
        let tried = [config.to_owned(), build_root().join(config), named];
        if let Some(found) = tried.iter().find(|path| path.is_file()) {
            return Ok(found.clone());
        }
        // The second place differs from the first only away from the repository.
        let shown = [&tried[0], &tried[2]].map(|path| path.display().to_string());
        Err(ConfigError::NotFound {
            name: config.display().to_string(),
            tried: shown.join(", "),
            known: catalogue.experiments().join(", "),
        })
    }

    /// Reads everything that a plan of `config` needs. Sizes of the KV and what was fitted are the
    /// caller's to add, where it knows them.
    ///
    /// # Errors
    /// Unknown links and models point into the file through `source`; data that is missing or
    /// broken is the machine's fault, not the file's.
    pub fn gather(&self, config: &Config, source: &ConfigSource) -> Result<Inputs, CatalogueError> {
        let cloud_model = self.model("cloud", &config.models.cloud, source)?;
        let edge_model = self.model("edge", &config.models.edge, source)?;
        let links = self.links_of(config, source)?;
        let devices = self.devices_of(config, source)?;
        for (role, device, model, cache) in [
            (
                "edge",
                &devices.edge,
                &edge_model,
                config.limits.edge_cache_bytes,
            ),
            ("cloud", &devices.cloud, &cloud_model, 0),
        ] {
            let needed = model.bytes.saturating_add(cache);
            if let Some(memory) = device.memory_bytes.filter(|&memory| needed > memory) {
                let message = format!(
                    "the device {} has {memory} bytes of memory; {} with its cache needs {needed}",
                    device.name, model.name
                );
                return Err(source.error_at(&format!("{role}.device"), message).into());
            }
        }
        let data_dir = data_dir(config.data_dir.as_ref());
        let mut draws: Vec<DatasetDraw> = Vec::new();
        let mut workloads: Vec<(WorkloadConfig, Arc<dyn Workload>)> = Vec::new();
        for (_, grid) in config.grids() {
            for load in grid.loads {
                if workloads.iter().any(|(of, _)| *of == load) {
                    continue;
                }
                let name = load.name();
                let loaded = load
                    .load(data_dir.as_deref())
                    .map_err(|source| CatalogueError::Workload { name, source })?;
                workloads.push((load, loaded));
            }
            draw(
                &mut draws,
                grid.datasets,
                data_dir.as_deref(),
                config.experiment.seed,
            )?;
        }
        Ok(Inputs {
            cloud_model,
            edge_model,
            links,
            devices,
            draws,
            workloads,
            kv: None,
            bridges: Vec::new(),
            artefact: None,
        })
    }

    /// Reads everything that an evaluation needs, but for the artefact of its codecs.
    ///
    /// # Errors
    /// As [`Catalogue::gather`].
    pub fn gather_evaluation(
        &self,
        file: &EvaluationFile,
        source: &ConfigSource,
    ) -> Result<EvaluationInputs, CatalogueError> {
        let data_dir = data_dir(file.data_dir.as_ref());
        let mut draws = Vec::new();
        draw(
            &mut draws,
            file.evaluation.datasets.clone(),
            data_dir.as_deref(),
            file.experiment.seed,
        )?;
        Ok(EvaluationInputs {
            edge_model: self.model("edge", &file.models.edge, source)?,
            draws,
            cloud_model: match file.evaluation.cloud.is_empty() {
                true => None,
                false => Some(self.model("cloud", &file.models.cloud, source)?),
            },
            artefact: None,
            bridges: Vec::new(),
        })
    }

    fn model(
        &self,
        role: &str,
        name: &str,
        source: &ConfigSource,
    ) -> Result<ModelSpec, CatalogueError> {
        let specs = self.models()?;
        find_spec(&specs, name).cloned().map_err(|_| {
            let known: Vec<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
            let message = format!("unknown model `{name}`; known: {}", known.join(", "));
            source.error_at(&format!("models.{role}"), message).into()
        })
    }

    fn devices_of(
        &self,
        config: &Config,
        source: &ConfigSource,
    ) -> Result<Devices, CatalogueError> {
        for (name, profile) in &config.devices {
            let path = format!("devices.{name}");
            if profile.name != *name {
                let message = format!("`name` is `{}`; it must be the section's", profile.name);
                return Err(source.error_at(&path, message).into());
            }
            profile.validate(source, &format!("{path}."))?;
        }
        let mut known = self.devices()?;
        known.extend(config.devices.clone());
        let find = |path: &str, name: &str| {
            known.get(name).cloned().ok_or_else(|| {
                let names: Vec<&str> = known.keys().map(String::as_str).collect();
                source.error_at(
                    path,
                    format!("unknown device `{name}`; known: {}", names.join(", ")),
                )
            })
        };
        let replay = match &config.cloud.compute {
            CloudCompute::Live => None,
            CloudCompute::Replay(name) => {
                let profile = find("cloud.compute.replay", name)?;
                if profile.rates.is_none() {
                    let with: Vec<&str> = known
                        .values()
                        .filter(|profile| profile.rates.is_some())
                        .map(|profile| profile.name.as_str())
                        .collect();
                    let message = format!(
                        "device `{name}` states no rates to serve at; those that do: {}",
                        with.join(", ")
                    );
                    return Err(source.error_at("cloud.compute.replay", message).into());
                }
                if config.cloud.device != HOST {
                    let message = "a replayed cloud is as fast as the device it replays; leave \
                                   cloud.device at \"host\"";
                    return Err(source.error_at("cloud.device", message).into());
                }
                Some(profile)
            }
        };
        Ok(Devices {
            edge: find("edge.device", &config.edge.device)?,
            cloud: find("cloud.device", &config.cloud.device)?,
            replay,
        })
    }

    fn links_of(
        &self,
        config: &Config,
        source: &ConfigSource,
    ) -> Result<BTreeMap<String, LinkProfile>, CatalogueError> {
        for (name, profile) in &config.links {
            let path = format!("links.{name}");
            if profile.name != *name {
                let message = format!("`name` is `{}`; it must be the section's", profile.name);
                return Err(source.error_at(&path, message).into());
            }
            if let Err(error) = profile.validate() {
                return Err(source.error_at(&path, error.to_string()).into());
            }
        }
        let mut known = self.links()?;
        known.extend(config.links.clone());
        let grids = config.grids();
        let lists = grids.iter().enumerate().map(|(index, (_, grid))| {
            let section = match index {
                0 => "grid.links".to_owned(),
                n => format!("scenario.{}.links", n - 1),
            };
            (section, &grid.links)
        });
        let edges = &config.deployment.edge_links;
        let lists = lists.chain([("deployment.edge_links".to_owned(), edges)]);
        let mut used = BTreeMap::new();
        for (section, names) in lists {
            for (at, name) in names.iter().enumerate() {
                let Some(profile) = known.get(name) else {
                    let names: Vec<&str> = known.keys().map(String::as_str).collect();
                    let message = format!("unknown link `{name}`; known: {}", names.join(", "));
                    return Err(source.error_at(&format!("{section}.{at}"), message).into());
                };
                used.insert(name.clone(), profile.clone());
            }
        }
        Ok(used)
    }
}

/// Draws the data sets that are not among `draws` yet.
fn draw(
    draws: &mut Vec<DatasetDraw>,
    datasets: Vec<DatasetConfig>,
    data_dir: Option<&Path>,
    seed: u64,
) -> Result<(), CatalogueError> {
    let seed = Seeds::new(seed).derive("dataset");
    for dataset in datasets {
        if draws.iter().any(|draw| draw.config == dataset) {
            continue;
        }
        let name = dataset.name();
        let loaded = celslm_datasets::load(&dataset, data_dir, seed)
            .map_err(|source| CatalogueError::Dataset { name, source })?;
        draws.push(DatasetDraw::new(dataset, loaded.as_ref()));
    }
    Ok(())
}

/// The folder of data files: the configuration's, or else the one that [`DATA_DIR_VARIABLE`]
/// names, or else none.
#[must_use]
pub fn data_dir(stated: Option<&PathBuf>) -> Option<PathBuf> {
    stated.cloned().or_else(|| {
        std::env::var_os(DATA_DIR_VARIABLE)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    })
}

/// The root of the repository that the binary was built from.
#[must_use]
pub fn build_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
        .to_owned()
}
