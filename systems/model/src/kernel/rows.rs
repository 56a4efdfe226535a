//! Row-wise functions, written so that the compiler vectorises them: sums run in sixteen lanes.

const LANES: usize = 16;

/// Sum of squares, in a fixed order.
fn square_sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = x.mul_add(*x, *lane);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = x.mul_add(*x, *lane);
    }
    lanes.iter().sum()
}

/// Root-mean-square norm (arXiv 1910.07467) of a row.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = square_sum(x) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

/// `e^x` to within 2 units in the last place for normal results; 0 far below, infinity far
/// above. The usual reduction to a power of two and a polynomial on ±ln(2)/2.
#[inline(always)]
#[must_use]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln(2) in two pieces, the first with few bits, so that the reduction is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Added to a small number, it rounds it to an integer and leaves that in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.33, 88.72);
    let rounded = x.mul_add(LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    // Minimax polynomial of (e^r - 1 - r) / r² (Cephes, expf).
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    // n is at most 128: two steps keep both factors normal.
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let rest = n - half;
    let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
    y * power(half) * power(rest)
}

/// `silu(gate) * up`, the gated unit of the MLP (arXiv 2002.05202).
pub(crate) fn gated(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

/// `x += y`.
pub(crate) fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -870_000..=880_000 {
            let x = i as f32 / 10_000.0;
            let expected = f64::from(x).exp() as f32;
            let error = (i64::from(exp(x).to_bits()) - i64::from(expected.to_bits())).abs();
            assert!(error <= 2, "exp({x}) = {} and not {expected}", exp(x));
        }
        assert!(exp(-1e9) < 2e-38 && exp(0.0) == 1.0);
    }

    #[test]
    fn norm_and_gate_are_their_definitions() {
        let x: Vec<f32> = (0..53).map(|i| (i as f32 - 20.0) / 7.0).collect();
        let weight: Vec<f32> = (0..53).map(|i| 1.0 + i as f32 / 100.0).collect();
        let mut out = vec![0.0; 53];
        rms_norm(&x, &weight, 1e-6, &mut out);
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 53.0;
        for ((out, x), weight) in out.iter().zip(&x).zip(&weight) {
            let expected = f64::from(x * weight) / (mean + 1e-6).sqrt();
            assert!((f64::from(*out) - expected).abs() < 1e-5);
        }
        gated(&x, &weight, &mut out);
        for ((out, x), up) in out.iter().zip(&x).zip(&weight) {
            let expected = f64::from(*x) / (1.0 + (-f64::from(*x)).exp()) * f64::from(*up);
            assert!((f64::from(*out) - expected).abs() < 1e-5);
        }
    }
}
