//! Centred ridge regression in closed form, from moments (mapping of arXiv 2608.03893).

use faer::linalg::matmul::matmul;
use faer::linalg::solvers::Solve;
use faer::{Accum, Mat, MatMut, MatRef, Par, Side};
use half::f16;

use super::{AlignError, Moments};

/// Name of the mapping in bridges and samples.
pub const NAME: &str = "ridge";

/// Values of lambda to choose from, relative to the mean diagonal of the centred `XᵀX`.
pub const LAMBDA_GRID: &[f64] = &[1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// An affine map of rows: `y = mean + gain · (x W + bias − mean)`, the gain given on use.
///
/// `mean` is the target's mean over the calibration text: ridge shrinks towards it, and a gain
/// above one stretches the prediction away from it again.
#[derive(Debug, Clone, PartialEq)]
pub struct Affine {
    pub(super) source_width: usize,
    pub(super) target_width: usize,
    /// `[source_width, target_width]`, row-major; every number is exact in fp16.
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
    pub(super) mean: Vec<f32>,
}

impl Affine {
    /// Numbers per source row.
    #[must_use]
    pub const fn source_width(&self) -> usize {
        self.source_width
    }

    /// Numbers per target row.
    #[must_use]
    pub const fn target_width(&self) -> usize {
        self.target_width
    }

    /// Weights, `[source_width, target_width]`, row-major.
    #[must_use]
    pub fn weight(&self) -> &[f32] {
        &self.weight
    }

    /// Maps rows: `x` is `[n, source_width]`, `y` is `[n, target_width]`, both row-major.
    ///
    /// # Errors
    /// [`AlignError::Rows`] when the lengths do not fit together.
    pub fn apply(&self, x: &[f32], gain: f32, y: &mut [f32]) -> Result<(), AlignError> {
        let (p, q) = (self.source_width, self.target_width);
        let rows = x.len() / p;
        for (found, expected) in [(x.len(), p), (y.len(), q)] {
            if found != rows * expected {
                return Err(AlignError::Rows {
                    expected,
                    rows,
                    found,
                });
            }
        }
        matmul(
            MatMut::from_row_major_slice_mut(y, rows, q),
            Accum::Replace,
            MatRef::from_row_major_slice(x, rows, p),
            MatRef::from_row_major_slice(&self.weight, p, q),
            gain,
            Par::Seq,
        );
        let offset = |(bias, mean): (&f32, &f32)| mean + gain * (bias - mean);
        let offsets: Vec<f32> = self.bias.iter().zip(&self.mean).map(offset).collect();
        for row in y.chunks_exact_mut(q) {
            row.iter_mut()
                .zip(&offsets)
                .for_each(|(y, offset)| *y += offset);
        }
        Ok(())
    }

    /// Share of the target's variance that the map explains on other data, at gain one: one
    /// minus the squared error over the squared distance from that data's own mean, summed
    /// over channels. 0 where the target does not vary.
    #[must_use]
    pub fn r2(&self, held_out: &Moments) -> f64 {
        if held_out.count() == 0 {
            return 0.0;
        }
        let n = held_out.count() as f64;
        let (p, q) = (self.source_width, self.target_width);
        let moments = held_out.centred();
        let weight = Mat::from_fn(p, q, |i, j| f64::from(self.weight[i * q + j]));
        let mut spread = Mat::<f64>::zeros(p, q);
        matmul(
            &mut spread,
            Accum::Replace,
            &moments.xtx,
            &weight,
            1.0,
            Par::Seq,
        );
        let mut residual = 0.0;
        for j in 0..q {
            let mut predicted_mean = f64::from(self.bias[j]);
            let (mut explained, mut cross) = (0.0, 0.0);
            for i in 0..p {
                let w = weight[(i, j)];
                predicted_mean += moments.mean_x[i] * w;
                explained += w * spread[(i, j)];
                cross += w * moments.xty[(i, j)];
            }
            let drift = moments.mean_y[j] - predicted_mean;
            residual += (moments.yty[j] - 2.0 * cross + explained).max(0.0) + n * drift * drift;
        }
        let total: f64 = moments.yty.iter().sum();
        if total > 0.0 {
            1.0 - residual / total
        } else {
            0.0
        }
    }
}

/// Solves `W = (XᵀX + λI)⁻¹ XᵀY` on centred moments by Cholesky, `bias = ȳ − x̄ W`.
///
/// `lambda` is relative to the mean diagonal of the centred `XᵀX`. The weights are rounded to
/// fp16 before the bias is computed, so what is scored is what a bridge file holds.
///
/// # Errors
/// [`AlignError::TooLittleData`] without data, [`AlignError::Parameter`] for a lambda that is
/// not positive, [`AlignError::Singular`] or [`AlignError::NotFinite`] if there is no usable
/// solution.
pub fn fit(moments: &Moments, lambda: f64) -> Result<Affine, AlignError> {
    if moments.count() == 0 {
        let what = "tokens to fit on";
        return Err(AlignError::TooLittleData {
            what,
            found: 0,
            needed: 1,
        });
    }
    if !(lambda > 0.0 && lambda.is_finite()) {
        let allowed = "a positive number";
        return Err(AlignError::Parameter {
            name: "lambda",
            value: lambda,
            allowed,
        });
    }
    let (p, q) = (moments.source_width(), moments.target_width());
    let centred = moments.centred();
    let mean_diagonal = (0..p).map(|i| centred.xtx[(i, i)]).sum::<f64>() / p as f64;
    let solution = if mean_diagonal > 0.0 {
        let mut regularised = centred.xtx;
        for i in 0..p {
            regularised[(i, i)] += lambda * mean_diagonal;
        }
        let singular = |_| AlignError::Singular { lambda };
        regularised
            .llt(Side::Lower)
            .map_err(singular)?
            .solve(&centred.xty)
    } else {
        // A source that never varies explains nothing: predict the mean.
        Mat::zeros(p, q)
    };
    let mut weight = Vec::with_capacity(p * q);
    let mut bias = centred.mean_y.clone();
    for i in 0..p {
        for (j, bias) in bias.iter_mut().enumerate() {
            let rounded = f16::from_f64(solution[(i, j)]);
            if !rounded.is_finite() {
                return Err(AlignError::NotFinite {
                    what: "fitted weights".to_owned(),
                });
            }
            *bias -= centred.mean_x[i] * rounded.to_f64();
            weight.push(rounded.to_f32());
        }
    }
    let narrow = |numbers: Vec<f64>| numbers.into_iter().map(|x| x as f32).collect::<Vec<f32>>();
    let (bias, mean) = (narrow(bias), narrow(centred.mean_y));
    if !bias.iter().chain(&mean).all(|x| x.is_finite()) {
        return Err(AlignError::NotFinite {
            what: "fitted biases".to_owned(),
        });
    }
    Ok(Affine {
        source_width: p,
        target_width: q,
        weight,
        bias,
        mean,
    })
}

/// The lambda of `grid` whose map, fitted on `fit_on`, explains most of `validation`; the
/// larger one on a tie.
///
/// # Errors
/// As for [`fit`], if no lambda of the grid gives a solution.
pub fn select_lambda(
    fit_on: &Moments,
    validation: &Moments,
    grid: &[f64],
) -> Result<f64, AlignError> {
    if validation.count() == 0 {
        let what = "tokens to choose lambda on";
        return Err(AlignError::TooLittleData {
            what,
            found: 0,
            needed: 1,
        });
    }
    let mut best: Option<(f64, f64)> = None;
    let mut failure = AlignError::TooLittleData {
        what: "values of lambda",
        found: 0,
        needed: 1,
    };
    for lambda in grid.iter().copied() {
        match fit(fit_on, lambda) {
            Ok(affine) => {
                let score = affine.r2(validation);
                let better = best.is_none_or(|(best_score, best_lambda)| {
                    score > best_score || (score == best_score && lambda > best_lambda)
                });
                if better {
                    best = Some((score, lambda));
                }
            }
            Err(error) => failure = error,
        }
    }
    best.map(|(_, lambda)| lambda).ok_or(failure)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers in -0.5..0.5 from a linear congruence.
    fn noise(count: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99_991);
            (state >> 33) as f64 / (1_u64 << 31) as f64 - 0.5
        };
        (0..count).map(|_| next()).collect()
    }

    /// `y = x W + b` with weights that fp16 holds exactly.
    fn linear(x: &[f64], p: usize, q: usize) -> Vec<f64> {
        let weight = |i: usize, j: usize| ((i * 3 + j * 5) % 11) as f64 / 8.0 - 0.5;
        x.chunks_exact(p)
            .flat_map(|row| {
                (0..q).map(move |j| {
                    let sum: f64 = row.iter().enumerate().map(|(i, x)| x * weight(i, j)).sum();
                    sum + 100.0 * j as f64
                })
            })
            .collect()
    }

    fn moments(rows: usize, seed: u64, p: usize, q: usize) -> Moments {
        let x: Vec<f64> = noise(rows * p, seed)
            .iter()
            .map(|x| x * 4.0 + 7.0)
            .collect();
        let mut moments = Moments::new(p, q);
        for (x, y) in x.chunks(p * 10).zip(linear(&x, p, q).chunks(q * 10)) {
            moments.add(x, y).unwrap();
        }
        moments
    }

    #[test]
    fn a_linear_relation_is_found_exactly() {
        let (p, q) = (12, 5);
        let affine = fit(&moments(400, 1, p, q), 1e-9).unwrap();
        for i in 0..p {
            for j in 0..q {
                let truth = ((i * 3 + j * 5) % 11) as f32 / 8.0 - 0.5;
                assert!((affine.weight[i * q + j] - truth).abs() < 1e-6);
            }
        }
        assert!(affine.r2(&moments(100, 2, p, q)) > 0.999_999_999);
        let x = noise(3 * p, 9);
        let narrow: Vec<f32> = x.iter().map(|x| *x as f32).collect();
        let mut y = vec![0.0; 3 * q];
        affine.apply(&narrow, 1.0, &mut y).unwrap();
        for (found, truth) in y.iter().zip(linear(&x, p, q)) {
            assert!(
                (f64::from(*found) - truth).abs() < 1e-3,
                "{found} against {truth}"
            );
        }
    }

    #[test]
    fn r2_is_one_minus_the_squared_error() {
        let (p, q, rows) = (4, 2, 60);
        let x = noise(rows * p, 3);
        let y = noise(rows * q, 4);
        let mut data = Moments::new(p, q);
        data.add(&x, &y).unwrap();
        let affine = fit(&moments(50, 5, p, q), 1e-2).unwrap();
        let (mut error, mut total) = (0.0, 0.0);
        for (x, y) in x.chunks(p).zip(y.chunks(q)) {
            for (j, y) in y.iter().enumerate() {
                let weights = (0..p).map(|i| x[i] * f64::from(affine.weight[i * q + j]));
                let predicted = f64::from(affine.bias[j]) + weights.sum::<f64>();
                error += (y - predicted).powi(2);
            }
        }
        for j in 0..q {
            let mean = y.chunks(q).map(|y| y[j]).sum::<f64>() / rows as f64;
            total += y.chunks(q).map(|y| (y[j] - mean).powi(2)).sum::<f64>();
        }
        let direct = 1.0 - error / total;
        assert!(
            (affine.r2(&data) - direct).abs() < 1e-6 * direct.abs(),
            "{direct}"
        );
    }

    #[test]
    fn gain_stretches_about_the_mean() {
        let (p, q) = (3, 2);
        let affine = fit(&moments(200, 6, p, q), 1e-6).unwrap();
        let x = [5.0_f32, 8.0, 6.5];
        let (mut plain, mut stretched) = (vec![0.0; q], vec![0.0; q]);
        affine.apply(&x, 1.0, &mut plain).unwrap();
        affine.apply(&x, 1.5, &mut stretched).unwrap();
        for j in 0..q {
            let expected = affine.mean[j] + 1.5 * (plain[j] - affine.mean[j]);
            assert!((stretched[j] - expected).abs() < 1e-4);
        }
    }

    #[test]
    fn regularisation_is_chosen_on_other_data() {
        // Pure noise, fewer rows than would be needed: only strong shrinkage avoids harm.
        let (p, q) = (30, 1);
        let mut few = Moments::new(p, q);
        few.add(&noise(40 * p, 7), &noise(40, 8)).unwrap();
        let mut other = Moments::new(p, q);
        other.add(&noise(200 * p, 17), &noise(200, 18)).unwrap();
        assert_eq!(select_lambda(&few, &other, LAMBDA_GRID).unwrap(), 1.0);
        // An exact relation needs none.
        let exact = moments(400, 1, p, q);
        assert_eq!(
            select_lambda(&exact, &moments(90, 2, p, q), &[1e-9, 1.0]).unwrap(),
            1e-9
        );
        assert!(select_lambda(&exact, &Moments::new(p, q), LAMBDA_GRID).is_err());
        assert!(select_lambda(&exact, &exact, &[]).is_err());
    }

    #[test]
    fn degenerate_data_gives_the_mean_or_an_error() {
        assert!(matches!(
            fit(&Moments::new(2, 1), 1e-3),
            Err(AlignError::TooLittleData { .. })
        ));
        let mut constant = Moments::new(2, 1);
        constant.add(&[0.0, 0.0, 0.0, 0.0], &[4.0, 6.0]).unwrap();
        let affine = fit(&constant, 1e-3).unwrap();
        assert_eq!((affine.bias[0], affine.r2(&constant)), (5.0, 0.0));
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(
                fit(&constant, bad),
                Err(AlignError::Parameter { .. })
            ));
        }
    }
}
