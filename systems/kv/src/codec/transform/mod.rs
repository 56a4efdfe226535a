//! Transforms: the same numbers in other coordinates, in which fewer bits say as much.

mod anchor_delta;
mod centre;
mod hadamard;
mod merge;
mod outliers;
mod pca;
mod svd;

pub use anchor_delta::AnchorDelta;
pub use centre::Centre;
pub use hadamard::Hadamard;
pub use merge::Merge;
pub use outliers::Outliers;
pub use pca::{Pca, PcaBasis};
pub use svd::Svd;

pub(super) use anchor_delta::AnchorDeltaCodec;
pub(super) use centre::CentreCodec;
pub(super) use hadamard::HadamardCodec;
pub(super) use merge::MergeCodec;
pub(super) use outliers::OutliersCodec;
pub(super) use pca::PcaCodec;
pub(super) use svd::SvdCodec;
