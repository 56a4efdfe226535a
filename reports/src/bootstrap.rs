//! Bootstrap intervals over clusters.
//!
//! Questions about one document are not independent, so whole documents are
//! drawn (with replacement), not single questions: the cluster bootstrap of
//! Davison and Hinkley 1997, percentile interval.

use rand::Rng as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// Resamples per interval.
pub const RESAMPLES: usize = 2000;

/// Every interval starts from this seed: with the same documents, two systems
/// are resampled alike.
const SEED: u64 = 0x5eed_0b00_7575_a901;

/// Sum and count of the values of one cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cluster {
    /// Sum of its values.
    pub sum: f64,
    /// How many there are.
    pub count: usize,
}

/// 95% interval of the mean over all values, or `None` with fewer than two
/// clusters, where nothing can be resampled.
#[must_use]
pub fn interval(clusters: &[Cluster]) -> Option<(f64, f64)> {
    let of = |cluster: &Cluster| (cluster.sum, cluster.count as f64);
    let clusters = clusters.iter().filter(|c| c.count > 0).map(of);
    ratio_interval(&clusters.collect::<Vec<_>>())
}

/// 95% interval of a ratio of sums, one pair of summands a cluster: whole clusters are drawn, so
/// that numerator and denominator of a resample are over the same ones. `None` with fewer than two
/// clusters. A denominator that may be 0 makes the interval meaningless; the caller rules it out.
#[must_use]
pub fn ratio_interval(clusters: &[(f64, f64)]) -> Option<(f64, f64)> {
    if clusters.len() < 2 {
        return None;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let mut ratios = Vec::with_capacity(RESAMPLES);
    for _ in 0..RESAMPLES {
        let (mut above, mut below) = (0.0, 0.0);
        for _ in 0..clusters.len() {
            // High bits of a product: unbiased to 2^-64, and the same in every
            // version of the generator's crate.
            let index = (u128::from(rng.next_u64()) * clusters.len() as u128) >> 64;
            let (one, other) = clusters[index as usize];
            above += one;
            below += other;
        }
        ratios.push(above / below);
    }
    ratios.sort_by(f64::total_cmp);
    Some((percentile(&ratios, 0.025), percentile(&ratios, 0.975)))
}

/// Mean over all values, `None` when there are none.
#[must_use]
pub fn mean(clusters: &[Cluster]) -> Option<f64> {
    let count: usize = clusters.iter().map(|c| c.count).sum();
    let sum: f64 = clusters.iter().map(|c| c.sum).sum();
    (count > 0).then(|| sum / count as f64)
}

/// Linear interpolation between the two nearest ranks of a sorted, non-empty
/// list, as Polars' `Linear` does.
fn percentile(sorted: &[f64], quantile: f64) -> f64 {
    let rank = quantile * (sorted.len() - 1) as f64;
    let below = rank.floor() as usize;
    let above = rank.ceil() as usize;
    sorted[below] + (sorted[above] - sorted[below]) * (rank - below as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn single(values: &[f64]) -> Vec<Cluster> {
        values
            .iter()
            .map(|&sum| Cluster { sum, count: 1 })
            .collect()
    }

    #[test]
    fn percentiles_by_hand() {
        let sorted = [1.0, 2.0, 4.0, 8.0];
        assert_eq!(percentile(&sorted, 0.0), 1.0);
        assert_eq!(percentile(&sorted, 0.5), 3.0);
        assert_eq!(percentile(&sorted, 1.0), 8.0);
        // Rank 0.75 * 3 = 2.25: 4 + 0.25 * 4.
        assert_eq!(percentile(&sorted, 0.75), 5.0);
        assert_eq!(percentile(&[7.0], 0.3), 7.0);
    }

    #[test]
    fn a_two_cluster_interval_by_hand() {
        // Two clusters of 0 and 1: a resample's mean is 0, 1/2 or 1 with
        // probabilities 1/4, 1/2, 1/4, so the interval must be all of [0, 1].
        assert_eq!(interval(&single(&[0.0, 1.0])), Some((0.0, 1.0)));
        // Equal values leave nothing to vary.
        assert_eq!(interval(&single(&[0.5, 0.5, 0.5])), Some((0.5, 0.5)));
    }

    #[test]
    fn the_interval_is_near_the_normal_one() {
        // 400 values, half 0 and half 1: mean 0.5, standard error 0.025.
        let values: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let (low, high) = interval(&single(&values)).unwrap();
        assert!((low - 0.451).abs() < 0.006, "{low}");
        assert!((high - 0.549).abs() < 0.006, "{high}");
    }

    #[test]
    fn clustering_widens_the_interval() {
        let grouped: Vec<Cluster> = (0..20)
            .map(|i| Cluster {
                sum: f64::from(i % 2) * 10.0,
                count: 10,
            })
            .collect();
        let alone: Vec<f64> = (0..200).map(|i| f64::from(i % 2)).collect();
        let width = |(low, high): (f64, f64)| high - low;
        assert_eq!(mean(&grouped), mean(&single(&alone)));
        assert!(
            width(interval(&grouped).unwrap()) > 2.0 * width(interval(&single(&alone)).unwrap())
        );
    }

    #[test]
    fn a_ratio_is_of_the_sums_of_one_resample() {
        // Each cluster has its own ratio of 1/2, whatever it weighs: so has every resample.
        assert_eq!(
            ratio_interval(&[(1.0, 2.0), (4.0, 8.0), (0.5, 1.0)]),
            Some((0.5, 0.5))
        );
        // 1/1, 1/4 and, of both, 2/5.
        assert_eq!(ratio_interval(&[(1.0, 1.0), (1.0, 4.0)]), Some((0.25, 1.0)));
        assert_eq!(ratio_interval(&[(1.0, 2.0)]), None);
    }

    #[test]
    fn too_little_gives_no_interval() {
        assert_eq!(interval(&[]), None);
        assert_eq!(interval(&single(&[1.0])), None);
        let one_empty = [
            Cluster { sum: 3.0, count: 4 },
            Cluster { sum: 0.0, count: 0 },
        ];
        assert_eq!(interval(&one_empty), None);
        assert_eq!(mean(&one_empty), Some(0.75));
        assert_eq!(mean(&[]), None);
    }
}
