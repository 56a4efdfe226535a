//! Files of what was fitted: written whole, read up to a bound.

use std::io;
use std::path::Path;

/// Why a file was not read.
pub(crate) enum Unread {
    /// It cannot be read.
    Io(io::Error),
    /// It has more bytes than were to be expected.
    TooLarge(u64),
}

/// Writes a file beside its final place and renames it, so that no reader sees half of it.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    std::fs::write(&partial, bytes).and_then(|()| std::fs::rename(&partial, path))
}

/// Reads a file of at most so many bytes.
pub(crate) fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>, Unread> {
    let bytes = std::fs::metadata(path).map_err(Unread::Io)?.len();
    if bytes > most {
        return Err(Unread::TooLarge(bytes));
    }
    std::fs::read(path).map_err(Unread::Io)
}
