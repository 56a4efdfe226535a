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

/// What is known of the licence of text that a user names.
pub(crate) const TEXT_LICENCE: &str = "as stated by the text's publisher";

/// Where text that a user names can be had.
const TEXT_HOME: &str = "whoever published the text";

/// Plain text, file by file.
pub(crate) struct Texts {
    /// The file or folder.
    pub(crate) path: PathBuf,
    /// BLAKE3 (hex) over all files.
    pub(crate) hash: String,
    /// Stem of the name, and text.
    pub(crate) files: Vec<(String, String)>,
}

impl Texts {
    /// Reads a file, or a folder's `.txt` files in the order of their names.
    pub(crate) fn read(path: &Path, data_dir: Option<&Path>) -> Result<Self, DatasetError> {
        let path = resolve(path, data_dir, TEXT_HOME)?;
        let mut hasher = blake3::Hasher::new();
        let mut files = Vec::new();
        for file in text_files(&path, TEXT_HOME)? {
            let bytes = read(&file, TEXT_HOME)?;
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&bytes);
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            let stem = stem.into_owned();
            let text = String::from_utf8(bytes).map_err(|_| DatasetError::Format {
                path: file,
                at: "the file".to_owned(),
                reason: "it is not UTF-8".to_owned(),
            })?;
            files.push((stem, text));
        }
        Ok(Self {
            path,
            hash: hasher.finalize().to_hex().to_string(),
            files,
        })
    }
}

/// Words that are left out at the start of a text.
pub(crate) fn skipped(words: usize, skip_percent: u8) -> Result<usize, DatasetError> {
    match skip_percent {
        0..=99 => Ok(words * usize::from(skip_percent) / 100),
        _ => Err(DatasetError::Setting {
            setting: "skip_percent",
            value: skip_percent.to_string(),
            reason: "at most 99 per cent can be left out",
        }),
    }
}

/// Name of a file without folder and last extension, in small letters.
pub(crate) fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    stem.to_string_lossy().to_lowercase()
}

/// The file itself, or a folder's `.txt` files in the order of their names.
fn text_files(path: &Path, home: &str) -> Result<Vec<PathBuf>, DatasetError> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let failed = |source| DatasetError::Read {
        path: path.to_owned(),
        source,
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        let file = entry.map_err(failed)?.path();
        if file.extension().is_some_and(|extension| extension == "txt") {
            files.push(file);
        }
    }
    files.sort_unstable();
    if files.is_empty() {
        return Err(DatasetError::FileMissing {
            path: path.join("*.txt"),
            home: home.to_owned(),
        });
    }
    Ok(files)
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
