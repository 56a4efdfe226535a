//! `cells/<cell-id>/samples.jsonl`: one line per request, appended as it ends.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use celslm_reports::{Sample, read_samples};

use super::StoreError;

/// What a cell already has.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct CellSamples {
    /// The samples, in the order in which they were written.
    pub(super) samples: Vec<Sample>,
    /// Bytes of a torn last line that was cut off.
    pub(super) torn_bytes: usize,
}

impl CellSamples {
    /// Reads a cell's samples and repairs the end of its file: a line that a kill tore is cut
    /// off, and a whole line that lacks only its newline gets it.
    pub(super) fn repair(path: &Path, cell: &str) -> Result<Self, StoreError> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let file = read_samples(path).map_err(|source| StoreError::Samples {
            cell: cell.to_owned(),
            source,
        })?;
        let bytes = fs::read(path).map_err(StoreError::io("read", path))?;
        if file.torn_bytes > 0 {
            let whole = (bytes.len() - file.torn_bytes) as u64;
            OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|f| f.set_len(whole))
                .map_err(StoreError::io("cut the torn line of", path))?;
        } else if bytes.last().is_some_and(|&byte| byte != b'\n') {
            OpenOptions::new()
                .append(true)
                .open(path)
                .and_then(|mut f| f.write_all(b"\n"))
                .map_err(StoreError::io("end the last line of", path))?;
        }
        let mut orders = BTreeSet::new();
        for sample in &file.samples {
            if sample.cell_id != cell {
                return Err(StoreError::Unplanned {
                    cell: cell.to_owned(),
                    message: format!("its file holds a sample of cell {}", sample.cell_id),
                });
            }
            if !orders.insert(sample.order) {
                return Err(StoreError::Unplanned {
                    cell: cell.to_owned(),
                    message: format!("two samples have the order {}", sample.order),
                });
            }
        }
        Ok(Self {
            samples: file.samples,
            torn_bytes: file.torn_bytes,
        })
    }
}

/// Appends samples, one line each, in a single write.
pub(super) fn append(path: &Path, samples: &[Sample]) -> Result<(), StoreError> {
    let lines = lines(path, samples)?;
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .and_then(|mut file| file.write_all(&lines))
        .map_err(StoreError::io("append to", path))
}

fn lines(path: &Path, samples: &[Sample]) -> Result<Vec<u8>, StoreError> {
    let mut lines = Vec::new();
    for sample in samples {
        serde_json::to_writer(&mut lines, sample).map_err(|error| StoreError::Malformed {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Moves the samples of rounds that were cut off from a cell's file to `samples.cut.jsonl` beside
/// it, and says how many they were. They are there before they are here no more.
pub(super) fn set_aside(
    path: &Path,
    samples: &mut Vec<Sample>,
    is_lost: impl Fn(&Sample) -> bool,
) -> Result<usize, StoreError> {
    let (lost, kept): (Vec<Sample>, Vec<Sample>) = std::mem::take(samples)
        .into_iter()
        .partition(|sample| is_lost(sample));
    *samples = kept;
    if lost.is_empty() {
        return Ok(0);
    }
    append(&path.with_extension("cut.jsonl"), &lost)?;
    let partial = path.with_extension("jsonl.partial");
    fs::write(&partial, lines(path, samples)?).map_err(StoreError::io("write", &partial))?;
    fs::rename(&partial, path).map_err(StoreError::io("write", path))?;
    Ok(lost.len())
}
