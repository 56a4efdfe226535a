//! Prefill the prompt through a layer as soon as that layer's KV is in (the asynchronous
//! layer loading of CE-LSLM, arXiv 2505.14085): `finish_l = max(finish_{l-1}, arrive_l) + c_l`.
//!
//! It gains at most the prompt's prefill time, so little where prompts are short.

use super::{HandOff, Schedule};
use crate::SystemError;
use celslm_model::Hidden;

pub(super) struct Layerwise;

impl Schedule for Layerwise {
    fn run(&self, hand_off: &mut dyn HandOff) -> Result<Hidden, SystemError> {
        let mut hidden = hand_off.embed()?;
        for layer in 0..hand_off.num_layers() {
            hand_off.wait_for_layer(layer)?;
            hidden = hand_off.forward_layer(layer, &hidden)?;
        }
        Ok(hidden)
    }
}
