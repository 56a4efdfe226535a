//! Centred ridge regression in closed form, from moments (mapping of arXiv 2608.03893).

use faer::linalg::solvers::Solve;
use faer::{Mat, Side};

use super::affine::Solution;
use super::moments::Centred;
use super::{Affine, AlignError, Moments, Storage};

/// Values of lambda to choose from, relative to the mean diagonal of the centred `XᵀX`.
pub const LAMBDA_GRID: &[f64] = &[1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0];

/// Solves `W = (XᵀX + λD)⁻¹ XᵀY` on centred moments by Cholesky, for runs of target columns that
/// may differ in lambda; equations of one lambda are factored once. `blocks` are the widths of
/// runs of source channels, and `D` is the mean diagonal of each run's part of `XᵀX`, so that
/// sources of small variance are not shrunk more than those of a large one.
///
/// # Errors
/// [`AlignError::Parameter`] for a lambda that is not positive, [`AlignError::Singular`] if there
/// is no stable solution.
pub(super) fn solve(
    centred: &Centred,
    blocks: &[usize],
    targets: &[(std::ops::Range<usize>, f64)],
) -> Result<Vec<Mat<f64>>, AlignError> {
    let p = centred.mean_x.len();
    let mean_diagonal = |run: std::ops::Range<usize>| {
        let width = run.len().max(1) as f64;
        run.map(|i| centred.xtx[(i, i)]).sum::<f64>() / width
    };
    let overall = mean_diagonal(0..p);
    let mut penalty = Vec::with_capacity(p);
    for width in blocks {
        let own = mean_diagonal(penalty.len()..penalty.len() + width);
        // A source that never varies must not make the equations singular.
        let own = if own > 0.0 { own } else { overall };
        penalty.resize(penalty.len() + width, own);
    }
    debug_assert_eq!(penalty.len(), p, "the blocks are all source channels");
    let mut solutions: Vec<Option<Mat<f64>>> = vec![None; targets.len()];
    while let Some(open) = solutions.iter().position(Option::is_none) {
        let lambda = targets[open].1;
        check_lambda(lambda)?;
        if overall <= 0.0 {
            // A source that never varies explains nothing: predict the mean.
            solutions[open] = Some(Mat::zeros(p, targets[open].0.len()));
            continue;
        }
        let mut regularised = centred.xtx.clone();
        for (i, penalty) in penalty.iter().enumerate() {
            regularised[(i, i)] += lambda * penalty;
        }
        let factored = regularised.llt(Side::Lower);
        drop(regularised);
        let factored = factored.map_err(|_| AlignError::Singular { lambda })?;
        for ((columns, other), solution) in targets.iter().zip(&mut solutions) {
            if solution.is_none() && other.to_bits() == lambda.to_bits() {
                let right = centred.xty.subcols(columns.start, columns.len());
                *solution = Some(factored.solve(right));
            }
        }
    }
    Ok(solutions.into_iter().flatten().collect())
}

fn check_lambda(lambda: f64) -> Result<(), AlignError> {
    if lambda > 0.0 && lambda.is_finite() {
        return Ok(());
    }
    let allowed = "a positive number";
    Err(AlignError::Parameter {
        name: "lambda",
        value: lambda,
        allowed,
    })
}

/// Solves for one map of all source to all target channels, `bias = ȳ − x̄ W`, with weights in
/// fp16.
///
/// `lambda` is relative to the mean diagonal of the centred `XᵀX`. The weights are rounded
/// before the bias is computed, so what is scored is what a bridge file holds.
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
    let centred = moments.centred();
    let all = 0..moments.target_width();
    let mut solutions = solve(&centred, &[moments.source_width()], &[(all, lambda)])?;
    let solution = Solution::Dense(solutions.swap_remove(0));
    Affine::new(&solution, &centred.mean_x, &centred.mean_y, Storage::F16)
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

    fn weight(affine: &Affine) -> &[f32] {
        match affine.weights() {
            crate::align::Weights::Dense(weight) => weight.numbers(),
            crate::align::Weights::Factored { .. } => &[],
        }
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
                assert!((weight(&affine)[i * q + j] - truth).abs() < 1e-6);
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
                let weights = (0..p).map(|i| x[i] * f64::from(weight(&affine)[i * q + j]));
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
    fn the_cosine_is_that_of_predictions_and_targets() {
        let (p, q, rows) = (4, 2, 60);
        let (x, y) = (noise(rows * p, 3), noise(rows * q, 4));
        let mut data = Moments::new(p, q);
        data.add(&x, &y).unwrap();
        let affine = fit(&data, 1e-6).unwrap();
        let narrow: Vec<f32> = x.iter().map(|x| *x as f32).collect();
        let mut found = vec![0.0; rows * q];
        affine.apply(&narrow, 1.0, &mut found).unwrap();
        let (mut cross, mut left, mut right) = (0.0, 0.0, 0.0);
        for j in 0..q {
            let column = |t: usize| (f64::from(found[t * q + j]), y[t * q + j]);
            let mean = |pick: fn((f64, f64)) -> f64| {
                (0..rows).map(|t| pick(column(t))).sum::<f64>() / rows as f64
            };
            let (mean_found, mean_y) = (mean(|pair| pair.0), mean(|pair| pair.1));
            for t in 0..rows {
                let (found, y) = column(t);
                let (found, y) = (found - mean_found, y - mean_y);
                cross += found * y;
                left += found * found;
                right += y * y;
            }
        }
        let direct = cross / (left * right).sqrt();
        assert!((affine.cosine(&data) - direct).abs() < 1e-4, "{direct}");
        assert!(direct > 0.05, "a fit of noise explains some of it");
        let exact = moments(400, 1, p, q);
        assert!(fit(&exact, 1e-9).unwrap().cosine(&exact) > 0.999_999);
    }

    /// With one penalty for all, a source of a millionth of the variance would be shrunk to
    /// nothing.
    #[test]
    fn sources_of_small_variance_are_not_shrunk_more() {
        let (rows, scale) = (200, 1e-3);
        let (large, small) = (noise(rows, 1), noise(rows, 2));
        let x: Vec<f64> = large
            .iter()
            .zip(&small)
            .flat_map(|(large, small)| [*large, small * scale])
            .collect();
        let mut data = Moments::new(2, 1);
        data.add(&x, &small).unwrap();
        let solution =
            |blocks: &[usize]| solve(&data.centred(), blocks, &[(0..1, 1e-3)]).unwrap()[0][(1, 0)];
        assert!((solution(&[1, 1]) * scale - 1.0).abs() < 0.01);
        assert!(solution(&[2]) * scale < 0.01);
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
