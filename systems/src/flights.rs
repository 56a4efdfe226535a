//! One fetch or conversion of a context at a time: who comes meanwhile waits, and finds its result.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

/// Keys that nobody holds are swept out when this many are known.
const SWEEP: usize = 64;

/// Locks by key, each there for as long as someone holds or awaits it.
#[derive(Default)]
pub(crate) struct Flights(Mutex<HashMap<String, Weak<AsyncMutex<()>>>>);

impl Flights {
    /// Waits until nobody else holds a key.
    pub(crate) async fn board(&self, key: &str) -> OwnedMutexGuard<()> {
        self.flight(key).lock_owned().await
    }

    fn flight(&self, key: &str) -> Arc<AsyncMutex<()>> {
        // Every update leaves the map consistent, so a panic elsewhere does not spoil it.
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(key).and_then(Weak::upgrade) {
            return flight;
        }
        if flights.len() >= SWEEP {
            flights.retain(|_, flight| flight.strong_count() > 0);
        }
        let flight = Arc::new(AsyncMutex::new(()));
        flights.insert(key.to_owned(), Arc::downgrade(&flight));
        flight
    }
}
