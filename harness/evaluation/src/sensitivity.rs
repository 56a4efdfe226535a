//! How much an error in one layer's keys or values matters to the answers: what a codec that
//! spends its bits where they count has to know.
//!
//! White noise is added to one head of one side of one layer at a time, and the divergence of the
//! gold answers' distributions from those of the exact KV is measured. For small errors it grows
//! with their square, so that divergence per squared error is a second derivative.

use std::sync::Arc;

use celslm_kv::{KvBlock, KvShape, LayerKv};
use celslm_model::KvPrefix;
use half::f16;

use crate::answering::ask;
use crate::noise::Noise;
use crate::{Case, EvaluationError, Evaluator, Settings};

/// First tokens that stay exact, as codecs keep them.
const SKIP: usize = 4;

/// Least share of the median that a sensitivity counts for.
const FLOOR: f64 = 0.3;
/// Power of the sensitivities: errors of the heads that matter most cost more than in proportion
/// once the others have theirs as well. Chosen on calibration text, from 0.8, 1 and 1.25.
const EMPHASIS: f64 = 1.25;

/// Measured sensitivities, averaged over contexts.
#[derive(Debug, Clone)]
pub struct Sensitivity {
    /// Divergence per squared error, relative to the variance of the layer's side: nats per
    /// position of a gold answer, summed over contexts, `[layer][side][head]`.
    heads: Vec<[Vec<f64>; 2]>,
    /// Squared norm of the queries in each rotated pair, summed, `[layer][kv_head][channel]`: what
    /// an error of a key's channel is multiplied by.
    energies: Vec<Vec<Vec<f64>>>,
    contexts: usize,
}

impl Sensitivity {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(shape: KvShape) -> Self {
        let heads = vec![0.0; shape.num_kv_heads];
        let energies = vec![vec![0.0; shape.head_dim]; shape.num_kv_heads];
        Self {
            heads: vec![[heads.clone(), heads]; shape.num_layers],
            energies: vec![energies; shape.num_layers],
            contexts: 0,
        }
    }

    /// Contexts that were measured.
    #[must_use]
    pub const fn contexts(&self) -> usize {
        self.contexts
    }

    /// Measurements of one context.
    #[must_use]
    pub fn measurements(&self) -> usize {
        self.heads.iter().flatten().map(Vec::len).sum()
    }

    /// Measures one context, with noise of `share` of the variance of the head's channels.
    /// `Ok(false)` when `proceed`, which is asked before every measurement, said stop.
    ///
    /// # Errors
    /// Failures of the model.
    pub fn add(
        &mut self,
        evaluator: &Evaluator<'_>,
        case: &Case<'_>,
        share: f64,
        mut proceed: impl FnMut() -> bool,
    ) -> Result<bool, EvaluationError> {
        let settings = Settings {
            max_tokens: 1,
            ..evaluator.settings
        };
        let mut found = self.heads.clone();
        for (layer, sides) in found.iter_mut().enumerate() {
            for (side, heads) in sides.iter_mut().enumerate() {
                for (head, sum) in heads.iter_mut().enumerate() {
                    if !proceed() {
                        return Ok(false);
                    }
                    let place = Place { layer, side, head };
                    let (prefix, relative) = disturbed(evaluator, case, place, share)?;
                    let (mut divergence, mut positions) = (0.0, 0);
                    let asked = case.asked().iter();
                    let sequences: Vec<_> = asked.map(|asked| (&prefix, asked)).collect();
                    ask(evaluator.model, &sequences, settings, |index, reading| {
                        let row = case.asked()[index].row(&reading, case.reference(index));
                        divergence += row.kl.unwrap_or(0.0);
                        positions += row.positions;
                    })?;
                    *sum += divergence / (positions.max(1) as f64 * relative);
                }
            }
        }
        self.heads = found;
        self.add_queries(evaluator, case);
        self.contexts += 1;
        Ok(true)
    }

    fn add_queries(&mut self, evaluator: &Evaluator<'_>, case: &Case<'_>) {
        let model = &evaluator.model.decoder;
        let (num_heads, head_dim) = (model.config().num_attention_heads, model.config().head_dim);
        for (layer, energies) in self.energies.iter_mut().enumerate() {
            let group = num_heads / energies.len();
            let (queries, _) = case.attention(layer);
            for (index, query) in queries.chunks_exact(head_dim).enumerate() {
                let energies = &mut energies[index % num_heads / group];
                let mut pairs = vec![0.0; head_dim];
                for (channel, x) in query.iter().enumerate() {
                    pairs[model.rope().pair(channel)] += f64::from(*x) * f64::from(*x);
                }
                for (channel, energy) in energies.iter_mut().enumerate() {
                    *energy += pairs[model.rope().pair(channel)];
                }
            }
        }
    }

