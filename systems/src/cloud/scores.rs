//! Scores of a context's tokens, for codecs that leave tokens out: computed once, by the edge's
//! model, whose KV it is that they choose from.
//!
//! They cost one more pass over the context. It runs on a thread beside the engine and takes turns
//! with it at the compute threads, layer by layer; a device's `slowdown` does not stretch it.

use super::variants::{Shared, internal, invalid};
use crate::clock::now_ns;
use celslm_kv::ContextId;
use celslm_kv::codec::{ScoredBy, TokenScores};
use celslm_wire::ServiceError;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most bytes of scores that are kept: some hundred contexts of a few thousand tokens.
const MAX_BYTES: usize = 64 << 20;

/// Scores with what it took to get them.
pub(super) struct Scored {
    pub(super) scores: Arc<TokenScores>,
    pub(super) store_hit: bool,
    pub(super) queue_ns: u64,
    pub(super) compute_ns: u64,
}

impl Scored {
    fn stored(scores: Arc<TokenScores>, queue_ns: u64) -> Self {
        Self {
            scores,
            store_hit: true,
            queue_ns,
            compute_ns: 0,
        }
    }
}

/// The scores that were computed last.
#[derive(Default)]
pub(super) struct ScoreStore(Mutex<VecDeque<(String, Arc<TokenScores>)>>);

impl ScoreStore {
    fn held(&self) -> MutexGuard<'_, VecDeque<(String, Arc<TokenScores>)>> {
        // Every update leaves the list consistent, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, key: &str) -> Option<Arc<TokenScores>> {
        let held = self.held();
        let found = held.iter().find(|(own, _)| own == key);
        found.map(|(_, scores)| scores.clone())
    }

    fn insert(&self, key: String, scores: Arc<TokenScores>) {
        let mut held = self.held();
        held.retain(|(own, _)| *own != key);
        held.push_back((key, scores));
        while held.len() > 1 && held.iter().map(|(_, s)| bytes(s)).sum::<usize>() > MAX_BYTES {
            held.pop_front();
        }
    }

    /// Drops what is held for a context.
    pub(super) fn evict(&self, id: &ContextId) {
        let start = format!("{id}/");
        self.held().retain(|(key, _)| !key.starts_with(&start));
    }
}

/// Layers and tokens.
pub(super) fn extent(scores: &TokenScores) -> (usize, usize) {
    let layers = (0..).take_while(|layer| scores.layer(*layer).is_some());
    let tokens = scores.layer(0).map_or(0, |(_, scores)| scores.len());
    (layers.count(), tokens)
}

fn bytes(scores: &TokenScores) -> usize {
    let (layers, tokens) = extent(scores);
    layers * tokens * size_of::<f32>()
}

impl Shared {
    /// Scores of a context's tokens: from the store, or computed (by a replayed cloud: taken from
    /// the recording, in the time of another prefill) and kept.
    pub(super) async fn scores(
        self: &Arc<Self>,
        id: &ContextId,
        by: ScoredBy,
        deadline_ns: u64,
    ) -> Result<Scored, ServiceError> {
        let key = format!("{id}/scores/{by}");
        if let Some(scores) = self.scores.get(&key) {
            return Ok(Scored::stored(scores, 0));
        }
        let start_ns = now_ns();
        let left = Duration::from_nanos(deadline_ns.saturating_sub(start_ns));
        let shared = self.clone();
        let id = *id;
        // Another call for the same scores goes on where this one is given up.
        let work = tokio::spawn(async move {
            let _flight = shared.flights.board(&key).await;
            let waited_ns = now_ns() - start_ns;
            if let Some(scores) = shared.scores.get(&key) {
                return Ok(Scored::stored(scores, waited_ns));
            }
            let mut scored = match &shared.replay {
                Some(replay) => replay.scores(&shared, &id, by, deadline_ns).await?,
                None => shared.scores_live(&id, by).await?,
            };
            scored.queue_ns += waited_ns;
            shared.scores.insert(key, scored.scores.clone());
            Ok(scored)
        });
        let late = |_| {
            ServiceError::DeadlineExceeded(
                "the call's time is up before its tokens have scores".to_owned(),
            )
        };
        let done = tokio::time::timeout(left, work).await.map_err(late)?;
        done.map_err(internal)?
    }

    /// As [`Self::scores`], by this node's own model, and not kept.
    pub(super) async fn scores_live(
        &self,
        id: &ContextId,
        by: ScoredBy,
    ) -> Result<Scored, ServiceError> {
        let engine = self.edge_engine.clone().ok_or_else(|| {
            ServiceError::Unsupported(
                "scores of tokens come from the edge's model; start this cloud with --edge-model"
                    .to_owned(),
            )
        })?;
        let context = self.context(id)?;
        let arrived_ns = now_ns();
        let work = move || {
            let start_ns = now_ns();
            let model = engine.model();
            let tokens = model.context_tokens(&context.system)?;
            let scores = model.decoder.token_scores(&tokens, by)?;
            Ok((scores, start_ns - arrived_ns, now_ns() - start_ns))
        };
        let (scores, queue_ns, compute_ns) = self.work(work).await?.map_err(invalid)?;
        Ok(Scored {
            scores: Arc::new(scores),
            store_hit: false,
            queue_ns,
            compute_ns,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_scores_go_first() {
        let store = ScoreStore::default();
        let scores = |layers: usize| {
            let layers = vec![vec![0.0; 1 << 20]; layers];
            Arc::new(TokenScores::new(0, 0, layers).unwrap())
        };
        assert_eq!(extent(&scores(3)), (3, 1 << 20));
        let [a, b] = [[1; 32], [2; 32]].map(ContextId::from_bytes);
        store.insert(format!("{a}/x"), scores(8));
        store.insert(format!("{b}/x"), scores(8));
        assert!(store.get(&format!("{a}/x")).is_some());
        store.insert(format!("{b}/y"), scores(2));
        assert!(store.get(&format!("{a}/x")).is_none());
        assert!(store.get(&format!("{b}/x")).is_some());
        store.evict(&b);
        assert!(store.get(&format!("{b}/y")).is_none());
        // One that is larger than the bound is kept for as long as it is the last.
        store.insert(format!("{a}/z"), scores(20));
        assert!(store.get(&format!("{a}/z")).is_some());
    }
}
