//! Training of bridges, and of contexts' KV, through a frozen edge model: candle's automatic
//! differentiation over a decoder whose weights take no gradient.

use candle_core::Device;

mod adam;
mod attention;
mod distil;
mod frozen;
mod map;
mod ops;
mod state;
mod trainer;
mod tuned;

pub use distil::{Distiller, Distributions};
pub use frozen::FrozenDecoder;
pub use trainer::{Lesson, Losses, Sequence, Trainer, TrainingOptions};

/// The first GPU where there is one and the crate was built for it, the CPU otherwise.
///
/// # Errors
/// A GPU that is there and cannot be used.
pub fn default_device() -> Result<Device> {
    Ok(Device::cuda_if_available(0)?)
}

/// Why something could not be trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// The model or its file.
    #[error(transparent)]
    Model(#[from] celslm_model::ModelError),
    /// The map.
    #[error(transparent)]
    Align(#[from] celslm_kv::AlignError),
    /// A file with a trainer's state that cannot be written or read, or is of another run.
    #[error("the state of training in {}: {reason}", path.display())]
    State {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A computation, or a device without room for it.
    #[error("compute on the device: {0}")]
    Compute(#[from] candle_core::Error),
}

/// What the crate's functions return.
pub type Result<T> = std::result::Result<T, TrainingError>;
