//! How alike two models' layers are, measured on calibration text.

use faer::Mat;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatRef, Par};
use serde::{Deserialize, Serialize};

use super::bridge::check_end;
use super::slot::gather;
use super::{AlignError, BridgeEnd, KvSide, Moments, Slot, ridge};
use crate::block::KvBlock;

/// Tokens whose rows are widened to f64 at a time.
const BLOCK_ROWS: usize = 256;

/// Relative regularisation of the single-layer maps that layers are compared by: layers are
/// ranked under the same one, and far more tokens than channels are read.
const LAMBDA: f64 = 1e-3;

/// Of every so many contexts one is held out.
const HOLD_OUT: u64 = 5;

/// Scores of every source layer for every target layer, `[num_target_layers][num_source_layers]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scores {
    /// Of the keys, pre-RoPE.
    pub k: Vec<Vec<f64>>,
    /// Of the values.
    pub v: Vec<Vec<f64>>,
}

impl Scores {
    /// The mean of keys and values.
    #[must_use]
    pub fn combined(&self) -> Vec<Vec<f64>> {
        let row = |(k, v): (&Vec<f64>, &Vec<f64>)| {
            let pairs = k.iter().zip(v);
            pairs.map(|(k, v)| f64::midpoint(*k, *v)).collect()
        };
        self.k.iter().zip(&self.v).map(row).collect()
    }

    /// For every target layer its `count` best source layers by [`Self::combined`], best first;
    /// the lower one on a tie, all where there are fewer.
    #[must_use]
    pub fn best(&self, count: usize) -> Vec<Vec<usize>> {
        let best = |scores: Vec<f64>| {
            let mut layers: Vec<usize> = (0..scores.len()).collect();
            layers.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
            layers.truncate(count);
            layers
        };
        self.combined().into_iter().map(best).collect()
    }

    fn fits(&self, num_source_layers: usize, num_target_layers: usize) -> bool {
        [&self.k, &self.v].into_iter().all(|side| {
            side.len() == num_target_layers && side.iter().all(|row| row.len() == num_source_layers)
        })
    }
}

/// Every measure of every pair of layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Similarity {
    /// Linear centred kernel alignment, 0 to 1 (Kornblith et al., arXiv 1905.00414).
    pub cka: Scores,
    /// Cosine between the output of the best linear map and the target on held-out contexts.
    pub cosine: Scores,
    /// R² of the best linear map on held-out contexts; at most 1.
    pub r2: Scores,
    /// Tokens that CKA and the maps were computed on.
    pub fit_tokens: u64,
    /// Tokens that the other two were computed on.
    pub held_out_tokens: u64,
}

impl Similarity {
    /// The layer map of the `sources` best source layers by one measure.
    ///
    /// # Errors
    /// [`AlignError::Similarity`] when it is of other numbers of layers.
    pub(super) fn layer_map(
        alignment: &'static str,
        similarity: Option<&Self>,
        measure: impl Fn(&Self) -> &Scores,
        sources: usize,
        layers: (usize, usize),
    ) -> Result<Vec<Vec<usize>>, AlignError> {
        super::check_sources(sources)?;
        let (num_source_layers, num_target_layers) = layers;
        if num_source_layers == 0 || num_target_layers == 0 {
            return Err(AlignError::LayerCounts {
                alignment,
                num_source_layers,
                num_target_layers,
            });
        }
        let unfit = |reason| Err(AlignError::Similarity { alignment, reason });
        let Some(similarity) = similarity else {
            return unfit("none was given".to_owned());
        };
        let scores = measure(similarity);
        if !scores.fits(num_source_layers, num_target_layers) {
            return unfit(format!(
                "it is not one of {num_source_layers} source and {num_target_layers} target layers"
            ));
        }
        Ok(scores.best(sources))
    }
}

/// Accumulates moments of pairs of layers over contexts.
///
/// Memory is `p²` f64 numbers for each source layer, `q²` for each target layer and `p·q` for each
/// pair of layers, for keys and for values, and in two splits: 0.77 GB between 28 x 256 and
/// 24 x 128 channels. No matrix spans two layers of one model.
#[derive(Debug)]
pub struct SimilarityFitter {
    source: BridgeEnd,
    target: BridgeEnd,
    skip_tokens: usize,
    contexts: u64,
    /// Fitted on, held out.
    splits: [Vec<SideSums>; 2],
}

/// One side of all layers. What [`Moments`] of a pair consists of, with the parts that pairs
/// share held once.
#[derive(Debug)]
struct SideSums {
    source: Vec<Moments>,
    target: Vec<Moments>,
    /// Σ xᵀy, `[target][source]`.
    cross: Vec<Vec<Mat<f64>>>,
}

