//! What a plan is made from besides the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use celslm_datasets::{Dataset, DatasetConfig, Document, Workload, WorkloadConfig};
use celslm_kv::align::MapAt;
use celslm_kv::codec::{CodecArtefact, CodecContext};
use celslm_kv::{AlignmentConfig, CodecConfig};
use celslm_link::LinkProfile;
use celslm_model::store::ModelSpec;

use super::KvEstimator;
use crate::device::DeviceProfile;

/// The documents that one data set setting draws.
#[derive(Debug, Clone)]
pub struct DatasetDraw {
    /// The setting.
    pub config: DatasetConfig,
    /// Registry name, the `dataset` of a sample.
    pub name: &'static str,
    /// BLAKE3 (hex) of the whole source.
    pub hash: String,
    /// Licence of the text.
    pub licence: String,
    /// Official home of the data.
    pub source: String,
    /// The drawn documents with their questions.
    pub documents: Vec<Document>,
}

impl DatasetDraw {
    /// The draw that `dataset` made for `config`.
    #[must_use]
    pub fn new(config: DatasetConfig, dataset: &dyn Dataset) -> Self {
        Self {
            config,
            name: dataset.name(),
            hash: dataset.hash().to_owned(),
            licence: dataset.licence().to_owned(),
            source: dataset.source().to_owned(),
            documents: dataset.documents().to_vec(),
        }
    }
}

/// Everything that was read from disk for a plan.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// The cloud's model.
    pub cloud_model: ModelSpec,
    /// The edge's model.
    pub edge_model: ModelSpec,
    /// Every link that the grids and the edges name.
    pub links: BTreeMap<String, LinkProfile>,
    /// The devices that the nodes stand in for.
    pub devices: Devices,
    /// Every data set setting of the grids, drawn; no setting twice.
    pub draws: Vec<DatasetDraw>,
    /// Every workload setting, with the file that it needs; no setting twice.
    pub workloads: Vec<(WorkloadConfig, Arc<dyn Workload>)>,
    /// Sizes of the edge's KV, where the model is at hand to say.
    pub kv: Option<KvEstimator>,
    /// Fitted bridges by the alignment that needs them. A cell whose alignment is among them names
    /// the bridge's hash in its KV path, so that another fit is another cell.
    pub bridges: Vec<(AlignmentConfig, BridgeFile)>,
    /// The codec artefact, if a codec needs it. A cell whose codec does names it in its KV path,
    /// so that another fit is another cell.
    pub artefact: Option<ArtefactFile>,
}

/// The devices of a run.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Devices {
    /// What the edge is slowed down to.
    pub edge: DeviceProfile,
    /// What the cloud is slowed down to.
    pub cloud: DeviceProfile,
    /// At whose rates recorded outputs of the cloud are served; `None` for a live cloud.
    pub replay: Option<DeviceProfile>,
}

impl Devices {
    /// What samples call the device and the compute of a system; `asks_cloud` says whether it
    /// needs the cloud at all. A cloud other than this host is named behind the edge.
    #[must_use]
    pub fn labels(&self, asks_cloud: bool) -> (String, &'static str) {
        let cloud = self.replay.as_ref().unwrap_or(&self.cloud);
        match asks_cloud {
            true if cloud.is_host() => (self.edge.name.clone(), "live"),
            true => (
                format!("{}+{}", self.edge.name, cloud.name),
                match self.replay {
                    Some(_) => "replayed",
                    None => "live",
                },
            ),
            false => (self.edge.name.clone(), "live"),
        }
    }
}

/// A fitted bridge on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BridgeFile {
    /// The file.
    pub path: PathBuf,
    /// BLAKE3 (hex) of the file.
    pub blake3: String,
}

/// A codec artefact on disk.
#[derive(Debug, Clone, PartialEq)]
pub struct ArtefactFile {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub artefact: Arc<CodecArtefact>,
}

impl Inputs {
    /// The draw of `config`, with its index.
    #[must_use]
    pub fn draw(&self, config: &DatasetConfig) -> Option<(usize, &DatasetDraw)> {
        self.draws
            .iter()
            .enumerate()
            .find(|(_, draw)| draw.config == *config)
    }

    /// The workload of `config`.
    #[must_use]
    pub fn workload(&self, config: &WorkloadConfig) -> Option<&Arc<dyn Workload>> {
        self.workloads
            .iter()
            .find(|(of, _)| of == config)
            .map(|(_, workload)| workload)
    }

    /// The fitted bridge that `alignment` maps through, if it is known.
    #[must_use]
    pub fn bridge(&self, alignment: &AlignmentConfig) -> Option<&BridgeFile> {
        self.bridges
            .iter()
            .find(|(of, _)| of == alignment)
            .map(|(_, bridge)| bridge)
    }

    /// The bridge files that one end maps through, each once.
    #[must_use]
    pub fn bridges_at(&self, at: MapAt) -> Vec<PathBuf> {
        let mut paths = Vec::new();
        for (alignment, bridge) in &self.bridges {
            if alignment.maps_at() == Some(at) && !paths.contains(&bridge.path) {
                paths.push(bridge.path.clone());
            }
        }
        paths
    }

    /// A codec whose stages name the artefact at hand.
    #[must_use]
    pub fn bound(&self, codec: &CodecConfig) -> CodecConfig {
        let bound = self.artefact.as_ref().and_then(|file| {
            let context = CodecContext::new(Arc::clone(&file.artefact));
            codec.build_with(&context).ok()
        });
        bound.map_or_else(|| codec.clone(), |chain| chain.config().clone())
    }
}
