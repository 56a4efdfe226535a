//! A bounded cache of attention-ready contexts.

use celslm_model::KvPrefix;
use std::sync::{Arc, Mutex, PoisonError};

/// Least-recently-used prefixes within a byte bound.
pub(crate) struct PrefixCache {
    limit_bytes: usize,
    /// Oldest first. Contexts are few and large, so a scan beats a map with a list beside it.
    entries: Mutex<Vec<(String, Arc<KvPrefix>)>>,
}

impl PrefixCache {
    /// An empty cache that never holds more than `limit_bytes`.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            entries: Mutex::default(),
        }
    }

    fn entries(&self) -> std::sync::MutexGuard<'_, Vec<(String, Arc<KvPrefix>)>> {
        // Every update leaves the list consistent, so a panic elsewhere does not spoil it.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The prefix under a key, which becomes the youngest.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<KvPrefix>> {
        let mut entries = self.entries();
        let index = entries.iter().position(|(held, _)| held == key)?;
        let entry = entries.remove(index);
        let prefix = entry.1.clone();
        entries.push(entry);
        Some(prefix)
    }

    /// Keeps a complete prefix, evicting the oldest ones as needed. One that alone exceeds the
    /// bound is not kept; the return value says whether it was.
    pub(crate) fn insert(&self, key: String, prefix: Arc<KvPrefix>) -> bool {
        let mut entries = self.entries();
        entries.retain(|(held, _)| *held != key);
        if prefix.bytes() > self.limit_bytes || !prefix.is_complete() {
            return false;
        }
        let mut held: usize = entries.iter().map(|(_, prefix)| prefix.bytes()).sum();
        while held + prefix.bytes() > self.limit_bytes {
            held -= entries.remove(0).1.bytes();
        }
        entries.push((key, prefix));
        true
    }

    /// Drops every entry whose key begins with `start`.
    pub(crate) fn evict(&self, start: &str) {
        self.entries().retain(|(held, _)| !held.starts_with(start));
    }

    /// Bytes held.
    pub(crate) fn bytes(&self) -> usize {
        self.entries()
            .iter()
            .map(|(_, prefix)| prefix.bytes())
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use celslm_kv::{KvShape, LayerKv};
    use celslm_model::{RopeStyle, RotaryEmbedding};
    use half::f16;

    fn prefix(len: usize) -> Arc<KvPrefix> {
        let shape = KvShape {
            num_layers: 1,
            num_kv_heads: 1,
            head_dim: 2,
        };
        let prefix = KvPrefix::new(shape, len);
        let layer = LayerKv {
            k: vec![f16::ONE; len * 2],
            v: vec![f16::ONE; len * 2],
        };
        prefix
            .set_layer(0, &layer, &RotaryEmbedding::new(RopeStyle::Neox, 2, 1e4))
            .unwrap();
        Arc::new(prefix)
    }

    #[test]
    fn the_oldest_goes_first_and_the_bound_holds() {
        // Room for two and a half.
        let limit = prefix(10).bytes() * 5 / 2;
        let cache = PrefixCache::new(limit);
        assert!(cache.insert("a".into(), prefix(10)));
        assert!(cache.insert("b".into(), prefix(10)));
        assert!(cache.get("a").is_some());
        assert!(cache.insert("c".into(), prefix(10)));
        assert!(cache.get("b").is_none(), "b was the oldest");
        assert!(cache.get("a").is_some() && cache.get("c").is_some());
        assert!(
            !cache.insert("d".into(), prefix(60)),
            "larger than the cache"
        );
        assert!(cache.bytes() <= limit);
    }

    #[test]
    fn an_incomplete_prefix_is_not_kept() {
        let shape = KvShape {
            num_layers: 2,
            num_kv_heads: 1,
            head_dim: 2,
        };
        let cache = PrefixCache::new(1 << 20);
        assert!(!cache.insert("a".into(), Arc::new(KvPrefix::new(shape, 4))));
    }
}
