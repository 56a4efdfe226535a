//! Load everything, then compute: the baseline of every overlap.
//!
//! It loses whenever the link is slow enough that there is something to hide behind.

use super::Schedule;

pub(super) struct Sequential;

impl Schedule for Sequential {
    fn runnable_layers(&self, arrived: usize, num_layers: usize) -> usize {
        match arrived >= num_layers {
            true => num_layers,
            false => 0,
        }
    }
}
