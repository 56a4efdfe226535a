//! A bounded cache of blocks by context: least recently used goes first.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::block::KvBlock;
use crate::ident::ContextId;

/// Why a block was not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The block alone is larger than the store.
    #[error("a block of {bytes} bytes does not fit into a store of {max_bytes} bytes")]
    TooLarge {
        /// fp16 bytes of the block.
        bytes: u64,
        /// Bound of the store.
        max_bytes: u64,
    },
}

/// What a store has done and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Lookups that found a block.
    pub hits: u64,
    /// Lookups that found none.
    pub misses: u64,
    /// Blocks dropped to make room.
    pub evictions: u64,
    /// Blocks held.
    pub entries: usize,
    /// fp16 bytes held.
    pub bytes: u64,
    /// The most that were held at any time.
    pub peak_bytes: u64,
}

/// Blocks by context and variant, at most `max_bytes` of them (fp16 bytes of the blocks).
///
/// The variant separates what one context can be stored as, for example the id of the
/// alignment that mapped it. Values are shared: a block that was evicted or replaced lives on
/// for as long as a caller holds it. Methods take `&self` and hold a mutex only for the lookup.
#[derive(Debug)]
pub struct KvStore {
    max_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<Key, Entry>,
    /// Keys by time of last use; one entry for every entry of `entries`.
    by_use: BTreeMap<u64, Key>,
    clock: u64,
    stats: StoreStats,
}

type Key = (ContextId, String);

#[derive(Debug)]
struct Entry {
    block: Arc<KvBlock>,
    used: u64,
}

impl KvStore {
    /// An empty store with a bound.
    #[must_use]
    pub fn new(max_bytes: u64) -> Self {
        Self {
            max_bytes,
            state: Mutex::default(),
        }
    }

    /// The bound.
    #[must_use]
    pub const fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Looks a block up, counts a hit or a miss, and marks the block as used.
    #[must_use]
    pub fn get(&self, context: &ContextId, variant: &str) -> Option<Arc<KvBlock>> {
        let mut state = self.lock();
        let found = state.touch(&(*context, variant.to_owned()));
        match found {
            Some(_) => state.stats.hits += 1,
            None => state.stats.misses += 1,
        }
        found
    }

    /// Whether a block is held; counts nothing and marks nothing.
    #[must_use]
    pub fn contains(&self, context: &ContextId, variant: &str) -> bool {
        self.lock()
            .entries
            .contains_key(&(*context, variant.to_owned()))
    }

    /// Stores a block, replacing the one with the same key and evicting the least recently
    /// used ones until it fits.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`] if it could never fit; the store is unchanged then.
    pub fn insert(
        &self,
        context: ContextId,
        variant: &str,
        block: Arc<KvBlock>,
    ) -> Result<(), StoreError> {
        let (bytes, max_bytes) = (block.fp16_bytes(), self.max_bytes);
        if bytes > max_bytes {
            return Err(StoreError::TooLarge { bytes, max_bytes });
        }
        let key = (context, variant.to_owned());
        let mut state = self.lock();
        state.remove(&key);
        while state.stats.bytes > max_bytes - bytes {
            let Some((_, oldest)) = state.by_use.first_key_value() else {
                break;
            };
            let oldest = oldest.clone();
            state.remove(&oldest);
            state.stats.evictions += 1;
        }
        state.clock += 1;
        let used = state.clock;
        state.by_use.insert(used, key.clone());
        state.entries.insert(key, Entry { block, used });
        state.stats.bytes += bytes;
        state.stats.peak_bytes = state.stats.peak_bytes.max(state.stats.bytes);
        state.stats.entries = state.entries.len();
        Ok(())
    }

    /// Drops one block; `true` if it was held.
    pub fn remove(&self, context: &ContextId, variant: &str) -> bool {
        self.lock().remove(&(*context, variant.to_owned()))
    }

