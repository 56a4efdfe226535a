//! How far decoded KV is from the exact one, and what attention makes of the difference.

use std::sync::Arc;

use celslm_kv::{KvShape, LayerKv};
use celslm_model::{KvPrefix, LoadedModel};
use celslm_reports::evaluation::LayerRow;
use half::f16;
use half::slice::HalfFloatSliceExt as _;

use crate::arm::Decoded;
use crate::{Case, EvaluationError};

/// First tokens that the figures of keys and values leave out: their norms are far beyond those of
/// all others, so that they would be all that the figures show.
const SKIP: usize = 4;

/// Distortion of every layer.
///
/// # Errors
/// Failures of the model.
pub(crate) fn by_layer(
    model: &LoadedModel,
    case: &Case<'_>,
    decoded: &Decoded,
    prefix: &Arc<KvPrefix>,
) -> Result<Vec<LayerRow>, EvaluationError> {
    let shape = case.block().shape();
    let tokens = case.tokens().len();
    let mut rows = Vec::with_capacity(decoded.layers.len());
    for (layer, (own, found)) in case
        .block()
        .layers()
        .iter()
        .zip(&decoded.layers)
        .enumerate()
    {
        let held: Vec<usize> = (SKIP..tokens)
            .filter(|token| decoded.dropped[layer].binary_search(token).is_err())
            .collect();
        let sides = |side: fn(&LayerKv) -> &[f16]| Side::of(side(own), side(found), &held, shape);
        let (k, v) = (sides(|kv| &kv.k), sides(|kv| &kv.v));
        let (queries, exact) = case.attention(layer);
        let attended = model.decoder.attention_output(layer, queries, prefix)?;
        rows.push(LayerRow {
            layer: layer as u32,
            k_mse: k.mse,
            k_variance: k.variance,
            k_cosine: k.cosine,
            v_mse: v.mse,
            v_variance: v.variance,
            v_cosine: v.cosine,
            attention_error: relative_error(exact, &attended),
        });
    }
    Ok(rows)
}

/// Squared error relative to the squared norm.
fn relative_error(exact: &[f32], found: &[f32]) -> f64 {
    let (mut error, mut norm) = (0.0, 0.0);
    for (x, y) in exact.iter().zip(found) {
        let (x, y) = (f64::from(*x), f64::from(*y));
        error += (x - y) * (x - y);
        norm += x * x;
    }
    if norm > 0.0 { error / norm } else { 0.0 }
}

/// Figures of the keys or the values of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Side {
    mse: f64,
    variance: f64,
    cosine: f64,
}

impl Side {
    /// Both `[num_kv_heads, tokens, head_dim]`, over the tokens `held`.
    fn of(own: &[f16], found: &[f16], held: &[usize], shape: KvShape) -> Self {
        let head_dim = shape.head_dim;
        let tokens = own.len() / (shape.num_kv_heads * head_dim);
        let (mut x, mut y) = (vec![0f32; head_dim], vec![0f32; head_dim]);
        let (mut error, mut variance, mut cosine) = (0.0, 0.0, 0.0);
        let count = held.len() as f64;
        for head in 0..shape.num_kv_heads {
            let mut sums = vec![(0.0f64, 0.0f64); head_dim];
            for token in held {
                let at = (head * tokens + token) * head_dim;
                own[at..at + head_dim].convert_to_f32_slice(&mut x);
                found[at..at + head_dim].convert_to_f32_slice(&mut y);
                let (mut dot, mut own_norm, mut norm, mut squares) = (0f32, 0f32, 0f32, 0f32);
                for (x, y) in x.iter().zip(&y) {
                    dot += x * y;
                    own_norm += x * x;
                    norm += y * y;
                    squares += (x - y) * (x - y);
                }
                error += f64::from(squares);
                let norms = f64::from(own_norm).sqrt() * f64::from(norm).sqrt();
                cosine += if norms > 0.0 {
                    f64::from(dot) / norms
                } else {
                    0.0
                };
                for (sums, x) in sums.iter_mut().zip(&x) {
                    sums.0 += f64::from(*x);
                    sums.1 += f64::from(*x) * f64::from(*x);
                }
            }
            let spread = |(sum, squares): &(f64, f64)| squares - sum * sum / count;
            variance += sums.iter().map(spread).sum::<f64>();
        }
        let numbers = (count * shape.width() as f64).max(1.0);
        Self {
            mse: error / numbers,
            variance: if count > 0.0 { variance / numbers } else { 0.0 },
            cosine: cosine / (count * shape.num_kv_heads as f64).max(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_by_hand() {
        let shape = KvShape::new(1, 1, 2).unwrap();
        let f = |x: [f32; 6]| x.map(f16::from_f32).to_vec();
        let own = f([1.0, 0.0, 3.0, 4.0, 9.0, 9.0]);
        let found = f([1.0, 0.0, 3.0, 2.0, 0.0, 0.0]);
        let side = Side::of(&own, &found, &[0, 1], shape);
        assert!((side.mse - 4.0 / 4.0).abs() < 1e-9);
        // Channels have the values 1, 3 and 0, 4: squared deviations of 2 and 8.
        assert!((side.variance - 10.0 / 4.0).abs() < 1e-9);
        let cosine = (1.0 + 17.0 / (5.0 * 13f64.sqrt())) / 2.0;
        assert!((side.cosine - cosine).abs() < 1e-6);
        let none = Side::of(&own, &found, &[], shape);
        assert_eq!((none.mse, none.variance, none.cosine), (0.0, 0.0, 0.0));
        assert_eq!(relative_error(&[3.0, 4.0], &[3.0, 3.0]), 1.0 / 25.0);
        assert_eq!(relative_error(&[0.0], &[0.0]), 0.0);
    }
}