impl SimilarityFitter {
    /// Prepares to compare all layers of two models; tokens at absolute positions below
    /// `skip_tokens` are left out, as for a [`BridgeFitter`](super::BridgeFitter).
    ///
    /// # Errors
    /// [`AlignError::Kv`] for a malformed shape.
    pub fn new(
        source: BridgeEnd,
        target: BridgeEnd,
        skip_tokens: usize,
    ) -> Result<Self, AlignError> {
        source.shape.validate(1)?;
        target.shape.validate(1)?;
        let (p, q) = (source.shape.width(), target.shape.width());
        let (num_source, num_target) = (source.shape.num_layers, target.shape.num_layers);
        let empty = |_| SideSums {
            source: vec![Moments::new(p, 1); num_source],
            target: vec![Moments::new(q, 1); num_target],
            cross: vec![vec![Mat::zeros(p, q); num_source]; num_target],
        };
        let splits = [(); 2].map(|()| KvSide::ALL.into_iter().map(empty).collect());
        Ok(Self {
            source,
            target,
            skip_tokens,
            contexts: 0,
            splits,
        })
    }

    /// Adds one context, both blocks pre-RoPE at the same positions with all layers. Of every
    /// five contexts the third is held out.
    ///
    /// # Errors
    /// [`AlignError::Block`] when a block does not suit, [`AlignError::NotFinite`] for a NaN or
    /// an infinity. Give the fitter up then: a part of the context may have been added.
    pub fn add(&mut self, source: &KvBlock, target: &KvBlock) -> Result<(), AlignError> {
        check_end("source", &self.source, source)?;
        check_end("target", &self.target, target)?;
        if source.positions() != target.positions() {
            return Err(AlignError::Block {
                end: "target",
                expected: format!("positions {:?}", source.positions()),
                found: format!("positions {:?}", target.positions()),
            });
        }
        let held_out = self.contexts % HOLD_OUT == 2;
        let sides = &mut self.splits[usize::from(held_out)];
        let seq_len = source.num_tokens();
        let first = self.skip_tokens.saturating_sub(source.positions().start);
        for (side, sums) in KvSide::ALL.into_iter().zip(sides) {
            for start in (first..seq_len).step_by(BLOCK_ROWS) {
                let tokens = start..(start + BLOCK_ROWS).min(seq_len);
                let rows = |name, end: &BridgeEnd, block| -> Result<Vec<Vec<f64>>, AlignError> {
                    let mut buffer = Vec::new();
                    let layer = |layer| {
                        let slots: Vec<Slot> = Slot::heads(end.shape, layer, side).collect();
                        gather(name, block, &slots, tokens.clone(), &mut buffer)?;
                        Ok(buffer.iter().map(|number| f64::from(*number)).collect())
                    };
                    (0..end.shape.num_layers).map(layer).collect()
                };
                let from = rows("source", &self.source, source)?;
                let to = rows("target", &self.target, target)?;
                sums.add(&from, &to, tokens.len())?;
            }
        }
        self.contexts += 1;
        Ok(())
    }

    /// Tokens fitted on, and held out, those left out not counted.
    #[must_use]
    pub fn tokens(&self) -> [u64; 2] {
        let of = |sides: &Vec<SideSums>| sides[0].source[0].count();
        [of(&self.splits[0]), of(&self.splits[1])]
    }

    /// Compares all layers.
    ///
    /// # Errors
    /// [`AlignError::TooLittleData`] with fewer than three contexts, otherwise as for
    /// [`ridge::fit`].
    pub fn finish(self) -> Result<Similarity, AlignError> {
        let [fit_tokens, held_out_tokens] = self.tokens();
        for (what, found) in [
            ("tokens to compare layers on", fit_tokens),
            (
                "held-out tokens (of the third context of five)",
                held_out_tokens,
            ),
        ] {
            if found == 0 {
                let needed = 1;
                return Err(AlignError::TooLittleData {
                    what,
                    found,
                    needed,
                });
            }
        }
        let empty = || Scores {
            k: Vec::new(),
            v: Vec::new(),
        };
        let (mut cka, mut cosine, mut r2) = (empty(), empty(), empty());
        let [fit, held_out] = &self.splits;
        for (index, (fit, held_out)) in fit.iter().zip(held_out).enumerate() {
            let scores = [&mut cka, &mut cosine, &mut r2];
            let [cka, cosine, r2] = scores.map(|scores| match KvSide::ALL[index] {
                KvSide::K => &mut scores.k,
                KvSide::V => &mut scores.v,
            });
            for target in 0..self.target.shape.num_layers {
                let mut row = [const { Vec::new() }; 3];
                for source in 0..self.source.shape.num_layers {
                    let (own, other) = (fit.pair(target, source), held_out.pair(target, source));
                    let map = ridge::fit(&own, LAMBDA)?;
                    row[0].push(fit.cka(target, source));
                    row[1].push(map.cosine(&other));
                    row[2].push(map.r2(&other));
                }
                let [of_cka, of_cosine, of_r2] = row;
                cka.push(of_cka);
                cosine.push(of_cosine);
                r2.push(of_r2);
            }
        }
        Ok(Similarity {
            cka,
            cosine,
            r2,
            fit_tokens,
            held_out_tokens,
        })
    }
}

