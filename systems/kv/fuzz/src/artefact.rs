//! Files of what was fitted: codec artefacts and bridges, both read in each run.

use celslm_kv::align::FitOptions;
use celslm_kv::codec::CodecArtefact;
use celslm_kv::{Bridge, BridgeEnd, BridgeFitter, ModelFingerprint};

use crate::{block, fit, shape, within};

/// Reads bytes as either kind of file; what is read writes a file that reads as the same.
///
/// # Panics
/// If a promise is broken.
pub fn run(data: &[u8]) {
    // Weights of half the width in the file are held as f32, beside a copy while reading.
    let allowed = (1 << 20) + 16 * data.len();
    match within(allowed, || CodecArtefact::from_bytes(data)) {
        Ok(artefact) => {
            // The id is that of the bytes, and one content can be written in several ways: what
            // is written once is written alike ever after.
            let bytes = artefact.to_bytes().expect("what was read can be written");
            let again = CodecArtefact::from_bytes(&bytes).expect("what was written can be read");
            assert_eq!(again.to_bytes().ok().as_ref(), Some(&bytes));
            assert_eq!(again.manifest(), artefact.manifest());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    match within(allowed, || Bridge::from_bytes(data)) {
        Ok(bridge) => {
            let bytes = bridge.to_bytes().expect("what was read can be written");
            assert_eq!(Bridge::from_bytes(&bytes).ok().as_ref(), Some(&bridge));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A small file of each kind.
pub fn seeds() -> crate::Seeds {
    let end = |byte| BridgeEnd {
        fingerprint: ModelFingerprint::from_bytes([byte; 32]),
        shape: shape(1, 4),
    };
    let artefact = fit(end(1)).to_bytes().expect("a small artefact");
    let options = FitOptions::new("depth", "hash", 7, "fuzz");
    let map = vec![vec![0], vec![1]];
    let mut fitter = BridgeFitter::new(end(1), end(2), &map, options).expect("a map of the shapes");
    for seed in 0..10 {
        let contexts = [1, 2].map(|byte| block(end(byte), 40, seed + u64::from(byte)));
        fitter
            .add(&contexts[0], &contexts[1])
            .expect("finite numbers");
    }
    let bridge = fitter.finish().expect("enough tokens");
    let bridge = bridge.to_bytes().expect("a small bridge");
    vec![("artefact".into(), artefact), ("bridge".into(), bridge)]
}
