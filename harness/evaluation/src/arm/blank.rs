//! Controls: KV that says nothing of the context, in its place and of its length.

use celslm_kv::LayerKv;
use half::f16;

use super::{Arm, Served, own_start};
use crate::noise::Noise;
use crate::{Case, EvaluationError, Evaluator};

/// First tokens that stay the context's own, as the arms have them that these are controls of:
/// without a sink to rest on, attention breaks down, and anything would beat that.
const SINKS: usize = 4;

/// Zeros: every token is attended to alike, and says nothing.
#[derive(Debug, Clone, Copy)]
pub struct ZeroKv;

impl Arm for ZeroKv {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let block = case.block();
        let zeros = |own: &LayerKv| LayerKv {
            k: vec![f16::ZERO; own.k.len()],
            v: vec![f16::ZERO; own.v.len()],
        };
        let layers = block.layers().iter();
        let layers = layers.map(|own| own_start(&zeros(own), own, block.spec(), SINKS));
        with_sinks(Served::of_layers(evaluator, case, layers.collect())?, case)
    }
}

/// Normal numbers with the mean and variance that each channel of the context's own KV has: all of
/// its statistics but for what belongs to which token.
#[derive(Debug, Clone, Copy)]
pub struct RandomKv {
    /// Where the numbers come from, beside layer and side.
    pub seed: u64,
}

impl Arm for RandomKv {
    fn serve(&self, evaluator: &Evaluator<'_>, case: &Case<'_>) -> Result<Served, EvaluationError> {
        let block = case.block();
        let head_dim = block.shape().head_dim;
        let layers = block.layers().iter().enumerate().map(|(layer, own)| {
            let side = |side: u64, numbers: &[f16]| {
                let place = self.seed ^ ((layer as u64) << 33 | side << 32);
                drawn(
                    numbers,
                    block.num_tokens(),
                    head_dim,
                    &mut Noise::new(place),
                )
            };
            let drawn = LayerKv {
                k: side(0, &own.k),
                v: side(1, &own.v),
            };
            own_start(&drawn, own, block.spec(), SINKS)
        });
        let layers = layers.collect();
        with_sinks(Served::of_layers(evaluator, case, layers)?, case)
    }
}

/// The same, of which the edge has computed the sinks.
fn with_sinks(served: Served, case: &Case<'_>) -> Result<Served, EvaluationError> {
    let block = case.block();
    Ok(Served {
        edge_token_layers: SINKS.min(block.num_tokens()) * block.shape().num_layers,
        ..served
    })
}

/// Numbers with each channel's mean and variance over all tokens but the sinks.
fn drawn(numbers: &[f16], tokens: usize, head_dim: usize, noise: &mut Noise) -> Vec<f16> {
    let mut out = Vec::with_capacity(numbers.len());
    for head in numbers.chunks_exact(tokens * head_dim) {
        let rows = head.chunks_exact(head_dim).skip(SINKS);
        let count = rows.len().max(1) as f64;
        let mut moments = vec![(0.0, 0.0); head_dim];
        for row in rows {
            for ((sum, squares), x) in moments.iter_mut().zip(row) {
                *sum += x.to_f64();
                *squares += x.to_f64() * x.to_f64();
            }
        }
        let moments: Vec<(f64, f64)> = moments
            .into_iter()
            .map(|(sum, squares)| {
                let mean = sum / count;
                (mean, (squares / count - mean * mean).max(0.0).sqrt())
            })
            .collect();
        for _ in 0..tokens {
            let row = moments.iter().map(|(mean, deviation)| {
                f16::from_f64((mean + deviation * noise.next()).clamp(-65504.0, 65504.0))
            });
            out.extend(row);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_numbers_keep_each_channels_moments_and_no_token() {
        let tokens = 4000;
        let numbers: Vec<f16> = (0..2 * tokens)
            .map(|index| match index {
                // Sinks are far off and do not count.
                0..8 => f16::from_f32(500.0),
                _ if index % 2 == 0 => f16::from_f32((index / 2 % 7) as f32),
                _ => f16::from_f32(-3.0),
            })
            .collect();
        let drawn = drawn(&numbers, tokens, 2, &mut Noise::new(1));
        let even: Vec<f64> = drawn.iter().step_by(2).map(|x| x.to_f64()).collect();
        let mean = even.iter().sum::<f64>() / tokens as f64;
        let variance = even.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / tokens as f64;
        assert!(
            (mean - 3.0).abs() < 0.1 && (variance - 4.0).abs() < 0.3,
            "{mean} {variance}"
        );
        assert!(drawn.iter().skip(1).step_by(2).all(|x| x.to_f32() == -3.0));
    }
}
