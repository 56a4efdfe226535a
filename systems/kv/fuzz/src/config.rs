//! Codec ids: what a peer or an experiment file names.

use celslm_kv::{Codec as _, CodecConfig};

/// Ids at the longest; longer ones are for the parser to cut in its reasons.
const LONGEST_REASON: usize = 4096;

/// Parses an id; one that parses is its config's own, and builds.
///
/// # Panics
/// If a promise is broken.
pub fn run(data: &[u8]) {
    let Ok(id) = str::from_utf8(data) else { return };
    match crate::within(1 << 20, || id.parse::<CodecConfig>()) {
        Ok(config) => {
            assert_eq!(config.to_string(), id);
            assert_eq!(config.build().id(), id);
        }
        Err(error) => {
            let reason = error.to_string();
            assert!(!reason.is_empty() && reason.len() < LONGEST_REASON);
        }
    }
}

/// The ids of all chains.
pub fn seeds() -> crate::Seeds {
    crate::chains()
        .iter()
        .map(|entry| {
            let id = entry.chain.id();
            (format!("{:04x}", entry.tag), id.into_bytes())
        })
        .collect()
}