    /// Factors for the sensitivity of [`ArtefactOptions`](celslm_kv::codec::ArtefactOptions), by
    /// layer and number of a token's row: the square root of each number's sensitivity, with a
    /// geometric mean of one.
    ///
    /// A head's sensitivity is spread over its key channels as its queries are. Single measurements
    /// are noisy, so that none counts for less than [`FLOOR`] of the median.
    #[must_use]
    pub fn factors(&self) -> Vec<Vec<f32>> {
        let mut sorted: Vec<f64> = self.heads.iter().flatten().flatten().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let median = sorted.get(sorted.len() / 2).copied().unwrap_or(0.0);
        let least = (median * FLOOR).max(f64::MIN_POSITIVE);
        let mut logs: Vec<Vec<f64>> = Vec::with_capacity(self.heads.len());
        for (sides, energies) in self.heads.iter().zip(&self.energies) {
            let [keys, values] = sides;
            let mut layer = Vec::new();
            for (sensitivity, energies) in keys.iter().zip(energies) {
                let sensitivity = sensitivity.max(least);
                let mean = energies.iter().sum::<f64>() / energies.len().max(1) as f64;
                layer.extend(energies.iter().map(|energy| {
                    // A pair that no query uses would be free; a tenth of the mean is kept.
                    let share = if mean > 0.0 {
                        (energy / mean).max(0.1)
                    } else {
                        1.0
                    };
                    (sensitivity * share).ln() / 2.0
                }));
            }
            for sensitivity in values {
                let value = sensitivity.max(least).ln() / 2.0;
                layer.extend(std::iter::repeat_n(
                    value,
                    energies.first().map_or(0, Vec::len),
                ));
            }
            logs.push(layer);
        }
        let count = logs.iter().map(Vec::len).sum::<usize>().max(1) as f64;
        let mean = logs.iter().flatten().sum::<f64>() / count;
        logs.iter()
            .map(|layer| {
                layer
                    .iter()
                    .map(|log| ((log - mean) * EMPHASIS).exp() as f32)
                    .collect()
            })
            .collect()
    }

    /// Relative sensitivities by layer: keys of every head, then values of every head, in nats per
    /// error as large as the variance.
    pub fn by_layer(&self) -> impl Iterator<Item = Vec<f64>> {
        let contexts = self.contexts.max(1) as f64;
        self.heads
            .iter()
            .map(move |sides| sides.iter().flatten().map(|sum| sum / contexts).collect())
    }
}

/// Where noise is added.
#[derive(Clone, Copy)]
struct Place {
    layer: usize,
    side: usize,
    head: usize,
}

/// The context's KV with noise in one place, and the noise's mean square relative to the variance
/// of the layer's side.
fn disturbed(
    evaluator: &Evaluator<'_>,
    case: &Case<'_>,
    place: Place,
    share: f64,
) -> Result<(Arc<KvPrefix>, f64), EvaluationError> {
    let Place { layer, side, head } = place;
    let block = case.block();
    let shape = block.shape();
    let mut layers: Vec<LayerKv> = block.layers().to_vec();
    let width = block.num_tokens() * shape.head_dim;
    let numbers = match side {
        0 => &mut layers[layer].k,
        _ => &mut layers[layer].v,
    };
    let skip = (SKIP * shape.head_dim).min(width);
    let spread = |head: usize| head * width + skip..(head + 1) * width;
    let of_head = |head: usize| variance(&numbers[spread(head)], shape.head_dim);
    let whole = (0..shape.num_kv_heads).map(of_head).sum::<f64>() / shape.num_kv_heads as f64;
    let square = share * of_head(head);
    let mut noise = Noise::new(((layer * 2 + side) * shape.num_kv_heads + head) as u64);
    let scale = square.sqrt();
    for number in &mut numbers[spread(head)] {
        *number = f16::from_f64(number.to_f64() + scale * noise.next());
    }
    let block = KvBlock::from_spec(block.spec().clone(), layers)?;
    let prefix = KvPrefix::from_block(&block, evaluator.model.decoder.rope())?;
    let tiny = f64::MIN_POSITIVE;
    Ok((Arc::new(prefix), (square / whole.max(tiny)).max(tiny)))
}

/// Mean over channels of the variance over rows.
fn variance(rows: &[f16], width: usize) -> f64 {
    let count = (rows.len() / width).max(1) as f64;
    let mut sums = vec![(0.0, 0.0); width];
    for row in rows.chunks_exact(width) {
        for (sums, x) in sums.iter_mut().zip(row) {
            let x = x.to_f64();
            sums.0 += x;
            sums.1 += x * x;
        }
    }
    let spread = |(sum, squares): &(f64, f64)| (squares - sum * sum / count) / count;
    sums.iter().map(spread).sum::<f64>() / width as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variance_is_by_channel() {
        let rows = [1.0, 7.0, 3.0, 7.0].map(f16::from_f64);
        assert_eq!(variance(&rows, 2), 0.5);
    }
}
