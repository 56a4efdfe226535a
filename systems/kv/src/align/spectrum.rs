//! The leading eigenvectors of a covariance.

use faer::{Mat, Side};

use super::AlignError;

/// Up to this order a matrix is decomposed whole.
const WHOLE: usize = 1024;

/// Directions beyond those asked for that the iteration carries along.
const SPARE: usize = 32;

/// Rounds of the iteration. The gap that matters is to the last spare direction, so few do.
const ROUNDS: usize = 6;

/// The eigenvectors of the `count` largest eigenvalues of a symmetric matrix `[n, n]`, as the
/// columns of `[n, count]`, largest first. Large matrices of which few are wanted go through
/// block power iteration with a Rayleigh-Ritz step (Halko et al. 2011) from fixed noise, so that
/// the result is always the same.
///
/// # Errors
/// [`AlignError::NotFinite`] when the decomposition does not converge.
pub(super) fn top_eigenvectors(matrix: &Mat<f64>, count: usize) -> Result<Mat<f64>, AlignError> {
    let n = matrix.nrows();
    if n <= WHOLE || 2 * (count + SPARE) >= n {
        return whole(matrix, count);
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Mat::from_fn(n, count + SPARE, |_, _| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as f64 / (1_u64 << 31) as f64 - 0.5
    });
    for _ in 0..ROUNDS {
        block = (matrix * &block).qr().compute_thin_Q();
    }
    let within = block.transpose() * (matrix * &block);
    Ok(&block * whole(&within, count)?)
}

fn whole(matrix: &Mat<f64>, count: usize) -> Result<Mat<f64>, AlignError> {
    let n = matrix.nrows();
    // Products of different order leave the last bits unequal on both sides of the diagonal.
    let symmetric = Mat::from_fn(n, n, |i, j| (matrix[(i, j)] + matrix[(j, i)]) / 2.0);
    let unfit = || AlignError::NotFinite {
        what: "covariances of fitted outputs".to_owned(),
    };
    if (0..n).any(|j| (0..n).any(|i| !symmetric[(i, j)].is_finite())) {
        return Err(unfit());
    }
    let decomposed = symmetric
        .self_adjoint_eigen(Side::Lower)
        .map_err(|_| unfit())?;
    let ascending = decomposed.U();
    Ok(Mat::from_fn(n, count, |i, j| ascending[(i, n - 1 - j)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `Q diag(values) Qᵀ` with a Householder reflection for `Q`.
    fn with_values(values: &[f64]) -> (Mat<f64>, Mat<f64>) {
        let n = values.len();
        let length: f64 = (0..n).map(|i| ((i % 5) as f64 - 1.5).powi(2)).sum();
        let at = |i: usize| (i % 5) as f64 - 1.5;
        let q = Mat::from_fn(n, n, |i, j| {
            f64::from(u8::from(i == j)) - 2.0 * at(i) * at(j) / length
        });
        let scaled = Mat::from_fn(n, n, |i, j| q[(i, j)] * values[j]);
        (&scaled * q.transpose(), q)
    }

    #[test]
    fn both_ways_find_the_leading_directions() {
        // Above the border, so that the iteration runs; the whole decomposition is the reference.
        let n = WHOLE + 76;
        let values: Vec<f64> = (0..n).map(|i| 100.0 * 0.97_f64.powi(i as i32)).collect();
        let (matrix, q) = with_values(&values);
        let found = top_eigenvectors(&matrix, 20).unwrap();
        for j in 0..20 {
            let dot: f64 = (0..n).map(|i| found[(i, j)] * q[(i, j)]).sum();
            assert!(dot.abs() > 0.999_9, "direction {j}: {dot}");
        }
        let small = with_values(&[3.0, 7.0, 1.0, 0.0]);
        let found = top_eigenvectors(&small.0, 2).unwrap();
        for (j, column) in [1, 0].into_iter().enumerate() {
            let dot: f64 = (0..4).map(|i| found[(i, j)] * small.1[(i, column)]).sum();
            assert!((dot.abs() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn no_number_is_an_error() {
        let matrix = Mat::from_fn(2, 2, |_, _| f64::NAN);
        assert!(top_eigenvectors(&matrix, 1).is_err());
    }
}
