//! Transforms: the same numbers in other coordinates, in which fewer bits say as much.

mod anchor_delta;
mod hadamard;
mod pca;
mod svd;

pub use anchor_delta::AnchorDelta;
pub use hadamard::Hadamard;
pub use pca::Pca;
pub use svd::Svd;

pub(super) use anchor_delta::AnchorDeltaCodec;
pub(super) use hadamard::HadamardCodec;
pub(super) use pca::PcaCodec;
pub(super) use svd::SvdCodec;
