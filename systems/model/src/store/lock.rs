//! One fetch of a model at a time, across processes.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::clock;
use super::error::StoreError;
use super::progress::Progress;

/// How often a held lock is tried again.
const POLL: Duration = Duration::from_millis(200);

/// A held lock. Released on drop, and by the kernel if the process dies. The lock file stays: to
/// remove it would let two processes hold locks on two files of the same name.
#[derive(Debug)]
#[must_use]
pub(super) struct ModelLock {
    _file: File,
}

/// Takes the lock `path` of model `name`. If another process has it, says so once and waits for at
/// most `timeout`.
pub(super) fn acquire(
    path: &Path,
    name: &str,
    timeout: Duration,
    progress: &mut dyn Progress,
) -> Result<ModelLock, StoreError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(StoreError::io("open the lock file", path))?;
    let begun = clock::now();
    let mut told = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(ModelLock { _file: file }),
            Err(TryLockError::Error(error)) => return Err(StoreError::io("lock", path)(error)),
            Err(TryLockError::WouldBlock) => {}
        }
        if !told {
            progress.message(&format!(
                "another process is fetching {name}; waiting for it ({})",
                path.display()
            ));
            told = true;
        }
        let waited = clock::now().duration_since(begun);
        if waited >= timeout {
            return Err(StoreError::Locked {
                path: path.to_owned(),
                waited,
            });
        }
        if progress.cancelled() {
            return Err(StoreError::Cancelled {
                name: name.to_owned(),
            });
        }
        thread::sleep(POLL);
    }
}