impl SideSums {
    fn add(&mut self, from: &[Vec<f64>], to: &[Vec<f64>], n: usize) -> Result<(), AlignError> {
        let nothing = vec![0.0; n];
        for (sums, rows) in self.source.iter_mut().zip(from) {
            sums.add(rows, &nothing)?;
        }
        for (sums, rows) in self.target.iter_mut().zip(to) {
            sums.add(rows, &nothing)?;
        }
        for (cross, to) in self.cross.iter_mut().zip(to) {
            let to = MatRef::from_row_major_slice(to, n, to.len() / n);
            for (cross, from) in cross.iter_mut().zip(from) {
                let from = MatRef::from_row_major_slice(from, n, from.len() / n);
                matmul(cross, Accum::Add, from.transpose(), to, 1.0, Par::Seq);
            }
        }
        Ok(())
    }

    fn pair(&self, target: usize, source: usize) -> Moments {
        let cross = self.cross[target][source].clone();
        Moments::paired(&self.source[source], &self.target[target], cross)
    }

    /// `‖XᵀY‖² / (‖XᵀX‖ ‖YᵀY‖)` about the means, in Frobenius norms; 0 where a side does not vary.
    fn cka(&self, target: usize, source: usize) -> f64 {
        let cross = self.pair(target, source).centred().xty;
        let own = |moments: &Moments| moments.centred().xtx.norm_l2();
        let lengths = own(&self.source[source]) * own(&self.target[target]);
        if lengths > 0.0 {
            cross.norm_l2().powi(2) / lengths
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fitter::tests::{ends, source_block, target_block};
    use super::*;

    fn measured() -> Similarity {
        let (source, target) = ends();
        let mut fitter = SimilarityFitter::new(source, target, 4).unwrap();
        for context in 0..10 {
            let source = source_block(40, context);
            fitter.add(&source, &target_block(&source)).unwrap();
        }
        assert_eq!(fitter.tokens(), [8 * 36, 2 * 36]);
        fitter.finish().unwrap()
    }

    /// Target layers 0 and 1 are linear in source layers 0 and 2, which are independent noise.
    #[test]
    fn every_measure_finds_the_layers_that_are_related() {
        let similarity = measured();
        let measures = [&similarity.cka, &similarity.cosine, &similarity.r2];
        for (name, scores) in ["cka", "cosine", "r2"].into_iter().zip(measures) {
            assert_eq!(scores.best(1), [[0], [2]], "{name}");
            for side in [&scores.k, &scores.v] {
                for (row, own) in side.iter().zip([0, 2]) {
                    for (layer, score) in row.iter().enumerate() {
                        let least = if name == "cka" { 0.5 } else { 0.99 };
                        assert_eq!(*score > least, layer == own, "{name}: {side:?}");
                    }
                }
            }
        }
        assert_eq!(similarity.r2.best(9)[0].len(), 3);
        let json = serde_json::to_string(&similarity).unwrap();
        let read: Similarity = serde_json::from_str(&json).unwrap();
        assert_eq!(read.r2.best(2), similarity.r2.best(2));
    }

    /// The definition, on the rows themselves.
    #[test]
    fn cka_is_that_of_the_centred_rows() {
        let (source, target) = ends();
        let mut fitter = SimilarityFitter::new(source, target, 0).unwrap();
        let from = source_block(30, 1);
        let to = target_block(&from);
        for _ in 0..3 {
            fitter.add(&from, &to).unwrap();
        }
        let found = fitter.finish().unwrap().cka.v[1][0];
        let rows = |block: &KvBlock, end: &BridgeEnd, layer| {
            let slots: Vec<Slot> = Slot::heads(end.shape, layer, KvSide::V).collect();
            let mut rows = Vec::new();
            gather("source", block, &slots, 0..30, &mut rows).unwrap();
            let width = end.shape.width();
            let mean = |c: usize| {
                let column = (0..30).map(|t| f64::from(rows[t * width + c]));
                column.sum::<f64>() / 30.0
            };
            Mat::from_fn(30, width, |t, c| f64::from(rows[t * width + c]) - mean(c))
        };
        let (x, y) = (rows(&from, &source, 0), rows(&to, &target, 1));
        let product = |a: &Mat<f64>, b: &Mat<f64>| (a.transpose() * b).norm_l2();
        let direct = product(&x, &y).powi(2) / (product(&x, &x) * product(&y, &y));
        assert!((found - direct).abs() < 1e-9, "{found} {direct}");
    }

    #[test]
    fn too_little_text_and_other_blocks_are_refused() {
        let (source, target) = ends();
        let mut fitter = SimilarityFitter::new(source, target, 4).unwrap();
        let from = source_block(10, 1);
        let to = target_block(&from);
        assert!(fitter.add(&to, &from).is_err());
        let shorter = to.slice_tokens(0..9).unwrap();
        assert!(matches!(
            fitter.add(&from, &shorter),
            Err(AlignError::Block { end: "target", .. })
        ));
        fitter.add(&from, &to).unwrap();
        assert!(matches!(
            fitter.finish(),
            Err(AlignError::TooLittleData { .. })
        ));
    }
}
