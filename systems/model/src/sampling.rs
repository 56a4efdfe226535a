//! Choosing the next token from logits.

use rand::{RngExt as _, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Sampling {
    /// The most likely token; the lowest id on a tie.
    #[default]
    Greedy,
    /// Temperature and nucleus sampling (arXiv 1904.09751), from a seeded generator.
    Nucleus {
        /// Divides the logits; above 0.
        temperature: f32,
        /// Probability mass of the nucleus, in (0, 1].
        top_p: f32,
    },
}

/// The sampler of one sequence: its draws depend on its own seed alone.
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
}

impl Sampler {
    /// A sampler with its own random stream.
    pub fn new(sampling: Sampling, seed: u64) -> Self {
        Self {
            sampling,
            rng: ChaCha8Rng::seed_from_u64(seed),
        }
    }

    /// The next token for `logits: [vocab_size]`. NaN counts as impossible.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        match self.sampling {
            Sampling::Greedy => argmax(logits),
            Sampling::Nucleus { temperature, top_p } => self.nucleus(logits, temperature, top_p),
        }
    }

    fn nucleus(&mut self, logits: &[f32], temperature: f32, top_p: f32) -> u32 {
        let best = argmax(logits);
        let Some(&max) = logits.get(best as usize) else {
            return best;
        };
        let mut candidates: Vec<(u32, f32)> = logits
            .iter()
            .zip(0u32..)
            .filter(|(logit, _)| !logit.is_nan())
            .map(|(logit, id)| (id, ((logit - max) / temperature).exp()))
            .collect();
        let total: f32 = candidates.iter().map(|(_, weight)| weight).sum();
        // The nucleus is a handful of a large vocabulary as a rule: only as many are sorted as
        // it takes.
        let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        let mut sorted = 64;
        let count = loop {
            if sorted < candidates.len() {
                candidates.select_nth_unstable_by(sorted, order);
            }
            let most = sorted.min(candidates.len());
            candidates[..most].sort_unstable_by(order);
            let mut kept = 0.0;
            let last = candidates[..most].iter().position(|(_, weight)| {
                kept += weight;
                kept >= top_p * total
            });
            match last {
                Some(last) => break last + 1,
                None if most == candidates.len() => break most,
                None => sorted *= 8,
            }
        };
        let nucleus = &candidates[..count];
        let mass: f32 = nucleus.iter().map(|(_, weight)| weight).sum();
        let mut draw = self.rng.random::<f32>() * mass;
        for &(id, weight) in nucleus {
            draw -= weight;
            if draw <= 0.0 {
                return id;
            }
        }
        best
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0u32, f32::NEG_INFINITY);
    for (&logit, id) in logits.iter().zip(0u32..) {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_maximum_and_skips_nan() {
        let mut sampler = Sampler::new(Sampling::Greedy, 0);
        assert_eq!(sampler.sample(&[0.0, f32::NAN, 3.0, 3.0]), 2);
    }

    #[test]
    fn nucleus_draws_follow_the_truncated_distribution() {
        let sampling = Sampling::Nucleus {
            temperature: 1.0,
            top_p: 0.8,
        };
        let mut sampler = Sampler::new(sampling, 7);
        // Probabilities 0.6, 0.3, 0.1: the nucleus of 0.8 is the first two.
        let logits = [0.6f32.ln(), 0.3f32.ln(), 0.1f32.ln()];
        let mut counts = [0u32; 3];
        for _ in 0..6000 {
            counts[sampler.sample(&logits) as usize] += 1;
        }
        assert_eq!(counts[2], 0);
        let share = f64::from(counts[0]) / 6000.0;
        assert!((share - 2.0 / 3.0).abs() < 0.03, "{share}");
    }

    #[test]
    fn a_large_nucleus_is_found_too() {
        let sampling = Sampling::Nucleus {
            temperature: 1.0,
            top_p: 0.5,
        };
        let mut sampler = Sampler::new(sampling, 7);
        // Equal weights: of 2,000 the nucleus is the first half, in the order of their ids.
        let drawn: Vec<_> = (0..3000).map(|_| sampler.sample(&[0.25; 2000])).collect();
        let largest = drawn.iter().max().copied().unwrap_or_default();
        assert!((950..1001).contains(&largest), "{largest}");
        assert!(drawn.iter().any(|id| *id < 50));
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens() {
        let sampling = Sampling::Nucleus {
            temperature: 2.0,
            top_p: 1.0,
        };
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32).collect();
        let draw = |seed| {
            let mut sampler = Sampler::new(sampling, seed);
            (0..20).map(|_| sampler.sample(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
