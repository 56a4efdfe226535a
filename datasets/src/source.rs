//! Files that a setting names.

use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use crate::error::DatasetError;

/// Files above this size are refused; SQuAD 2.0's training set is 42 MB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// Where `path` is: as it stands, or in the data folder. `home` tells a user
/// where the file can be had.
pub(crate) fn resolve(
    path: &Path,
    data_dir: Option<&Path>,
    home: &str,
) -> Result<PathBuf, DatasetError> {
    match data_dir {
        _ if path.is_absolute() => Ok(path.to_owned()),
        Some(dir) => Ok(dir.join(path)),
        None => Err(DatasetError::NoDataDir {
            path: path.to_owned(),
            home: home.to_owned(),
        }),
    }
}

/// The file's bytes, if there are not too many.
pub(crate) fn read(path: &Path, home: &str) -> Result<Vec<u8>, DatasetError> {
    let failed = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => DatasetError::FileMissing {
            path: path.to_owned(),
            home: home.to_owned(),
        },
        _ => DatasetError::Read {
            path: path.to_owned(),
            source,
        },
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut bytes = Vec::new();
    // One byte past the limit tells a file that grew, or a device, from one that fits.
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(DatasetError::TooLarge {
            path: path.to_owned(),
            bytes: size.max(bytes.len() as u64),
            limit_bytes: MAX_FILE_BYTES,
        });
    }
    Ok(bytes)
}
