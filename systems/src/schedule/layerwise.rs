//! Prefill the prompt through a layer as soon as that layer's KV is in (the asynchronous
//! layer loading of CE-LSLM, arXiv 2505.14085): `finish_l = max(finish_{l-1}, arrive_l) + c_l`.
//!
//! It gains at most the prompt's prefill time, so little where prompts are short.

use super::Schedule;

pub(super) struct Layerwise;

impl Schedule for Layerwise {
    fn runnable_layers(&self, arrived: usize, _num_layers: usize) -> usize {
        arrived
    }
}
