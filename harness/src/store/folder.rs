//! A folder that one process writes its results to, whatever they are.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{StoreError, changed_keys};

/// What the run was.
pub(crate) const MANIFEST: &str = "manifest.json";
/// The machine.
pub(crate) const ENVIRONMENT: &str = "environment.json";
const CONFIG: &str = "config.resolved.toml";
const LOCK: &str = ".lock";

/// How often, and how long apart, the lock is asked for.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Most earlier runs that are kept beside each other under numbered names.
const MAX_EARLIER: u32 = 9999;

/// A results folder that this process alone writes to.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: PathBuf,
    /// Released when the folder is dropped, by the kernel at the latest.
    _lock: File,
}

impl Folder {
    /// Makes the folder. An earlier run in it is moved aside to `<dir>.1`, `<dir>.2`, …, which is
    /// returned.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while another process writes to it, [`StoreError::NotResults`] when
    /// the folder holds something that is no run.
    pub(crate) fn create(dir: &Path) -> Result<(Self, Option<PathBuf>), StoreError> {
        let mut moved = None;
        if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
            // Only a run's folder may be moved: --out could point anywhere.
            if !dir.join(LOCK).exists() && !dir.join(MANIFEST).exists() {
                return Err(StoreError::NotResults {
                    dir: dir.to_owned(),
                });
            }
            let lock = lock(dir)?;
            let aside = free_name(dir)?;
            fs::rename(dir, &aside).map_err(StoreError::io("move aside", dir))?;
            drop(lock);
            moved = Some(aside);
        }
        fs::create_dir_all(dir.join("cells")).map_err(StoreError::io("make", dir))?;
        Ok((Self::open(dir)?, moved))
    }

    /// Takes a folder that is there.
    ///
    /// # Errors
    /// [`StoreError::Busy`] while another process writes to it.
    pub(crate) fn open(dir: &Path) -> Result<Self, StoreError> {
        Ok(Self {
            dir: dir.to_owned(),
            _lock: lock(dir)?,
        })
    }

    /// Where it is.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder of a cell.
    pub(crate) fn cell_dir(&self, cell: &str) -> PathBuf {
        self.dir.join("cells").join(cell)
    }

    /// Writes a file of the folder.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(crate) fn write_json(
        &self,
        name: &str,
        content: &impl Serialize,
    ) -> Result<(), StoreError> {
        write_json(&self.dir.join(name), content)
    }

    /// Reads a file of the folder.
    ///
    /// # Errors
    /// A missing or malformed file.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T, StoreError> {
        let path = self.dir.join(name);
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        serde_json::from_slice(&bytes).map_err(|error| malformed(&path, &error))
    }

    /// Writes `config.resolved.toml`.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub(crate) fn write_config(&self, resolved: &impl Serialize) -> Result<(), StoreError> {
        let path = self.dir.join(CONFIG);
        let text = toml::to_string_pretty(resolved).map_err(|error| malformed(&path, &error))?;
        let head = "# The configuration of this run with every default and link written out. It can be run again.\n";
        write_whole(&path, format!("{head}{text}").as_bytes())
    }

    /// The error that the folder belongs to another plan, with the reason in words.
    ///
    /// # Errors
    /// A missing or malformed configuration.
    pub(crate) fn changed(&self, resolved: &impl Serialize) -> Result<StoreError, StoreError> {
        let path = self.dir.join(CONFIG);
        let text = fs::read_to_string(&path).map_err(StoreError::io("read", &path))?;
        let old: toml::Table = toml::from_str(&text).map_err(|error| malformed(&path, &error))?;
        let new = toml::Table::try_from(resolved).map_err(|error| malformed(&path, &error))?;
        let changes = changed_keys(&old, &new);
        let what = match changes.is_empty() {
            true => "the same configuration makes another plan, since a model file, a data file or the program has changed".to_owned(),
            false => format!("the configuration has changed: {}", changes.join("; ")),
        };
        Ok(StoreError::Changed {
            dir: self.dir.clone(),
            what,
        })
    }
}

/// Takes the folder's lock. A process that is being forked off holds the lock of its parent until
/// it executes, so a refusal is final only after [`LOCK_TRIES`].
fn lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(StoreError::io("make", &path))?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(source)) => return Err(StoreError::io("lock", &path)(source)),
        }
    }
    Err(StoreError::Busy {
        dir: dir.to_owned(),
    })
}

/// The first of `<dir>.1`, `<dir>.2`, … that does not exist.
fn free_name(dir: &Path) -> Result<PathBuf, StoreError> {
    let base = dir.file_name().unwrap_or_default().to_string_lossy();
    (1..=MAX_EARLIER)
        .map(|n| dir.with_file_name(format!("{base}.{n}")))
        .find(|path| !path.exists())
        .ok_or_else(|| {
            let full =
                std::io::Error::other(format!("{MAX_EARLIER} earlier runs are kept already"));
            StoreError::io("move aside", dir)(full)
        })
}

fn malformed(path: &Path, error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Malformed {
        path: path.to_owned(),
        message: error.to_string(),
    }
}

/// Writes a JSON file in one step.
pub(crate) fn write_json(path: &Path, content: &impl Serialize) -> Result<(), StoreError> {
    let mut bytes = serde_json::to_vec_pretty(content).map_err(|error| malformed(path, &error))?;
    bytes.push(b'\n');
    write_whole(path, &bytes)
}

/// Replaces a file in one step.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    fs::write(&partial, bytes).map_err(StoreError::io("write", &partial))?;
    fs::rename(&partial, path).map_err(StoreError::io("write", path))
}
