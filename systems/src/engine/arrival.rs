//! KV on its way into a prefix that a session is already attached to.

use super::shared::Shared;
use crate::clock::now_ns;
use crate::schedule::ScheduleKind;
use celslm_kv::LayerKv;
use celslm_model::{KvPrefix, ModelError, RotaryEmbedding};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A prefix whose layers arrive while a session waits for them; [`super::Engine::arriving`]
/// makes one.
pub struct ArrivingKv {
    prefix: Arc<KvPrefix>,
    /// When each layer arrived; 0 means not yet.
    arrived_ns: Vec<AtomicU64>,
    engine: Arc<Shared>,
}

impl ArrivingKv {
    pub(super) fn new(prefix: Arc<KvPrefix>, num_layers: usize, engine: Arc<Shared>) -> Self {
        Self {
            prefix,
            arrived_ns: (0..num_layers).map(|_| AtomicU64::new(0)).collect(),
            engine,
        }
    }

    /// The prefix that is being filled.
    pub fn prefix(&self) -> &Arc<KvPrefix> {
        &self.prefix
    }

    /// Puts a layer into the prefix, without the tokens at the positions `dropped`, and tells the
    /// engine.
    ///
    /// # Errors
    /// As [`KvPrefix::set_layer_held`].
    pub fn set_layer(
        &self,
        layer: usize,
        layer_kv: &LayerKv,
        dropped: &[usize],
        rope: &RotaryEmbedding,
    ) -> Result<(), ModelError> {
        self.prefix.set_layer_held(layer, layer_kv, dropped, rope)?;
        if let Some(slot) = self.arrived_ns.get(layer) {
            slot.store(now_ns(), Ordering::Release);
        }
        self.engine.wake();
        Ok(())
    }

    /// Layers that a session may run now, of all.
    pub(super) fn runnable(&self, schedule: ScheduleKind) -> usize {
        let num_layers = self.arrived_ns.len();
        schedule
            .schedule()
            .runnable_layers(self.prefix.ready_layers(), num_layers)
            .min(num_layers)
    }

    /// When the KV that lets a layer run was there: what a session waited for until then.
    pub(super) fn ready_ns(&self, schedule: ScheduleKind, layer: usize) -> u64 {
        let num_layers = self.arrived_ns.len();
        let mut ready_ns = 0;
        for (index, at_ns) in self.arrived_ns.iter().enumerate() {
            if schedule.schedule().runnable_layers(index, num_layers) > layer {
                break;
            }
            ready_ns = ready_ns.max(at_ns.load(Ordering::Acquire));
        }
        ready_ns
    }
}
