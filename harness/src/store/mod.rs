//! `results/<experiment>/`: what a run writes, as it happens.
//!
//! ```text
//! manifest.json  config.resolved.toml  environment.json  calibration.json
//! cells/<cell-id>/samples.jsonl  load.json  samples.cut.jsonl  failure.json
//! ```
//! The report adds its own files beside them. Nothing is ever deleted: a new run moves an earlier
//! one aside, and a resumed run only adds. A round under load counts once `load.json` has its
//! facts; one that was cut off is made again, and its samples are moved to `samples.cut.jsonl`. Every whole file is written beside its final name and
//! then renamed, so that a reader never sees half of one; samples are appended line by line, and
//! the one line that a kill can tear is repaired at the next start.

mod error;
mod folder;
mod resolved;
mod results;
mod samples;

pub use error::StoreError;
pub(crate) use folder::{ENVIRONMENT, Folder, MANIFEST};
pub use resolved::{changed_keys, resolved_config};
pub use results::{Opened, Store};
