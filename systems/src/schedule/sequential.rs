//! Load everything, then compute: the baseline of every overlap.
//!
//! It loses whenever the link is slow enough that there is something to hide behind.

use super::{HandOff, Schedule};
use crate::SystemError;
use celslm_model::Hidden;

pub(super) struct Sequential;

impl Schedule for Sequential {
    fn run(&self, hand_off: &mut dyn HandOff) -> Result<Hidden, SystemError> {
        for layer in 0..hand_off.num_layers() {
            hand_off.wait_for_layer(layer)?;
        }
        let mut hidden = hand_off.embed()?;
        for layer in 0..hand_off.num_layers() {
            hidden = hand_off.forward_layer(layer, &hidden)?;
        }
        Ok(hidden)
    }
}