    /// Drops every block. The counters of hits, misses and evictions go on.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.entries.clear();
        state.by_use.clear();
        state.stats.entries = 0;
        state.stats.bytes = 0;
    }

    /// Counters and sizes.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        self.lock().stats
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No method can panic halfway through a change, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn touch(&mut self, key: &Key) -> Option<Arc<KvBlock>> {
        let entry = self.entries.get_mut(key)?;
        self.clock += 1;
        if let Some(key) = self.by_use.remove(&entry.used) {
            self.by_use.insert(self.clock, key);
        }
        entry.used = self.clock;
        Some(Arc::clone(&entry.block))
    }

    fn remove(&mut self, key: &Key) -> bool {
        let Some(entry) = self.entries.remove(key) else {
            return false;
        };
        self.by_use.remove(&entry.used);
        self.stats.bytes -= entry.block.fp16_bytes();
        self.stats.entries = self.entries.len();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{KeyRope, KvShape, LayerKv};
    use crate::ident::ModelFingerprint;
    use half::f16;
    use proptest::prelude::*;

    /// A block of `tokens` times 8 bytes.
    fn block(tokens: usize) -> Arc<KvBlock> {
        let side = vec![f16::ONE; tokens * 2];
        let layers = vec![LayerKv {
            k: side.clone(),
            v: side,
        }];
        let shape = KvShape::new(1, 1, 2).unwrap();
        let fingerprint = ModelFingerprint::from_bytes([0; 32]);
        Arc::new(KvBlock::new(fingerprint, shape, 0, 0..tokens, KeyRope::Pre, layers).unwrap())
    }

    fn id(number: u8) -> ContextId {
        ContextId::from_bytes([number; 32])
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let store = KvStore::new(80);
        for number in 0..3 {
            store.insert(id(number), "identity", block(3)).unwrap();
        }
        assert_eq!(store.stats().bytes, 72);
        assert!(store.get(&id(0), "identity").is_some());
        store.insert(id(3), "identity", block(1)).unwrap();
        store.insert(id(4), "identity", block(1)).unwrap();
        assert!(store.contains(&id(0), "identity"), "was used last");
        assert!(!store.contains(&id(1), "identity"), "was used first");
        assert!(store.contains(&id(2), "identity"));
        assert!(store.get(&id(1), "identity").is_none());
        let stats = store.stats();
        let counted = (
            stats.hits,
            stats.misses,
            stats.evictions,
            stats.entries,
            stats.bytes,
        );
        assert_eq!(counted, (1, 1, 1, 4, 64));
        assert_eq!(stats.peak_bytes, 80);
    }

    #[test]
    fn variants_are_apart_and_replacement_is_no_eviction() {
        let store = KvStore::new(80);
        store.insert(id(0), "identity", block(4)).unwrap();
        store.insert(id(0), "depth", block(4)).unwrap();
        store.insert(id(0), "depth", block(5)).unwrap();
        assert_eq!(store.get(&id(0), "depth").unwrap().num_tokens(), 5);
        let stats = store.stats();
        assert_eq!((stats.evictions, stats.entries, stats.bytes), (0, 2, 72));
        assert!(store.remove(&id(0), "depth"));
        assert!(!store.remove(&id(0), "depth"));
        store.clear();
        assert_eq!(store.stats().bytes, 0);
    }

    #[test]
    fn what_cannot_fit_is_refused() {
        let store = KvStore::new(80);
        store.insert(id(0), "identity", block(10)).unwrap();
        let refused = store.insert(id(1), "identity", block(11));
        assert_eq!(
            refused,
            Err(StoreError::TooLarge {
                bytes: 88,
                max_bytes: 80
            })
        );
        assert!(store.contains(&id(0), "identity"));
    }

    proptest! {
        #[test]
        fn the_bound_holds(
            bound in 0_u64..200,
            steps in proptest::collection::vec((0_u8..6, 1_usize..12, any::<bool>()), 1..60),
        ) {
            let store = KvStore::new(bound);
            for (number, tokens, write) in steps {
                if write {
                    let stored = store.insert(id(number), "v", block(tokens)).is_ok();
                    prop_assert_eq!(stored, tokens as u64 * 8 <= bound);
                    prop_assert!(!stored || store.contains(&id(number), "v"));
                } else {
                    let held = store.contains(&id(number), "v");
                    prop_assert_eq!(store.get(&id(number), "v").is_some(), held);
                }
                let state = store.lock();
                let bytes: u64 = state.entries.values().map(|e| e.block.fp16_bytes()).sum();
                prop_assert_eq!(bytes, state.stats.bytes);
                prop_assert_eq!(state.entries.len(), state.by_use.len());
                prop_assert_eq!(state.entries.len(), state.stats.entries);
                prop_assert!(state.stats.peak_bytes <= bound);
            }
        }
    }
}
